"""Smooth Grad-CAM++: Grad-CAM++ with the powers of its gradients averaged over noisy copies of the input.

w_k = sum over space of alpha relu(mean g), where alpha = mean g^2 / (2 mean g^2 + (sum over space of A^k) mean g^3).
The means are over n copies of x with Gaussian noise, of a deviation that is a share of each input's range; the maps A^k
are those of x itself, so that x is evaluated as well. Omeiza, Speakman, Cintas and Weldemariam, "Smooth Grad-CAM++: an
enhanced inference level visualization technique for deep convolutional neural network models", 2019. The paper's alpha
has mean g in its numerator; g^2 stands here, as in Grad-CAM++, which this becomes when the deviation goes to zero.

It promises what Grad-CAM++ promises, and with few copies it depends on the seed. Where everything behind the maps is
linear, gradients are the same at every copy, and it is Grad-CAM++. A budget for fewer copies is kept, and said.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness
from service.methods.problem import Method, Problem
from service.methods.shared.activation_maps import class_activation, maps_at, needs_feature_maps, plus_plus_weights
from service.methods.spec import Facts, MethodSpec, Number


def smooth_grad_cam_pp(problem: Problem) -> Method:
    """One explanation by Smooth Grad-CAM++; see the module's docstring."""
    wanted = int(problem.number("samples"))
    samples = min(wanted, problem.max_evaluations - 1)
    deviation = problem.number("scale") * (problem.high - problem.low)
    noise = np.random.default_rng(problem.seed).standard_normal((samples, len(problem.input)))
    rows = np.concatenate([problem.input[None], problem.input + deviation * noise])
    maps = yield from maps_at(problem, rows)
    activations, noisy = maps.activations[0], maps.gradients[1:]
    first, second, third = ((noisy**power).mean(axis=0) for power in (1, 2, 3))
    weights = plus_plus_weights(activations, first, second, third)
    stopped = None if samples == wanted else "budget"
    return class_activation(problem, weights, activations, evaluations=len(rows), stopped=stopped)


def _all_copies(facts: Facts) -> int:
    return 1 + int(facts.number("samples"))


SMOOTH_GRAD_CAM_PP = MethodSpec(
    name="smooth_grad_cam_pp",
    attribute=smooth_grad_cam_pp,
    completeness=(Completeness.NONE,),
    least_points=lambda _facts: 2,
    usual_points=_all_copies,
    cost="one for the input and one a copy",
    options=(
        Number("samples", 4, 1, 100, "the noisy copies of the input"),
        Number("scale", 0.3, 0.0, 1.0, "the deviation of the noise, as a share of each input's range"),
    ),
    uses_seed=True,
    not_applicable=needs_feature_maps("smooth_grad_cam_pp"),
    description="Grad-CAM++ with its gradients averaged over noisy copies of the input; one value a pixel",
    citation="Omeiza, Speakman, Cintas and Weldemariam, 2019",
)
