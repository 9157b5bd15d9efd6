"""Grad-CAM++: as Grad-CAM, with each place of a feature map weighted by how much it has of the evidence.

With g = dy/dA^k at a place, y the logit of the target, w_k = sum over space of alpha relu(g), where
alpha = g^2 / (2 g^2 + (sum over space of A^k) g^3). Chattopadhay, Sarkar, Howlader and Balasubramanian, "Grad-CAM++:
generalized gradient-based visual explanations for deep convolutional networks", WACV 2018, equations 7 and 19 of
arXiv:1710.11063. There the score is exp(y); its factor exp(y) in every weight scales the whole map and is left out.

Several objects of a label are all found, where Grad-CAM favours the one with the most places. The values are in no unit
and promise no sum. The maps A are meant to be behind a ReLU: with negative sums the denominator can come near zero.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.activation_maps import class_activation, maps_at, needs_feature_maps, plus_plus_weights
from service.methods.spec import MethodSpec, one_point


def grad_cam_pp(problem: Problem) -> Method:
    """One explanation by Grad-CAM++; see the module's docstring."""
    maps = yield from maps_at(problem, problem.input[None])
    activations, gradients = maps.activations[0], maps.gradients[0]
    weights = plus_plus_weights(activations, gradients, gradients**2, gradients**3)
    return class_activation(problem, weights, activations, evaluations=1)


GRAD_CAM_PP = MethodSpec(
    name="grad_cam_pp",
    attribute=grad_cam_pp,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    not_applicable=needs_feature_maps("grad_cam_pp"),
    description="the last convolution's maps, weighted place by place, for the logit; one value a pixel",
    citation="Chattopadhay, Sarkar, Howlader and Balasubramanian, WACV 2018",
)
