"""Quadrature over all baselines at once: every path gets nodes, the worst paths get more.

The mean over K baselines of path integrals is taken with composite midpoints on each path. What a path's rule misses,
its residual f(x) - f(x'_k) - (its sum of derivatives), is known, and the mean of the absolute residuals estimates the
error of the mean without letting paths cancel. Paths with the largest residuals get three times as many nodes; the old
ones stay nodes of the finer rule, so nothing evaluated is lost.

Measured on the loan model with 128 baselines and 1,024 points (relative L1 error, median over held-out rows, logit and
probability): independent draws 2.4% and 4.0%, Latin hypercubes over the baselines with the residual as control variate
1.9% and 3.5%, midpoints on every path 0.4% and 0.5%. So the nodes are spread on each path, not drawn.
"""

from __future__ import annotations

import numpy as np

from service.domain import Floats, Indices

GAIN = 3.0
"""Three times the nodes leave about a third of a path's residual where the integrand jumps (first order)."""
RESOLUTION = float(np.finfo(np.float32).eps)
"""Derivatives come from float32 gradients: a smaller relative difference between two of them is rounding."""


class Sweep:
    """Composite midpoints on each of K paths, refined where the residuals are. `changes` [K] are f(x) - f(x'_k).

    `residuals` [K] are what the rule of each path misses of its change, in units of the output.
    """

    def __init__(self, changes: Floats, nodes_per_path: int) -> None:
        paths = len(changes)
        self._changes = changes
        self._counts = np.full(paths, nodes_per_path)
        self._next_counts = self._counts
        self.line: Indices = np.empty(0, dtype=np.intp)
        self._derivatives: Floats = np.empty(0)
        self.residuals: Floats = changes
        self.pending_line: Indices = np.repeat(np.arange(paths), nodes_per_path)
        self.pending_alphas: Floats = np.tile((np.arange(nodes_per_path) + 0.5) / nodes_per_path, paths)

    def learn(self, derivatives: Floats) -> None:
        """Takes the derivatives along the paths at the pending points."""
        self._derivatives = np.concatenate([self._derivatives, derivatives])
        self.line = np.concatenate([self.line, self.pending_line])
        self._counts = self._next_counts
        sums = np.bincount(self.line, self._derivatives, minlength=len(self._counts))
        self.residuals = self._changes - sums / self._counts
        self.pending_line, self.pending_alphas = np.empty(0, dtype=np.intp), np.empty(0)

    def weights(self) -> Floats:
        """The weight of every evaluated point in the mean over paths; they sum to one."""
        weights: Floats = 1.0 / (self._counts[self.line] * len(self._counts))
        return weights

    def path_error(self) -> float:
        """The mean of the absolute residuals, in units of the output."""
        return float(np.abs(self.residuals).sum()) / len(self.residuals)

    def control(self) -> tuple[Floats, float]:
        """The control variate: weights [n] and the mean residual.

        A point's own residual has the mean zero over its path. Regressing the contributions on it, within the paths,
        tells how a feature's attribution errs when the sum errs: adding the regression times the mean residual
        removes that part, and makes the attributions sum to the change exactly. Where the derivatives vary along no
        path by more than float32 resolves (a linear model), there is nothing to regress on and the control is zero.
        """
        changes = self._changes[self.line]
        deviation = changes - self._derivatives - self.residuals[self.line]
        weighted = deviation * self.weights()
        scale = float(deviation @ weighted)
        magnitude = float(self.weights() @ (self._derivatives**2 + changes**2))
        mean = float(self.residuals.sum()) / len(self.residuals)
        return (weighted / scale if scale > RESOLUTION**2 * magnitude else np.zeros_like(weighted)), mean

    def refine(self, target: float, most: int) -> int:
        """Triples the nodes of the paths with the largest residuals until `target` should hold; at most `most` new.

        Returns the number of points now pending; 0 when `most` allows none.
        """
        paths = len(self._counts)
        errors = np.abs(self.residuals) / paths
        worst_first = np.argsort(-errors, kind="stable")
        gained = np.cumsum(errors[worst_first]) * (1 - 1 / GAIN)
        wanted = int(np.searchsorted(gained, errors.sum() - target)) + 1
        affordable = int(np.searchsorted(np.cumsum(2 * self._counts[worst_first]), most, side="right"))
        chosen = np.sort(worst_first[: min(wanted, affordable)])
        lines, alphas = [], []
        for count in np.unique(self._counts[chosen]):
            of_count = chosen[self._counts[chosen] == count]
            fine = np.arange(3 * count)
            fresh = (fine[fine % 3 != 1] + 0.5) / (3 * count)
            lines.append(np.repeat(of_count, len(fresh)))
            alphas.append(np.tile(fresh, len(of_count)))
        if not lines:
            return 0
        self._next_counts = self._counts.copy()
        self._next_counts[chosen] *= 3
        self.pending_line, self.pending_alphas = np.concatenate(lines), np.concatenate(alphas)
        return len(self.pending_alphas)
