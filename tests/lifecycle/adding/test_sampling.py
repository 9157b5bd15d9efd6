"""Which rows are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from service.lifecycle.adding.sampling import medoids, random_rows


def test_random_rows_are_different_ones_and_the_same_again() -> None:
    rows = np.arange(40.0)[:, None]

    assert len(set(random_rows(rows, 10, seed=3).tolist())) == 10
    assert random_rows(rows, 10, seed=3).tolist() == random_rows(rows, 10, seed=3).tolist()
    assert random_rows(rows, 100, seed=3).tolist() == list(range(40))


def test_medoids_are_the_rows_nearest_to_scikit_learns_centers() -> None:
    """Clusters that are far apart have one solution; a column of large numbers counts no more than the others."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(6, 4)) * 20
    rows = (centers[generator.integers(6, size=300)] + generator.normal(size=(300, 4))) * [1, 1e6, 1, 1e-3]
    scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    expected = KMeans(6, n_init=10, random_state=0).fit(scaled).cluster_centers_
    nearest = {int(((scaled - center) ** 2).sum(axis=1).argmin()) for center in expected}

    assert set(medoids(rows, 6, seed=1).tolist()) == nearest


@pytest.mark.parametrize("size", [1, 3, 50])
def test_equal_rows_and_constant_columns_are_no_trouble(size: int) -> None:
    rows = np.tile([[1.0, 5.0], [2.0, 5.0]], (10, 1))

    found = medoids(rows, size, seed=0)
    assert 1 <= len(found) <= min(size, 2)
    assert len({rows[at, 0] for at in found}) == len(found)
