"""A model on a device: its kernels at their fixed shapes, and its baseline sets with the outputs over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.artefacts.loading import LoadedModel, load_model
from service.catalog.calibrations import Calibration
from service.catalog.manifest import Manifest
from service.catalog.outputs.kind import OutputKind
from service.catalog.traits import Traits
from service.domain import ChunkShapes, Floats, ModelKey, OutputSpace, Plan, RowType
from service.engine.graph.traits import traits_of
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Deployed, DeployedKernel, Kernels
from service.engine.kernels.network import Network
from service.engine.worker.calibration import calibrate, clock_of
from service.engine.worker.model_kernels import Ends, across, chunk_seconds, deployed_rows, kernels_of, warm_up
from service.engine.worker.prepared_baselines import PreparedBaseline, prepare_baseline
from service.methods.questions import Forwards, Points, Readout
from service.numerics.links import IDENTITY


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
        rows = (plan.input, *(() if plan.baseline.row is None else (plan.baseline.row,)))
        return self.for_rows(*(self.manifest.inputs.with_target(row, plan.target) for row in rows))

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
        """Those of the gradient chunks now; of fewer rows than at load when the device ran out of memory."""
        rows = sorted(kernel.capacity for kernel in self.kernels[Points])
        graded = Points in self.kernels.graded
        return ChunkShapes(rows[0], rows[-1], self.length, graded)

    @property
    def calibration(self) -> Calibration:
        """The shapes now, of whole and of cut rows."""
        return Calibration(self.shapes, tuple(cut.shapes for cut in self.cut))

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
    calibration: Calibration | None = None,
) -> DeviceModel:
    """Loads the model version in `folder`.

    `known_outputs` holds, by baseline digest, outputs [K + 1, outputs] computed earlier, the last row for the mean;
    what it lacks is computed. `calibration` is an earlier one on a device like this. Raises CatalogError.
    """
    model = load_model(folder, device)
    whole = _on_device(model, device, known_outputs, calibration)
    cut = [_on_device(one, device, {}, calibration, whole.traits) for one in model.cut]
    return replace(whole, cut=cut)


def _on_device(
    model: LoadedModel,
    device: torch.device,
    known_outputs: Mapping[str, Mapping[OutputSpace, Floats]],
    calibration: Calibration | None,
    of_whole: Traits | None = None,
) -> DeviceModel:
    """The model for whole rows, or for cut ones, where the traits `of_whole` ones are known; see `put_on_device`."""
    length = None if of_whole is None else prod(model.manifest.inputs.shape)
    outputs, readouts = model.manifest.outputs, _readouts(model.manifest.outputs)
    network = Network(model.twin, device, model.shape, outputs.width, outputs.network_link)
    rows = deployed_rows(model.twin, model.shape, alone=model.alone)
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
    if calibration is not None:
        shapes = calibration.at(length)
    else:
        shapes = calibrate(
            lambda rows: GradientKernel(network, rows, trace=False),
            lambda rows: across(ends, rows, readouts[-1]),
            clock_of(device),
        )
    if of_whole is not None:  # the operators are the same
        traits = replace(of_whole, shape=network.shape, columns=model.columns)
    else:
        traits = replace(
            traits_of(model.twin, model.manifest.inputs.axes, network.shape, network.labels, model.columns),
            has_one_logit=outputs.has_one_logit,
            link=network.link,
        )

    def kernels_at(shapes: ChunkShapes) -> Kernels:
        kernels = kernels_of(model.twin, device, shapes, traits, deployed, forwards)
        warm_up(kernels, network, ends, readouts)
        return kernels

    kernels = kernels_at(shapes)
    low, high = model.bounds
    return DeviceModel(
        key=model.key,
        manifest=model.manifest,
        kernels=kernels,
        kernels_at=kernels_at,
        baselines=baselines,
        traits=traits,
        low=low,
        high=high,
        parity=model.parity,
        seen=model.seen,
        fixed=model.fixed,
        chunk_seconds=chunk_seconds(kernels, ends, clock_of(device), readouts[-1]),
        length=length,
    )


def _readouts(outputs: OutputKind) -> Sequence[Readout]:
    """The readouts of a network with these outputs; the last is the most expensive."""
    return [Readout.LOGIT] if outputs.network_link == IDENTITY else [Readout.LOGIT, Readout.PROBABILITY]


def _ends(model: LoadedModel) -> Ends:
    """Two inputs to calibrate and to warm up with: the first baseline and its set's mean, two texts, or the range."""
    rows = next(iter(model.baselines.values()), None)
    if rows is None:
        rows = model.manifest.inputs.whole_rows(2)
    if rows is None:
        return model.bounds
    seen = model.seen(rows.astype(np.float64))
    return seen[0], seen.mean(axis=0)


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
