"""Quadrature over all baselines at once: every path gets nodes, the worst paths get more.

The mean over K baselines of path integrals is taken with equally weighted nodes on each path. What a path's nodes miss,
its residual f(x) - f(x'_k) - (the mean of its derivatives), is known. The mean of the absolute residuals, in which
paths do not cancel, estimates the error of the mean, unless the outputs at the nodes show a larger one (see
`service.numerics.defects`). The paths with the largest errors get more nodes, and nothing evaluated is lost. What is
missed in the end is shared among the inputs of each path; see `Sweep.shared`.

With four nodes a path and more they are midpoints, and three times as many are the next midpoints: the residuals are
smallest so. With fewer, midpoints would all miss in the same direction. Then paths begin at different places, a Latin
hypercube over the baselines (one in each of K strata, in an order drawn from the seed), and their errors cancel in the
mean; the second node mirrors the first, and from there on all are doubled by a shift of half a step.

Measured on the loan model, 128 baselines: the squared error of as many independent draws divided by ours. First, over
32 to 64 held-out rows, with one regression for all paths in the place of shares (logit, probability; the hypercube's
512 and 1,024 are a prototype's), and for a tolerance of 0.01 the points a row:

| points | midpoints | Latin hypercube |
| --- | --- | --- |
| 200 | 5, 5 | 13, 10 |
| 512 | 41, 78 | 77, 90 |
| 1,024 | 114, 243 | 146, 153 |
| to tolerance 0.01 | 963 | 1,340 |

Then what is done with residuals, over 24 rows in one run, the hypercube for 200 points and midpoints for more:

| points | nothing | one regression for all paths | shared among the inputs of each path |
| --- | --- | --- | --- |
| 200 | 18, 7.2 | 22, 9.1 | 33, 13 |
| 512 | 91, 123 | 100, 142 | 132, 137 |
| 1,024 | 159, 322 | 168, 347 | 192, 356 |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.domain import Floats, Indices
from service.numerics.cells import SAFETY, Grouping
from service.numerics.errors import RESOLUTION, SWEEP_SAFETY

FEWEST_MIDPOINTS = 4
PLACE_IN_STRATUM = (3 - 5**0.5) / 2
"""The golden section, and not a half: no node falls on its mirror image, with however few paths."""

CONTRAST = np.array([1.0, -1.0, -1.0, 1.0])
"""Of the contributions at a path's first four midpoints. It is zero where they are linear. Where they are smooth, the
rule's error is a 48th of it. Where they are a random walk (see `service.numerics.cells`) both are random, and the
root mean square of the error is sqrt(2 / 192) of that of the contrast."""
WALK_OF_CONTRAST, SMOOTH_OF_CONTRAST = (2 / 192) ** 0.5, 1 / 48
WALK_OF_STEP, SMOOTH_OF_STEP = 8**-0.5, 1 / 8
"""Likewise, of what three times as many midpoints change."""


class PathErrors:
    """What the midpoints of K paths miss, input by input, read from their contributions."""

    def __init__(self, paths: int) -> None:
        self._walks: Floats = np.empty((paths, 0))
        self._smooth = np.full(paths, SMOOTH_OF_CONTRAST / WALK_OF_CONTRAST)

    def begin(self, contrasts: Floats) -> None:
        """Takes the `CONTRAST` of every path's first contributions: [K, inputs]."""
        self._walks = WALK_OF_CONTRAST * contrasts

    def refine(self, paths: Indices, steps: Floats) -> None:
        """Takes how much the integrals of `paths` [p] changed as their nodes were tripled: [p, inputs]."""
        self._walks[paths] = WALK_OF_STEP * steps
        self._smooth[paths] = SMOOTH_OF_STEP / WALK_OF_STEP

    def of_paths(self, grouping: Grouping) -> Floats:
        """How much each path adds to K times the L1 error of the mean, [K], as `Sweep.learn` takes it.

        Random errors of different paths add up in squares, those of smooth paths as they are; of each component the
        larger sum counts.
        """
        components = grouping.sums(self._walks, lambda array: array)
        walk = np.sqrt((components**2).sum(axis=0))
        drift = np.abs(self._smooth @ components)
        whole = SAFETY / SWEEP_SAFETY * float(np.maximum(walk, drift).sum())
        parts: Floats = np.abs(components).sum(axis=1)
        total = float(parts.sum())
        return parts * (whole / total) if total > 0 else parts


class Sweep:
    """Nodes on each of K paths, refined where the residuals are. `changes` [K] are f(x) - f(x'_k).

    What is to be evaluated next are `pending_lengths` [p] nodes on each of `pending_paths` [p], path after path at
    `pending_alphas`. `residuals` [K] are what the nodes of each path miss of its change, in units of the output.
    `factor` is by what a refinement multiplies a path's nodes, and divides its residual where the integrand jumps
    (first order).
    """

    def __init__(self, changes: Floats, nodes_per_path: int, seed: int) -> None:
        paths = len(changes)
        nodes = nodes_per_path if nodes_per_path >= FEWEST_MIDPOINTS else 1
        self._changes = changes
        self._sums = np.zeros(paths)
        self.counts = np.zeros(paths, dtype=np.intp)
        self.residuals: Floats = changes
        self.errors: Floats = np.abs(changes)
        self.pending_paths: Indices = np.arange(paths)
        self.pending_lengths: Indices = np.full(paths, nodes)
        self.pending_alphas: Floats = np.tile(_midpoints(nodes), paths)
        self._begins: Floats | None = None
        if nodes_per_path < FEWEST_MIDPOINTS:
            self._begins = (np.random.default_rng(seed).permutation(paths) + PLACE_IN_STRATUM) / paths
            self.pending_alphas = self._begins

    @property
    def factor(self) -> int:
        return 3 if self._begins is None else 2

    @property
    def has_midpoints(self) -> bool:
        """Whether the nodes of every path are its midpoints, four and three times as many again and again."""
        return self._begins is None

    @property
    def places(self) -> Floats:
        """The first nodes where all paths have the same, else none."""
        return self.pending_alphas[: self.pending_lengths[0]] if self._begins is None else np.empty(0)

    @property
    def pending_line(self) -> Indices:
        """The path of every pending node."""
        return np.repeat(self.pending_paths, self.pending_lengths)

    def _finer(self, paths: Indices, count: int) -> Floats:
        """The nodes to be added to those of `paths`, each of which has `count`: [paths, (factor - 1) count]."""
        if self._begins is None:
            fine = _midpoints(3 * count)
            return np.broadcast_to(fine[np.arange(3 * count) % 3 != 1], (len(paths), 2 * count))
        begins = self._begins[paths, None]
        if count == 1:
            return 1 - begins
        steps = count // 2
        shifted = (begins + _midpoints(steps)) % 1.0
        return np.concatenate([shifted, 1 - shifted], axis=1)

    def learn(self, derivatives: Floats, missed: Sequence[Floats] = ()) -> None:
        """Takes the derivatives along the paths at the pending nodes.

        Each of `missed` is another estimate of the errors of the paths, [K]; the one with the largest mean counts. What
        paths with midpoints miss of their own changes cancels in the mean as random errors do, or less where the
        residuals show that.
        """
        self._sums += np.bincount(self.pending_line, derivatives, minlength=len(self._sums))
        self.counts[self.pending_paths] += self.pending_lengths
        self.residuals = self._changes - self._sums / self.counts
        own = np.abs(self.residuals)
        if self.has_midpoints:
            cancelled = abs(float(self.residuals.sum())) / max(float(own.sum()), np.finfo(np.float64).tiny)
            own *= max(cancelled, len(own) ** -0.5)
        self.errors = max([own, *missed], key=np.sum)
        self.pending_paths = self.pending_lengths = np.empty(0, dtype=np.intp)
        self.pending_alphas = np.empty(0)

    def path_error(self) -> float:
        """The mean of the errors of the paths, in units of the output."""
        return float(self.errors.sum()) / len(self.errors)

    def shared(self, sums: Floats, squares: Floats, directions: Floats) -> Floats:
        """The attributions of every path, its residual shared among its inputs: [K, inputs].

        `sums` [K, inputs] are those of the contributions at the nodes of each path, `squares` [inputs] those of the
        squares of all, `directions` [K, inputs] are x - x'_k. A contribution is a gradient times a direction. Where
        gradients err by a variance of each input's own, the best linear unbiased estimate of their integral under
        the condition that it adds up to the path's change (Gauss-Markov) gives every input a part of the residual as
        its direction squared times that variance. The variance is taken over all nodes, since a path has few. An input
        whose gradient varies by no more than float32 resolves gets no part: its integral is known (a linear model).
        """
        squared = directions**2
        lengths = self.counts @ squared
        explained = np.divide(
            (sums * directions).sum(axis=0) ** 2, lengths, out=np.zeros_like(lengths), where=lengths > 0
        )
        unexplained = squares - explained
        varies = unexplained > RESOLUTION**2 * squares
        variance = np.divide(unexplained, lengths, out=np.zeros_like(lengths), where=varies)
        squared *= variance
        totals = squared.sum(axis=1)
        squared *= np.divide(self.residuals, totals, out=np.zeros_like(totals), where=totals > 0)[:, None]
        squared += sums / self.counts[:, None]
        return squared

    def refine(self, target: float, most: int) -> int:
        """Adds nodes to the paths with the largest errors until `target` should hold; at most `most`.

        Returns the number of points now pending; 0 when `most` allows none.
        """
        errors = self.errors / len(self.errors)
        worst_first = np.argsort(-errors, kind="stable")
        gained = np.cumsum(errors[worst_first]) * (1 - 1 / self.factor)
        wanted = int(np.searchsorted(gained, errors.sum() - target)) + 1
        costs = np.cumsum((self.factor - 1) * self.counts[worst_first])
        affordable = int(np.searchsorted(costs, most, side="right"))
        chosen = np.sort(worst_first[: min(wanted, affordable)])
        if not len(chosen):
            return 0
        counts = self.counts[chosen]
        sizes = np.flatnonzero(np.bincount(counts)).tolist()
        groups = [chosen[counts == size] for size in sizes]
        fresh = [self._finer(paths, size) for paths, size in zip(groups, sizes, strict=True)]
        self.pending_paths = np.concatenate(groups)
        self.pending_lengths = (self.factor - 1) * self.counts[self.pending_paths]
        self.pending_alphas = np.concatenate([alphas.ravel() for alphas in fresh])
        return len(self.pending_alphas)


def _midpoints(count: int) -> Floats:
    midpoints: Floats = (np.arange(count) + 0.5) / count
    return midpoints
