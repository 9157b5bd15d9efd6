"""FullGrad: what the input and every bias of the network add to the output, laid over each other as one map.

A network of affine layers, ReLU and max-pooling is f(x) = x . df/dx + sum over layers of b . df/dz, z being the output
of the layer with the bias b: the decomposition into input and bias gradients. A batch norm has the implicit bias
-mu w / sqrt(v + eps) + b. The map is psi(x * df/dx) + sum over layers that have maps of psi(b * df/dz), where psi takes
the absolute value, scales the layer's values to reach from zero to one, and interpolates them bilinearly to the size of
the image; channels are summed. Srinivas and Fleuret, "Full-gradient representation for neural network visualization",
NeurIPS 2019, equations 3 and 5; psi is that of the authors' code (github.com/idiap/fullgrad-saliency).

The decomposition is exact for the target's logit, which is explained whatever the output space of the request: where
rounding leaves more than the tolerance of it, the explanation says `precision`. The map promises no sum, for psi
scales each layer by itself. Linear layers behind the convolutions have their part in the decomposition and none in the
map.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import BiasRows, bias_maps
from service.methods.shared.activation_maps import needs_feature_maps
from service.methods.spec import Facts, MethodSpec, one_point

MIN_RANGE = 1e-6
"""What is added to the range that values are divided by: a layer that adds the same everywhere has no map."""


def fullgrad(problem: Problem) -> Method:
    """One explanation by FullGrad; see the module's docstring."""
    added = yield from bias_maps(BiasRows(problem.input[None], problem.logit_readout, problem.target))
    of_input = problem.input * added.gradients[0]
    logit = float(added.outputs[0])
    missing = abs(logit - float(of_input.sum()) - float(added.totals[0]))
    is_decomposed = missing <= problem.tolerance * max(abs(logit), problem.floor)
    pixels = added.maps[0]
    return Attribution(
        values=_scaled(np.abs(of_input)).reshape(-1, len(pixels)).sum(axis=0) + pixels,
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=1,
        rule="gradient",
        stopped=None if is_decomposed else "precision",
    )


def _scaled(values: Floats) -> Floats:
    """The values, shifted and scaled to reach from zero to one."""
    scaled: Floats = (values - values.min()) / (np.ptp(values) + MIN_RANGE)
    return scaled


def _not_applicable(facts: Facts) -> str | None:
    obstacle = facts.traits.biases_obstacle
    if obstacle is not None:
        return (
            "fullgrad takes the output apart into what the input and the biases add, which the operator "
            f"{obstacle} does not allow; use integrated_gradients"
        )
    return needs_feature_maps("fullgrad")(facts)


FULLGRAD = MethodSpec(
    name="fullgrad",
    attribute=fullgrad,
    completeness=(Completeness.NONE,),
    least_points=one_point,
    usual_points=one_point,
    cost="one",
    not_applicable=_not_applicable,
    description="what the input and every convolution's biases add to the logit, as one map; one value a pixel",
    citation="Srinivas and Fleuret, NeurIPS 2019",
)
