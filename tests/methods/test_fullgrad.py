"""FullGrad on the real kernels: the authors' map written out in float64, and the decomposition it rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from service.catalog.inputs.tokens import TokenInputs
from service.catalog.outputs.classes import Classes
from service.catalog.traits import Traits
from service.domain import Completeness, Explanation, Floats
from service.engine.worker.device import DeviceModel
from service.methods.fullgrad import FULLGRAD
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import ModelOf, PlanFor, Run

IMAGE = (3, 12, 10)


class Residual(nn.Module):
    """Convolutions, batch norm, a residual sum, max-pool, linear layers."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden, self.last = nn.Linear(6 * 6 * 5, 9), nn.Linear(9, 4)
        for values in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            assert values is not None
            nn.init.normal_(values, 0.3, 0.5)
        assert self.norm.running_var is not None
        nn.init.uniform_(self.norm.running_var, 0.3, 2)
        self.requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        lower = functional.max_pool2d(self.activation(self.norm(self.first(rows))), 2)
        upper = self.activation(self.second(lower) + lower)
        return self.last(self.activation(self.hidden(upper.flatten(1))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cnn_model(model_of: ModelOf) -> DeviceModel:
    return model_of(Residual(), np.zeros((1, *IMAGE)))


def drawn(seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(-1, 1, IMAGE).astype(np.float32).astype(np.float64)


def map_of(explanation: Explanation) -> Floats:
    assert explanation.attributions is not None
    assert explanation.shape == IMAGE[1:]
    return np.array(explanation.attributions).reshape(explanation.shape)


def psi(values: Floats) -> Floats:
    """As the authors': a layer's part [channels, height, width] as a map of the size of the image."""
    values = np.abs(values)
    values = values - values.min()
    scaled = torch.from_numpy(values / (values.max() + 1e-6))[None]
    larger = functional.interpolate(scaled, size=IMAGE[1:], mode="bilinear", align_corners=True)
    return larger[0].sum(dim=0).numpy()


def full_gradients(x: Floats, target: int) -> tuple[list[Floats], float]:
    """In float64, every x * gradient and bias * gradient, from hooks on the modules, and the logit."""
    network = Residual().eval().double()
    outputs: dict[str, Tensor] = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _module, _given, output, name=name: outputs.update({name: output}))
    rows = torch.from_numpy(x)[None].requires_grad_()
    logit = network(rows)[0, target]
    gradients = torch.autograd.grad(logit, [rows, *outputs.values()])
    held = network.state_dict()
    scale = held["norm.weight"] / torch.sqrt(held["norm.running_var"] + network.norm.eps)
    held["norm.bias"] = held["norm.bias"] - held["norm.running_mean"] * scale
    parts = [(rows.detach() * gradients[0])[0].numpy()]
    for name, gradient in zip(outputs, gradients[1:], strict=True):
        bias = held[f"{name}.bias"].reshape(-1, *[1] * (gradient.dim() - 2))
        parts.append((gradient * bias)[0].numpy())
    return parts, float(logit.detach())


def test_it_is_the_authors_map(cnn_model: DeviceModel, plan_for: PlanFor, run: Run) -> None:
    plans = [plan_for(cnn_model, drawn(k), "fullgrad", target=k) for k in range(4)]
    for k, explanation in enumerate(run(cnn_model, plans)):
        parts, logit = full_gradients(drawn(k), k)
        assert sum(float(part.sum()) for part in parts) == pytest.approx(logit, rel=1e-12)
        expected = sum(psi(part) for part in parts if part.ndim == 3)
        np.testing.assert_allclose(map_of(explanation), expected, rtol=1e-4, atol=1e-5)
        assert (explanation.evaluations, explanation.converged) == (1, True)
        assert (explanation.completeness, explanation.completeness_error) == (Completeness.NONE, None)


def test_without_biases_only_the_input_is_on_the_map(model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(320, 2, bias=False))
    model = model_of(nn.Sequential(*layers), np.zeros((1, *IMAGE)))
    of_input = plan_for(model, drawn(), "input_x_gradient")
    product, whole = run(model, [of_input, plan_for(model, drawn(), "fullgrad")])
    np.testing.assert_allclose(map_of(whole), psi(np.array(product.attributions).reshape(IMAGE)), rtol=1e-5, atol=1e-6)


def test_the_logit_is_explained_whatever_the_output_space(cnn_model: DeviceModel, plan_for: PlanFor, run: Run) -> None:
    plans = [plan_for(cnn_model, drawn(), "fullgrad", output_space=space) for space in Classes.spaces]
    first, second = map(map_of, run(cnn_model, plans))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


def test_a_decomposition_that_does_not_hold_is_said(
    cnn_model: DeviceModel, model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    bent = model_of(Residual(torch.tanh), np.zeros((1, *IMAGE)))
    assert bent.traits.biases_obstacle == "tanh"
    (explanation,) = run(bent, [plan_for(bent, drawn(), "fullgrad")])
    assert (explanation.converged, explanation.reason) == (False, "precision")
    plan = plan_for(cnn_model, drawn(), "fullgrad", tolerance=1e-15, floor=1e-15)
    (explanation,) = run(cnn_model, [plan])  # float32 has no fifteen digits
    assert (explanation.converged, explanation.reason) == (False, "precision")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda traits: traits, None),
        (lambda traits: replace(traits, biases_obstacle="GELU"), "the operator GELU does not allow"),
        (lambda traits: replace(traits, has_convolution=False), "this network has none"),
        (lambda traits: replace(traits, axes=TokenInputs.axes), "takes tokens"),
    ],
)
def test_where_biases_do_not_account_for_the_output_it_does_not_apply(
    cnn_model: DeviceModel, changed: Callable[[Traits], Traits], reason: str | None
) -> None:
    said = FULLGRAD.not_applicable(Facts(changed(cnn_model.traits), 1, {}))
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith("fullgrad")
        assert reason in said
        assert said.endswith("use integrated_gradients")
