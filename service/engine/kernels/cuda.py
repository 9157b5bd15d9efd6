"""The gradient kernel on a CUDA device: one CUDA graph a shape, and copies beside the computation.

A chunk of a small network is some fifty launches of a few microseconds of work each, so launching is what takes the
time; a captured graph is launched as one. Its inputs lie at fixed addresses. Each chunk's inputs travel on a stream of
their own into one of two staging buffers while the chunk before is computed, and from there, on the device, into the
graph's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from service.domain import Floats
from service.engine.kernels.chunks import Chunk, packed
from service.engine.kernels.evaluated import divided
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Launched, Overlapping, Segment
from service.engine.kernels.network import Network
from service.engine.kernels.readouts import Linked
from service.engine.kernels.tracing import Program

WARM_UP_RUNS = 3
"""Runs before a capture, in which libraries choose their algorithms and allocate their workspaces."""


class GraphedGradientKernel(Overlapping, GradientKernel):
    """As `GradientKernel`; `launch` returns while the device works."""

    def __init__(self, network: Network, capacity: int) -> None:
        super().__init__(network, capacity)
        self._graphs: dict[tuple[int, Linked], _Graph] = {}

    def launch(self, segments: Sequence[Segment]) -> Launched:
        """Copies the chunk to the device and starts its graph."""
        chunk, linked = packed(segments, self.network, self.capacity)
        key = self.capacity, linked
        if key not in self._graphs:
            if any(capacity != self.capacity for capacity, _ in self._graphs):
                self._graphs.clear()  # it was halved; the larger graphs hold memory
            self._graphs[key] = _Graph(lambda inputs: self._program(inputs, linked), chunk, self.network.device)
        is_done, collect = self._graphs[key].launch(chunk)
        return Launched(is_done, lambda: divided(segments, *collect()))


class _StagingBuffers:
    """Memory for one chunk under way: its inputs on the host, `pinned`, and `waiting` on the device, its results on the
    host, and the events that say when each may be used again."""

    def __init__(self, inputs: Chunk) -> None:
        rows = len(inputs.alphas)
        self.pinned = Chunk(*(torch.empty_like(values, device="cpu").pin_memory() for values in inputs))
        self.waiting = Chunk(*(torch.empty_like(values) for values in inputs))
        self.outputs = torch.empty(rows, dtype=torch.float64).pin_memory()
        self.derivatives = torch.empty(rows, dtype=torch.float64).pin_memory()
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.consumed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]


def _filled_up(values: Tensor, rows: int) -> Tensor:
    """Padded with the first element: a recording on zeros might not be comparable with anything."""
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])


class _Graph:
    """A program captured at one shape. Two chunks may be under way at most; they are collected in order."""

    def __init__(self, program_for: Callable[[Chunk], Program], like: Chunk, device: torch.device) -> None:
        rows = len(like.alphas)
        self._inputs = Chunk(*(_filled_up(values, rows).to(device) for values in like))
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = cycle([_StagingBuffers(self._inputs), _StagingBuffers(self._inputs)])
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            program = program_for(self._inputs)
            for _ in range(WARM_UP_RUNS):
                program(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs, self._derivatives, self._contributions = program(*self._inputs)

    def launch(self, chunk: Chunk) -> tuple[Callable[[], bool], Callable[[], tuple[Floats, Floats, Tensor]]]:
        """Starts the computation of `chunk`, which lies on the host; returns calls that say whether it is done, and
        that wait for it."""
        buffers = next(self._buffers)
        buffers.arrived.synchronize()  # the chunk that was pinned here before has been copied
        for pinned, values in zip(buffers.pinned, chunk, strict=True):
            pinned[: len(values)].copy_(values)
        with torch.cuda.stream(self._copying):
            self._copying.wait_event(buffers.consumed)
            for waiting, pinned, values in zip(buffers.waiting, buffers.pinned, chunk, strict=True):
                waiting[: len(values)].copy_(pinned[: len(values)], non_blocking=True)
            buffers.arrived.record(self._copying)
        computing = torch.cuda.current_stream()
        computing.wait_event(buffers.arrived)
        for fixed, waiting, values in zip(self._inputs, buffers.waiting, chunk, strict=True):
            fixed[: len(values)].copy_(waiting[: len(values)], non_blocking=True)
        buffers.consumed.record(computing)
        self._graph.replay()
        contributions = self._contributions.clone()  # the next replay writes over the graph's own
        buffers.outputs.copy_(self._outputs, non_blocking=True)
        buffers.derivatives.copy_(self._derivatives, non_blocking=True)
        buffers.done.record(computing)

        def collect() -> tuple[Floats, Floats, Tensor]:
            buffers.done.synchronize()
            return buffers.outputs.numpy().copy(), buffers.derivatives.numpy().copy(), contributions

        return buffers.done.query, collect
