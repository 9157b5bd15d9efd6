"""Gauss quadrature with the weight -ln u: its moments, and the tables."""

from __future__ import annotations

import numpy as np
import pytest

from service.numerics.logarithmic import gauss_logarithmic


@pytest.mark.parametrize("order", [1, 2, 4, 8, 16, 32, 64, 128])
def test_it_is_exact_for_polynomials_of_degree_two_order_minus_one(order: int) -> None:
    nodes, weights = gauss_logarithmic(order)
    assert (weights > 0).all()
    assert (np.diff(nodes, prepend=0.0, append=1.0) > 0).all()
    powers = np.arange(2 * order)
    np.testing.assert_allclose((weights * nodes ** powers[:, None]).sum(axis=1), 1 / (powers + 1.0) ** 2, rtol=1e-12)


def test_beyond_that_degree_it_is_not() -> None:
    nodes, weights = gauss_logarithmic(4)
    assert abs(float(weights @ nodes**8) - 1 / 81) > 1e-6


def test_two_nodes_are_those_of_the_tables() -> None:
    """Abramowitz and Stegun, "Handbook of Mathematical Functions", table 25.7."""
    nodes, weights = gauss_logarithmic(2)
    np.testing.assert_allclose(nodes, [0.112009, 0.602277], atol=1e-6)
    np.testing.assert_allclose(weights, [0.718539, 0.281461], atol=1e-6)
