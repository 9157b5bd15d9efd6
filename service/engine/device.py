"""A model on a device: its kernels at their fixed shapes, and its baseline sets with the outputs over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import fx

from service.catalog.loading import load_model
from service.catalog.manifest import Manifest
from service.domain import ChunkShapes, Floats, ModelKey, OutputSpace
from service.engine.calibration import calibrate
from service.engine.cuda import GraphedGradientKernel
from service.engine.gradient import BackgroundGradientKernel, GradientKernel
from service.engine.kernels import BreakpointsKernel, Deployed, DeployedKernel, Kernel, Kernels, Segment
from service.engine.piecewise import NotPiecewiseLinear, PiecewiseLinear, has_kinks
from service.methods.oracle import Breakpoints, Points, Readout

DEPLOYED_ROWS = 32
BREAKPOINT_LINES = 32
MOST_PIECES_TO_WARM_UP = 512
GRADIENT_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class PreparedBaseline:
    """A baseline set with the deployed artefact's outputs over it.

    `rows` [K, inputs], their mean `center` [inputs], and by output space `outputs` [K, labels] and `center_outputs`
    [labels].
    """

    rows: Floats
    center: Floats
    outputs: Mapping[OutputSpace, Floats]
    center_outputs: Mapping[OutputSpace, Floats]


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A model version on a device.

    `obstacle` says why its breakpoints cannot be found and the exact rule does not apply; None where they can.
    """

    key: ModelKey
    manifest: Manifest
    kernels: Kernels
    baselines: Mapping[str, PreparedBaseline]
    has_kinks: bool
    obstacle: str | None
    parity: float

    @property
    def shapes(self) -> ChunkShapes:
        """The rows of the gradient chunks now; fewer than at load when the device ran out of memory."""
        rows = [kernel.capacity for kernel in self.kernels[Points]]
        return ChunkShapes(rows[0], rows[-1])


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

    `known_outputs` holds, by baseline digest, outputs [K + 1, labels] computed earlier, the last row for the mean; what
    it lacks is computed. `shapes` are those of an earlier calibration on a device like this. Raises CatalogError.
    """
    model = load_model(folder, device)
    deployed = DeployedKernel(model.deployed, DEPLOYED_ROWS)
    baselines = {
        digest: prepare_baseline(rows.astype(np.float64), deployed, known_outputs.get(digest))
        for digest, rows in model.baselines.items()
    }
    line = next(iter(baselines.values()))
    labels = len(model.manifest.outputs.labels)
    if shapes is None:
        shapes = calibrate(
            lambda rows: GradientKernel(model.twin, device, rows, labels, trace=False),
            lambda rows: _across(line, rows, Readout.PROBABILITY),
        )
    obstacle = None
    by_type: dict[type, list[Kernel]] = {
        Deployed: [deployed],
        Points: _gradient_kernels(model.twin, device, shapes, labels),
    }
    try:
        by_type[Breakpoints] = [BreakpointsKernel(PiecewiseLinear(model.twin), BREAKPOINT_LINES)]
    except NotPiecewiseLinear as error:
        obstacle = str(error)
    kernels = Kernels(by_type)
    _warm_up(kernels, line)
    return DeviceModel(model.key, model.manifest, kernels, baselines, has_kinks(model.twin), obstacle, model.parity)


def _gradient_kernels(twin: fx.GraphModule, device: torch.device, shapes: ChunkShapes, labels: int) -> list[Kernel]:
    rows = sorted({shapes.brief, shapes.long})
    if device.type == "cuda":
        return [GraphedGradientKernel(twin, device, count, labels) for count in rows]
    brief = GradientKernel(twin, device, rows[0], labels)
    return [brief, *(BackgroundGradientKernel(twin, device, count, labels) for count in rows[1:])]


def _across(baseline: PreparedBaseline, count: int, readout: Readout) -> Points:
    """So many points on the line from a baseline to the mean."""
    alphas = np.linspace(0, 1, count)
    return Points(baseline.rows[:1], baseline.center, np.zeros(count, dtype=np.intp), alphas, readout, 0)


def _warm_up(kernels: Kernels, baseline: PreparedBaseline) -> None:
    """Runs every kernel, so that the first request finds a model that has answered before.

    Gradient kernels run a few times, since TorchScript optimises what it has seen.
    """
    for kernel in kernels[Points]:
        for readout in (Readout.LOGIT, Readout.PROBABILITY):
            whole = Segment(_across(baseline, kernel.capacity, readout), 0, kernel.capacity)
            for _ in range(GRADIENT_WARM_UPS):
                kernel.run([whole])
    if Breakpoints in kernels:
        line = Segment(Breakpoints(baseline.rows[0], baseline.center, MOST_PIECES_TO_WARM_UP), 0, 1)
        for kernel in kernels[Breakpoints]:
            kernel.run([line])


def prepare_baseline(
    rows: Floats, deployed: DeployedKernel, known: Mapping[OutputSpace, Floats] | None
) -> PreparedBaseline:
    """The set `rows` [K, inputs] with its mean and the outputs over both."""
    center = rows.mean(axis=0).astype(np.float32).astype(np.float64)
    question = Deployed(np.concatenate([rows, center[None]]))
    outputs = known
    if outputs is None or set(outputs) != set(OutputSpace) or any(len(v) != len(question) for v in outputs.values()):
        starts = range(0, len(question), deployed.capacity)
        parts = [
            deployed.run([Segment(question, start, min(start + deployed.capacity, len(question)))])[0]
            for start in starts
        ]
        outputs = deployed.join(parts)
    return PreparedBaseline(
        rows,
        center,
        {space: values[:-1] for space, values in outputs.items()},
        {space: values[-1] for space, values in outputs.items()},
    )
