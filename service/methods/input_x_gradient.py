"""Input x gradient: each input times its gradient, x_i df/dx_i.

Shrikumar, Greenside, Shcherbina and Kundaje, "Not just a black box: learning important features through propagating
activation differences", 2016. It is the first-order Taylor estimate of f(x) - f(0).

The values sum to f(x) where the network is homogeneous (ReLU without biases): there they are Integrated Gradients from
zeros. Elsewhere no sum holds, and an input that is zero gets nothing, whatever zero means in its unit.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.one_gradient import gradient_at, of_one_gradient
from service.methods.spec import MethodSpec, one_point


def input_x_gradient(problem: Problem) -> Method:
    """One explanation by input x gradient; see the module's docstring."""
    _, gradient = yield from gradient_at(problem, problem.input)
    return of_one_gradient(problem, problem.input * gradient)


INPUT_X_GRADIENT = MethodSpec(
    name="input_x_gradient",
    attribute=input_x_gradient,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    description="each input times its gradient",
    citation="Shrikumar, Greenside, Shcherbina and Kundaje, 2016",
)
