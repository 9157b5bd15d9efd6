"""The link functions of `service.numerics.links` on tensors, with their derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from service.numerics.links import IDENTITY, SIGMOID, SOFTMAX, UNIT_LENGTH, Link

FEW_LABELS = 32


class TensorLink(Protocol):
    """A link function on tensors."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities of `logits`, both [rows, outputs]."""
        ...

    def read_out(self, logits: Tensor, coefficients: Tensor, *, has_contrasts: bool) -> tuple[Tensor, Tensor]:
        """The sums over the outputs k of c_k p_k [rows, 1], and their slopes by each logit [rows, outputs].

        `logits` and the `coefficients` c are [rows, outputs]. The coefficients of a row are 1 for one output and 0 for
        the others; where the chunk `has_contrasts`, there may also be one of -1. Of embeddings they are any numbers.
        """
        ...


class _Softmax:
    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)

    def read_out(self, logits: Tensor, coefficients: Tensor, *, has_contrasts: bool) -> tuple[Tensor, Tensor]:
        probabilities = _softmax_of_many_rows(logits)
        if has_contrasts:
            return _contrasted(probabilities, coefficients)
        others = probabilities * (1 - coefficients)
        chosen = (probabilities * coefficients).sum(1, keepdim=True)
        # p_t (1 - p_t) from the other labels' probabilities, which does not cancel where p_t is close to one.
        return chosen, chosen * (coefficients * others.sum(1, keepdim=True) - others)


class _Sigmoid:
    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def read_out(self, logits: Tensor, coefficients: Tensor, *, has_contrasts: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        probabilities = torch.sigmoid(logits)
        slopes = coefficients * probabilities * torch.sigmoid(-logits)
        return (probabilities * coefficients).sum(1, keepdim=True), slopes


class _Identity:
    def probabilities(self, logits: Tensor) -> Tensor:
        return logits

    def read_out(self, logits: Tensor, coefficients: Tensor, *, has_contrasts: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return (logits * coefficients).sum(1, keepdim=True), coefficients


class _UnitLength:
    """The direction of an embedding; zeros where that is zero."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits / _lengths(logits)

    def read_out(self, logits: Tensor, coefficients: Tensor, *, has_contrasts: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        lengths = _lengths(logits)
        directions = logits / lengths
        chosen = (directions * coefficients).sum(1, keepdim=True)
        return chosen, (coefficients - directions * chosen) / lengths


def _lengths(vectors: Tensor) -> Tensor:
    """[rows, 1]; infinite for zeros, which have no direction."""
    squares = (vectors * vectors).sum(1, keepdim=True)
    return torch.where(squares > 0, squares, torch.inf).sqrt()


ON_TENSORS: Mapping[Link, TensorLink] = {
    SOFTMAX: _Softmax(),
    SIGMOID: _Sigmoid(),
    IDENTITY: _Identity(),
    UNIT_LENGTH: _UnitLength(),
}


def _softmax_of_many_rows(logits: Tensor) -> Tensor:
    """Softmax over the labels. On the CPU, few labels are put in the first axis: two, for 2,048 rows, take 36 us, not
    104."""
    if logits.device.type == "cpu" and logits.shape[1] <= FEW_LABELS:
        return torch.softmax(logits.t().contiguous(), dim=0).t().contiguous()
    return torch.softmax(logits, dim=1)


def _contrasted(probabilities: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """sum c_k p_k [rows, 1], for coefficients of 1, -1 and 0, and its slopes p_j sum over k of p_k (c_j - c_k).

    Where c_j is 1 or -1 no two terms of the sum have different signs: nothing cancels where p_j is close to one.
    """
    chosen = (probabilities * coefficients).sum(1, keepdim=True)
    below = (probabilities * (1 - coefficients)).sum(1, keepdim=True)
    above = (probabilities * (1 + coefficients)).sum(1, keepdim=True)
    sums = torch.where(coefficients > 0, below, torch.where(coefficients < 0, -above, -chosen))
    return chosen, probabilities * sums
