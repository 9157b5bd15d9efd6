"""The error of a vector integral, read from the vectors: local interpolation over the cells of a quadrature rule.

Every node of a rule stands for a cell of the path, as wide as its weight. How the integrand c(alpha), a vector with an
entry for each input, varies inside the cell is read from the neighbouring nodes:

- `second` is the integral over the cell of the quadratic through three neighbouring nodes, less the node's own share;
  for the outermost cells, which lack a neighbour on one side, that of the cubic through four. Where c is smooth it is
  the rule's error on that cell, and adding it makes a rule of fourth order.
- `fourth` is what the quartic through five neighbouring nodes adds to that: the error of the corrected rule.

Where c jumps many times between nodes, at kinks, no polynomial tells the error; but such a c is close to a random walk,
and then the error of a cell and its `second` have variances that follow from the places of the nodes alone. So `rough`
scales `second` and `fourth` to the root mean square error of a walk, and errors of different cells add up in squares.
For a random walk both scaled estimates have the same expectation; where the integrand is smooth the fourth is far
smaller. That tells the two cases apart, path by path, whatever the network is made of.

The scale, for a random walk whose variance grows by s^2 over a path of length one: the error of a cell [a, b] with its
node at m has the variance s^2 ((m - a)^3 + (b - m)^3) / 3; a difference with coefficients k_q, which sum to zero, has
s^2 times the sum over the gaps between its nodes of the gap's length times the squared partial sum of the k_q before
it.

A root mean square becomes a bound by a factor. Which one depends on how many independent terms the error has. Behind
one kink every input errs by the same share of its jump; behind many, as many inputs gain as lose, and the L1 norm is
close to what is expected of it. Of normal errors with deviations s_i and correlations r_ij, with

    n = (sum s_i)^2 / sum over i and j of s_i s_j r_ij^2,

the L1 norm is 0.8 times the sum of the s_i on average, with a deviation of about 0.6 / sqrt(n) times that sum. The
scaled vectors of the cells tell the s_i and r_ij.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import Floats, Indices
from service.numerics.errors import NOISE, RESOLUTION, ROUNDED

KEPT = 512
"""Sets of nodes whose stencils are kept: of a hundred nodes, those take 22 KB and 0.6 ms to compute."""
REACH = 5
FEWEST_NODES = 3
SAFETY = 1.5
"""The estimate is a root mean square. On ten networks of `tests/accuracy` marked `tuned`, ten inputs each, in both
output spaces and to three tolerances, the true error is within this factor of it in 98 of 100."""
SAFETY_MEAN, SAFETY_DEVIATION = 0.8, 1.16
"""But where the error has few independent terms, n: this mean and, over the root of n, two deviations. With one term it
is what a normal variable is within in 95 of 100; under 2.75 terms it is more than `SAFETY`."""
ONE_TERM = 1.25
"""Up to so many terms all inputs err by the same share of what they gain along the path."""
MOST_SPREAD = 100.0
"""A sum that cancels to less than a hundredth of its norm tells nothing of it."""
MOST_TOGETHER = 64
"""Cells whose vectors are held against each other: the largest, where there are more of them and of components."""
SEEN = 6.0
"""A gap's defect, which is a number, is explained by the vectors beside it up to so many times their `second`, as an L1
norm: one kink in the gap reaches half as much."""
SMOOTH = 0.15
"""The corrected rule is taken where fourth differences promise at most this share of the error that second ones do. On
twelve networks marked `tuned`, with 5 to 36 nodes, the corrected rule's error is there 0.1 to 0.4 of the fourth
estimate in the median of each fortieth, and rarely above it; beyond, it is up to eight times as large."""
SMOOTH_SHARE = 2 / 3
"""There the fourth estimate needs no safety factor, so this undoes `SAFETY`; but not for the sum of the cells' errors,
signs included: where cells of unequal width meet they have one sign, and the few wide cells make most of the sum."""


Peer = Callable[[NDArray[Any]], Any]


@dataclass(frozen=True, slots=True)
class Stencils:
    """What the nodes say about each of n cells, as coefficients.

    `nodes` [n, k] number the neighbours in the order of evaluation; `second` and `fourth` [n, k] are their
    coefficients, `rough` [2, n] the scales of both; see the module. `fourth` is zero where there are fewer than five
    nodes. `halves` [2, n, k] integrate the quadratic from the cell's left border to its node and from there to the
    right one.
    """

    nodes: Indices
    second: Floats
    fourth: Floats
    rough: Floats
    halves: Floats

    @property
    def has_fourth(self) -> bool:
        """Whether there are nodes enough for fourth differences."""
        return int(self.nodes.shape[1]) == REACH

    def among(self, numbers: Indices) -> Stencils:
        """The same, of nodes that are `numbers` [n] among others."""
        return replace(self, nodes=numbers[self.nodes])


def stencils(places: Floats, borders: Floats, nodes: Indices) -> Stencils:
    """The stencils of cells in ascending order, by the nodes' `places` [n] and numbers [n] and the cells' `borders`
    [n + 1]."""
    window, second, fourth, rough, halves = _coefficients(places.tobytes(), borders.tobytes())
    return Stencils(nodes[window], second, fourth, rough, halves)


@lru_cache(KEPT)
def _coefficients(of_places: bytes, of_borders: bytes) -> tuple[Indices, Floats, Floats, Floats, Floats]:
    """The neighbours of each cell by their place, and the other fields of its stencil; nobody changes them.

    All refinements begin with the same nodes, and those of several targets often go on with the same ones.
    """
    places, borders = np.frombuffer(of_places), np.frombuffer(of_borders)
    count = len(places)
    width = np.diff(borders)
    reach = min(REACH, count)
    sides = np.stack([(borders[:-1] - places) / width, np.zeros(count), (borders[1:] - places) / width])
    own, ends = np.arange(count), np.array([0, count - 1])
    window = _window(count, reach)
    halves = np.zeros((2, count, reach))
    inner = _window(count, FEWEST_NODES)
    halves[:, own[:, None], inner - window[:, :1]] = _integrals(places, width, own, inner, sides)
    if reach == REACH:
        four = _window(count, FEWEST_NODES + 1)[ends]
        halves[:, ends] = 0.0
        halves[:, ends[:, None], four - window[ends, :1]] = _integrals(places, width, ends, four, sides[:, ends])
    second = halves.sum(axis=0)
    second[own, own - window[:, 0]] -= width
    fourth = np.zeros((count, reach))
    if reach == REACH:
        (fourth,) = _integrals(places, width, own, window, sides[::2])
        fourth[own, own - window[:, 0]] -= width
        fourth -= second
    spread = ((places - borders[:-1]) ** 3 + (borders[1:] - places) ** 3) / 3
    gaps = np.diff(places[window], axis=1)
    rough = np.zeros((2, count))
    for scale, coefficients in zip(rough, (second, fourth), strict=True):
        variance = (np.cumsum(coefficients, axis=1)[:, :-1] ** 2 * gaps).sum(axis=1)
        np.divide(spread, variance, out=scale, where=variance > 0)
    return window, second, fourth, np.sqrt(rough), halves


def _window(count: int, reach: int) -> Indices:
    """The neighbours of every node, itself among them, as central as they can be: [count, reach]."""
    first = np.clip(np.arange(count) - reach // 2, 0, count - reach)
    return first[:, None] + np.arange(reach)


def _integrals(places: Floats, width: Floats, cells: Indices, window: Indices, bounds: Floats) -> Floats:
    """Coefficients [intervals, n, k] that integrate the polynomial through the nodes of each window [n, k] over each
    interval between two of the `bounds` [intervals + 1, n], measured from the node of the n `cells` in their widths."""
    powers = np.arange(window.shape[1])
    at = (places[window] - places[cells, None]) / width[cells, None]
    systems = at[:, None, :] ** powers[:, None]
    moments = np.diff(bounds[:, :, None] ** (powers + 1), axis=0) / (powers + 1)
    solved = np.linalg.solve(systems, np.moveaxis(moments, 0, -1))
    result: Floats = np.moveaxis(solved, -1, 0) * width[cells, None]
    return result


@dataclass(frozen=True, slots=True)
class LocalErrors:
    """What the vectors say of n cells and of every input, or component of several inputs.

    `cells` [2, n] are L1 norms over the inputs of `second`, unscaled, and of `fourth`, scaled by `rough`.
    `second_squares` and `fourth_squares` [inputs] are the sums over the cells of squares of both, scaled, `drift`
    and `fourth_drift` [inputs] the sums of both, unscaled: the errors of a smooth integrand. `whole` is the L1 norm of
    the integral, `terms` of how many independent terms the scaled `second` is made.
    """

    cells: Floats
    second_squares: Floats
    fourth_squares: Floats
    drift: Floats
    fourth_drift: Floats
    whole: float
    terms: float


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which inputs make up one component, whose attributions are summed: runs of `run` inputs each, or those that a
    column of `membership` [inputs, components] marks with ones."""

    run: int = 1
    membership: Floats | None = None

    def sums(self, contributions: Any, peer: Peer) -> Any:
        """`contributions` [nodes, inputs] summed over the inputs of each component: [nodes, components]."""
        if self.membership is not None:
            return contributions @ peer(self.membership)
        return contributions if self.run == 1 else contributions.reshape(len(contributions), -1, self.run).sum(-1)


def local_errors(
    contributions: Any,
    stencil: Stencils,
    grouping: Grouping,
    peer: Peer = lambda array: array,
    host: Callable[[Any], Floats] = lambda array: array,
) -> LocalErrors:
    """The local errors of `contributions` [nodes, inputs] in float64, an array of numpy or of torch.

    `peer` makes such an array of one of numpy's, and `host` the reverse.
    """
    contributions = grouping.sums(contributions, peer)
    nodes = peer(stencil.nodes)
    second = _combined(contributions, nodes, peer(stencil.second))
    cells = [host(abs(second).sum(1))]
    weights = np.zeros(len(contributions))
    np.add.at(weights, stencil.nodes, stencil.halves.sum(axis=0))
    whole = float(host(abs(peer(weights) @ contributions).sum(0)))
    drift = host(second.sum(0))
    second *= peer(stencil.rough[0][:, None])
    second_squares = host((second * second).sum(0))
    terms = _independent_terms(second, cells[0] * stencil.rough[0], np.sqrt(second_squares), peer, host)
    fourth_squares, fourth_drift = np.full_like(second_squares, np.inf), np.zeros_like(drift)
    if stencil.has_fourth:
        fourth = _combined(contributions, nodes, peer(stencil.fourth))
        fourth_drift = host(fourth.sum(0))
        fourth *= peer(stencil.rough[1][:, None])
        cells.append(host(abs(fourth).sum(1)))
        fourth_squares = host((fourth * fourth).sum(0))
    else:
        cells.append(np.full_like(cells[0], np.inf))
    return LocalErrors(np.stack(cells), second_squares, fourth_squares, drift, fourth_drift, whole, terms)


def _independent_terms(
    vectors: Any, sizes: Floats, deviations: Floats, peer: Peer, host: Callable[[Any], Floats]
) -> float:
    """(sum s_i)^2 / sum s_i s_j r_ij^2 of the `vectors` [cells, components].

    Their L1 norms are `sizes` [cells], and `deviations` [components] the roots of the sums of their squares, the s_i.
    Of many cells and components, all of this is of the largest cells alone.
    """
    if not deviations.any():
        return 1.0
    if min(vectors.shape) > MOST_TOGETHER:
        vectors = vectors[peer(np.sort(np.argsort(-sizes, kind="stable")[:MOST_TOGETHER]))]
        deviations = np.sqrt(host((vectors * vectors).sum(0)))  # of all cells, they would make too many terms
    roots = np.sqrt(deviations)
    scaled = vectors * peer(np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0))
    products = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    return float(deviations.sum() ** 2 / host((products * products).sum(0)).sum())


def _combined(contributions: Any, nodes: Any, coefficients: Any) -> Any:
    """The sum over the neighbours of coefficients times contributions: [cells, inputs]."""
    total = contributions[nodes[:, 0]] * coefficients[:, :1]
    for q in range(1, nodes.shape[1]):
        total += contributions[nodes[:, q]] * coefficients[:, q : q + 1]
    return total


@dataclass(frozen=True, slots=True)
class Estimate:
    """How well an integral is known.

    `is_corrected` says whether the corrected rule is the better one; the errors are then those of that rule. `inputs`
    [inputs] are the errors of the single inputs or components, `cells` [n] the share of each cell in their sum, as L1
    norms. Both are root mean squares, and `safety` times their sum is stated. The sum of the error over the inputs is
    known, and `spread` is how many times larger its L1 norm is, where the vectors tell: where the integrand is smooth,
    and where the error has but one term. Elsewhere it is one.
    """

    is_corrected: bool
    inputs: Floats
    cells: Floats
    safety: float = SAFETY
    spread: float = 1.0


def estimate(errors: LocalErrors, stencil: Stencils, *, is_fixed: bool = False) -> Estimate:
    """The better of the two rules, with its error; see the module. Where the rule `is_fixed`, the plain one."""
    plain = np.maximum(np.sqrt(errors.second_squares), np.abs(errors.drift))
    smooth = np.maximum(SMOOTH_SHARE * np.sqrt(errors.fourth_squares), np.abs(errors.fourth_drift))
    of_plain, of_smooth = float(plain.sum()), float(smooth.sum())
    if is_fixed or not of_smooth <= SMOOTH_SHARE * SMOOTH * of_plain:
        safety = max(SAFETY, SAFETY_MEAN + SAFETY_DEVIATION / math.sqrt(errors.terms))
        spread = _spread(errors.drift) if errors.terms <= ONE_TERM else 1.0
        return Estimate(False, plain, errors.cells[0] * stencil.rough[0], safety, spread)
    rounded = min(NOISE * of_plain, ROUNDED * RESOLUTION * errors.whole) / SAFETY
    if of_smooth > 0:
        smooth *= 1 + rounded / of_smooth
    return Estimate(True, smooth, SMOOTH_SHARE * errors.cells[1], spread=_spread(errors.fourth_drift))


def _spread(vector: Floats) -> float:
    """The L1 norm over the absolute sum, at least one."""
    norm, total = float(np.abs(vector).sum()), abs(float(vector.sum()))
    return min(norm / total, MOST_SPREAD) if total > 0 else 1.0
