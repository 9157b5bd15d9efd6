"""Grad-CAM: the last convolution's feature maps, each weighted by the mean of its gradient.

w_k = mean over space of dy/dA^k, and the map is relu(sum over k of w_k A^k), with y the logit of the target and A^k the
maps of the last convolution; it is interpolated to the size of the input. Selvaraju, Cogswell, Das, Vedantam, Parikh
and Batra, "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017, equations 1
and 2.

It says where evidence for the target lies, as finely as the maps are large, and nothing of evidence against it. The
values are in no unit and promise no sum. With one convolution followed by global average pooling and a linear layer it
is the class activation map.
"""

from __future__ import annotations

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.activation_maps import class_activation, maps_at, needs_feature_maps, over_space
from service.methods.spec import MethodSpec, one_point


def grad_cam(problem: Problem) -> Method:
    """One explanation by Grad-CAM; see the module's docstring."""
    maps = yield from maps_at(problem, problem.input[None])
    activations, gradients = maps.activations[0], maps.gradients[0]
    weights = over_space(gradients) * len(gradients) / gradients.size
    return class_activation(problem, weights, activations, evaluations=1)


GRAD_CAM = MethodSpec(
    name="grad_cam",
    attribute=grad_cam,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    not_applicable=needs_feature_maps("grad_cam"),
    description="the last convolution's maps, weighted by their mean gradients, for the logit; one value a pixel",
    citation="Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, ICCV 2017",
)
