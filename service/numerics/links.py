"""Links on the host: probabilities, and the integrals of their slopes over pieces on which the logits are linear.

On a piece of a piecewise-linear network the logits z are affine in alpha, and their gradients G_j are constant. So the
integral of the gradient of a probability is the sum over j of G_j times the integral of its slope dp/dz_j, which
depends on nothing but the logits at both ends of the piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from service.domain import Contrast, Floats, Link, Target
from service.numerics.quadrature import softmax, softmax_piece_weights
from service.numerics.softmax_pieces import softmax_piece_slopes


def sigmoid(logits: Floats) -> Floats:
    """The probabilities of `logits`, each on its own."""
    probabilities: Floats = 0.5 * (1 + np.tanh(logits / 2))
    return probabilities


PROBABILITIES: Mapping[Link, Callable[[Floats], Floats]] = {Link.SOFTMAX: softmax, Link.SIGMOID: sigmoid}
"""From logits [n, outputs] to probabilities."""


def piece_slopes(link: Link, start: Floats, end: Floats, length: Floats, target: Target) -> Floats:
    """The integrals of the slopes of the target's probability, by each logit, over pieces of so much `length` [pieces].

    `start` and `end` [pieces, outputs] are the logits at their ends; [pieces, outputs].
    """
    if isinstance(target, Contrast):
        own, other = (piece_slopes(link, start, end, length, index) for index in (target.index, target.rather_than))
        return own - other
    if link is Link.SOFTMAX:
        return softmax_piece_slopes(start, end, length, target)
    slopes = np.zeros_like(start)  # sigmoid(z) is the softmax of z and zero
    slopes[:, target] = softmax_piece_weights(start[:, target], end[:, target], length)
    return slopes


def spread(link: Link, logits: Floats) -> float:
    """How far apart two numbers are that a probability is made of, of `logits` [n, outputs]."""
    return float(np.ptp(logits, axis=1).max() if link is Link.SOFTMAX else np.abs(logits).max())
