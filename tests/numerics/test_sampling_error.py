"""`sampling_error` against the same from scipy's moments and quantiles, and over samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from service.domain import Floats
from service.numerics.sampling_error import sampling_error, student_quantile

Z = 1.96


@pytest.mark.parametrize(("freedom", "off"), [(1, 0.12), (2, 0.01), (3, 2e-3), (7, 1e-4), (31, 1e-6), (1000, 1e-6)])
def test_the_quantile_is_that_of_student(freedom: int, off: float) -> None:
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=off)


def test_it_is_the_longer_side_of_an_interval_for_skewed_samples() -> None:
    rows = np.random.default_rng(0).gamma(1.0, size=(9, 4)) * [1.0, 5.0, 0.1, 1e-3]
    count, t, z = len(rows), stats.t.ppf(0.975, 8), stats.norm.ppf(0.975)
    own = rows.var(axis=0, ddof=1)
    weight = stats.kurtosis(rows, fisher=False) / count
    variance = own + (3 / z) ** 2 * weight * np.maximum(own.mean() - own, 0) / count
    population = rows.std(axis=0)
    shift = np.abs(stats.skew(rows)) * population / (6 * count) * (1 + 2 * t**2)
    np.testing.assert_allclose(sampling_error(rows), (t * np.sqrt(variance / count) + shift) / z, rtol=1e-4)


def test_of_many_normal_rows_it_is_the_deviation_over_the_root_of_their_number() -> None:
    rows = np.random.default_rng(1).normal(size=(10_000, 3)) * [1.0, 0.5, 2.0]
    np.testing.assert_allclose(sampling_error(rows), rows.std(axis=0, ddof=1) / 100, rtol=2e-3)


def test_what_no_row_tells_is_taken_from_other_units() -> None:
    rows = np.random.default_rng(2).normal(size=(8, 3)) * [1.0, 1.0, 0.0]
    error = sampling_error(rows)
    assert error[:2].min() / 3 < error[2] < error[:2].min()
    assert sampling_error(np.ones((8, 3))) == pytest.approx(np.zeros(3))


def test_no_power_of_small_figures_underflows() -> None:
    rows = np.random.default_rng(3).gamma(1.0, size=(8, 5))
    error = sampling_error(rows)
    np.testing.assert_allclose(sampling_error(rows * 1e-120), error * 1e-120, rtol=1e-12)


def pixels(draws: np.random.Generator, count: int) -> Floats:
    """As of strokes on paper: each unit is lit by few rows, some by hardly any."""
    rare = np.geomspace(0.005, 0.8, 60)
    rows: Floats = draws.gamma(4.0, size=(count, 60)) * (draws.random((count, 60)) < rare)
    return rows


@pytest.mark.parametrize("count", [8, 16, 32, 128])
@pytest.mark.parametrize("kind", ["pixels", "normal", "skewed"])
def test_it_covers_whatever_the_number_of_rows(kind: str, count: int) -> None:
    """Over all units, those that no row of the sample lights among them."""
    draws = np.random.default_rng(4)
    scales = np.geomspace(0.1, 1, 60)
    population = {
        "pixels": pixels(draws, 20_000),
        "normal": draws.normal(size=(20_000, 60)) * scales,
        "skewed": draws.exponential(size=(20_000, 60)) * scales,
    }[kind]
    truth, covered, old = population.mean(axis=0), [], []
    for _ in range(200):
        rows = population[draws.integers(len(population), size=count)]
        error = sampling_error(rows)
        off = np.abs(rows.mean(axis=0) - truth)
        covered.append(off <= Z * error)
        old.append(off <= Z * rows.std(axis=0, ddof=1) / count**0.5)
    assert 0.93 <= np.mean(covered) <= 0.99, np.mean(covered)
    if kind == "pixels" and count < 128:
        assert np.mean(old) < 0.9, "the deviation over the root of their number does not"
