"""Quadrature rules on [0, 1], and the integrals of their interpolants between the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import legendre, polynomial

from service.domain import Floats


@dataclass(frozen=True, slots=True)
class Rule:
    """A Gauss-Legendre rule on [0, 1].

    `nodes` and `weights` are [n]. Row j of `gaps` [n + 1, n] integrates the polynomial through the node values from
    node j - 1 to node j, where the outer limits are 0 and 1; the rows add up to `weights`.
    """

    nodes: Floats
    weights: Floats
    gaps: Floats


@cache
def gauss_legendre(order: int) -> Rule:
    """The rule with `order` nodes, exact for polynomials of degree 2 order - 1. Order 1 is the midpoint rule."""
    nodes, weights = legendre.leggauss(order)
    nodes, weights = (nodes + 1) / 2, weights / 2
    limits = np.concatenate([[0.0], nodes, [1.0]])
    gaps = np.empty((order + 1, order))
    for k in range(order):
        others = np.delete(nodes, k)
        basis = polynomial.polyfromroots(others) / np.prod(nodes[k] - others)
        integral = polynomial.polyval(limits, polynomial.polyint(basis))
        gaps[:, k] = np.diff(integral)
    return Rule(nodes, weights, gaps)
