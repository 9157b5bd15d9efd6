"""RectGrad: at every ReLU the gradient is passed back where it matters most, and cut off elsewhere; times the input.

At a ReLU with output A the gradient R passes where A * R > tau, and the result at the input is x * R. tau is the
`percentile` of A * R over the layer, for this input alone, by linear interpolation between neighbours. Kim, Seo, Jeon,
Koo, Choe and Jeon, "Why are saliency maps noisy? Cause of and solution to noisy saliency maps", ICCV workshops 2019.

Since the comparison is strict, percentile 0 passes all of a layer but its least A * R. Where that is zero, the plain
gradient passes: what is left out is inactive or has R = 0. Percentile 100 passes nothing, and all values are zero. It
promises no sum.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.questions import BackwardRule
from service.methods.shared.one_gradient import of_one_gradient
from service.methods.shared.relu_rules import needs_relu, passed_back
from service.methods.spec import MethodSpec, Number, one_point


def rectgrad(problem: Problem) -> Method:
    """One explanation by RectGrad; see the module's docstring."""
    gradient = yield from passed_back(problem, BackwardRule.RECTIFIED, problem.number("percentile"))
    return of_one_gradient(problem, problem.input * gradient)


RECTGRAD = MethodSpec(
    name="rectgrad",
    attribute=rectgrad,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    options=(
        Number(
            "percentile",
            98.0,
            0.0,
            100.0,
            "the percentile of activation times gradient, over a layer, above which a gradient is passed back",
        ),
    ),
    not_applicable=needs_relu("rectgrad"),
    description="the input times a gradient of which every ReLU passes back what matters most",
    citation="Kim, Seo, Jeon, Koo, Choe and Jeon, ICCV workshops 2019",
)
