"""Boundary-based saliency: the gradient at the nearest point at which the decision turns.

Wang, Fredrikson and Datta, "Robust models are more interpretable because attributions look normal", ICML 2022,
definition of BSM: df/dx at the closest point x' at which another class is predicted, which is normal to the boundary
where two classes meet. The values keep their signs and are per unit of the input, not on one scale where features have
different units. The search for x' is that of `service.methods.shared.boundary_search`; nothing promises that it finds
the nearest. Where it found none in the budget, x' is the point nearest to turning, and the answer says `stopped:
budget`.

No sum of the values relates to the output.
"""

from __future__ import annotations

from dataclasses import replace

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.boundary_search import MAX_GRADIENTS, least_gradients, nearest_boundary
from service.methods.shared.one_gradient import gradient_at, of_one_gradient
from service.methods.spec import MethodSpec, needs_classes


def boundary_saliency(problem: Problem) -> Method:
    """One explanation by boundary-based saliency; see the module's docstring."""
    boundary = yield from nearest_boundary(problem, problem.max_evaluations - 1)
    _, gradient = yield from gradient_at(problem, boundary.point)
    return replace(
        of_one_gradient(problem, gradient),
        evaluations=boundary.evaluations + 1,
        stopped=None if boundary.is_found else "budget",
    )


BOUNDARY_SALIENCY = MethodSpec(
    name="boundary_saliency",
    attribute=boundary_saliency,
    completeness=(Completeness.NONE,),
    least_points=lambda facts: least_gradients(facts.traits) + 1,
    usual_points=lambda _facts: MAX_GRADIENTS // 2,
    cost=f"up to {MAX_GRADIENTS} for the search, and one",
    not_applicable=needs_classes("boundary_saliency"),
    description="the gradient at the nearest point found at which the decision turns",
    citation="Wang, Fredrikson and Datta, ICML 2022",
)
