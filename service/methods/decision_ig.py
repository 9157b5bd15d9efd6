"""Integrated Decision Gradients: integrated gradients weighted by how fast the output changes along the path.

Walker, Jha, Chen and Ewetz, "Integrated Decision Gradients: compute your attributions where the model makes its
decision", AAAI 2024. With D = x - x', x' the mean of the baseline set,

    values_i = D_i int from 0 to 1 of df/dx_i (x' + alpha D) df/dalpha dalpha

so that stretches of the path on which the output is saturated count little. df/dalpha is the gradient's product with D.
The paper's adaptive sampling, more nodes where the output changes more, is here a refinement: midpoint panels are split
where what they miss of the output's change, times the slope there, is largest, until the sum of that is within the
tolerance (see `service.numerics.decision`).

The values are in units of the output squared and only their shares mean something: they sum to the integral of
(df/dalpha)^2, which is no difference of outputs, so no completeness is promised. A decision against the target,
where the output falls, weighs its gradients negatively: what drives any change along the path gets a positive value,
whichever way the output goes. On a linear model they are proportional to integrated gradients.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import Points, Steps, evaluated
from service.methods.shared.refined_path import RefinedPath
from service.methods.shared.refining import MIDPOINT_PANELS
from service.methods.spec import MethodSpec, one_point
from service.numerics.decision import DecisionRefinement


def decision_ig(problem: Problem) -> Method:
    """One explanation by Integrated Decision Gradients; see the module's docstring."""
    path = _Line(problem)
    panels = min(MIDPOINT_PANELS, problem.max_evaluations)
    refinement = DecisionRefinement(problem.center_output, problem.output, panels)
    smallest = problem.floor * max(abs(problem.output - problem.center_output), problem.floor)

    def aim() -> float | None:
        error = refinement.sum_of_defects()
        size = float(np.abs(path.weighted_sum(refinement.slope_weights())).sum())
        accepted = problem.tolerance * max(size, smallest)
        return None if error <= accepted or not np.isfinite(error) else accepted / 3

    stopped = yield from path.refine(problem, refinement, aim)
    return Attribution(
        values=path.weighted_sum(refinement.slope_weights()),
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=path.evaluations,
        rule="decision_midpoint",
        stopped=stopped,
    )


class _Line(RefinedPath):
    """The straight path from the mean baseline to the input."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem

    def ask(self, alphas: Floats) -> Steps[tuple[Floats, Floats]]:
        problem, line = self._problem, np.zeros(len(alphas), dtype=np.intp)
        points = Points(problem.center[None], problem.input, line, alphas, problem.readout, problem.target)
        known = yield from evaluated(points)
        return known.outputs, known.contributions


DECISION_IG = MethodSpec(
    name="decision_ig",
    attribute=decision_ig,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=lambda _facts: 128,
    cost="what the tolerance takes, from 8; most of them where the output changes",
    description="the path integral of the gradient, weighted by how fast the output changes along the path",
    citation="Walker, Jha, Chen and Ewetz, AAAI 2024",
)
