"""A model on a device: its kernels at their fixed shapes, and its baseline sets with the outputs over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from service.artefacts.loading import LoadedModel, load_model
from service.artefacts.sizes import layer_sizes
from service.catalog.manifest import Manifest
from service.catalog.outputs.kind import OutputKind
from service.catalog.traits import Traits
from service.domain import ChunkShapes, Floats, ModelKey, OutputSpace, Plan, RowType
from service.engine.graph.traits import largest_layer, traits_of
from service.engine.kernels.cuda import GraphedGradientKernel
from service.engine.kernels.gradient import BackgroundGradientKernel, GradientKernel
from service.engine.kernels.kernel import (
    BreakpointsKernel,
    Deployed,
    DeployedKernel,
    DeployedOutputs,
    Kernel,
    Kernels,
    Segment,
)
from service.engine.kernels.network import Network
from service.engine.kernels.piecewise import PiecewiseLinear
from service.engine.kernels.rows import BackwardRuleKernel, BiasKernel, HessianKernel, LayerKernel, RowsKernel
from service.engine.worker.calibration import calibrate, clock_of
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
LARGE_VALUES = 2**20
"""In all tensors of one row: chunks of a network with more are not recorded. Of an encoder of 22 million weights a row
of 16 tokens takes 26.9 ms recorded and 26.8 as it is, 16 of them 163 and 166, with the same bits; and to record one
shape takes as long as some six chunks of it, at every start, for every length."""
BREAKPOINT_LINES = 32
BREAKPOINT_VALUES = 2**26
"""In one tensor of a pass over all lines, at most: 256 MiB. A line with more pieces than find room is refined."""
MAX_PIECES_TO_WARM_UP = 512
GRADIENT_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class PreparedBaseline:
    """A baseline set with the deployed artefact's outputs over it.

    `rows` [K, inputs], their mean `center` [inputs], and by output space `outputs` [K, outputs] and `center_outputs`
    [outputs].
    """

    rows: Floats
    center: Floats
    outputs: Mapping[OutputSpace, Floats]
    center_outputs: Mapping[OutputSpace, Floats]


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A model version on a device.

    `kernels_at` makes its kernels at other gradient shapes. `low` and `high` [inputs] are the range of each input as
    methods see it. `length` is that of rows that are cut, None where they are whole; `cut` is the model for cut rows,
    ascending. `seen` maps rows [n, columns] of the artefact to the methods' inputs: tokens to embeddings,
    categories to columns, other numbers to themselves. `fixed` [inputs] are those that are not explained and never
    change; None: none of them. `chunk_seconds` is how long a small chunk takes, of gradients or of the artefact.
    """

    key: ModelKey
    manifest: Manifest
    kernels: Kernels
    kernels_at: Callable[[ChunkShapes], Kernels]
    baselines: Mapping[str, PreparedBaseline]
    traits: Traits
    low: Floats
    high: Floats
    parity: float
    seen: Callable[[Floats], Floats] = lambda rows: rows
    fixed: NDArray[np.bool_] | None = None
    chunk_seconds: float = 0.0
    length: int | None = None
    cut: Sequence[DeviceModel] = ()

    def for_plan(self, plan: Plan) -> DeviceModel:
        """The model at the length at which this plan is computed, which depends on its own rows alone."""
        return self.for_rows(plan.input, *(() if plan.baseline.row is None else (plan.baseline.row,)))

    def for_rows(self, *rows: Sequence[float]) -> DeviceModel:
        """The model at the least length that holds the rows: itself where they have to be whole."""
        needed = max(map(self.manifest.inputs.length_of, rows)) if self.cut else 0
        return next((cut for cut in self.cut if cut.length is not None and needed <= cut.length), self)

    def is_as_long_as(self, other: DeviceModel) -> bool:
        """Whether it takes the rows that the other one takes."""
        return self.length is None or (other.length is not None and self.length >= other.length)

    @property
    def row_type(self) -> RowType:
        """The type of rows as the artefact takes them."""
        (kernel,) = self.kernels[Deployed]
        assert isinstance(kernel, DeployedKernel)
        return kernel.row_type

    @property
    def shapes(self) -> ChunkShapes:
        """The rows of the gradient chunks now, of whole and of cut rows; fewer than at load when the device ran out of
        memory."""
        rows = sorted(kernel.capacity for kernel in self.kernels[Points])
        graded = Points in self.kernels.graded
        return ChunkShapes(rows[0], rows[-1], self.length, graded, tuple(cut.shapes for cut in self.cut))

    def at(self, shapes: ChunkShapes) -> DeviceModel:
        """The model with gradient chunks of these shapes, which takes a moment. Raises torch.OutOfMemoryError."""
        return replace(self, kernels=self.kernels_at(shapes))


def best_device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def put_on_device(
    folder: Path,
    device: torch.device,
    known_outputs: Mapping[str, Mapping[OutputSpace, Floats]],
    shapes: ChunkShapes | None = None,
) -> DeviceModel:
    """Loads the model version in `folder`.

    `known_outputs` holds, by baseline digest, outputs [K + 1, outputs] computed earlier, the last row for the mean;
    what it lacks is computed. `shapes` are those of an earlier calibration on a device like this. Raises CatalogError.
    """
    model = load_model(folder, device)
    whole = _on_device(model, device, known_outputs, shapes)
    cut = [_on_device(one, device, {}, shapes, prod(one.manifest.inputs.shape)) for one in model.cut]
    return replace(whole, cut=cut)


def _on_device(
    model: LoadedModel,
    device: torch.device,
    known_outputs: Mapping[str, Mapping[OutputSpace, Floats]],
    known_shapes: ChunkShapes | None,
    length: int | None = None,
) -> DeviceModel:
    """The model for whole rows, or for those that are cut to a `length`; see `put_on_device`."""
    outputs, readouts = model.manifest.outputs, _readouts(model.manifest.outputs)
    network = Network(model.twin, device, model.shape, prod(outputs.network_shape), outputs.network_link)
    rows = _deployed_rows(model)
    deployed = DeployedKernel(model.deployed, rows, model.row_type)
    is_same = model.forwards is model.deployed
    forwards = deployed if is_same else DeployedKernel(model.forwards, rows, model.row_type)
    baselines = {
        digest: prepare_baseline(
            rows.astype(np.float64), deployed, known_outputs.get(digest), model.seen, forwards, outputs.spaces
        )
        for digest, rows in model.baselines.items()
    }
    ends = _ends(model)
    shapes = None if known_shapes is None else known_shapes.at(length)
    if shapes is None:
        shapes = calibrate(
            lambda rows: GradientKernel(network, rows, trace=False),
            lambda rows: _across(ends, rows, readouts[-1]),
            clock_of(device),
        )
    traits = replace(
        traits_of(model.twin, model.manifest.inputs.axes, network.shape, network.labels, model.columns),
        has_one_logit=outputs.has_one_logit,
        link=network.link,
    )

    is_large = _is_large(model.twin, network.shape)

    def kernels_at(shapes: ChunkShapes) -> Kernels:
        kernels = kernels_of(model.twin, device, shapes, traits, deployed, forwards)
        _warm_up(kernels, ends, *((1, readouts[-1:]) if is_large else (GRADIENT_WARM_UPS, readouts)))
        return kernels

    kernels = kernels_at(shapes)
    return DeviceModel(
        model.key,
        model.manifest,
        kernels,
        kernels_at,
        baselines,
        traits,
        *model.bounds,
        model.parity,
        model.seen,
        model.fixed,
        chunk_seconds(kernels, ends, clock_of(device), readouts[-1]),
        length,
    )


def _readouts(outputs: OutputKind) -> Sequence[Readout]:
    """The readouts of a network with these outputs; the last is the most expensive."""
    return [Readout.LOGIT, Readout.PROBABILITY] if OutputSpace.PROBABILITY in outputs.spaces else [Readout.LOGIT]


def chunk_seconds(
    kernels: Kernels, ends: Ends, clock: Callable[[], float], readout: Readout = Readout.PROBABILITY
) -> float:
    """How long the smallest chunk takes, of gradients or of forward passes: the longer of both."""
    gradient, forward = kernels[Points][0], kernels[Forwards][0]
    points = Segment(_across(ends, gradient.capacity, readout), 0, gradient.capacity)
    began = clock()
    gradient.run([points])
    between = clock()
    forward.run([Segment(Forwards(ends[0][None]), 0, 1)])
    return max(between - began, clock() - between)


def _deployed_rows(model: LoadedModel) -> int:
    """The rows of a forward pass of the artefact, a power of two: as the network's size says, and nothing else, so that
    they are the same wherever it is loaded. One where it takes rows alone: none is computed to fill a chunk up."""
    if model.alone:
        return 1
    fitting = DEPLOYED_VALUES // sum(layer_sizes(model.twin, model.shape))
    return min(DEPLOYED_ROWS, 1 << max(0, fitting.bit_length() - 1))


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
    is_large = _is_large(network.twin, network.shape)
    if shapes.graded or is_large:  # the shortest takes so long that nobody else should wait for it
        return [BackgroundGradientKernel(network, count, trace=not is_large, is_large=True) for count in shapes.rows]
    brief, *others = shapes.rows
    return [
        GradientKernel(network, brief, trace=not is_large),
        *(BackgroundGradientKernel(network, count, trace=not is_large) for count in others),
    ]


def _is_large(twin: fx.GraphModule, shape: tuple[int, ...]) -> bool:
    """Whether its chunks take so long that nothing is won by recording them; see `LARGE_VALUES`."""
    return sum(layer_sizes(twin, shape)) >= LARGE_VALUES


Ends = tuple[Floats, Floats]
"""The two ends of a line through the inputs, [inputs] each."""


def _ends(model: LoadedModel) -> Ends:
    """Two inputs to calibrate and to warm up with: the first baseline and its set's mean, two texts, or the range."""
    rows = next(iter(model.baselines.values()), None)
    if rows is None:
        rows = model.manifest.inputs.whole_rows(2)
    if rows is None:
        return model.bounds
    seen = model.seen(rows.astype(np.float64))
    return seen[0], seen.mean(axis=0)


def _across(ends: Ends, count: int, readout: Readout) -> Points:
    """So many points on the line between two ends."""
    alphas = np.linspace(0, 1, count)
    return Points(ends[0][None], ends[1], np.zeros(count, dtype=np.intp), alphas, readout, 0)


def _warm_up(kernels: Kernels, ends: Ends, runs: int, readouts: Sequence[Readout]) -> None:
    """Runs every kernel, so that the first request is not slowed by initialisation.

    Gradient kernels that are recorded need a few `runs`, since TorchScript optimises what it has seen.
    """
    for kernel in kernels[Points]:
        for readout in readouts:
            whole = Segment(_across(ends, kernel.capacity, readout), 0, kernel.capacity)
            for _ in range(runs):
                kernel.run([whole])
    if Breakpoints in kernels:
        line = Segment(Breakpoints(*ends, MAX_PIECES_TO_WARM_UP), 0, 1)
        for kernel in kernels[Breakpoints]:
            kernel.run([line])


def prepare_baseline(
    rows: Floats,
    deployed: DeployedKernel,
    known: Mapping[OutputSpace, Floats] | None,
    seen: Callable[[Floats], Floats] = lambda rows: rows,
    forwards: DeployedKernel | None = None,
    spaces: Collection[OutputSpace] | None = None,
) -> PreparedBaseline:
    """The set `rows` [K, columns] as methods see it, with its mean and the outputs over both.

    `known` outputs are used where they are in all of the model's output `spaces`.
    """
    inputs = seen(rows)
    center = inputs.mean(axis=0).astype(deployed.row_type).astype(np.float64)
    outputs = known
    if outputs is None or not _is_whole(outputs, len(rows), spaces):
        at_rows, at_center = outputs_over(deployed, rows), outputs_over(forwards or deployed, center[None])
        outputs = {space: np.concatenate([at_rows[space], at_center[space]]) for space in at_rows}
    return PreparedBaseline(
        inputs,
        center,
        {space: values[:-1] for space, values in outputs.items()},
        {space: values[-1] for space, values in outputs.items()},
    )


def _is_whole(known: Mapping[OutputSpace, Floats], rows: int, spaces: Collection[OutputSpace] | None) -> bool:
    """Whether there are outputs in all of the spaces, over so many rows and their mean."""
    return (spaces is None or set(known) == set(spaces)) and all(len(v) == rows + 1 for v in known.values())


def with_baseline(
    model: DeviceModel, digest: str, rows: Floats, known: Mapping[OutputSpace, Floats] | None
) -> DeviceModel:
    """The model with one more baseline set, of `rows` [K, columns]."""
    deployed, forwards = model.kernels[Deployed][0], model.kernels[Forwards][0]
    assert isinstance(deployed, DeployedKernel)
    assert isinstance(forwards, DeployedKernel)
    prepared = prepare_baseline(rows, deployed, known, model.seen, forwards, model.manifest.outputs.spaces)
    return replace(model, baselines={**model.baselines, digest: prepared})


def without_baseline(model: DeviceModel, digest: str) -> DeviceModel:
    """The model with one baseline set less."""
    return replace(model, baselines={name: one for name, one in model.baselines.items() if name != digest})


def outputs_over(kernel: DeployedKernel, rows: Floats) -> DeployedOutputs:
    """What a kernel of forward passes answers for any number of rows [n, inputs]."""
    question = Deployed(rows)
    starts = range(0, len(rows), kernel.capacity)
    return kernel.join([kernel.run([Segment(question, at, min(at + kernel.capacity, len(rows)))])[0] for at in starts])
