"""Expected Gradients: the mean over a baseline set of Integrated Gradients.

Erion, Janizek, Sturmfels, Lundberg and Lee, "Improving performance of deep learning models with axiomatic attribution
priors and expected gradients", Nature Machine Intelligence 2021, equation 3. There the two expectations, over the
baselines and along the paths, are estimated from random draws. Here every baseline is used and only the path integrals
are approximated (see `service.numerics.sweep`), with the completeness residual as control variate; so the numerical
error is small and known. The other error, that the baseline set is itself a sample, is reported as `standard_error`:
the spread of the per-baseline attributions over the square root of their number, which more points do not shrink.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness, Floats
from service.methods.entry import MethodEntry
from service.methods.oracle import Attribution, Evaluated, Method, Points, Problem, Steps, evaluated
from service.methods.refining import accepted, refine
from service.numerics.errors import SWEEP_SAFETY
from service.numerics.sweep import Sweep

NODES_PER_PATH = 4


def expected_gradients(problem: Problem) -> Method:
    """One explanation by Expected Gradients; needs at least one point a baseline."""
    paths = _Paths(problem)
    stopped = yield from refine(paths.learn, paths.sweep.path_error, paths.aim, paths.split)
    return Attribution(
        values=paths.values if stopped is None else paths.controlled(),
        baseline_output=float(problem.baseline_outputs.mean()),
        completeness=Completeness.BY_CONSTRUCTION,
        path_error=SWEEP_SAFETY * paths.sweep.path_error(),
        evaluations=len(paths.known.outputs),
        rule="sweep",
        stopped=stopped,
        standard_error=paths.standard_error(),
    )


class _Paths:
    """What is known of the paths from all baselines: the points so far, and the `values` [inputs] by most of them."""

    def __init__(self, problem: Problem) -> None:
        nodes = min(NODES_PER_PATH, problem.max_evaluations // len(problem.baselines))
        self._problem = problem
        self._known: Evaluated | None = None
        self._accepted = np.inf
        self.sweep = Sweep(problem.output - problem.baseline_outputs, nodes, problem.seed)
        self.values: Floats = np.zeros_like(problem.input)

    @property
    def known(self) -> Evaluated:
        """All points so far; there are some after the first `learn`."""
        assert self._known is not None
        return self._known

    def learn(self) -> Steps[None]:
        """Evaluates the pending points."""
        problem, sweep = self._problem, self.sweep
        points = Points(
            problem.baselines,
            problem.input,
            sweep.pending_line,
            sweep.pending_alphas,
            problem.readout,
            problem.target,
        )
        answer = yield from evaluated(points)
        sweep.learn(answer.derivatives)
        self._known = answer if self._known is None else self._known.joined(answer)

    def aim(self) -> float | None:
        """The path error to aim at. What the tolerance allows depends on the values, which are summed up anew only when
        the last aim was reached."""
        error = self.sweep.path_error()
        if not error > self._accepted:
            self.values = self.controlled()
            self._accepted = accepted(self._problem, self.values)
        return self._accepted if error > self._accepted else None

    def split(self, target: float) -> int:
        """Refines the paths to reach `target`; the number of points now pending."""
        return self.sweep.refine(target, self._problem.max_evaluations - len(self.known.outputs))

    def controlled(self) -> Floats:
        """The attributions with the part of their error that the mean residual reveals removed: [inputs]."""
        control, mean_residual = self.sweep.control()
        return self.known.weighted_sum(self.sweep.weights() - mean_residual * control)

    def standard_error(self) -> Floats | None:
        """The spread of the paths' attributions over the square root of their number: [units]."""
        paths = len(self._problem.baselines)
        if paths < 2:
            return None
        of_paths = paths * self.known.group_sums(self.sweep.weights(), self.sweep.line, paths)
        error: Floats = self._problem.per_unit(of_paths).std(axis=0, ddof=1) / np.sqrt(paths)
        return error


EXPECTED_GRADIENTS = MethodEntry(
    name="expected_gradients",
    attribute=expected_gradients,
    completeness=(Completeness.BY_CONSTRUCTION,),
    draws=True,
    least_points=lambda facts: facts.baseline_size,
    usual_points=lambda facts: 8 * facts.baseline_size,
    gives_reasons=True,
    cost="one a row of the baseline set at least, usually four to eight",
    description="the mean of integrated gradients over every row of the baseline set",
    citation="Erion et al., Nature Machine Intelligence 2021",
)
