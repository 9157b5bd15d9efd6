"""The direction of an embedding: its numbers divided by their length. A cosine is linear in it.

On a piece of a piecewise-linear network the numbers z move on a straight line, and the slopes of the cosine with a unit
vector c, (c - z (z . c) / |z|^2) / |z|, have an integral over the piece in closed form. With u the direction in which z
moves, n the point of its line that is nearest to zero and h = |n|, z = n + s u, and s = h tan(theta), the integrals of
1 / |z| and of z z' / |z|^3 over s are those of sec(theta) and of products of sines and cosines. Where z moves less than
half its length, a Gauss-Legendre rule is exact to rounding, and the differences of the closed form would cancel.
"""

from __future__ import annotations

import numpy as np

from service.domain import Floats
from service.numerics.quadrature import gauss_legendre

NODES = 12
"""For a piece of at most half the distance of its middle from zero: 1e-20 of the integral are missed."""
SHORT = 0.5


def directions(vectors: Floats) -> Floats:
    """`vectors` [..., n] divided by their lengths; a vector of zeros stays what it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths != 0)
    return units


def cosine_slopes(at: Floats, direction: Floats) -> Floats:
    """The slopes of the cosine of vectors `at` [..., n] with a unit vector [n], by each number: [..., n]."""
    own = directions(at)
    lengths = np.linalg.norm(at, axis=-1, keepdims=True)
    across = direction - own * (own @ direction)[..., None]
    slopes: Floats = np.divide(across, lengths, out=np.zeros_like(across), where=lengths != 0)
    return slopes


def cosine_piece_slopes(start: Floats, end: Floats, length: Floats, direction: Floats) -> Floats:
    """The integrals of these slopes over pieces of the lengths `length` [pieces]: [pieces, n].

    `start` and `end` [pieces, n] are the vectors at the ends of the pieces, `direction` [n] is of unit length.
    """
    moved = np.linalg.norm(end - start, axis=1)
    is_short = moved <= SHORT * np.linalg.norm((start + end) / 2, axis=1)
    integrals = np.empty_like(start)
    integrals[is_short] = _by_nodes(start[is_short], end[is_short], direction)
    integrals[~is_short] = _in_closed_form(start[~is_short], end[~is_short], direction)
    return integrals * length[:, None]


def _by_nodes(start: Floats, end: Floats, direction: Floats) -> Floats:
    rule = gauss_legendre(NODES)
    at = start[:, None] + rule.nodes[:, None] * (end - start)[:, None]
    summed: Floats = np.einsum("n,pnk->pk", rule.weights, cosine_slopes(at, direction))
    return summed


def _in_closed_form(start: Floats, end: Floats, direction: Floats) -> Floats:
    moved = np.linalg.norm(end - start, axis=1, keepdims=True)
    along = (end - start) / moved
    first, last = ((at * along).sum(axis=1, keepdims=True) for at in (start, end))
    nearest = start - first * along
    height = np.linalg.norm(nearest, axis=1, keepdims=True)
    across = nearest / height
    sines, cosines = (
        np.diff(np.concatenate(ends, axis=1), axis=1)
        for ends in (
            [s / np.hypot(s, height) for s in (first, last)],
            [height / np.hypot(s, height) for s in (first, last)],
        )
    )
    secants = np.arcsinh(last / height) - np.arcsinh(first / height)
    on_along, on_across = along @ direction[:, None], across @ direction[:, None]
    own = across * (sines * on_across - cosines * on_along) + along * (
        (secants - sines) * on_along - cosines * on_across
    )
    slopes: Floats = (secants * direction - own) / moved
    return slopes
