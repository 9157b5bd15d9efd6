"""What is explained at a point, and its gradient with respect to the logits."""

from __future__ import annotations

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.artefacts.links import ON_TENSORS
from service.engine.kernels.readouts import Linked, read_out
from service.methods.questions import Readout
from service.numerics.links import SOFTMAX

UNHURRIED = settings(deadline=None)


def softmax_read_out(logits: Tensor, coefficients: Tensor, probability: Tensor | None) -> tuple[Tensor, Tensor]:
    return read_out(logits, coefficients, probability, ON_TENSORS[SOFTMAX], Linked.PROBABILITIES)


def asked(labels: int, readouts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and probability flags, by row."""
    coefficients = torch.zeros(len(targets), labels, dtype=torch.float64)
    coefficients[readouts == Readout.MARGIN] = -1
    coefficients[torch.arange(len(targets)), targets] = 1
    return coefficients, (readouts == Readout.PROBABILITY)[:, None]


@UNHURRIED
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_outputs_and_gradients_equal_autograd(seed: int, labels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(30, labels, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(0, labels, (30,), generator=generator)
    readouts = torch.randint(0, 3 if labels == 2 else 2, (30,), generator=generator)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    probability = torch.softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]
    expected = torch.where(readouts == Readout.PROBABILITY, probability, at_target)
    if labels == 2:
        other = logits.gather(1, 1 - targets[:, None])[:, 0]
        expected = torch.where(readouts == Readout.MARGIN, at_target - other, expected)
    (gradients,) = torch.autograd.grad(expected.sum(), logits)
    outputs, cotangents = softmax_read_out(logits.detach(), *asked(labels, readouts, targets))
    torch.testing.assert_close(outputs, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(cotangents, gradients, rtol=1e-9, atol=1e-15)


@UNHURRIED
@given(st.lists(st.floats(-600, 600), min_size=2, max_size=5), st.integers(0, 4))
def test_saturated_probabilities_keep_the_relative_precision_of_their_gradients(logits: list[float], at: int) -> None:
    """1 - p would be lost where p is close to one."""
    target = at % len(logits)
    probability = asked(len(logits), torch.tensor([Readout.PROBABILITY]), torch.tensor([target]))
    _, cotangents = softmax_read_out(torch.tensor([logits], dtype=torch.float64), *probability)
    with mpmath.workdps(600):
        powers = [mpmath.exp(mpmath.mpf(logit)) for logit in logits]
        chances = [power / sum(powers) for power in powers]
        others = sum(chance for label, chance in enumerate(chances) if label != target)
        slopes = [chances[target] * (others if label == target else -chance) for label, chance in enumerate(chances)]
    assert cotangents[0].tolist() == pytest.approx([float(slope) for slope in slopes], rel=1e-11, abs=1e-290)
    assert torch.isfinite(cotangents).all()


def test_gradients_of_a_probability_sum_to_zero_over_the_labels() -> None:
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    _, cotangents = softmax_read_out(logits, *asked(4, torch.full((100,), Readout.PROBABILITY), torch.arange(100) % 4))
    torch.testing.assert_close(cotangents.sum(dim=1), torch.zeros(100, dtype=torch.float64), rtol=0, atol=1e-16)


def test_rows_that_read_out_a_logit_do_not_notice_the_probabilities_beside_them() -> None:
    logits = torch.randn(100, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    readouts, targets = torch.arange(100) % 3, torch.arange(100) // 3 % 2
    coefficients, probability = asked(2, readouts, targets)
    linear = ~probability[:, 0]
    beside, alone = (softmax_read_out(logits, coefficients, flags) for flags in (probability, None))
    for together, single in zip(beside, alone, strict=True):
        assert torch.equal(together[linear], single[linear])
