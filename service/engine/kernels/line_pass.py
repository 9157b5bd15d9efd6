"""The rows of a forward pass over several lines, between which every tensor is linear, and the insertion of others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from service.domain import Floats, Indices


@dataclass(slots=True)
class LinePass:
    """A pass over lines so far: row r lies on line `line[r]` at `alpha[r]`.

    `values` holds every tensor that is still needed, each [rows, ...], `constants` all else, by node. `overflowed`
    [lines] says which lines were dropped, since they have more pieces than their `max_pieces` [lines].
    """

    line: Indices
    alpha: Floats
    overflowed: NDArray[np.bool_]
    max_pieces: Indices
    values: dict[fx.Node, Tensor]
    constants: dict[fx.Node, Any]

    def of(self, argument: Any) -> Any:
        """The tensor or the constant that a node stands for, and any other argument as it is."""
        if argument in self.values:
            return self.values[argument]
        return self.constants[argument] if isinstance(argument, fx.Node) else argument

    def split(self, thresholds: Tensor) -> None:
        """Inserts a row wherever a column of `thresholds` [rows, neurons] changes its sign between two neighbours."""
        width = prod(thresholds.shape[1:])
        values = thresholds.numpy().reshape(len(self.line), width)
        (crossings,) = (values[:-1] * values[1:] < 0).ravel().nonzero()
        row = crossings // width
        if self.max_pieces.size > 1:  # the end of a line and the start of the next are no neighbours
            within = self.line[row] == self.line[row + 1]
            crossings, row = crossings[within], row[within]
        if row.size:
            flat = values.reshape(-1)
            start, end = flat[crossings], flat[crossings + width]
            self.cut(row, start / (start - end))

    def cut(self, row: Indices, share: NDArray[np.floating]) -> None:
        """Inserts rows behind row[i], at the share[i] of the way to the next one of the same line.

        Lines that would have too many are dropped first: there is no room for them.
        """
        order = (row + np.fmin(share, 1 - 1e-9, dtype=np.float64)).argsort(kind="stable")
        row, share = row[order], share[order]
        over = self._overflowing(row)
        if over is not None:
            fits = ~over[self.line[row]]
            row, share = row[fits], share[fits]
            row = (np.cumsum(~over[self.line]) - 1)[row]
            self._drop(over)
        self._insert(row, share)

    def _overflowing(self, row: Indices) -> NDArray[np.bool_] | None:
        """Which lines [lines] a row behind each of `row` would give too many pieces; None where none has."""
        if len(self.line) + len(row) <= self.max_pieces.min():  # all of them together are not too many
            return None
        lines = len(self.max_pieces)
        counts = np.bincount(self.line, minlength=lines) + np.bincount(self.line[row], minlength=lines)
        over: NDArray[np.bool_] = counts - 1 > self.max_pieces
        return over if over.any() else None

    def _insert(self, row: Indices, share: NDArray[np.floating]) -> None:
        """Inserts a row of every tensor behind row[i], at the share[i] of the way to the next."""
        new, following = row + np.arange(1, len(row) + 1), row + 1
        is_new = np.zeros(len(self.line) + len(row), dtype=bool)
        is_new[new] = True
        source = np.arange(len(is_new)) - is_new.cumsum()  # itself, or the one it comes behind

        def widened(values: NDArray[Any]) -> NDArray[Any]:
            before = values.take(row, axis=0)
            weight = share.astype(values.dtype, copy=False).reshape(-1, *[1] * (values.ndim - 1))
            result: NDArray[Any] = values.take(source, axis=0)
            result[new] = before + weight * (values.take(following, axis=0) - before)
            return result

        self.line, self.alpha = self.line.take(source), widened(self.alpha)
        self.values = {node: torch.from_numpy(widened(value.numpy())) for node, value in self.values.items()}

    def _drop(self, over: NDArray[np.bool_]) -> None:
        """Drops the lines for which `over` [lines] is true."""
        self.overflowed |= over
        keep = np.flatnonzero(~over[self.line])
        self.line, self.alpha = self.line[keep], self.alpha[keep]
        self.values = {node: torch.from_numpy(value.numpy()[keep]) for node, value in self.values.items()}
