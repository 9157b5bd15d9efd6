"""Gradients of maximum and minimum by arithmetic are those of torch, bit for bit, ties included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.engine.kernels.branchless import without_branches
from service.engine.kernels.recording import record

aten = torch.ops.aten
BOUND = torch.tensor([0.0, 1.0, -1.0, 2.0])


def clipped(rows: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(rows, BOUND - 1), BOUND)


def second_argument(rows: Tensor) -> Tensor:
    return torch.maximum(BOUND, rows) * torch.minimum(BOUND + 0.5, rows)


def both_vary(rows: Tensor) -> Tensor:
    return torch.maximum(rows, rows.flip(1)) - torch.minimum(rows * 2, rows.roll(1, 1))


@pytest.mark.parametrize("network", [clipped, second_argument, both_vary])
def test_the_bits_are_torchs(network: Callable[[Tensor], Tensor]) -> None:
    def program(rows: Tensor) -> tuple[Tensor, ...]:
        points = rows.requires_grad_()
        return torch.autograd.grad(network(points).pow(3).sum(), points)

    torch.manual_seed(0)
    recorded = without_branches(record(program, [torch.zeros(64, 4)]))
    assert not {aten.masked_fill_.Scalar, aten.where.self, aten.eq.Tensor} & {n.target for n in recorded.graph.nodes}
    for scale in (1.0, 1e5, 1e-5):
        halves = scale * torch.randint(-4, 5, (64, 4)) / 2  # many of them at the bounds, and equal to one another
        for rows in (halves, scale * torch.randn(64, 4)):
            (expected,) = program(rows.clone())
            with torch.inference_mode():
                (answer,) = recorded(rows)
            assert answer.numpy().tobytes() == expected.numpy().tobytes()


def test_other_choices_are_left_alone() -> None:
    def program(rows: Tensor) -> tuple[Tensor]:
        return (torch.where(rows == 0, rows / 2, rows + 1).masked_fill_(rows < 0, 0),)

    recorded = record(program, [torch.zeros(4)])
    before = [node.target for node in recorded.graph.nodes]
    assert [node.target for node in without_branches(recorded).graph.nodes] == before
