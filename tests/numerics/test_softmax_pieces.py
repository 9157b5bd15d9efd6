"""The integrals of a softmax's slopes along pieces, against mpmath and against what they must add up to."""

from __future__ import annotations

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Floats
from service.numerics.softmax_pieces import softmax, softmax_piece_slopes, softmax_piece_weights

LOGITS = st.lists(st.floats(-50, 50), min_size=4, max_size=4)


def dense(start: Floats, end: Floats, target: int) -> Floats:
    """One piece of length one, with mpmath's adaptive quadrature split where two logits cross."""
    way = end - start
    crossings = {
        float(share)
        for i in range(len(start))
        for j in range(i)
        if way[i] != way[j] and 0 < (share := (start[j] - start[i]) / (way[i] - way[j])) < 1
    }
    points = sorted({0.0, 1.0, *crossings, *np.linspace(0, 1, 9).tolist()})

    def slope(label: int, alpha: mpmath.mpf) -> mpmath.mpf:
        terms = [mpmath.exp(s + alpha * w) for s, w in zip(start.tolist(), way.tolist(), strict=True)]
        chances = [term / mpmath.fsum(terms) for term in terms]
        return chances[target] * ((label == target) - chances[label])

    return np.array([float(mpmath.quad(lambda a, j=j: slope(j, a), points)) for j in range(len(start))])


@settings(deadline=None, max_examples=5)
@given(LOGITS, LOGITS, st.integers(0, 3))
def test_they_are_the_integrals(start: list[float], end: list[float], target: int) -> None:
    slopes = softmax_piece_slopes(np.array([start]), np.array([end]), np.ones(1), target)[0]
    np.testing.assert_allclose(slopes, dense(np.array(start), np.array(end), target), rtol=1e-9, atol=1e-13)


@settings(deadline=None)
@given(LOGITS, LOGITS, st.integers(0, 3), st.floats(1e-6, 1), st.floats(1, 1e4))
def test_along_the_way_they_add_up_to_the_change_of_the_probability(
    start: list[float], end: list[float], target: int, length: float, steepness: float
) -> None:
    first, last = steepness * np.array([start]), steepness * np.array([end])
    slopes = softmax_piece_slopes(first, last, np.array([length]), target)
    change = (softmax(last) - softmax(first))[0, target]
    assert float((slopes / length * (last - first)).sum()) == pytest.approx(change, abs=1e-9)
    assert float(slopes.sum()) == pytest.approx(0, abs=1e-12 * length)


def test_of_two_labels_they_are_the_weights_in_closed_form() -> None:
    draws = np.random.default_rng(0)
    start, end = draws.normal(0, 20, (2, 300, 2))
    length = draws.uniform(0, 1, 300)
    weights = softmax_piece_weights(start[:, 0] - start[:, 1], end[:, 0] - end[:, 1], length)
    slopes = softmax_piece_slopes(start, end, length, 0)
    np.testing.assert_allclose(slopes, np.stack([weights, -weights], axis=1), rtol=1e-9, atol=1e-18)


def test_logits_that_are_not_finite_have_no_slopes() -> None:
    start = np.array([[0.0, np.nan, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    end = np.array([[1.0, 2.0, 3.0], [np.inf, 0.0, 0.0], [1.0, 1.0, 1.0]])
    slopes = softmax_piece_slopes(start, end, np.ones(3), 0)
    np.testing.assert_array_equal(np.isnan(slopes).all(axis=1), [True, True, False])
    assert np.isfinite(slopes[2]).all()
