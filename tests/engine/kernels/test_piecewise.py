"""Breakpoints of piecewise-linear networks, against a search over the signs of every unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from service.domain import Floats
from service.engine.graph.operators import NotPiecewiseLinear
from service.engine.kernels.kernel import BreakpointsKernel, Segment
from service.engine.kernels.piecewise import PiecewiseLinear
from service.methods.questions import Breakpoints, Pieces

# Widths of eight: at others MKL's bits depend on a row's place, but for the setting that workers have.
INPUTS, LABELS, BLOCK = 8, 2, 64
MANY = 10_000


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """The networks are small; further threads wait for each other."""
    torch.set_num_threads(1)


class Bent(nn.Module):
    """A network that also gives, for the search, every quantity whose sign decides its regime: [rows, units]."""

    def thresholds(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


class Plain(Bent):
    def __init__(self, activation: nn.Module | None = None, kinks: tuple[float, ...] = (0.0,)) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(INPUTS, 8), nn.Linear(8, 8), nn.Linear(8, LABELS)
        self.activation = activation or nn.ReLU()
        self.kinks = kinks

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.last(self.activation(self.second(self.activation(self.first(rows)))))
        return result

    def thresholds(self, rows: Tensor) -> Tensor:
        first = self.first(rows)
        second = self.second(self.activation(first))
        return torch.cat([values - kink for values in (first, second) for kink in self.kinks], dim=1)


class Residual(Bent):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(INPUTS, 8), nn.Linear(8, 8), nn.Linear(8, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.relu(self.first(rows))
        hidden = hidden + torch.relu(self.second(hidden)) * 0.5
        result: Tensor = self.last(hidden - self.first(rows) / 3)
        return result

    def thresholds(self, rows: Tensor) -> Tensor:
        first = self.first(rows)
        return torch.cat([first, self.second(torch.relu(first))], dim=1)


class Extrema(Bent):
    """Inputs limited as the loan network does it, then the larger of two affine maps."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((INPUTS,), -0.6, dtype=torch.float64))
        self.register_buffer("high", torch.full((INPUTS,), 0.8, dtype=torch.float64))
        self.one, self.other, self.last = nn.Linear(INPUTS, 8), nn.Linear(INPUTS, 8), nn.Linear(8, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        limited = torch.minimum(torch.maximum(rows, self.low), self.high)
        result: Tensor = self.last(torch.maximum(self.one(limited), self.other(limited)))
        return result

    def thresholds(self, rows: Tensor) -> Tensor:
        limited = rows.clamp(-0.6, 0.8)
        low, high = self.low, self.high
        return torch.cat([rows - low, rows - high, self.one(limited) - self.other(limited)], dim=1)


class Convolved(Bent):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.pool, self.flatten, self.last = nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.convolution(rows)))
        result: Tensor = self.last(self.flatten(self.pool(hidden)))
        return result

    def thresholds(self, rows: Tensor) -> Tensor:
        result: Tensor = self.norm(self.convolution(rows))
        return result.flatten(1)


KINDS = {
    "relu": Plain,
    "leaky_relu": lambda: Plain(nn.LeakyReLU(0.1)),
    "relu6": lambda: Plain(nn.ReLU6(), (0.0, 6.0)),
    "clip": lambda: Plain(nn.Hardtanh(-0.4, 0.7), (-0.4, 0.7)),
    "residual": Residual,
    "extrema": Extrema,
    "convolution": Convolved,
}


def random_network(kind: str, seed: int) -> Bent:
    """A float64 network of a kind, its weights drawn from the seed."""
    network: Bent = KINDS[kind]().double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.requires_grad_(False)
    return network


def random_lines(kind: str, seed: int, lines: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, lines, 1, INPUTS) if kind == "convolution" else (2, lines, INPUTS)
    starts, ends = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return starts, ends - starts


@dataclass(frozen=True, slots=True)
class Found:
    """`Rows` as tensors."""

    line: Tensor
    alpha: Tensor
    logits: Tensor
    overflowed: Tensor


def breakpoints(prepared: PiecewiseLinear, starts: Tensor, directions: Tensor, most: Tensor) -> Found:
    rows = prepared.breakpoints(starts.numpy(), (starts + directions).numpy(), most.numpy())
    return Found(*map(torch.from_numpy, (rows.line, rows.alpha, rows.logits, rows.overflowed)))


def found(network: nn.Module, starts: Tensor, directions: Tensor, most: int = MANY) -> Found:
    prepared = PiecewiseLinear(fx.symbolic_trace(network), BLOCK)
    return breakpoints(prepared, starts, directions, torch.full((len(starts),), most))


def along(start: Tensor, direction: Tensor, alphas: Tensor) -> Tensor:
    return start + alphas.reshape(-1, *[1] * start.dim()) * direction


def searched(network: Bent, start: Tensor, direction: Tensor) -> Tensor:
    """Where any unit changes its sign, by a scan and by halving what the scan brackets."""
    scan = torch.linspace(0, 1, 2001, dtype=torch.float64)
    signs = network.thresholds(along(start, direction, scan)) > 0
    at, unit = (signs[1:] != signs[:-1]).nonzero(as_tuple=True)
    low, high, sign = scan[at], scan[at + 1], signs[at, unit]
    for _ in range(45):
        middle = (low + high) / 2
        same = (network.thresholds(along(start, direction, middle))[torch.arange(len(unit)), unit] > 0) == sign
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return high


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("kind", KINDS)
def test_breakpoints_are_those_of_a_search(kind: str, seed: int) -> None:
    network = random_network(kind, seed)
    starts, directions = random_lines(kind, seed + 1, 4)
    rows = found(network, starts, directions)
    assert not rows.overflowed.any()
    assert (rows.line.diff() >= 0).all()
    shares = torch.tensor([0.13, 0.5, 0.91], dtype=torch.float64)
    for line, (start, direction) in enumerate(zip(starts, directions, strict=True)):
        alphas, logits = rows.alpha[rows.line == line], rows.logits[rows.line == line]
        assert (float(alphas[0]), float(alphas[-1])) == (0, 1)
        assert (alphas.diff() >= 0).all()
        torch.testing.assert_close(logits, network(along(start, direction, alphas)), rtol=1e-9, atol=1e-9)
        # Nothing is missing: all that the search finds is there, and every piece is straight.
        for bend in searched(network, start, direction):
            assert (alphas - bend).abs().min() < 1e-9
        for share in shares:
            inside = alphas[:-1] + share * alphas.diff()
            straight = logits[:-1] + share * logits.diff(dim=0)
            torch.testing.assert_close(network(along(start, direction, inside)), straight, rtol=1e-8, atol=1e-8)
        # Nothing is superfluous: at every bend some unit is at its threshold.
        if len(alphas) > 2:
            units = network.thresholds(along(start, direction, alphas[1:-1])).abs()
            assert units.amin(dim=1).max() < 1e-9


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("kind", KINDS)
def test_a_line_with_too_many_pieces_is_flagged_and_the_others_stay_bit_equal(kind: str, seed: int) -> None:
    network = PiecewiseLinear(fx.symbolic_trace(random_network(kind, seed)), BLOCK)
    starts, directions = random_lines(kind, seed + 1, 6)
    free = breakpoints(network, starts, directions, torch.full((6,), MANY))
    pieces = torch.bincount(free.line, minlength=6) - 1
    limits = torch.full((6,), MANY)
    limits[2], limits[4] = pieces[2] - 1, pieces[4]
    limited = breakpoints(network, starts, directions, limits)
    over = [line == 2 for line in range(6)]
    assert limited.overflowed.tolist() == over
    assert not (limited.line == 2).any()
    kept = free.line != 2
    assert torch.equal(limited.line, free.line[kept])
    assert torch.equal(limited.alpha, free.alpha[kept])
    assert torch.equal(limited.logits, free.logits[kept])


def test_the_kernel_answers_nothing_for_a_line_with_too_many_pieces() -> None:
    network = random_network("relu", 3).float()
    kernel = BreakpointsKernel(PiecewiseLinear(fx.symbolic_trace(network), BLOCK), 8, (INPUTS,))
    start: Floats = np.full(INPUTS, -2.0)
    lines = [Breakpoints(start, -start, most) for most in (MANY, 1, MANY)]
    first, second, third = kernel.run([Segment(line, 0, 1) for line in lines])
    assert second == Pieces(None, None)
    for pieces in (first, third):
        assert isinstance(pieces, Pieces)
        assert pieces.alphas is not None
        assert pieces.logits is not None
        assert len(pieces.alphas) > 3
        rows = torch.from_numpy(start + pieces.alphas[:, None] * (-2 * start)).float()
        np.testing.assert_allclose(pieces.logits, network(rows).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_when_every_line_has_too_many_pieces_there_are_no_rows(kind: str) -> None:
    prepared = PiecewiseLinear(fx.symbolic_trace(random_network(kind, 1)), BLOCK)
    rows = breakpoints(prepared, *random_lines(kind, 2, 3), torch.zeros(3, dtype=torch.int64))
    assert rows.overflowed.all()
    assert len(rows.line) == len(rows.alpha) == len(rows.logits) == 0


def test_on_a_line_of_no_length_there_is_one_piece() -> None:
    starts, _ = random_lines("relu", 0, 3)
    rows = found(random_network("relu", 0), starts, torch.zeros_like(starts))
    assert rows.alpha.tolist() == [0, 1] * 3


def test_weights_that_bend_everywhere_at_once_are_found_once_each() -> None:
    """Every unit bends at the same point, and further layers bend exactly at ends of pieces."""
    network = random_network("relu", 5)
    assert isinstance(network, Plain)
    with torch.no_grad():
        for layer in (network.first, network.second):
            layer.bias.zero_()
    start = torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = found(network, -start, 2 * start)
    inner = rows.alpha[(rows.alpha > 1e-9) & (rows.alpha < 1 - 1e-9)]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5))
    assert len(inner) > 0


class WithFunction(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(INPUTS, INPUTS)
        self.activation: nn.Module = {"GELU": nn.GELU(), "Sigmoid": nn.Sigmoid()}.get(kind, nn.Identity())

    def forward(self, rows: Tensor) -> Tensor:
        hidden: Tensor = self.activation(self.linear(rows))
        if self.kind == "tanh":
            return torch.tanh(hidden)
        if self.kind == "mul":
            return hidden * rows
        if self.kind == "truediv":
            return 1 / hidden
        return hidden


@pytest.mark.parametrize("operator", ["GELU", "Sigmoid", "tanh", "mul", "truediv"])
def test_an_operator_that_is_not_piecewise_linear_is_named(operator: str) -> None:
    with pytest.raises(NotPiecewiseLinear, match=operator):
        PiecewiseLinear(fx.symbolic_trace(WithFunction(operator)), BLOCK)
