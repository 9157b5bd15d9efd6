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
from service.methods.oracle import Attribution, DeadlinePassed, Evaluated, Method, Points, Problem, evaluated
from service.numerics.errors import SWEEP_SAFETY
from service.numerics.refinement import Stagnation
from service.numerics.sweep import Sweep

NODES_PER_PATH = 4


def expected_gradients(problem: Problem) -> Method:
    """One explanation by Expected Gradients; needs at least one point a baseline."""
    paths = len(problem.baselines)
    nodes = min(NODES_PER_PATH, problem.max_evaluations // paths)
    sweep = Sweep(problem.output - problem.baseline_outputs, nodes, problem.seed)
    known = yield from evaluated(_points(problem, sweep))
    sweep.learn(known.derivatives)
    values = _controlled(sweep, known)
    stopped, stagnation = None, Stagnation()
    while stopped is None and sweep.path_error() > (accepted := _accepted(problem, values)):
        while sweep.path_error() > accepted:
            if stagnation.after(sweep.path_error()):
                stopped = "precision"
                break
            if not sweep.refine(accepted, problem.max_evaluations - len(known.outputs)):
                stopped = "budget"
                break
            try:
                answer = yield from evaluated(_points(problem, sweep))
            except DeadlinePassed:
                stopped = "deadline"
                break
            sweep.learn(answer.derivatives)
            known = known.joined(answer)
        values = _controlled(sweep, known)
    return Attribution(
        values=values,
        baseline_output=float(problem.baseline_outputs.mean()),
        completeness=Completeness.BY_CONSTRUCTION,
        path_error=SWEEP_SAFETY * sweep.path_error(),
        evaluations=len(known.outputs),
        rule="sweep",
        stopped=stopped,
        standard_error=_standard_error(problem, sweep, known),
    )


def _accepted(problem: Problem, values: Floats) -> float:
    """The path error that the tolerance allows at these attributions."""
    return problem.tolerance * max(float(np.abs(values).sum()), problem.floor)


def _points(problem: Problem, sweep: Sweep) -> Points:
    return Points(
        problem.baselines,
        problem.input,
        sweep.pending_line,
        sweep.pending_alphas,
        problem.readout,
        problem.target,
    )


def _controlled(sweep: Sweep, known: Evaluated) -> Floats:
    """The attributions with the part of their error that the mean residual reveals removed: [inputs]."""
    control, mean_residual = sweep.control()
    return known.weighted_sum(sweep.weights() - mean_residual * control)


def _standard_error(problem: Problem, sweep: Sweep, known: Evaluated) -> Floats | None:
    paths = len(problem.baselines)
    if paths < 2:
        return None
    of_paths = problem.per_unit(paths * known.group_sums(sweep.weights(), sweep.line, paths))
    error: Floats = of_paths.std(axis=0, ddof=1) / np.sqrt(paths)
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
