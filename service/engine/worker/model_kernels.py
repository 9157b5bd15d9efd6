"""Which kernels a model has, and at which shapes; and how they are warmed up and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import fx

from service.artefacts.sizes import layer_sizes
from service.catalog.traits import Traits
from service.domain import ChunkShapes, Floats
from service.engine.graph.traits import largest_layer
from service.engine.kernels.cuda import GraphedGradientKernel
from service.engine.kernels.gradient import BackgroundGradientKernel, GradientKernel
from service.engine.kernels.kernel import BreakpointsKernel, Deployed, DeployedKernel, Kernel, Kernels, Segment
from service.engine.kernels.network import Network
from service.engine.kernels.piecewise import PiecewiseLinear
from service.engine.kernels.rows import BackwardRuleKernel, BiasKernel, HessianKernel, LayerKernel, RowsKernel
from service.methods.questions import (
    BackwardRuleRows,
    BiasRows,
    Breakpoints,
    Forwards,
    HessianRows,
    LayerRows,
    Points,
    Readout,
    Rows,
)

DEPLOYED_ROWS = 32
DEPLOYED_VALUES = 2**22
"""In all tensors of a forward pass, at most: one prediction of a large network must not wait for 32 rows of padding."""
MAX_RECORDED_VALUES = 2**20
"""In all tensors of one row: chunks of a network with more are not recorded. Of an encoder of 22 million weights a row
of 16 tokens takes 26.9 ms recorded and 26.8 as it is, 16 of them 163 and 166, with the same bits; and to record one
shape takes as long as some six chunks of it, at every start, for every length. Where its shapes are graded, it has one
for every number of rows: nothing has to be prepared for them. The size decides this alone, the same on
every machine; whether shapes are graded is measured, and kept with them (`calibration.GRADED_SECONDS`)."""
BREAKPOINT_LINES = 32
BREAKPOINT_VALUES = 2**26
"""In one tensor of a pass over all lines, at most: 256 MiB. A line with more pieces than find room is refined."""
MAX_PIECES_TO_WARM_UP = 512
GRADIENT_WARM_UPS = 3

Ends = tuple[Floats, Floats]
"""The two ends of a line through the inputs, [inputs] each."""


def kernels_of(
    twin: fx.GraphModule,
    device: torch.device,
    shapes: ChunkShapes,
    traits: Traits,
    deployed: DeployedKernel,
    forwards: DeployedKernel | None = None,
) -> Kernels:
    """Everything that questions about a model can be answered with; `forwards` where embeddings are no input of it."""
    network = Network(twin, device, traits.shape, traits.labels, traits.link)
    gradient = _gradient_kernels(network, shapes)
    by_type: dict[type, Sequence[Kernel]] = {
        Deployed: [deployed],
        Forwards: [forwards or deployed],
        Points: gradient,
        Rows: gradient,
    }
    if traits.is_piecewise_linear:
        most_pieces = BREAKPOINT_VALUES // (BREAKPOINT_LINES * largest_layer(twin, traits.shape))
        lines = PiecewiseLinear(twin, shape=traits.shape)
        by_type[Breakpoints] = [BreakpointsKernel(lines, BREAKPOINT_LINES, traits.shape, most_pieces)]
    on_rows: dict[type, type[RowsKernel]] = {
        BackwardRuleRows: BackwardRuleKernel,
        LayerRows: LayerKernel,
        BiasRows: BiasKernel,
        HessianRows: HessianKernel,
    }
    on_demand: dict[type, Callable[[], Kernel]] = {
        question: partial(kernel, network, shapes.brief) for question, kernel in on_rows.items()
    }
    return Kernels(by_type, on_demand, (Points, Rows) if shapes.graded else ())


def _gradient_kernels(network: Network, shapes: ChunkShapes) -> Sequence[Kernel]:
    if network.device.type == "cuda":
        return [GraphedGradientKernel(network, count) for count in shapes.rows]
    trace = _is_recorded(network)
    if shapes.graded or not trace:  # the shortest takes so long that nobody else should wait for it
        counts = range(shapes.brief, shapes.long + 1) if shapes.graded and not trace else shapes.rows
        return [BackgroundGradientKernel(network, count, trace=trace, is_slow=True) for count in counts]
    brief, *others = shapes.rows
    return [GradientKernel(network, brief), *(BackgroundGradientKernel(network, count) for count in others)]


def _is_recorded(network: Network) -> bool:
    """Whether its chunks are short enough that recording them wins something; see `MAX_RECORDED_VALUES`."""
    return sum(layer_sizes(network.twin, network.shape)) < MAX_RECORDED_VALUES


def deployed_rows(twin: fx.GraphModule, shape: tuple[int, ...], *, alone: bool) -> int:
    """The rows of a forward pass of the artefact, a power of two: as the network's size says, and nothing else, so that
    they are the same wherever it is loaded. One where it takes rows alone: none is computed to fill a chunk up."""
    if alone:
        return 1
    fitting = DEPLOYED_VALUES // sum(layer_sizes(twin, shape))
    return min(DEPLOYED_ROWS, 1 << max(0, fitting.bit_length() - 1))


def warm_up(kernels: Kernels, network: Network, ends: Ends, readouts: Sequence[Readout]) -> None:
    """Runs every kernel, so that the first request is not slowed by initialisation.

    Gradient kernels that are recorded need a few runs with each of the `readouts`, since TorchScript optimises what it
    has seen. Of others the largest runs once, with the last: whether it finds memory.
    """
    runs, gradient = GRADIENT_WARM_UPS, kernels[Points]
    if not _is_recorded(network):
        runs, readouts, gradient = 1, readouts[-1:], gradient[-1:]
    for kernel in gradient:
        for readout in readouts:
            whole = Segment(across(ends, kernel.capacity, readout), 0, kernel.capacity)
            for _ in range(runs):
                kernel.run([whole])
    if Breakpoints in kernels:
        line = Segment(Breakpoints(*ends, MAX_PIECES_TO_WARM_UP), 0, 1)
        for kernel in kernels[Breakpoints]:
            kernel.run([line])


def chunk_seconds(
    kernels: Kernels, ends: Ends, clock: Callable[[], float], readout: Readout = Readout.PROBABILITY
) -> float:
    """How long the smallest chunk takes, of gradients or of forward passes: the longer of both."""
    gradient, forward = kernels[Points][0], kernels[Forwards][0]
    points = Segment(across(ends, gradient.capacity, readout), 0, gradient.capacity)
    began = clock()
    gradient.run([points])
    between = clock()
    forward.run([Segment(Forwards(ends[0][None]), 0, 1)])
    return max(between - began, clock() - between)


def across(ends: Ends, count: int, readout: Readout) -> Points:
    """So many points on the line between two ends."""
    alphas = np.linspace(0, 1, count)
    return Points(ends[0][None], ends[1], np.zeros(count, dtype=np.intp), alphas, readout, 0)
