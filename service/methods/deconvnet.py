"""Deconvnet: the output is led back through the network with relu(R) at every ReLU, whatever passed it forwards.

R is what arrives at the ReLU from above: the plain gradient would let it pass where the ReLU was active; here it passes
where it is positive. Max-pooling is undone by its switches, the places of the maxima, and affine layers by their
transposes, as in the gradient. Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014,
section 2.1.

It promises no sum, and tells labels apart poorly: without the forward gate the result depends on the input through the
switches alone, and on a network without max-pooling not at all (for logits). Nie, Zhang and Patel, "A theoretical
explanation for perplexing behaviors of backpropagation-based visualizations", ICML 2018.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.questions import BackwardRule
from service.methods.shared.one_gradient import of_one_gradient
from service.methods.shared.relu_rules import needs_relu, passed_back
from service.methods.spec import MethodSpec, one_point


def deconvnet(problem: Problem) -> Method:
    """One explanation by Deconvnet; see the module's docstring."""
    values = yield from passed_back(problem, BackwardRule.DECONVNET)
    return of_one_gradient(problem, values)


DECONVNET = MethodSpec(
    name="deconvnet",
    attribute=deconvnet,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    not_applicable=needs_relu("deconvnet"),
    description="the gradient with its positive part passed back at every ReLU, active or not",
    citation="Zeiler and Fergus, ECCV 2014",
)
