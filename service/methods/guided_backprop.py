"""Guided Backprop: the gradient with its positive part alone passed back at every ReLU that was active.

At a ReLU with output A, relu(R) where A > 0 takes the place of R where A > 0: the forward gate of the gradient and the
one of Deconvnet together. Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for simplicity: the all
convolutional net", ICLR workshop 2015, section 3.4.

It promises no sum. It partly restores the image instead of explaining the output: it hardly changes when the upper
layers are replaced by random ones (Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018; Nie, Zhang and
Patel, ICML 2018). Use it to see what the lower layers look at, and no further.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.questions import BackwardRule
from service.methods.shared.one_gradient import of_one_gradient
from service.methods.shared.relu_rules import needs_relu, passed_back
from service.methods.spec import MethodSpec, one_point


def guided_backprop(problem: Problem) -> Method:
    """One explanation by Guided Backprop; see the module's docstring."""
    values = yield from passed_back(problem, BackwardRule.GUIDED)
    return of_one_gradient(problem, values)


GUIDED_BACKPROP = MethodSpec(
    name="guided_backprop",
    attribute=guided_backprop,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    not_applicable=needs_relu("guided_backprop"),
    description="the gradient with its positive part alone passed back at every active ReLU",
    citation="Springenberg, Dosovitskiy, Brox and Riedmiller, ICLR workshop 2015",
)
