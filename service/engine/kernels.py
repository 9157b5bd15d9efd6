"""Kernels: the computations a device does, each for one model and at one fixed shape.

A kernel takes *segments*, consecutive units of questions from many explanations, fills them up to its capacity with
padding, computes once, and gives each segment its part of the result. One shape means that a row's result does not
depend on who shares the chunk, bit for bit; see `design.md`, idea 4, for the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, fx

from service.catalog.loading import DeployedArtefact
from service.domain import Floats, Indices, OutputSpace
from service.engine.piecewise import PiecewiseLinear
from service.methods.oracle import Breakpoints, Pieces, Points, Readout


@dataclass(frozen=True, slots=True)
class Deployed:
    """Asks the deployed artefact for its outputs at `rows` [n, inputs]. Answered with `DeployedOutputs`."""

    rows: Floats

    def __len__(self) -> int:
        return len(self.rows)


Q = TypeVar("Q")

DeployedOutputs = dict[OutputSpace, Floats]
"""By output space, the outputs [n, labels]."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Units `start` to `stop` of a question."""

    question: object
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Kernel(Protocol):
    """One computation at one shape; a segment's part is joined with its siblings into the answer."""

    name: str
    capacity: int

    def run(self, segments: Sequence[Segment]) -> list[object]:
        """The parts of the segments, which hold at most `capacity` units together."""
        ...

    def join(self, parts: Sequence[object]) -> object:
        """The answer to a question from the parts of all its segments, in order."""
        ...


class DeployedKernel:
    """Forward passes of the artefact in production."""

    name = "deployed"

    def __init__(self, artefact: DeployedArtefact, capacity: int) -> None:
        self._artefact = artefact
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        rows = np.concatenate([_question(s, Deployed).rows[s.start : s.stop] for s in segments])
        chunk = np.zeros((self.capacity, *rows.shape[1:]), dtype=np.float32)
        chunk[: len(rows)] = rows
        outputs = {space: values.astype(np.float64) for space, values in self._artefact.outputs(chunk).items()}
        ends = np.cumsum([len(segment) for segment in segments])
        return [
            {space: values[end - len(segment) : end] for space, values in outputs.items()}
            for segment, end in zip(segments, ends, strict=True)
        ]

    def join(self, parts: Sequence[object]) -> DeployedOutputs:
        outputs = [part for part in parts if isinstance(part, dict)]
        return {space: np.concatenate([part[space] for part in outputs]) for space in outputs[0]}


class BreakpointsKernel:
    """Breakpoints of a piecewise-linear network on many lines together. A unit is a line."""

    name = "breakpoints"

    def __init__(self, network: PiecewiseLinear, device: torch.device, capacity: int) -> None:
        self._network = network
        self._device = device
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        lines = [_question(segment, Breakpoints) for segment in segments]
        starts = np.stack([line.start for line in lines])
        directions = np.stack([line.end for line in lines]) - starts
        rows = self._network.breakpoints(
            _to_device(starts, self._device),
            _to_device(directions, self._device),
            torch.tensor([line.max_pieces for line in lines], device=self._device),
        )
        line, alpha = rows.line.cpu().numpy(), rows.alpha.cpu().numpy()
        logits = rows.logits.cpu().numpy().astype(np.float64)
        bounds = np.searchsorted(line, np.arange(len(lines) + 1))
        overflowed = rows.overflowed.tolist()
        return [
            Pieces(None, None) if over else Pieces(alpha[first:last], logits[first:last])
            for over, first, last in zip(overflowed, bounds[:-1], bounds[1:], strict=True)
        ]

    def join(self, parts: Sequence[object]) -> object:
        (pieces,) = parts
        return pieces


@dataclass(frozen=True, slots=True)
class EvaluatedPoints:
    """The answer to `Points` (see `service.methods.oracle.Evaluated`); contributions stay on the device, in pieces."""

    outputs: Floats
    derivatives: Floats
    contributions: tuple[Tensor, ...]

    def weighted_sum(self, weights: Floats) -> Floats:
        rows = torch.cat(self.contributions).double().flatten(1)
        result: Floats = (torch.from_numpy(weights).to(rows.device) @ rows).cpu().numpy()
        return result

    def group_sums(self, weights: Floats, group: Indices, groups: int) -> Floats:
        rows = torch.cat(self.contributions).double().flatten(1)
        rows *= torch.from_numpy(weights).to(rows.device)[:, None]
        sums = rows.new_zeros(groups, rows.shape[1])
        result: Floats = sums.index_add_(0, torch.from_numpy(group).to(rows.device), rows).cpu().numpy()
        return result

    def joined(self, later: EvaluatedPoints) -> EvaluatedPoints:
        return EvaluatedPoints(
            np.concatenate([self.outputs, later.outputs]),
            np.concatenate([self.derivatives, later.derivatives]),
            self.contributions + later.contributions,
        )


class GradientKernel:
    """Outputs and gradients of the twin at points of many explanations, each with its own target and readout."""

    name = "gradient"

    def __init__(self, twin: fx.GraphModule, device: torch.device, capacity: int) -> None:
        self._twin = twin
        self._device = device
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        starts, directions, row, alphas, readouts, targets = self._packed(segments)
        direction = directions[row]
        points = starts[row] + alphas.reshape(-1, *[1] * (direction.dim() - 1)) * direction
        points.requires_grad_()
        logits = self._twin(points)
        outputs, cotangents = _read_out(logits.detach().double(), readouts, targets)
        (gradients,) = torch.autograd.grad(logits, points, cotangents.to(logits.dtype))
        contributions = gradients * direction
        derivatives = contributions.double().flatten(1).sum(dim=1).cpu().numpy()
        return _divided(segments, outputs.cpu().numpy(), derivatives, contributions)

    def join(self, parts: Sequence[object]) -> EvaluatedPoints:
        evaluated = [part for part in parts if isinstance(part, EvaluatedPoints)]
        return EvaluatedPoints(
            np.concatenate([part.outputs for part in evaluated]),
            np.concatenate([part.derivatives for part in evaluated]),
            tuple(piece for part in evaluated for piece in part.contributions),
        )

    def _packed(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The lines' starts and directions, and for each row of the chunk its line, alpha, readout and target."""
        line = np.zeros(self.capacity, dtype=np.int64)
        alphas = np.zeros(self.capacity, dtype=np.float32)
        readouts = np.zeros(self.capacity, dtype=np.int64)
        targets = np.zeros(self.capacity, dtype=np.int64)
        starts, directions, lines, at = [], [], 0, 0
        for segment in segments:
            points = _question(segment, Points)
            rows = slice(at, at + len(segment))
            line[rows] = points.line[segment.start : segment.stop] + lines
            alphas[rows] = points.alphas[segment.start : segment.stop]
            readouts[rows] = points.readout
            targets[rows] = points.target
            starts.append(points.starts)
            directions.append(points.end - points.starts)
            lines += len(points.starts)
            at = rows.stop
        on = self._device
        return (
            _to_device(np.concatenate(starts), on),
            _to_device(np.concatenate(directions), on),
            torch.from_numpy(line).to(on),
            torch.from_numpy(alphas).to(on),
            torch.from_numpy(readouts).to(on),
            torch.from_numpy(targets).to(on),
        )


def _read_out(logits: Tensor, readouts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The explained outputs [rows] and their gradients with respect to the logits [rows, labels]; see `Readout`."""
    one_hot = torch.nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
    probabilities = torch.softmax(logits, dim=1)
    logit, probability = (logits * one_hot).sum(1), (probabilities * one_hot).sum(1)
    others = logits.sum(1) - logit
    # p_t (1 - p_t) from the other labels' probabilities, which does not cancel where p_t is close to one.
    remainder = (probabilities * (1 - one_hot)).sum(1)
    slope = probability[:, None] * (one_hot * remainder[:, None] - (1 - one_hot) * probabilities)
    is_probability = readouts == Readout.PROBABILITY
    is_margin = readouts == Readout.MARGIN
    outputs = torch.where(is_probability, probability, torch.where(is_margin, logit - others, logit))
    linear = torch.where(is_margin[:, None], 2 * one_hot - 1, one_hot)
    return outputs, torch.where(is_probability[:, None], slope, linear)


def _divided(segments: Sequence[Segment], outputs: Floats, derivatives: Floats, contributions: Tensor) -> list[object]:
    parts: list[object] = []
    at = 0
    for segment in segments:
        rows = slice(at, at + len(segment))
        own = contributions[rows]
        if 2 * len(segment) < len(contributions):
            own = own.clone()  # a view would keep the whole chunk in memory
        parts.append(EvaluatedPoints(outputs[rows], derivatives[rows], (own,)))
        at = rows.stop
    return parts


def _to_device(values: Floats, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


def _question(segment: Segment, kind: type[Q]) -> Q:
    assert isinstance(segment.question, kind)
    return segment.question
