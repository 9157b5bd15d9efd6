"""The gradient kernel: outputs and gradients of the twin at points of many explanations in one chunk."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from service.artefacts.sizes import row_type_of
from service.domain import Contrast, Floats, Indices, Link, Target
from service.engine.kernels.branchless import without_branches
from service.engine.kernels.kernel import Launched, Segment
from service.engine.kernels.recording import record
from service.methods.questions import Points, Readout, Rows, coefficients_of
from service.numerics.cells import Grouping, LocalErrors, Stencils
from service.numerics.panels import PanelErrors, Panels, vector_errors

LOG = logging.getLogger("answerable.worker")
NICENESS = 5
"""The niceness of the thread that computes long chunks: with few cores, threads that single requests wait for go first.
With 16 rows of a job under way, on two busy cores, a small explanation took 27 to 46 ms in the 99th percentile without,
as against 7 to 20 alone."""
MAX_VIEWED_BYTES = 1 << 20
FEW_LABELS = 32
AGREEMENT = 1e-3
"""The tolerance, as a share of the largest value; a value that was wrongly recorded as a constant differs by more."""


@dataclass(frozen=True)
class EvaluatedPoints:
    """The answer to `Points`, see `service.methods.questions.Evaluated`; contributions stay on the device, in
    pieces."""

    outputs: Floats
    derivatives: Floats
    pieces: tuple[Tensor, ...]

    @property
    def contributions(self) -> Floats:
        result: Floats = self._rows.cpu().numpy()
        return result

    def weighted_sum(self, weights: Floats) -> Floats:
        rows = self._rows
        result: Floats = (torch.from_numpy(weights).to(rows.device) @ rows).cpu().numpy()
        return result

    def run_sums(self, lengths: Indices, weights: Floats | None = None) -> Floats:
        rows = self._rows
        if weights is not None:
            rows = rows * torch.from_numpy(weights).to(rows.device)[:, None]
        if (lengths == lengths[0]).all():  # in a third of the time
            sums = rows.reshape(len(lengths), int(lengths[0]), -1).sum(dim=1)
        else:
            sums = torch.segment_reduce(rows, "sum", lengths=torch.from_numpy(lengths).to(rows.device), axis=0)
        result: Floats = sums.cpu().numpy()
        return result

    def squares(self) -> Floats:
        result: Floats = self._rows.square().sum(dim=0).cpu().numpy()
        return result

    def vector_errors(self, stencil: Stencils | Panels, grouping: Grouping) -> LocalErrors | PanelErrors:
        rows = self._rows
        return vector_errors(
            rows,
            stencil,
            grouping,
            lambda array: torch.from_numpy(array).to(rows.device),
            lambda values: values.cpu().numpy(),
        )

    @cached_property
    def _rows(self) -> Tensor:
        """The contributions together, in float64: [n, inputs]."""
        rows = self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces)
        return rows.flatten(1).double()

    def joined(self, later: EvaluatedPoints) -> EvaluatedPoints:
        return EvaluatedPoints(
            np.concatenate([self.outputs, later.outputs]),
            np.concatenate([self.derivatives, later.derivatives]),
            self.pieces + later.pieces,
        )


class Chunk(NamedTuple):
    """A packed chunk: row r is the point at alphas[r] between starts[line[r]] and ends[group[r]].

    `starts` are [lines, ...input], no more lines than rows. The rows of a group have the same end and readout. `ends`
    are [groups, ...input]; `coefficients` [groups, outputs] are the gradient of the readout with respect to the
    network's numbers, or, where `probability` [groups, 1] says so, with respect to the probabilities computed from
    them. `along` [groups] is 1 for points on lines. It is 0 for explicit rows: each is its own start, with an end of
    ones, so that end - along * start, which multiplies the gradients, is one.
    """

    starts: Tensor
    ends: Tensor
    coefficients: Tensor
    probability: Tensor
    along: Tensor
    line: Tensor
    group: Tensor
    alphas: Tensor


Program = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""From the fields of a `Chunk` to outputs, derivatives and contributions."""


def traced(program: Program, chunk: Chunk) -> Program:
    """The program as a flat list of operators, forward and backward; unchanged where its control flow depends on
    values, or where the list computes something else than the program for other points.

    On the CPU the list is run by TorchScript: without Python between the operators a chunk of 64 rows of the loan
    network takes 120 us and not 216, one of 2,048 rows 1.41 ms and not 1.67, and other threads may run meanwhile.
    TorchScript is deprecated; without it the list would run from Python, with the same bits.
    """
    try:
        graph = record(program, chunk)
    except Exception:  # tracing runs any code, and not tracing is always right
        LOG.info("a model is evaluated without tracing", exc_info=True)
        return program
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    forwards: list[Program] = [without_branches(graph).forward]
    if chunk.alphas.device.type == "cpu":
        try:
            forwards.insert(0, _scripted(graph, chunk))
        except Exception:
            LOG.info("a model is evaluated without TorchScript", exc_info=True)
    others = chunk._replace(alphas=0.11 + 0.37 * chunk.alphas)
    for forward in forwards:  # TorchScript accepts lists that it cannot run, say with a layer of one output
        listed: Program = torch.inference_mode()(forward)
        if _agree(listed, program, others):
            return listed
    LOG.warning("a model is evaluated without tracing: other points have other answers then")
    return program


def _agree(listed: Program, program: Program, chunk: Chunk) -> bool:
    """Whether both compute the same, up to rounding."""
    try:
        answers = listed(*chunk)
    except Exception:
        LOG.info("what was recorded of a model does not run", exc_info=True)
        return False
    expected = program(*chunk)
    return all(
        torch.allclose(answer, right, rtol=0, atol=AGREEMENT * _largest(right), equal_nan=True)
        for answer, right in zip(answers, expected, strict=True)
    )


def _largest(answer: Tensor) -> float:
    """The largest magnitude in an answer, without what is infinite or not a number."""
    return float(answer.abs().nan_to_num(0.0, posinf=0.0).max())


def _scripted(graph: fx.GraphModule, chunk: Chunk) -> Program:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(graph, tuple(chunk), check_trace=False)  # type: ignore[no-untyped-call]
        program: Program = torch.jit.freeze(script.eval(), optimize_numerics=False)
    return program


class GradientKernel:
    """Outputs and gradients of the twin at points of many explanations, each with its own target and readout.

    With `trace`, the computation is recorded once at its fixed shape and replayed operator by operator without
    building an autograd graph each time, with the same bits (but see `branchless`): a chunk of 64 rows of the loan
    network takes 120 us and not 344, one of 2,048 rows 1.41 ms and not 2.06.
    """

    name = "gradient"

    def __init__(
        self,
        twin: fx.GraphModule,
        device: torch.device,
        capacity: int,
        shape: tuple[int, ...],
        labels: int,
        link: Link = Link.SOFTMAX,
        *,
        trace: bool = True,
    ) -> None:
        self._twin = twin
        self._shape = shape
        self._device = device
        self._labels = labels
        self._link = link
        self._row_type = row_type_of(twin)
        self._trace = trace
        self._programs: dict[tuple[int, Linked], Program] = {}
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        chunk, linked = self._packed(segments)
        return divided(segments, *self._computed(chunk, linked))

    def _computed(self, chunk: Chunk, linked: Linked) -> tuple[Floats, Floats, Tensor]:
        chunk = Chunk(*(values.to(self._device) for values in chunk))
        key = len(chunk.alphas), linked  # capacity may have been halved since the chunk was packed
        if key not in self._programs:
            self._programs[key] = self._program(chunk, linked)
        outputs, derivatives, contributions = self._programs[key](*chunk)
        return outputs.cpu().numpy(), derivatives.cpu().numpy(), contributions

    def _program(self, chunk: Chunk, linked: Linked) -> Program:
        def evaluated(*fields: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self._evaluated(Chunk(*fields), linked)

        return traced(evaluated, chunk) if self._trace else evaluated

    def _evaluated(self, chunk: Chunk, linked: Linked) -> tuple[Tensor, Tensor, Tensor]:
        """Every row's output and derivative along its line, both float64 [rows], and its contributions."""
        starts = chunk.starts.index_select(0, chunk.line)
        one_by_row = (-1, *[1] * (starts.dim() - 1))
        along = chunk.along.index_select(0, chunk.group).reshape(one_by_row)
        directions = torch.addcmul(chunk.ends.index_select(0, chunk.group), along, starts, value=-1)
        alphas = chunk.alphas.reshape(one_by_row)
        points = torch.addcmul(starts, alphas, directions).requires_grad_()
        logits = self._twin(points)
        coefficients = chunk.coefficients.index_select(0, chunk.group)
        probability = None if linked is Linked.NONE else chunk.probability.index_select(0, chunk.group)
        outputs, cotangents = read_out(logits.detach().double(), coefficients, probability, self._link, linked)
        (gradients,) = torch.autograd.grad(seeded(logits, cotangents), points)
        contributions = gradients * directions
        return outputs, contributions.flatten(1).sum(dim=1, dtype=torch.float64), contributions

    def join(self, parts: Sequence[object]) -> EvaluatedPoints:
        evaluated = [part for part in parts if isinstance(part, EvaluatedPoints)]
        if len(evaluated) == 1:
            return evaluated[0]
        return EvaluatedPoints(
            np.concatenate([part.outputs for part in evaluated]),
            np.concatenate([part.derivatives for part in evaluated]),
            tuple(piece for part in evaluated for piece in part.pieces),
        )

    def _packed(self, segments: Sequence[Segment]) -> tuple[Chunk, Linked]:
        """The chunk, on the host, and what its rows read out beyond the link."""
        line = np.zeros(self.capacity, dtype=np.int64)
        group_of_row = np.zeros(self.capacity, dtype=np.int64)
        alphas = np.zeros(self.capacity, dtype=self._row_type)
        starts: list[Floats] = []
        groups: list[_RowGroup] = []
        lines, at = 0, 0
        for segment in segments:
            question, own = segment.question, slice(segment.start, segment.stop)
            rows = slice(at, at + len(segment))
            if isinstance(question, Rows):
                own_starts = question.rows[own]
                line[rows] = np.arange(lines, lines + len(segment))
                targets, number = np.unique(question.targets[own], return_inverse=True)
                group_of_row[rows] = len(groups) + number
                ones = np.ones(question.rows.shape[1])
                other = question.rather_than
                groups += [
                    _RowGroup(ones, 0.0, question.readout, target if other is None else Contrast(target, other))
                    for target in targets.tolist()
                ]
            else:
                assert isinstance(question, Points)
                own_starts, line[rows] = _lines(question, own, lines)
                group_of_row[rows] = len(groups)
                alphas[rows] = question.alphas[own]
                groups.append(_RowGroup(question.end, 1.0, question.readout, question.target))
            starts.append(own_starts)
            lines += len(own_starts)
            at = rows.stop
        coefficients, probability = readout_coefficients(groups, self._labels)
        start_rows = np.concatenate(starts, dtype=self._row_type, casting="same_kind").reshape(-1, *self._shape)
        ends = np.array([group.end for group in groups], dtype=self._row_type).reshape(-1, *self._shape)
        along = np.array([group.along for group in groups], dtype=self._row_type)
        packed = (start_rows, ends, coefficients, probability, along, line, group_of_row, alphas)
        chunk = Chunk(*map(torch.from_numpy, packed))
        return chunk, linked_of(groups)


class _RowGroup(NamedTuple):
    """What the rows of a group have in common; see `Chunk`."""

    end: Floats
    along: float
    readout: Readout
    target: Target


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
        if question.readout is Readout.MARGIN or isinstance(question.target, Contrast):
            coefficients[number] = coefficients_of(question.readout, question.target, labels)
        else:
            coefficients[number, question.target] = 1
    return coefficients, np.array([[question.readout is Readout.PROBABILITY] for question in questions])


def _lines(points: Points, own: slice, before: int) -> tuple[Floats, Indices]:
    """Starts of lines, no more than there are points, with all that these points lie on; and each point's line,
    numbered from `before`."""
    own_lines = points.line[own]
    if len(points.starts) <= len(own_lines):
        return points.starts, own_lines + before
    begins = np.ones(len(own_lines), dtype=bool)
    np.not_equal(own_lines[1:], own_lines[:-1], out=begins[1:])
    return points.starts[own_lines[begins]], np.cumsum(begins) + (before - 1)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the labels. On the CPU, few labels are put in the first axis: two, for 2,048 rows, take 36 us, not
    104."""
    if logits.device.type == "cpu" and logits.shape[1] <= FEW_LABELS:
        return torch.softmax(logits.t().contiguous(), dim=0).t().contiguous()
    return torch.softmax(logits, dim=1)


class BackgroundGradientKernel(GradientKernel):
    """As `GradientKernel`, on a thread of its own, so that the next chunk is packed and methods continue meanwhile.

    The thread does not hold the interpreter's lock while a traced program runs. Handing over a chunk takes time too, so
    a model's small chunks, which single requests wait for, are computed without the thread.
    """

    def __init__(
        self,
        twin: fx.GraphModule,
        device: torch.device,
        capacity: int,
        shape: tuple[int, ...],
        labels: int,
        link: Link = Link.SOFTMAX,
        *,
        trace: bool = True,
        is_large: bool = False,
    ) -> None:
        super().__init__(twin, device, capacity, shape, labels, link, trace=trace)
        self._thread = _thread_of_large_networks() if is_large else _new_thread()

    def launch(self, segments: Sequence[Segment]) -> Launched:
        """Packs the chunk and leaves it to the thread."""
        computing = self._thread.submit(self._computed, *self._packed(segments))
        return Launched(computing.done, lambda: divided(segments, *computing.result()), computing.cancel)

    def run(self, segments: Sequence[Segment]) -> list[object]:
        return self.launch(segments).collect()


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "gradient", _set_up_thread, (torch.get_num_threads(),))


@cache
def _thread_of_large_networks() -> ThreadPoolExecutor:
    """The one that all shapes of all large networks share: on several they would take all cores for as long as an
    explanation takes."""
    return _new_thread()


def _set_up_thread(threads: int) -> None:
    torch.set_num_threads(threads)
    if sys.platform == "linux":  # where each thread has its own priority
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)


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


def read_out(
    logits: Tensor,
    coefficients: Tensor,
    probability: Tensor | None,
    link: Link = Link.SOFTMAX,
    linked: Linked = Linked.PROBABILITIES,
) -> tuple[Tensor, Tensor]:
    """The explained outputs [rows] and their gradients with respect to the network's numbers [rows, outputs].

    `logits`, `coefficients` [rows, outputs] and `probability` [rows, 1] are as in `Chunk`, by row; `probability` may be
    None where no row reads out a probability. `linked` says whether there are differences of probabilities.
    """
    outputs = (logits * coefficients).sum(1)
    if probability is None or link is Link.IDENTITY:
        return outputs, coefficients
    if link is Link.SIGMOID:
        probabilities = torch.sigmoid(logits)
        slopes = coefficients * probabilities * torch.sigmoid(-logits)
        chosen = (probabilities * coefficients).sum(1, keepdim=True)
    elif linked is Linked.CONTRASTS:
        chosen, slopes = _contrasted(_softmax(logits), coefficients)
    else:
        probabilities = _softmax(logits)
        others = probabilities * (1 - coefficients)
        chosen = (probabilities * coefficients).sum(1, keepdim=True)
        # p_t (1 - p_t) from the other labels' probabilities, which does not cancel where p_t is close to one.
        slopes = chosen * (coefficients * others.sum(1, keepdim=True) - others)
    return torch.where(probability[:, 0], chosen[:, 0], outputs), torch.where(probability, slopes, coefficients)


def _contrasted(probabilities: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """sum c_k p_k [rows, 1], for coefficients of 1, -1 and 0, and its slopes p_j sum over k of p_k (c_j - c_k).

    Where c_j is 1 or -1 no two terms of the sum have different signs: nothing cancels where p_j is close to one.
    """
    chosen = (probabilities * coefficients).sum(1, keepdim=True)
    below = (probabilities * (1 - coefficients)).sum(1, keepdim=True)
    above = (probabilities * (1 + coefficients)).sum(1, keepdim=True)
    sums = torch.where(coefficients > 0, below, torch.where(coefficients < 0, -above, -chosen))
    return chosen, probabilities * sums


def divided(segments: Sequence[Segment], outputs: Floats, derivatives: Floats, contributions: Tensor) -> list[object]:
    """Each segment's part of a chunk's outputs [rows], derivatives [rows] and contributions [rows, ...input]."""
    parts: list[object] = []
    at = 0
    for segment in segments:
        rows = slice(at, at + len(segment))
        own = contributions[rows]
        if contributions.nbytes > MAX_VIEWED_BYTES and 2 * len(segment) < len(contributions):
            own = own.clone()  # a view would keep the whole chunk in memory
        parts.append(EvaluatedPoints(outputs[rows], derivatives[rows], (own,)))
        at = rows.stop
    return parts
