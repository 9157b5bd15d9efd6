"""Saliency and input x gradient, driven by a plain function: closed forms, Captum, and Integrated Gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OutputSpace
from service.methods.input_x_gradient import INPUT_X_GRADIENT, input_x_gradient
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Method, Problem
from service.methods.questions import DeadlinePassed
from service.methods.saliency import SALIENCY, saliency

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

WEIGHTS = np.array([1.5, -2.0, 0.25])
X, BASELINE = np.array([1.0, 2.0, -3.0]), np.zeros((1, 3))
BOTH = [saliency, input_x_gradient]


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def mlp(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(3, 16, bias), nn.ReLU(), nn.Linear(16, 8, bias), nn.ReLU(), nn.Linear(8, 4, bias))
    return nn.Sequential(*layers).double().requires_grad_(False)


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    lower = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.ReLU())
    return nn.Sequential(*lower, nn.Flatten(), nn.Linear(20, 4)).double().requires_grad_(False)


def in_space(network: nn.Module, space: OutputSpace) -> nn.Module:
    return network if space is OutputSpace.LOGIT else nn.Sequential(network, nn.Softmax(dim=1))


def test_on_a_linear_model_they_are_the_weights_and_the_weighted_inputs(pose: Pose, drive: Drive) -> None:
    problem = pose(linear, X, BASELINE, OutputSpace.LOGIT)
    np.testing.assert_allclose(drive(saliency(problem), linear).values, np.abs(WEIGHTS), rtol=1e-12)
    np.testing.assert_allclose(drive(input_x_gradient(problem), linear).values, WEIGHTS * X, rtol=1e-12)


def test_through_the_softmax_the_weights_shrink_by_its_slope(pose: Pose, drive: Drive) -> None:
    problem = pose(linear, X, BASELINE, OutputSpace.PROBABILITY)
    chance = 1 / (1 + np.exp(-2 * (WEIGHTS @ X + 0.3)))
    slope = 2 * chance * (1 - chance)
    np.testing.assert_allclose(drive(saliency(problem), linear).values, slope * np.abs(WEIGHTS), rtol=1e-12)


@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize(
    ("network", "x"), [(mlp(), X), (cnn(), np.random.default_rng(0).normal(size=(3, 9, 9)))], ids=["mlp", "cnn"]
)
def test_they_agree_with_captum(pose: Pose, drive: Drive, network: nn.Module, x: Floats, space: OutputSpace) -> None:
    from captum.attr import InputXGradient, Saliency

    problem = pose(network, x, np.zeros((1, *x.shape)), space, target=2)
    rows, forward = torch.from_numpy(x)[None].requires_grad_(), in_space(network, space)
    steep = Saliency(forward).attribute(rows, target=2)[0].numpy()
    product = InputXGradient(forward).attribute(rows, target=2)[0].detach().numpy()
    largest = steep.max(axis=0) if x.ndim == 3 else steep  # Captum keeps the channels apart
    ours = {method: drive(method(problem), network, shape=x.shape).values for method in BOTH}
    np.testing.assert_allclose(ours[saliency], largest.ravel(), rtol=1e-9)
    np.testing.assert_allclose(ours[input_x_gradient], product.ravel(), rtol=1e-9, atol=1e-15)


def test_only_an_image_has_channels(pose: Pose, drive: Drive) -> None:
    """The embeddings of tokens keep their dimensions."""

    def network(rows: Tensor) -> Tensor:
        return torch.stack([rows.sum((1, 2)), (rows**2).sum((1, 2))], dim=1)

    x = np.arange(-4.0, 8.0).reshape(4, 3)
    values = drive(saliency(pose(network, x, np.zeros((1, 4, 3)), OutputSpace.LOGIT)), network, shape=(4, 3)).values
    np.testing.assert_allclose(values, 2 * np.abs(x.ravel()))


def test_on_a_homogeneous_network_input_x_gradient_is_integrated_gradients_from_zeros(pose: Pose, drive: Drive) -> None:
    network = mlp(bias=False)
    problem = pose(network, X, BASELINE, OutputSpace.LOGIT, rule="midpoint")
    ours = drive(input_x_gradient(problem), network)
    path = drive(integrated_gradients(problem), network)
    np.testing.assert_allclose(ours.values, path.values, rtol=1e-12)
    assert ours.values.sum() == pytest.approx(problem.output, rel=1e-12)


@pytest.mark.parametrize("method", BOTH)
def test_they_take_one_gradient_and_promise_no_sum(
    pose: Pose, drive: Drive, method: Callable[[Problem], Method]
) -> None:
    problem = pose(linear, X, BASELINE + 1, max_evaluations=1)
    result = drive(method(problem), linear)
    assert (result.evaluations, result.completeness, result.path_error) == (1, Completeness.NONE, None)
    assert (result.baseline_output, result.stopped) == (problem.center_output, None)


@pytest.mark.parametrize("method", BOTH)
def test_a_deadline_before_the_answer_passes_through(
    pose: Pose, drive: Drive, method: Callable[[Problem], Method]
) -> None:
    with pytest.raises(DeadlinePassed):
        drive(method(pose(linear, X, BASELINE)), linear, answers=0)


def test_their_entries_say_what_they_promise() -> None:
    assert [entry.completeness for entry in (SALIENCY, INPUT_X_GRADIENT)] == [(Completeness.NONE,)] * 2
