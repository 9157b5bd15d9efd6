"""Quadrature rules: what they integrate exactly, and the weights of a piece that passes through a softmax."""

from __future__ import annotations

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

from service.domain import Floats
from service.numerics.quadrature import gauss_legendre
from service.numerics.softmax_pieces import softmax_piece_weights

UNHURRIED = settings(deadline=None)
ORDERS = st.integers(1, 12)
MARGINS = st.floats(-600, 600) | st.floats(-1e-6, 1e-6) | st.sampled_from([0.0, 1e-300, -1e-4, 1e-4, 30.0])
WIDTHS = st.floats(-50, 50) | st.floats(-2e-4, 2e-4) | st.just(0.0)


def polynomial(draw: st.DataObject, degree: int) -> Polynomial:
    size = degree + 1
    return Polynomial(draw.draw(st.lists(st.floats(-10, 10), min_size=size, max_size=size)))


@UNHURRIED
@given(ORDERS)
def test_the_weights_are_positive_and_sum_to_one(order: int) -> None:
    rule = gauss_legendre(order)
    assert (rule.weights > 0).all()
    assert rule.weights.sum() == pytest.approx(1, abs=1e-14)
    assert (np.diff(rule.nodes) > 0).all()
    assert 0 < rule.nodes[0] <= rule.nodes[-1] < 1


def test_order_one_is_the_midpoint_rule() -> None:
    rule = gauss_legendre(1)
    assert (rule.nodes.tolist(), rule.weights.tolist()) == ([0.5], [1.0])


@UNHURRIED
@given(st.data(), ORDERS)
def test_polynomials_up_to_degree_2n_minus_1_are_integrated_exactly(data: st.DataObject, order: int) -> None:
    function = polynomial(data, 2 * order - 1)
    rule = gauss_legendre(order)
    exact = function.integ()(1) - function.integ()(0)
    assert rule.weights @ function(rule.nodes) == pytest.approx(exact, abs=1e-12 * 20 * order)


@UNHURRIED
@given(st.data(), st.integers(1, 8))
def test_the_gaps_integrate_the_polynomial_through_the_nodes(data: st.DataObject, order: int) -> None:
    function = polynomial(data, order - 1)
    rule = gauss_legendre(order)
    limits = np.concatenate([[0.0], rule.nodes, [1.0]])
    np.testing.assert_allclose(rule.gaps @ function(rule.nodes), np.diff(function.integ()(limits)), atol=1e-10)


@UNHURRIED
@given(ORDERS)
def test_the_gaps_add_up_to_the_weights(order: int) -> None:
    rule = gauss_legendre(order)
    np.testing.assert_allclose(rule.gaps.sum(axis=0), rule.weights, atol=1e-9)


def mean_slope(start: float, end: float) -> mpmath.mpf:
    """The mean of sigmoid' between two margins, with 700 digits."""
    with mpmath.workdps(700):
        low, high = mpmath.mpf(start), mpmath.mpf(end)
        if low == high:
            return 1 / (2 + mpmath.exp(low) + mpmath.exp(-low))
        sigmoid = [1 / (1 + mpmath.exp(-margin)) for margin in (low, high)]
        return (sigmoid[1] - sigmoid[0]) / (high - low)


@UNHURRIED
@given(MARGINS, WIDTHS, st.floats(1e-9, 1))
def test_piece_weights_keep_their_relative_precision_at_every_margin(start: float, width: float, length: float) -> None:
    end = start + width
    weight = softmax_piece_weights(np.array([start]), np.array([end]), np.array([length]))[0]
    expected = float(length * mean_slope(start, end))
    assert weight == pytest.approx(expected, rel=1e-11, abs=1e-290)


@UNHURRIED
@given(MARGINS, MARGINS)
def test_piece_weights_do_not_depend_on_direction_or_sign(start: float, end: float) -> None:
    def weight(a: float, b: float) -> float:
        return float(softmax_piece_weights(np.array([a]), np.array([b]), np.array([1.0]))[0])

    assert weight(start, end) == weight(end, start) == weight(-start, -end)
    assert 0 <= weight(start, end) <= 0.25 * (1 + 1e-12)


@pytest.mark.parametrize("margin", [1e3, 1e6, 3e38])
def test_piece_weights_vanish_far_out_and_stay_finite(margin: float) -> None:
    starts, ends = np.array([margin, -margin, margin]), np.array([margin, -margin, 0.9 * margin])
    assert (softmax_piece_weights(starts, ends, np.ones(3)) == 0).all()
    across = softmax_piece_weights(np.array([-margin]), np.array([margin]), np.ones(1))
    assert across[0] == pytest.approx(1 / (2 * margin), rel=1e-12)


def test_piece_weights_equal_dense_quadrature_of_the_slope() -> None:
    generator = np.random.default_rng(0)
    start, end = generator.normal(0, 4, (2, 200))
    length = generator.uniform(0, 1, 200)
    shares = (np.arange(20_000) + 0.5) / 20_000
    margins = start + (end - start) * shares[:, None]
    sigmoid: Floats = 1 / (1 + np.exp(-margins))
    dense = length * (sigmoid * (1 - sigmoid)).mean(axis=0)
    np.testing.assert_allclose(softmax_piece_weights(start, end, length), dense, rtol=1e-6)
