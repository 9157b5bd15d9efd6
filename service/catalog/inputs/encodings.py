"""Encodings: from the rows that instances are read into to the inputs of a differentiable twin, where those differ.

A token becomes its embedding, and a category its columns. Methods see the encoded row, flat, and their attributions are
summed for each token and each category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.catalog.inputs.features import Feature
from service.catalog.inputs.pairs import is_second
from service.domain import Floats


class Encoding(Protocol):
    """How rows are encoded."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one encoded row."""
        ...

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """The least and the greatest value of each of an encoded row's numbers, flat."""
        ...

    @property
    def fixed(self) -> NDArray[np.bool_] | None:
        """Which of the numbers, flat, are not explained and never changed; None: none of them."""
        ...

    def __call__(self, rows: Floats) -> Floats:
        """The rows [n, columns] encoded, flat: [n, inputs]."""
        ...


@dataclass(frozen=True, slots=True)
class TokenEncoding:
    """Tokens by the `table` [vocabulary, dimensions] of their embeddings.

    With a `padding` each embedding has one more dimension, the attention mask: 1 for tokens, 0 for the padding. With a
    `separator` besides, it has another behind that: 1 for the tokens of the second text of a pair.
    """

    table: NDArray[np.float32]
    length: int
    padding: int | None = None
    separator: int | None = None

    @property
    def told(self) -> int:
        """How many dimensions there are behind the embedding."""
        return (self.padding is not None) + (self.separator is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.table.shape[1] + self.told

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        low, high = (np.tile(self._with_told(limit(axis=0)), self.length) for limit in (self.table.min, self.table.max))
        return low, high

    @property
    def fixed(self) -> NDArray[np.bool_] | None:
        if not self.told:
            return None
        is_told = np.zeros(self.shape, dtype=np.bool_)
        is_told[:, -self.told :] = True
        return is_told.ravel()

    def __call__(self, rows: Floats) -> Floats:
        parts: list[NDArray[Any]] = [self.table[rows.astype(np.int64)]]
        if self.padding is not None:
            is_token = rows != self.padding
            parts.append(is_token[..., None])
            if self.separator is not None:
                parts.append((is_token & is_second(rows, self.separator))[..., None])
        flat: Floats = np.concatenate(parts, axis=-1).reshape(len(rows), -1).astype(np.float64)
        return flat

    def _with_told(self, values: NDArray[np.float32]) -> Floats:
        return np.append(values, [0] * self.told).astype(np.float64)


@dataclass(frozen=True, slots=True)
class TableEncoding:
    """A table's features in their order: a number as it is, a category by its `tables` entry [categories, columns]."""

    tables: Sequence[Floats | None]
    low: Floats
    high: Floats

    @property
    def widths(self) -> list[int]:
        """The number of columns of each feature."""
        return [1 if table is None else table.shape[1] for table in self.tables]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.widths),)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        ends = (
            (np.array([least]), np.array([most])) if table is None else (table.min(axis=0), table.max(axis=0))
            for table, least, most in zip(self.tables, self.low, self.high, strict=True)
        )
        low, high = zip(*ends, strict=True)
        return np.concatenate(low), np.concatenate(high)

    @property
    def fixed(self) -> None:
        return None

    def __call__(self, rows: Floats) -> Floats:
        return np.concatenate(
            [
                rows[:, at, None] if table is None else table[rows[:, at].astype(np.intp)]
                for at, table in enumerate(self.tables)
            ],
            axis=1,
        )


def one_hot(feature: Feature) -> Floats:
    """The columns of a feature's categories: [categories, columns]."""
    return np.eye(len(feature.categories))[:, [category != feature.reference for category in feature.categories]]
