"""What is measured of attributions [rows, features] as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from service.domain import Floats, Indices


def importance(attributions: Floats) -> Floats:
    """The mean absolute attribution of each feature, [features]."""
    means: Floats = np.abs(attributions).mean(axis=0)
    return means


def ranks(values: Floats) -> Floats:
    """The place of each value among all, 1 for the smallest; equal values share the mean of their places."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    places: Floats = (last - (counts - 1) / 2)[which]
    return places


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's rank correlation of two lists of values: Pearson's of their ranks.

    NaN, which no limit admits, where there is none: fewer than two values, all of them equal, or one not a number.
    """
    if len(one) < 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return math.nan
    first, second = (places - places.mean() for places in (ranks(one), ranks(other)))
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / spread if spread else math.nan


def random_halves(rows: int, times: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """So many ways of splitting `rows` rows at random into two halves; of an odd number one row is left out."""
    generator = np.random.default_rng(seed)
    half = rows // 2
    for _ in range(times):
        shuffled: Indices = generator.permutation(rows)
        yield shuffled[:half], shuffled[half : 2 * half]
