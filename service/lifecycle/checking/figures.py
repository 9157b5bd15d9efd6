"""Figures of attributions [rows, features] as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from service.domain import Floats, Indices


def importance(attributions: Floats) -> Floats:
    """The mean absolute attribution of each feature, [features]."""
    means: Floats = np.abs(attributions).mean(axis=0)
    return means


def random_halves(rows: int, times: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """So many ways of splitting `rows` rows at random into two halves; of an odd number one row is left out."""
    generator = np.random.default_rng(seed)
    half = rows // 2
    for _ in range(times):
        shuffled: Indices = generator.permutation(rows)
        yield shuffled[:half], shuffled[half : 2 * half]
