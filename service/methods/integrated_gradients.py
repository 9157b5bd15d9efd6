"""Integrated Gradients: (x - x') times the integral of the gradient on the straight line from x' to x.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, equation 1. The baseline x' is the
mean of the chosen baseline set, or the one row that came with the request.

The rule decides how the integral is taken. `exact`: on a piecewise-linear network, one gradient per piece is the
integral itself; through a two-class softmax it stays exact with the weights of `softmax_piece_weights`. Through one of
more labels the gradient is not constant on a piece, but those of the logits are: one for each label whose probability
plays a part is weighted with the integral of its slope, which is known (`service.numerics.softmax_pieces`). What does
not fit the budget is not taken; a refining rule answers instead. `midpoint` refines until the error holds, and is of
fourth order where the path is smooth (`service.numerics.cells`). `auto` takes the exact rule where the network allows
it and it takes few gradients, else midpoint. `gauss_legendre` takes the fewest points where the path is smooth, and
more than midpoint where it bends, since a panel that is halved loses its nodes (`service.numerics.panels`). The rules
are in `service.methods.shared.straight_path`.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.straight_path import straight_path
from service.methods.spec import Choice, Facts, MethodSpec, one_point


def integrated_gradients(problem: Problem) -> Method:
    """One explanation by Integrated Gradients; see the module's docstring."""
    return straight_path(problem, str(problem.options["rule"]))


def _not_applicable(facts: Facts) -> str | None:
    obstacle = facts.traits.obstacle
    if facts.options["rule"] != "exact" or obstacle is None:
        return None
    return f"the exact rule does not apply to this model: {obstacle}; use auto, gauss_legendre or midpoint"


INTEGRATED_GRADIENTS = MethodSpec(
    name="integrated_gradients",
    attribute=integrated_gradients,
    completeness=(Completeness.EXACT, Completeness.ASYMPTOTIC),
    least_points=one_point,
    usual_points=lambda _facts: 64,
    gives_reasons=True,
    cost="one a piece by the exact rule, and label if more than two have a probability; else as tolerated, from 5",
    options=(
        Choice(
            "rule",
            "auto",
            ("auto", "exact", "gauss_legendre", "midpoint"),
            "how the path integral is taken; auto is exact where the network is piecewise linear, in few pieces",
        ),
    ),
    not_applicable=_not_applicable,
    description="the path integral of the gradient from the mean of the baseline set to the input",
    citation="Sundararajan, Taly and Yan, ICML 2017",
)
