"""Whether two lists of importances put the same features first."""

from __future__ import annotations

import math

import numpy as np

from service.domain import Floats


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


def largest(sizes: Floats, count: int) -> list[int]:
    """The places of so many of the largest; of equals the first."""
    places: list[int] = np.argsort(-sizes, kind="stable")[:count].tolist()
    return places


def top_share(one: Floats, other: Floats, count: int) -> float:
    """The share of the `count` largest of the one that are among those of the other: their top-k intersection.

    Of few values half are compared, whose place the others can take.
    """
    count = top_count(len(one), count)
    return len({*largest(one, count)} & {*largest(other, count)}) / count


def top_count(values: int, count: int) -> int:
    """How many of so many values are compared where `count` were meant to be."""
    return max(1, min(count, values // 2))


def normalised_gain(reference: Floats, order_by: Floats) -> float:
    """nDCG: how much of the reference's importance is still found at the top when features are ordered by another.

    The sum of `reference` over log2(place + 1), with places by falling `order_by`, over the same sum in the reference's
    own order: 1 when both orders agree. Järvelin and Kekäläinen (2002), as Amazon SageMaker Clarify measures the drift
    of attributions, with 0.9 as the limit. NaN where the reference is all zero.
    """
    discounts = 1 / np.log2(np.arange(2, len(reference) + 2))
    best = float(np.sort(reference)[::-1] @ discounts)
    found = float(reference[np.argsort(-order_by, kind="stable")] @ discounts)
    return found / best if best else math.nan
