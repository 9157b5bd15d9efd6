"""Readouts: the single number of a network's outputs that each row explains, and its gradient by these outputs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.artefacts.links import TensorLink
from service.domain import Contrast, Floats, Target
from service.methods.questions import Readout, coefficients_of


class ReadoutOfTarget(Protocol):
    """A question or group with a readout of a target."""

    @property
    def readout(self) -> Readout: ...

    @property
    def target(self) -> Target: ...


class Linked(Enum):
    """Whether a chunk reads out nothing beyond the link, probabilities, or also differences of probabilities."""

    NONE = 0
    PROBABILITIES = 1
    CONTRASTS = 2


def linked_of(questions: Sequence[ReadoutOfTarget]) -> Linked:
    """What the questions read out beyond the link."""
    linked = [question.target for question in questions if question.readout is Readout.PROBABILITY]
    if any(isinstance(target, Contrast) for target in linked):
        return Linked.CONTRASTS
    return Linked.PROBABILITIES if linked else Linked.NONE


def readout_coefficients(questions: Sequence[ReadoutOfTarget], labels: int) -> tuple[Floats, NDArray[np.bool_]]:
    """The `coefficients` [questions, outputs] and `probability` [questions, 1] of a `Chunk`."""
    coefficients = np.zeros((len(questions), labels))
    for number, question in enumerate(questions):
        if question.readout is Readout.MARGIN or not isinstance(question.target, int):
            coefficients[number] = coefficients_of(question.readout, question.target, labels)
        else:
            coefficients[number, question.target] = 1
    return coefficients, np.array([[question.readout is Readout.PROBABILITY] for question in questions])


def read_out(
    logits: Tensor, coefficients: Tensor, probability: Tensor | None, link: TensorLink, linked: Linked
) -> tuple[Tensor, Tensor]:
    """The explained outputs [rows] and their gradients with respect to the network's numbers [rows, outputs].

    `logits`, `coefficients` [rows, outputs] and `probability` [rows, 1] are as in `Chunk`, by row; `probability` may be
    None where no row reads out a probability. `linked` says whether there are differences of probabilities.
    """
    outputs = (logits * coefficients).sum(1)
    if probability is None:
        return outputs, coefficients
    chosen, slopes = link.read_out(logits, coefficients, has_contrasts=linked is Linked.CONTRASTS)
    return torch.where(probability[:, 0], chosen[:, 0], outputs), torch.where(probability, slopes, coefficients)


class _Seeded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, cotangents: Tensor) -> Tensor:
        ctx.save_for_backward(cotangents.to(logits.dtype))
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor, None]:
        (cotangents,) = ctx.saved_tensors
        return cotangents, None


def seeded(logits: Tensor, cotangents: Tensor) -> Tensor:
    """A number whose gradient with respect to the logits is `cotangents`, both [rows, labels].

    `torch.autograd.grad` takes cotangents itself, and imports sympy for it: half a second of a worker's start.
    """
    number: Tensor = _Seeded.apply(logits, cotangents)  # type: ignore[no-untyped-call]
    return number
