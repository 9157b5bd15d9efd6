"""Drops, infidelity, max-sensitivity and complexity: against Captum and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from service.domain import Floats, OutputSpace
from service.engine.kernels.gradient import GradientKernel
from service.faithfulness.drops import NOTHING_BETWEEN
from service.methods.questions import Points
from tests.faithfulness.conftest import Judge, measure


@pytest.fixture(scope="module")
def probability(digits: Judge) -> Callable[[Tensor], Tensor]:
    """The digits network's probabilities for flat images."""
    kernel = digits.trial.model.kernels[Points][0]
    assert isinstance(kernel, GradientKernel)
    twin = kernel.network.twin

    def of(rows: Tensor) -> Tensor:
        return torch.softmax(twin(rows.reshape(-1, 1, 8, 8).float()), dim=1)

    return of


@pytest.mark.parametrize(("scale", "normalised"), [("as_is", False), ("best", True)])
def test_infidelity_is_captums(
    digits: Judge, images: Floats, probability: Callable[[Tensor], Tensor], scale: str, normalised: bool
) -> None:
    """On the same sets of pixels: attributions of contributions are multiplied with the share of the way, 1."""
    row, target = images[4], 3
    values = np.array(digits.trial.explained(replace(digits.plan(row), target=target)).attributions)
    (found,) = digits.figures(row, values, measure("infidelity", "mean", scale=scale), target=target)
    sets = np.random.default_rng(0).random((64, 64)) < 0.2
    draws = iter(sets)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(np.stack([next(draws) for _ in inputs]))
        return chosen.float(), torch.where(chosen, torch.full_like(inputs, row.mean()), inputs)

    expected = infidelity(
        probability,
        perturb,
        torch.from_numpy(row)[None].float(),
        torch.from_numpy(values.reshape(1, -1)).float(),
        target=target,
        n_perturb_samples=64,
        max_examples_per_batch=64,
        normalize=normalised,
    )
    assert found.value == pytest.approx(float(expected), abs=1e-5)
    assert float(expected) > 1e-4


def test_max_sensitivity_is_captums(digits: Judge, images: Floats, probability: Callable[[Tensor], Tensor]) -> None:
    row, target = images[5], 2
    plan = replace(digits.plan(row, "saliency", OutputSpace.PROBABILITY), target=target)
    (found,) = digits.evaluation(plan, [measure("max_sensitivity", samples=6, radius=0.05)]).measured
    draws = iter(0.05 * 16 * np.random.default_rng(0).uniform(-1, 1, (6, 64)))

    def perturb(inputs: Tensor) -> Tensor:
        return inputs + torch.from_numpy(np.stack([next(draws) for _ in inputs])).float()

    def saliency(asked: Tensor | tuple[Tensor]) -> tuple[Tensor]:
        inputs = asked if isinstance(asked, Tensor) else asked[0]
        at = inputs.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(probability(at)[:, target].sum(), at)
        return (gradient.abs(),)

    expected = sensitivity_max(saliency, torch.from_numpy(row)[None].float(), perturb, n_perturb_samples=6)
    assert found.value == pytest.approx(float(expected), rel=1e-4)


def test_smoothing_lowers_max_sensitivity(digits: Judge, images: Floats) -> None:
    """SmoothGrad lowers it by a factor of 1.5 at least, in the mean."""
    from service.domain import Noise, NoiseKind

    asked = [measure("max_sensitivity", samples=4, radius=0.05)]
    plain, smooth = [], []
    for row in images[:3]:
        plan = digits.plan(row, "saliency")
        plain.append(digits.evaluation(plan, asked).measured[0].value)
        noisy = replace(plan, noise=Noise(NoiseKind.SMOOTHGRAD, 25, 0.15))
        smooth.append(digits.evaluation(noisy, asked).measured[0].value)
    assert np.mean(np.array(plain, dtype=float)) > 1.5 * np.mean(np.array(smooth, dtype=float))


def test_drops_are_those_of_the_papers(digits: Judge, images: Floats) -> None:
    row = images[6]
    values = np.random.default_rng(2).normal(size=64)
    seen = np.clip(values, 0, None) / values.max()
    rows = np.stack([row, row * seen, row * (1 - seen)])
    whole, left, taken = digits.trial.deployed(rows)[OutputSpace.PROBABILITY][:, 7]
    names = ("average_drop", "average_drop_in_deletion", "increase_in_confidence")
    found = digits.figures(row, values, *(measure(name, "zero") for name in names), target=7)
    expected = [max(0, whole - left) / whole, (whole - taken) / whole, float(left > whole)]
    assert [one.value for one in found] == pytest.approx(expected, abs=1e-6)


def test_a_label_that_becomes_likelier_has_no_drop_and_more_confidence(digits: Judge, images: Floats) -> None:
    """Of a label that is not the image's, all that is left of an image is worth more than the image."""
    row = images[0]
    likeliest = int(digits.trial.deployed(row[None])[OutputSpace.PROBABILITY][0].argmax())
    found = digits.figures(
        row,
        -np.ones(64),
        measure("average_drop", "zero"),
        measure("increase_in_confidence", "zero"),
        target=(likeliest + 1) % 10,
    )
    assert [one.value for one in found] == [0.0, 1.0]


def test_complexity_at_its_ends(digits: Judge, images: Floats) -> None:
    """One pixel has everything, or all the same."""
    asked = measure("entropy"), measure("gini")
    one, alike = np.zeros(64), np.full(64, -2.0)
    one[5] = 3
    assert [found.value for found in digits.figures(images[0], one, *asked)] == pytest.approx([0, 63 / 64])
    assert [found.value for found in digits.figures(images[0], alike, *asked)] == pytest.approx([np.log(64), 0])
    assert [found.reason for found in digits.figures(images[0], np.zeros(64), *asked)] == [
        "the attributions are all zero"
    ] * 2


def test_tokens_are_masked_and_do_not_fade(words: Judge) -> None:
    """Special tokens and padding stay; two tokens are left of five."""
    row = np.array([2.0, 7, 9, 12, 3, 0])
    plan = words.plan(row, space=OutputSpace.PROBABILITY)
    values = np.array([9.0, 3, 1, 2, 9, 9])
    found = words.evaluation(plan, [measure("deletion", "mask", steps=3), measure("average_drop", "mask")], values)
    deletion, drop = found.measured
    rows = np.array([[2.0, 7, 9, 12, 3, 0], [2, 1, 9, 12, 3, 0], [2, 1, 9, 1, 3, 0], [2, 1, 1, 1, 3, 0]])
    outputs = words.trial.deployed(rows)[OutputSpace.PROBABILITY]
    assert deletion.curve == pytest.approx(tuple(outputs[:, outputs[0].argmax()]), abs=1e-6)
    assert (drop.value, drop.reason) == (None, NOTHING_BETWEEN)


def test_max_sensitivity_of_tokens_moves_their_embeddings(words: Judge) -> None:
    plan = words.plan(np.array([2.0, 7, 9, 12, 3, 0]))
    (found,) = words.evaluation(plan, [measure("max_sensitivity", samples=3)]).measured
    assert found.value is not None
    assert 0 < found.value < 1
