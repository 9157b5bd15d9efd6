"""Expected Gradients: the mean over a baseline set of Integrated Gradients.

Erion, Janizek, Sturmfels, Lundberg and Lee, "Improving performance of deep learning models with axiomatic attribution
priors and expected gradients", Nature Machine Intelligence 2021, equation 3. There the two expectations, over the
baselines and along the paths, are estimated from random draws. Here every baseline is used and only the path integrals
are approximated (see `service.numerics.sweep`), and what each misses is shared among its inputs; so the numerical
error is small and known. The other error, that the baseline set is itself a sample, is reported as `standard_error`: it
follows from how the attributions of single baselines differ (`service.numerics.sampling_error`), and more points do not
shrink it.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import Points, Steps, evaluated
from service.methods.shared.refining import accepted, refine
from service.methods.spec import MethodSpec
from service.numerics.defects import HiddenChanges
from service.numerics.errors import SWEEP_SAFETY
from service.numerics.sampling_error import sampling_error
from service.numerics.sweep import CONTRAST, PathErrors, Sweep

NODES_PER_PATH = 4


def expected_gradients(problem: Problem) -> Method:
    """One explanation by Expected Gradients; needs at least one point a baseline."""
    paths = _Paths(problem)
    stopped = yield from refine(paths.learn, paths.sweep.path_error, paths.aim, paths.sweep_further)
    of_paths = paths.attributions()
    return Attribution(
        values=of_paths.mean(axis=0),
        baseline_output=float(problem.baseline_outputs.mean()),
        completeness=Completeness.BY_CONSTRUCTION,
        path_error=SWEEP_SAFETY * paths.sweep.path_error(),
        evaluations=paths.evaluations,
        rule="sweep",
        stopped=stopped,
        standard_error=sampling_error(problem.per_component(of_paths)) if len(of_paths) > 1 else None,
    )


class _Paths:
    """What is known of the paths from all baselines: of each, the sums over its nodes."""

    def __init__(self, problem: Problem) -> None:
        nodes = min(NODES_PER_PATH, problem.max_evaluations // len(problem.baselines))
        self._problem = problem
        self._sums = np.zeros_like(problem.baselines)
        self._squares = np.zeros_like(problem.input)
        self.sweep = Sweep(problem.output - problem.baseline_outputs, nodes, problem.seed)
        ends = np.full(len(problem.baselines), problem.output)
        self._errors = PathErrors(len(problem.baselines))
        self._hidden = HiddenChanges(problem.baseline_outputs, ends, self.sweep.places)

    @property
    def evaluations(self) -> int:
        return int(self.sweep.counts.sum())

    def learn(self) -> Steps[None]:
        """Evaluates the pending nodes."""
        problem, sweep = self._problem, self.sweep
        line, alphas = sweep.pending_line, sweep.pending_alphas
        answer = yield from evaluated(
            Points(problem.baselines, problem.input, line, alphas, problem.readout, problem.target)
        )
        fresh, lengths = sweep.pending_paths, sweep.pending_lengths
        before, counts = self._sums[fresh], sweep.counts[fresh]
        self._sums[fresh] += answer.run_sums(lengths)
        self._squares += answer.squares()
        hidden = self._hidden.learn(line, alphas, answer.outputs, answer.derivatives)
        if not sweep.has_midpoints:
            sweep.learn(answer.derivatives, hidden)
            return
        if not counts[0]:
            self._errors.begin(answer.run_sums(lengths, np.tile(CONTRAST, len(fresh))))
        else:
            known = self._sums[fresh] / (counts + lengths)[:, None]
            self._errors.refine(fresh, known - before / counts[:, None])
        sweep.learn(answer.derivatives, [*hidden, self._errors.of_paths(problem.grouping)])

    def aim(self) -> float | None:
        """The path error to aim at; what the tolerance allows grows with the attributions that are found."""
        allowed = accepted(self._problem, self.attributions().mean(axis=0)) / SWEEP_SAFETY
        return allowed if self.sweep.path_error() > allowed else None

    def sweep_further(self, target: float) -> int:
        """Refines the paths to reach `target`; the number of points now pending."""
        return self.sweep.refine(target, self._problem.max_evaluations - self.evaluations)

    def attributions(self) -> Floats:
        """Of every path, by what is known so far: [paths, inputs]."""
        return self.sweep.shared(self._sums, self._squares, self._problem.input - self._problem.baselines)


EXPECTED_GRADIENTS = MethodSpec(
    name="expected_gradients",
    attribute=expected_gradients,
    completeness=(Completeness.BY_CONSTRUCTION,),
    uses_seed=True,
    least_points=lambda facts: facts.baseline_size,
    usual_points=lambda facts: 8 * facts.baseline_size,
    gives_reasons=True,
    cost="one a row of the baseline set at least, usually four to eight",
    description="the mean of integrated gradients over every row of the baseline set",
    citation="Erion et al., Nature Machine Intelligence 2021",
)
