"""Which rows of a data set become a baseline set: random ones, or the medoids of its clusters."""

from __future__ import annotations

import numpy as np

from service.domain import Floats, Indices

MAX_ROUNDS = 100


def random_rows(rows: Floats, size: int, seed: int) -> Indices:
    """The indices of `size` different rows of [rows, columns], or of all if there are fewer; ascending."""
    drawn: Indices = np.random.default_rng(seed).permutation(len(rows))[:size]
    return np.sort(drawn)


def medoids(rows: Floats, size: int, seed: int) -> Indices:
    """The real row nearest to the mean of each of `size` clusters; fewer where one row is nearest to several.

    k-means (Lloyd) from starts drawn far from each other (k-means++, Arthur and Vassilvitskii 2007), over columns of
    mean 0 and deviation 1, so that the units of measurement do not matter.
    """
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    centers = _starts(scaled, min(size, len(rows)), np.random.default_rng(seed))
    nearest = _distances(scaled, centers).argmin(axis=1)
    for _ in range(MAX_ROUNDS):
        centers = np.stack(
            [scaled[nearest == at].mean(axis=0) if (nearest == at).any() else old for at, old in enumerate(centers)]
        )
        reassigned = _distances(scaled, centers).argmin(axis=1)
        if (reassigned == nearest).all():
            break
        nearest = reassigned
    return np.unique(_distances(scaled, centers).argmin(axis=0))


def _starts(rows: Floats, size: int, generator: np.random.Generator) -> Floats:
    chosen = [int(generator.integers(len(rows)))]
    squares = _distances(rows, rows[chosen])[:, 0]
    while len(chosen) < size and squares.max() > 0:
        chosen.append(int(generator.choice(len(rows), p=squares / squares.sum())))
        squares = np.minimum(squares, _distances(rows, rows[chosen[-1:]])[:, 0])
    return rows[chosen]


def _distances(rows: Floats, centers: Floats) -> Floats:
    """Squared, [rows, centers]."""
    squares = (rows**2).sum(axis=1)[:, None] - 2 * rows @ centers.T + (centers**2).sum(axis=1)
    positive: Floats = np.maximum(squares, 0.0)
    return positive
