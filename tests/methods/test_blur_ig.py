"""Blur IG, driven by a plain function: closed forms, dense quadrature over scipy's blurs, and PAIR's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.outputs.classes import Classes
from service.catalog.traits import Axis, Traits
from service.domain import Completeness, Floats, OutputSpace
from service.methods.blur_ig import BLUR_IG, blur_ig
from service.methods.problem import Problem
from service.methods.questions import DeadlinePassed
from service.methods.spec import Facts
from service.numerics.blur import BlurPath

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

SHAPE = (2, 6, 5)
DRAWS = np.random.default_rng(3)
X = DRAWS.uniform(size=SHAPE)
FIRST, SECOND = (torch.from_numpy(DRAWS.normal(size=size)) for size in ((60, 8), (8, 3)))
SHARE = 0.5
MOST = SHARE * 6
LOGIT = OutputSpace.LOGIT


def linear(images: Tensor) -> Tensor:
    return images.flatten(1) @ FIRST[:, :2]


def smooth(images: Tensor) -> Tensor:
    return torch.tanh(images.flatten(1) @ FIRST / 3) @ SECOND


def kinked(images: Tensor) -> Tensor:
    return torch.relu(images.flatten(1) @ FIRST) @ SECOND


def blurred(sigma: float) -> Floats:
    image: Floats = ndimage.gaussian_filter(X, [0, sigma, sigma], mode="reflect", truncate=8.0)
    return image


def gradient(images: Floats, target: int = 1) -> Floats:
    """Of the smooth network, [n, ...SHAPE]."""
    at = torch.from_numpy(images).requires_grad_()
    (gradients,) = torch.autograd.grad(smooth(at)[:, target].sum(), at)
    return gradients.numpy()


@pytest.fixture
def posed(pose: Pose) -> Any:
    def make(network: Any, *, kinks: bool = False, share: float = SHARE, **fields: Any) -> Problem:
        traits: Mapping[str, object] = {"kinks": ("relu",) if kinks else ()}
        fields = {"space": LOGIT, "traits": traits, "options": {"sigma_max": share}} | fields
        return pose(network, X, np.zeros((1, *SHAPE)), **fields)

    return make


@pytest.mark.parametrize("kinks", [True, False])
def test_on_a_linear_model_it_is_weight_times_what_blurring_takes(posed: Any, drive: Drive, kinks: bool) -> None:
    result = drive(blur_ig(posed(linear, kinks=kinks, tolerance=1e-4)), linear, shape=SHAPE)
    expected = FIRST[:, 1].numpy() * (X - blurred(MOST)).ravel()
    assert np.abs(result.values - expected).sum() <= 2e-4 * np.abs(expected).sum()
    assert np.abs(result.values - expected).sum() <= result.path_error


@pytest.mark.parametrize("network", [smooth, kinked])
@pytest.mark.parametrize("space", Classes.spaces)
def test_values_sum_to_the_change_from_the_blurred_image(
    posed: Any, drive: Drive, network: Any, space: OutputSpace
) -> None:
    problem = posed(network, kinks=network is kinked, space=space)
    result = drive(blur_ig(problem), network, shape=SHAPE)
    logits = network(torch.from_numpy(blurred(MOST))[None])
    outputs = logits if space is LOGIT else torch.softmax(logits, dim=1)
    assert result.baseline_output == pytest.approx(outputs[0, 1].item(), abs=1e-12)
    change = problem.output - result.baseline_output
    assert abs(result.values.sum() - change) <= problem.tolerance * max(abs(change), problem.floor)
    assert (result.completeness, result.stopped) == (Completeness.ASYMPTOTIC, None)


def test_it_is_the_integral_over_sigma(posed: Any, drive: Drive) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    sigmas, weights, step = MOST * (nodes + 1) / 2, MOST * weights / 2, 1e-4
    images = np.stack([blurred(sigma) for sigma in sigmas])
    changes = np.stack([(blurred(sigma + step) - blurred(sigma - step)) / (2 * step) for sigma in sigmas.clip(step)])
    expected = -np.tensordot(weights, gradient(images) * changes, axes=1).ravel()
    result = drive(blur_ig(posed(smooth, tolerance=1e-6)), smooth, shape=SHAPE)
    assert np.abs(result.values - expected).sum() <= 1e-5 * np.abs(expected).sum()


def test_with_their_padding_the_path_is_that_of_pair() -> None:
    """PAIR blurs with zeros around the image, cuts the kernel off at four deviations and sums from the left."""
    from saliency.core.base import INPUT_OUTPUT_GRADIENTS
    from saliency.core.blur_ig import BlurIG

    def model(images: Floats, call_model_args: object, expected_keys: object) -> dict[str, Floats]:
        inner = gradient(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return {INPUT_OUTPUT_GRADIENTS: inner.transpose(0, 2, 3, 1)}

    steps = 40
    theirs = BlurIG().GetMask(
        X.transpose(1, 2, 0), model, max_sigma=2.9, steps=steps, grad_step=1e-6, sqrt=False, batch_size=1
    )
    images, changes = BlurPath(X, 2.9, "zeros", reach=4.0).blurred(np.arange(steps) * 2.9 / steps)
    ours = -(gradient(images.reshape(-1, *SHAPE)) * changes.reshape(-1, *SHAPE)).sum(axis=0) * 2.9 / steps
    np.testing.assert_allclose(ours, theirs.transpose(2, 0, 1), rtol=1e-5, atol=1e-5 * np.abs(ours).max())


def test_the_largest_blur_grows_with_the_image(posed: Any, drive: Drive) -> None:
    for share in (0.1, 1.0):
        result = drive(blur_ig(posed(linear, share=share)), linear, shape=SHAPE)
        expected = linear(torch.from_numpy(blurred(share * 6))[None])[0, 1].item()
        assert result.baseline_output == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kinks", [True, False])
@pytest.mark.parametrize("budget", [1, 5, 10, 30])
def test_a_spent_budget_is_said_and_never_exceeded(posed: Any, drive: Drive, budget: int, kinks: bool) -> None:
    result = drive(blur_ig(posed(kinked, kinks=kinks, tolerance=1e-9, max_evaluations=budget)), kinked, shape=SHAPE)
    assert result.stopped == "budget"
    assert budget / 2 < result.evaluations <= budget


def test_after_a_deadline_what_is_known_is_returned(posed: Any, drive: Drive) -> None:
    result = drive(blur_ig(posed(kinked, kinks=True, tolerance=1e-9)), kinked, answers=3, shape=SHAPE)
    truth = drive(blur_ig(posed(kinked, kinks=True, tolerance=1e-4)), kinked, shape=SHAPE)
    assert result.stopped == "deadline"
    assert np.abs(result.values - truth.values).sum() <= result.path_error


@pytest.mark.parametrize("answers", [0, 1])
def test_a_deadline_before_the_first_gradients_passes_through(posed: Any, drive: Drive, answers: int) -> None:
    with pytest.raises(DeadlinePassed):
        drive(blur_ig(posed(kinked)), kinked, answers=answers, shape=SHAPE)


@pytest.mark.parametrize(("axes", "shape"), [(TabularInputs.axes, (5,)), (TokenInputs.axes, (3, 4))])
def test_it_says_that_it_is_for_images(axes: tuple[Axis, ...], shape: tuple[int, ...]) -> None:
    traits = Traits(axes, shape, 2, None, (), has_relu=False, has_convolution=False, biases_obstacle=None)
    reason = BLUR_IG.not_applicable(Facts(traits, 1, BLUR_IG.defaults()))
    assert reason is not None
    assert "use integrated_gradients" in reason
