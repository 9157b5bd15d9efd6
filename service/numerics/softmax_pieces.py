"""The integrals of a softmax's slopes while its logits move on a straight line.

On a piece of a piecewise-linear network the logits z are affine in alpha, and their gradients G_j are constant. So

    int dp_t/dx dalpha = sum over labels j of G_j int dp_t/dz_j dalpha,   dp_t/dz_j = p_t ([j = t] - p_j)

where the integrals on the right depend on nothing but the logits at both ends of the piece. For two labels they have a
closed form (`softmax_piece_weights`), for more they have none: they are computed on the host, to the precision of
float64, however steep the logits are, and cost no gradient.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.domain import Floats, Indices
from service.numerics.quadrature import gauss_legendre

F = TypeVar("F", bound=np.floating[Any])
ORDER = 12
LARGEST_STEP = 4.0
"""The softmax has its poles where two logits differ by i pi; while none moves by more than 4 against another, 12 nodes
leave 1e-13."""
NEGLIGIBLE = 60.0
"""A logit that is smaller than another by so much has a probability below exp(-60)."""


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """The probabilities of `logits`, both [n, labels] and of one type; computed in float64."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: NDArray[F] = (exponents / exponents.sum(axis=1, keepdims=True)).astype(logits.dtype, copy=False)
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


def softmax_piece_slopes(start: Floats, end: Floats, length: Floats, target: int) -> Floats:
    """The integrals of dp_target/dz_j over pieces of the lengths `length` [pieces]: [pieces, labels].

    `start` and `end` [pieces, labels] are the logits at their ends. The integrals of a piece sum to zero over j; they
    are NaN where a logit is not finite.
    """
    slopes = np.zeros_like(start)
    finite = np.isfinite(start).all(axis=1) & np.isfinite(end).all(axis=1)
    slopes[~finite] = np.nan
    piece: Indices = np.flatnonzero(finite)
    start, end, length = start[piece], end[piece], length[piece]
    while len(piece):
        way = end - start
        ready = ~(_largest_step(start, end) > LARGEST_STEP)
        nodes = start[ready, None] + gauss_legendre(ORDER).nodes[:, None] * way[ready, None]
        np.add.at(slopes, piece[ready], length[ready, None] * _mean_slopes(nodes, target))
        middle = start[~ready] + way[~ready] / 2
        start, end = np.concatenate([start[~ready], middle]), np.concatenate([middle, end[~ready]])
        piece, length = np.tile(piece[~ready], 2), np.tile(length[~ready] / 2, 2)
    return slopes


def _largest_step(start: Floats, end: Floats) -> Floats:
    """The most that one logit moves against another on each piece, of those that are not negligible throughout it.

    A logit is negligible where the largest logit of either end is far ahead of it at both ends, and so in between.
    """
    counts = np.ones(start.shape, dtype=bool)
    for leaders in (start.argmax(axis=1)[:, None], end.argmax(axis=1)[:, None]):
        lead = [np.take_along_axis(logits, leaders, axis=1) - logits for logits in (start, end)]
        counts &= ~(np.minimum(*lead) > NEGLIGIBLE)
    way = end - start
    steps: Floats = np.where(counts, way, -np.inf).max(axis=1) - np.where(counts, way, np.inf).min(axis=1)
    return steps


def _mean_slopes(logits: Floats, target: int) -> Floats:
    """The means over the Gauss nodes of the slopes at `logits` [pieces, nodes, labels]: [pieces, labels]."""
    pieces, nodes, labels = logits.shape
    probabilities = softmax(logits.reshape(-1, labels)).reshape(pieces, nodes, labels)
    chosen = probabilities[..., target : target + 1]
    slopes = -chosen * probabilities
    slopes[..., target] = 0
    # The target's own from those of the others: p_t (1 - p_t) would cancel where p_t is close to one.
    slopes[..., target] = -slopes.sum(axis=-1)
    means: Floats = np.einsum("n,pnl->pl", gauss_legendre(ORDER).weights, slopes)
    return means
