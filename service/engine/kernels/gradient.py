"""The gradient kernel: outputs and gradients of the twin at points of many explanations in one chunk."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

from service.domain import Floats
from service.engine.kernels.chunks import Chunk, packed
from service.engine.kernels.evaluated import EvaluatedPoints, divided, joined
from service.engine.kernels.kernel import Kernel, Launched, Overlapping, Segment
from service.engine.kernels.network import Network
from service.engine.kernels.readouts import Linked, read_out, seeded
from service.engine.kernels.tracing import Program, traced

NICENESS = 5
"""The niceness of the thread that computes long chunks: with few cores, threads that single requests wait for go first.
With 16 rows of a job under way, on two busy cores, a small explanation took 27 to 46 ms in the 99th percentile without,
as against 7 to 20 alone."""


class GradientKernel(Kernel):
    """Outputs and gradients of the twin at points of many explanations, each with its own target and readout.

    With `trace`, the computation is recorded once at its fixed shape and replayed operator by operator without
    building an autograd graph each time, with the same bits (but see `branchless`): a chunk of 64 rows of the loan
    network takes 120 us and not 344, one of 2,048 rows 1.41 ms and not 2.06.
    """

    name = "gradient"

    def __init__(self, network: Network, capacity: int, *, trace: bool = True) -> None:
        self.network = network
        self._trace = trace
        self._programs: dict[tuple[int, Linked], Program] = {}
        self.capacity = capacity

    def run(self, segments: Sequence[Segment]) -> list[object]:
        chunk, linked = packed(segments, self.network, self.capacity)
        return divided(segments, *self._computed(chunk, linked))

    def _computed(self, chunk: Chunk, linked: Linked) -> tuple[Floats, Floats, Tensor]:
        chunk = Chunk(*(values.to(self.network.device) for values in chunk))
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
        logits = self.network.twin(points)
        coefficients = chunk.coefficients.index_select(0, chunk.group)
        probability = None if linked is Linked.NONE else chunk.probability.index_select(0, chunk.group)
        outputs, cotangents = read_out(
            logits.detach().double(), coefficients, probability, self.network.tensor_link, linked
        )
        (gradients,) = torch.autograd.grad(seeded(logits, cotangents), points)
        contributions = gradients * directions
        return outputs, contributions.flatten(1).sum(dim=1, dtype=torch.float64), contributions

    def join(self, parts: Sequence[object]) -> EvaluatedPoints:
        return joined(parts)


class BackgroundGradientKernel(Overlapping, GradientKernel):
    """As `GradientKernel`, on a thread of its own, so that the next chunk is packed and methods continue meanwhile.

    The thread does not hold the interpreter's lock while a traced program runs. Handing over a chunk takes time too, so
    a model's small chunks, which single requests wait for, are computed without the thread. Those of a network that
    `is_slow`, whose smallest chunk takes long beside that, are all computed on a thread.
    """

    def __init__(self, network: Network, capacity: int, *, trace: bool = True, is_slow: bool = False) -> None:
        super().__init__(network, capacity, trace=trace)
        self._thread = _thread_of_slow_networks() if is_slow else _new_thread()
        if is_slow:
            self.stream = "slow networks"

    def launch(self, segments: Sequence[Segment]) -> Launched:
        """Packs the chunk and leaves it to the thread."""
        computing = self._thread.submit(self._computed, *packed(segments, self.network, self.capacity))
        return Launched(computing.done, lambda: divided(segments, *computing.result()), computing.cancel)


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "gradient", _set_up_thread, (torch.get_num_threads(),))


@cache
def _thread_of_slow_networks() -> ThreadPoolExecutor:
    """The one that all shapes of all slow networks share: on several they would take all cores for as long as an
    explanation takes."""
    return _new_thread()


def _set_up_thread(threads: int) -> None:
    torch.set_num_threads(threads)
    if sys.platform == "linux":  # where each thread has its own priority
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
