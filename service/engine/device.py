"""A model on a device: its kernels at their fixed shapes, and its baseline sets with the outputs over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.catalog.loading import load_model
from service.catalog.manifest import Manifest
from service.domain import Floats, ModelKey, OutputSpace
from service.engine.kernels import (
    BreakpointsKernel,
    Deployed,
    DeployedKernel,
    GradientKernel,
    Kernel,
    Segment,
)
from service.engine.piecewise import NotPiecewiseLinear, PiecewiseLinear, has_kinks
from service.methods.oracle import Breakpoints, Points, Readout

CHUNK_ROWS = 512
"""Rows of a gradient chunk: near the peak rate of small networks on one CPU core, and under a millisecond for them."""
DEPLOYED_ROWS = 32
BREAKPOINT_LINES = 32


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
    """A model version on a device. `kernels` maps the type of a question to the kernel that answers it.

    `obstacle` says why its breakpoints cannot be found and the exact rule does not apply; None where they can.
    """

    key: ModelKey
    manifest: Manifest
    kernels: Mapping[type, Kernel]
    baselines: Mapping[str, PreparedBaseline]
    has_kinks: bool
    obstacle: str | None
    parity: float


def best_device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def put_on_device(
    folder: Path, device: torch.device, known_outputs: Mapping[str, Mapping[OutputSpace, Floats]]
) -> DeviceModel:
    """Loads the model version in `folder`.

    `known_outputs` holds, by baseline digest, outputs [K + 1, labels] computed earlier, the last row for the mean; what
    it lacks is computed. Raises CatalogError.
    """
    model = load_model(folder, device)
    deployed = DeployedKernel(model.deployed, DEPLOYED_ROWS)
    kernels: dict[type, Kernel] = {
        Deployed: deployed,
        Points: GradientKernel(model.twin, device, CHUNK_ROWS),
    }
    obstacle = None
    try:
        kernels[Breakpoints] = BreakpointsKernel(PiecewiseLinear(model.twin, CHUNK_ROWS), device, BREAKPOINT_LINES)
    except NotPiecewiseLinear as error:
        obstacle = str(error)
    baselines = {
        digest: prepare_baseline(rows.astype(np.float64), deployed, known_outputs.get(digest))
        for digest, rows in model.baselines.items()
    }
    _warm_up(kernels, next(iter(baselines.values())))
    return DeviceModel(model.key, model.manifest, kernels, baselines, has_kinks(model.twin), obstacle, model.parity)


def _warm_up(kernels: Mapping[type, Kernel], baseline: PreparedBaseline) -> None:
    """Runs every kernel once, so that the first request finds a model that has answered before."""
    start, end = baseline.rows[0], baseline.center
    questions = (
        Points(start[None], end, np.zeros(1, dtype=np.intp), np.array([0.5]), Readout.LOGIT, 0),
        Breakpoints(start, end, CHUNK_ROWS),
    )
    for question in questions:
        if type(question) in kernels:
            kernels[type(question)].run([Segment(question, 0, 1)])


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
