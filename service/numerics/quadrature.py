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


def softmax(logits: Floats) -> Floats:
    """The probabilities [n, labels] of `logits` [n, labels]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def softmax_piece_weights(start: Floats, end: Floats, length: Floats) -> Floats:
    """Weights that make one gradient per piece the exact integral through a two-class softmax.

    Inside a piece u = z_t - z_other is affine in alpha, from `start` to `end`; the gradient of p = sigmoid(u)
    is sigmoid'(u) du/dx with a constant du/dx. So the integral of the gradient of p over the piece is du/dx times
    `length` times the mean of sigmoid' between `start` and `end`, (sigmoid(end) - sigmoid(start)) / (end - start). That
    mean is computed without cancellation as sinh(h)/h / (2 (cosh m + cosh h)), m the middle and h half the width.
    All arguments and the result are [pieces].
    """
    middle, half = np.abs(start + end) / 2, np.abs(end - start) / 2
    largest = np.maximum(middle, half)
    # sinh(h) / h from exp(h) - exp(-h) would cancel for a small h.
    steps = np.where(half > 0, 2 * half, 1.0)
    relative_sinh = np.exp(half - largest) * np.where(half > 0, -np.expm1(-steps) / steps, 1.0)
    cosh_sum = (
        np.exp(middle - largest) + np.exp(-middle - largest) + np.exp(half - largest) + np.exp(-half - largest)
    ) / 2
    mean: Floats = length * relative_sinh / (2 * cosh_sum)
    return mean
