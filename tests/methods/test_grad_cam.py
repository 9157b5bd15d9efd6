"""The Grad-CAM family on the real kernels: Captum, the papers' sums written out, and what the methods promise."""

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
from service.catalog.traits import Traits
from service.domain import Completeness, Explanation, Floats, OutputSpace
from service.engine.worker.device import DeviceModel
from service.methods.grad_cam import GRAD_CAM
from service.methods.grad_cam_pp import GRAD_CAM_PP
from service.methods.questions import DeadlinePassed
from service.methods.smooth_grad_cam_pp import SMOOTH_GRAD_CAM_PP
from service.methods.spec import Facts, MethodSpec

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, ModelOf, PlanFor, Pose, Run

ENTRIES = [GRAD_CAM, GRAD_CAM_PP, SMOOTH_GRAD_CAM_PP]
IMAGE = (3, 12, 10)
TARGETS = range(4)


def cnn() -> nn.Sequential:
    """Maps [5, 6, 5] behind the module number 4."""
    torch.manual_seed(0)
    lower = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())
    upper = (nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 12), nn.ReLU(), nn.Linear(12, 4))
    return nn.Sequential(*lower, *upper).eval()


@pytest.fixture(scope="module")
def cnn_model(model_of: ModelOf) -> DeviceModel:
    return model_of(cnn(), np.zeros((1, *IMAGE)))


def drawn(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32).astype(np.float64)


def map_of(explanation: Explanation) -> Floats:
    assert explanation.attributions is not None
    return np.array(explanation.attributions).reshape(explanation.shape)


def interpolated(small: Tensor) -> Floats:
    larger = functional.interpolate(small[None, None], size=IMAGE[1:], mode="bilinear", align_corners=False)
    return larger[0, 0].detach().numpy().astype(np.float64)


def maps_and_gradients(x: Floats, target: int) -> tuple[Floats, Floats]:
    """Of the network's last convolution and its ReLU, in float64: [5, 6, 5] each."""
    network = cnn().double()
    maps = network[:5](torch.from_numpy(x)[None]).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(network[5:](maps)[0, target], maps)
    return maps[0].detach().numpy(), gradients[0].numpy()


def test_grad_cam_agrees_with_captum(cnn_model: DeviceModel, plan_for: PlanFor, run: Run) -> None:
    from captum.attr import LayerGradCam

    network = cnn()
    theirs_of = LayerGradCam(network, network[4])
    plans = [plan_for(cnn_model, drawn(IMAGE, k), "grad_cam", target=k % 4) for k in range(8)]
    largest = []
    for k, explanation in enumerate(run(cnn_model, plans)):
        rows = torch.from_numpy(drawn(IMAGE, k)).float()[None]
        theirs = interpolated(theirs_of.attribute(rows, target=k % 4, relu_attributions=True)[0, 0])
        largest.append(theirs.max())
        assert explanation.shape == IMAGE[1:]
        np.testing.assert_allclose(map_of(explanation), theirs, rtol=0, atol=1e-5 * theirs.max())
    assert np.count_nonzero(largest) >= 4  # the others have no evidence for their target


def test_behind_global_average_pooling_it_is_the_class_activation_map(
    model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    torch.manual_seed(3)
    lower = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    last = nn.Linear(6, 4)
    model = model_of(nn.Sequential(lower, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last), np.zeros((1, *IMAGE)))
    (explanation,) = run(model, [plan_for(model, drawn(IMAGE), "grad_cam", target=2)])
    with torch.no_grad():
        maps = lower(torch.from_numpy(drawn(IMAGE)).float())
        pixels = IMAGE[1] * IMAGE[2]
        expected = torch.relu(torch.einsum("c,chw->hw", last.weight[2], maps)) / pixels
    assert expected.any()
    np.testing.assert_allclose(map_of(explanation), expected.numpy(), rtol=1e-5, atol=1e-7)


def test_grad_cam_pp_is_the_paper_s_sums(cnn_model: DeviceModel, plan_for: PlanFor, run: Run) -> None:
    plans = [plan_for(cnn_model, drawn(IMAGE, k), "grad_cam_pp", target=k) for k in TARGETS]
    for k, explanation in enumerate(run(cnn_model, plans)):
        maps, gradients = maps_and_gradients(drawn(IMAGE, k), k)
        combined = np.zeros(maps.shape[1:])
        for activation, gradient in zip(maps, gradients, strict=True):
            weight = 0.0
            for g in gradient.ravel():
                alpha = g**2 / (2 * g**2 + activation.sum() * g**3) if g else 0.0
                weight += alpha * max(g, 0.0)
            combined += weight * activation
        expected = interpolated(torch.from_numpy(np.maximum(combined, 0)))
        np.testing.assert_allclose(map_of(explanation), expected, rtol=0, atol=1e-5 * expected.max())


def test_without_noise_smooth_grad_cam_pp_is_grad_cam_pp(cnn_model: DeviceModel, plan_for: PlanFor, run: Run) -> None:
    plans = [
        plan_for(cnn_model, drawn(IMAGE), "grad_cam_pp"),
        plan_for(cnn_model, drawn(IMAGE), "smooth_grad_cam_pp", {"scale": 0.0}),
    ]
    plain, smooth = map(map_of, run(cnn_model, plans))
    np.testing.assert_allclose(smooth, plain, rtol=0, atol=1e-5 * plain.max())


def test_smooth_grad_cam_pp_averages_the_powers_of_the_gradients_over_noisy_copies(
    cnn_model: DeviceModel, plan_for: PlanFor, run: Run
) -> None:
    wide = replace(cnn_model, low=np.full(360, -1.0), high=np.linspace(1, 2, 360))
    options = {"samples": 5, "scale": 0.1}
    (explanation,) = run(wide, [plan_for(cnn_model, drawn(IMAGE), "smooth_grad_cam_pp", options, seed=7)])
    noise = np.random.default_rng(7).standard_normal((5, 360)) * 0.1 * (wide.high - wide.low)
    noisy = np.stack([maps_and_gradients(drawn(IMAGE) + copy.reshape(IMAGE), 1)[1] for copy in noise])
    maps, _ = maps_and_gradients(drawn(IMAGE), 1)
    square, cube = (noisy**2).mean(axis=0), (noisy**3).mean(axis=0)
    denominator = 2 * square + maps.sum(axis=(1, 2), keepdims=True) * cube
    alpha = np.where(square > 0, square / np.where(square > 0, denominator, 1), 0)
    weights = (alpha * np.maximum(noisy.mean(axis=0), 0)).sum(axis=(1, 2))
    expected = interpolated(torch.from_numpy(np.maximum(np.einsum("c,chw->hw", weights, maps), 0)))
    np.testing.assert_allclose(map_of(explanation), expected, rtol=0, atol=1e-4 * expected.max())
    assert explanation.evaluations == 6


def test_the_seed_decides_the_noise(cnn_model: DeviceModel, plan_for: PlanFor, run: Run) -> None:
    seeds = [plan_for(cnn_model, drawn(IMAGE), "smooth_grad_cam_pp", seed=seed) for seed in (0, 0, 1)]
    first, same, other = run(cnn_model, seeds)
    np.testing.assert_allclose(map_of(same), map_of(first), rtol=1e-4, atol=1e-7)
    assert np.abs(map_of(other) - map_of(first)).max() > 1e-3 * map_of(first).max()


@pytest.mark.parametrize(("budget", "spent", "reason"), [(5, 5, None), (4, 4, "budget"), (2, 2, "budget")])
def test_a_budget_for_fewer_copies_is_kept_and_said(
    cnn_model: DeviceModel, plan_for: PlanFor, run: Run, budget: int, spent: int, reason: str | None
) -> None:
    plan = plan_for(cnn_model, drawn(IMAGE), "smooth_grad_cam_pp", max_evaluations=budget)
    (explanation,) = run(cnn_model, [plan])
    assert (explanation.evaluations, explanation.reason) == (spent, reason)
    assert map_of(explanation).max() > 0


def test_its_costs_are_the_input_and_its_copies(cnn_model: DeviceModel) -> None:
    facts = Facts(cnn_model.traits, 1, {"samples": 7, "scale": 0.3})
    assert (SMOOTH_GRAD_CAM_PP.least_points(facts), SMOOTH_GRAD_CAM_PP.usual_points(facts)) == (2, 8)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_logit_is_explained_whatever_the_output_space(
    cnn_model: DeviceModel, plan_for: PlanFor, run: Run, entry: MethodSpec
) -> None:
    spaces = (OutputSpace.LOGIT, OutputSpace.PROBABILITY)
    plans = [plan_for(cnn_model, drawn(IMAGE, 2), entry.name, target=2, output_space=space) for space in spaces]
    logit, probability = run(cnn_model, plans)
    assert map_of(logit).max() > 1e-4
    np.testing.assert_allclose(map_of(probability), map_of(logit), rtol=1e-4, atol=1e-7)
    assert probability.output is not None
    assert 0 < probability.output < 1


@pytest.mark.parametrize("entry", [GRAD_CAM, GRAD_CAM_PP], ids=lambda entry: entry.name)
def test_they_take_one_gradient_and_promise_no_sum(
    cnn_model: DeviceModel, plan_for: PlanFor, run: Run, entry: MethodSpec
) -> None:
    (result,) = run(cnn_model, [plan_for(cnn_model, drawn(IMAGE), entry.name, max_evaluations=1)])
    assert (result.evaluations, result.converged) == (1, True)
    assert (result.completeness, result.completeness_error) == (Completeness.NONE, None)
    assert map_of(result).min() >= 0


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_deadline_before_the_answer_passes_through(pose: Pose, drive: Drive, entry: MethodSpec) -> None:
    network = cnn().double()
    problem = pose(network, drawn(IMAGE), np.zeros((1, *IMAGE)), options=entry.defaults())
    with pytest.raises(DeadlinePassed):
        drive(entry.attribute(problem), network, answers=0)


def test_over_the_features_of_a_table_the_map_of_a_convolution_is_interpolated_linearly(
    model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    torch.manual_seed(5)
    lower = nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3, stride=2), nn.ReLU())
    upper = nn.Sequential(nn.Flatten(), nn.Linear(20, 2))
    model = model_of(nn.Sequential(lower, upper), np.zeros((1, 12)))
    assert GRAD_CAM.not_applicable(Facts(model.traits, 1, {})) is None
    (explanation,) = run(model, [plan_for(model, drawn((12,)), "grad_cam")])
    maps = lower(torch.from_numpy(drawn((12,))).float()[None]).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(upper(maps)[0, 1], maps)
    small = torch.relu((gradients.mean(dim=2, keepdim=True) * maps).sum(dim=1, keepdim=True))
    expected = functional.interpolate(small, size=12, mode="linear", align_corners=False)[0, 0].detach().numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(map_of(explanation), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda traits: traits, None),
        (lambda traits: replace(traits, has_convolution=False), "this network has none"),
        (lambda traits: replace(traits, axes=TokenInputs.axes), "takes tokens"),
    ],
)
def test_where_no_map_can_be_laid_over_the_input_they_do_not_apply(
    cnn_model: DeviceModel, entry: MethodSpec, changed: Callable[[Traits], Traits], reason: str | None
) -> None:
    said = entry.not_applicable(Facts(changed(cnn_model.traits), 1, entry.defaults()))
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(entry.name)
        assert reason in said
        assert said.endswith("use integrated_gradients")
