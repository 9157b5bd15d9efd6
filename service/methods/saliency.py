"""Saliency: how steeply the output changes with each input, |df/dx_i|; on images the steepest channel of each pixel.

Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks: visualising image classification models and
saliency maps", ICLR workshop 2014, section 3.1. On images the values are max over channels c of |df/dx_cij|, one a
pixel. They are per unit of the input: features in different units are not on one scale.

It says what an infinitesimal change would do, and not what the input contributes: there is no baseline and no sum that
holds, and where the output saturates all values are near zero.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.one_gradient import gradient_at, of_one_gradient
from service.methods.spec import MethodSpec, one_point


def saliency(problem: Problem) -> Method:
    """One explanation by saliency; see the module's docstring."""
    _, gradient = yield from gradient_at(problem, problem.input)
    steepness = np.abs(gradient)
    if problem.traits.has_channels:
        steepness = steepness.reshape(problem.shape[0], -1).max(axis=0)
    return of_one_gradient(problem, steepness)


SALIENCY = MethodSpec(
    name="saliency",
    attribute=saliency,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    description="the absolute value of the gradient; of an image, the largest over the channels of each pixel",
    citation="Simonyan, Vedaldi and Zisserman, ICLR workshop 2014",
)
