"""Gauss quadrature on [0, 1] with the weight -ln u.

Its recurrence coefficients come from the weight's modified moments, known in closed form, by the modified Chebyshev
algorithm, and its nodes and weights from the Jacobi matrix (Golub and Welsch, "Calculation of Gauss quadrature rules",
1969); see Gautschi, "Orthogonal polynomials: computation and approximation", Oxford 2004, for both.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from service.domain import Floats


@cache
def gauss_logarithmic(order: int) -> tuple[Floats, Floats]:
    """Nodes and weights [order]: the sum of weight times p(node) is the integral of -ln(u) p(u) du from 0 to 1.

    It is exact for polynomials p of a degree up to 2 order - 1, and the weights sum to one.
    """
    diagonal, squares = _recurrence(order)
    beside = np.sqrt(squares[1:])
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return nodes, vectors[0] ** 2


def _recurrence(order: int) -> tuple[Floats, Floats]:
    """The coefficients a and b [order] of the weight's monic polynomials, p' = (u - a) p - b p_before."""
    degree = np.arange(1, 2 * order)
    # The shifted Legendre polynomials' own a is a half throughout; their b starts with a one that nothing uses.
    legendre_squares = np.concatenate([[1.0], degree**2 / (4 * (4.0 * degree**2 - 1))])
    # (k!)^2 / (2k)! makes the k-th Legendre polynomial monic.
    monic = np.cumprod(degree / (2 * (2.0 * degree - 1)))
    moments = np.concatenate([[1.0], (-1.0) ** degree * monic / (degree * (degree + 1.0))])
    a, b = np.empty(order), np.ones(order)
    a[0] = 0.5 + moments[1]
    before, now = np.zeros(2 * order), moments
    for k in range(1, order):
        inner = slice(k, 2 * order - k)
        after = np.zeros(2 * order)
        after[inner] = (
            now[k + 1 : 2 * order - k + 1]
            + (0.5 - a[k - 1]) * now[inner]
            - b[k - 1] * before[inner]
            + legendre_squares[inner] * now[k - 1 : 2 * order - k - 1]
        )
        a[k] = 0.5 + after[k + 1] / after[k] - now[k] / now[k - 1]
        b[k] = after[k] / now[k - 1]
        before, now = now, after
    return a, b
