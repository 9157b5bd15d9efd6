"""What the Grad-CAM family shares: the last convolution's feature maps A, weighted by channel and laid over the input.

The map is relu(sum over channels k of w_k A^k), interpolated linearly to the size of the input: one value a pixel. The
methods differ in the weights w_k. They explain the logit of the target, as the papers have it, whatever the output
space of the request; A is taken behind the convolution's nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from service.domain import Floats
from service.methods.problem import Attribution, Problem
from service.methods.questions import FeatureMaps, LayerRows, Steps, feature_maps
from service.methods.shared.one_gradient import of_one_gradient
from service.methods.spec import Facts
from service.numerics.interpolation import resized


def maps_at(problem: Problem, rows: Floats) -> Steps[FeatureMaps]:
    """The feature maps at `rows` [n, inputs], and the gradients of the target's logit with respect to them."""
    return (yield from feature_maps(LayerRows(rows, problem.logit_readout, problem.target)))


def over_space(values: Floats) -> Floats:
    """The sum over space of `values` [channels, ...space]: [channels]."""
    sums: Floats = values.reshape(len(values), -1).sum(axis=1)
    return sums


def plus_plus_weights(activations: Floats, first: Floats, second: Floats, third: Floats) -> Floats:
    """The channels' weights by Grad-CAM++: the sum over space of alpha * relu(first).

    alpha = second / (2 second + (sum over space of A) third), and zero where that divides by zero. `activations` A, and
    `first`, `second` and `third`, the first three powers of the gradient or their means, are [channels, ...space].
    """
    by_channel = (-1, *[1] * (activations.ndim - 1))
    denominator = 2 * second + over_space(activations).reshape(by_channel) * third
    alpha = np.divide(second, denominator, out=np.zeros_like(second), where=denominator != 0)
    return over_space(alpha * np.maximum(first, 0))


def class_activation(
    problem: Problem, weights: Floats, activations: Floats, evaluations: int, stopped: str | None = None
) -> Attribution:
    """The map of `activations` [channels, ...space] with these `weights` [channels], over the input's pixels."""
    by_channel = (-1, *[1] * (activations.ndim - 1))
    combined = np.maximum((weights.reshape(by_channel) * activations).sum(axis=0), 0)
    size = problem.shape[1:] or problem.shape
    map_of_pixels = of_one_gradient(problem, resized(combined, size).ravel())
    return replace(map_of_pixels, evaluations=evaluations, stopped=stopped)


def needs_feature_maps(method: str) -> Callable[[Facts], str | None]:
    """The `not_applicable` of a method that lays feature maps over the input."""

    def not_applicable(facts: Facts) -> str | None:
        if facts.traits.has_embeddings:
            return f"{method} lays feature maps over an image, and this model takes tokens; use integrated_gradients"
        if not facts.traits.has_convolution:
            return (
                f"{method} needs a convolution whose maps can be laid over the input, and this network has none; "
                "use integrated_gradients"
            )
        return None

    return not_applicable
