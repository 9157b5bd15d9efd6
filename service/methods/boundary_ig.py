"""Boundary-based Integrated Gradients: integrated gradients from the nearest point at which the decision turns.

Wang, Fredrikson and Datta, "Robust models are more interpretable because attributions look normal", ICML 2022,
definition of BIG: IG with the baseline x' = argmin of norm(x' - x) such that another class is predicted at x'. The
search for x' is that of `service.methods.shared.boundary_search`, with lengths in units of each input's range; the
integral is taken as that of integrated gradients is, by the rule that suits the network
(`service.methods.shared.straight_path`). For a linear model of two classes x' = x - (m / norm(w)^2) w, and the values
are in the ratios of w_i^2.

The values sum to f(x) - f(x'), where f(x') is the deployed output at the boundary. That x' is the nearest point of the
boundary is not promised. Where none was found in the budget, x' is the point nearest to turning, and the answer says
`stopped: budget`. x' may lie outside the range of the inputs.
"""

from __future__ import annotations

from dataclasses import replace

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.boundary_search import MAX_GRADIENTS, least_gradients, nearest_boundary
from service.methods.shared.straight_path import straight_path
from service.methods.spec import MethodSpec, needs_classes


def boundary_ig(problem: Problem) -> Method:
    """One explanation by boundary-based integrated gradients; see the module's docstring."""
    most = max(least_gradients(problem.traits), problem.max_evaluations // 2)
    boundary = yield from nearest_boundary(problem, most)
    from_boundary = replace(
        problem,
        center=boundary.point,
        center_output=boundary.output,
        max_evaluations=problem.max_evaluations - boundary.evaluations,
    )
    integrated = yield from straight_path(from_boundary, "auto")
    return replace(
        integrated,
        evaluations=boundary.evaluations + integrated.evaluations,
        stopped=integrated.stopped if boundary.is_found else "budget",
    )


BOUNDARY_IG = MethodSpec(
    name="boundary_ig",
    attribute=boundary_ig,
    completeness=(Completeness.EXACT, Completeness.ASYMPTOTIC),
    least_points=lambda facts: least_gradients(facts.traits) + 1,
    usual_points=lambda _facts: MAX_GRADIENTS // 2,
    cost=f"up to {MAX_GRADIENTS} for the search, then as integrated_gradients",
    not_applicable=needs_classes("boundary_ig"),
    description="integrated gradients from the nearest point found at which the decision turns",
    citation="Wang, Fredrikson and Datta, ICML 2022",
)
