"""The answer to gradient points: their contributions stay on the device until the method is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from service.domain import Floats, Indices
from service.engine.kernels.kernel import Segment
from service.numerics.cells import Grouping, LocalErrors, Stencils
from service.numerics.panels import PanelErrors, Panels, vector_errors

MAX_VIEWED_BYTES = 1 << 20


@dataclass(frozen=True)
class EvaluatedPoints:
    """The answer to `Points`, see `service.methods.questions.Evaluated`; contributions stay on the device, in
    pieces."""

    outputs: Floats
    derivatives: Floats
    pieces: tuple[Tensor, ...]

    @property
    def contributions(self) -> Floats:
        result: Floats = self._rows.cpu().numpy()
        return result

    def weighted_sum(self, weights: Floats) -> Floats:
        rows = self._rows
        result: Floats = (torch.from_numpy(weights).to(rows.device) @ rows).cpu().numpy()
        return result

    def run_sums(self, lengths: Indices, weights: Floats | None = None) -> Floats:
        rows = self._rows
        if weights is not None:
            rows = rows * torch.from_numpy(weights).to(rows.device)[:, None]
        if (lengths == lengths[0]).all():  # in a third of the time
            sums = rows.reshape(len(lengths), int(lengths[0]), -1).sum(dim=1)
        else:
            sums = torch.segment_reduce(rows, "sum", lengths=torch.from_numpy(lengths).to(rows.device), axis=0)
        result: Floats = sums.cpu().numpy()
        return result

    def squares(self) -> Floats:
        result: Floats = self._rows.square().sum(dim=0).cpu().numpy()
        return result

    def vector_errors(self, stencil: Stencils | Panels, grouping: Grouping) -> LocalErrors | PanelErrors:
        rows = self._rows
        return vector_errors(
            rows,
            stencil,
            grouping,
            lambda array: torch.from_numpy(array).to(rows.device),
            lambda values: values.cpu().numpy(),
        )

    @cached_property
    def _rows(self) -> Tensor:
        """The contributions together, in float64: [n, inputs]."""
        rows = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)
        return rows.flatten(1).double()

    def joined(self, later: EvaluatedPoints) -> EvaluatedPoints:
        return EvaluatedPoints(
            np.concatenate([self.outputs, later.outputs]),
            np.concatenate([self.derivatives, later.derivatives]),
            self.pieces + later.pieces,
        )


def joined(parts: Sequence[object]) -> EvaluatedPoints:
    """The points of all parts, one part after the other."""
    evaluated = [part for part in parts if isinstance(part, EvaluatedPoints)]
    if len(evaluated) == 1:
        return evaluated[0]
    return EvaluatedPoints(
        np.concatenate([part.outputs for part in evaluated]),
        np.concatenate([part.derivatives for part in evaluated]),
        tuple(piece for part in evaluated for piece in part.pieces),
    )


def divided(segments: Sequence[Segment], outputs: Floats, derivatives: Floats, contributions: Tensor) -> list[object]:
    """Each segment's part of a chunk's outputs [rows], derivatives [rows] and contributions [rows, ...input]."""
    parts: list[object] = []
    at = 0
    for segment in segments:
        rows = slice(at, at + len(segment))
        own = contributions[rows]
        if contributions.nbytes > MAX_VIEWED_BYTES and 2 * len(segment) < len(contributions):
            own = own.clone()  # a view would keep the whole chunk in memory
        parts.append(EvaluatedPoints(outputs[rows], derivatives[rows], (own,)))
        at = rows.stop
    return parts
