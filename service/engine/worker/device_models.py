"""The versions that are loaded on one device, and the computations that they are used for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet, read_manifest
from service.catalog.version_files import read_baseline_rows
from service.domain import ChunkShapes, Priority, VersionRef
from service.engine.messages import Explain, Predict
from service.engine.protocol import BaselineOutputs, Loaded, Source
from service.engine.worker.device import DeviceModel, put_on_device, with_baseline, without_baseline
from service.engine.worker.environment import libraries_of
from service.engine.worker.explanation import explain, interrupted, predict
from service.engine.worker.memory import is_out_of_memory
from service.engine.worker.packing import Live
from service.errors import CatalogError, DeviceOutOfMemory, ModelNotReady

MAX_OTHER_SHAPES = 4
"""Models that are kept at other shapes, of all versions together: for explanations that are repeated at those of an
earlier calibration."""


class DeviceModels:
    """Loads versions, and turns requests into explanations for the scheduler."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._models: dict[VersionRef, DeviceModel] = {}
        self._sources: dict[VersionRef, Source] = {}
        self._at_other_shapes: dict[tuple[VersionRef, ChunkShapes], DeviceModel] = {}

    def load(
        self, version: VersionRef, source: Source, known: BaselineOutputs, calibration: Calibration | None
    ) -> Loaded:
        """Loads a version, or loads it again; see `Engine.load`. Raises CatalogError."""
        if read_manifest(source.folder)[2] != version.digest:
            raise CatalogError(f"the manifest of {version} is not the one that was to be loaded: its digest differs")
        self._keep(version, put_on_device(source.folder, self._device, known, calibration))
        self._sources[version] = source
        model = self._models[version]
        return Loaded(
            key=model.key,
            baseline_outputs={digest: baseline.all_outputs for digest, baseline in model.baselines.items()},
            calibration=model.calibration,
            traits=model.traits,
            parity=model.parity,
            chunk_seconds=model.chunk_seconds,
            environment={"dtype": model.row_type.name, **libraries_of(model.manifest.artefact.format)},
        )

    def attach(self, version: VersionRef, baseline: BaselineSet, known: Outputs | None) -> Outputs:
        """Gives a version a baseline set; see `Engine.attach`. Raises CatalogError."""
        model = self._models.get(version)
        if model is None:
            raise CatalogError("the model version is not loaded")
        place = self._sources[version].baselines
        rows = read_baseline_rows(place, model.manifest, baseline, model.row_type).astype(np.float64)
        model = with_baseline(model, baseline.digest, rows, known)
        self._keep(version, model)
        return model.baselines[baseline.digest].all_outputs

    def detach(self, digest: str) -> None:
        """Takes a baseline set from every version that it was attached to; a set of a manifest stays."""
        for version, model in list(self._models.items()):
            listed = {baseline.digest for baseline in model.manifest.baselines}
            if digest in model.baselines.keys() - listed:
                self._keep(version, without_baseline(model, digest))

    def unload(self, version: VersionRef) -> None:
        """Forgets a version; explanations under way keep what they need of it."""
        self._forget_other_shapes(version)
        self._models.pop(version, None)
        self._sources.pop(version, None)

    def begin(self, request: Explain | Predict, now: float) -> Live:
        """What the scheduler needs to compute a request that was received `now`.

        Raises ModelNotReady, or DeviceOutOfMemory where a repeated explanation asks for shapes that do not fit.
        """
        model = self._models.get(request.version)
        if model is None:
            raise ModelNotReady("the model version is not loaded")
        if isinstance(request, Predict):
            model = model.for_rows(request.row)
            steps, priority = predict(request.row, model), Priority.INTERACTIVE
        else:
            conditions, priority = request.conditions, request.priority
            model = model.for_plan(request.plan)
            if conditions is not None:
                model = self._at(request.version, conditions.shapes, model)
            steps = explain(request.plan, model)
            if conditions is not None and conditions.answers is not None:
                steps = interrupted(steps, conditions.answers)
        return Live(request.task, steps, model.kernels, str(model.key), priority, request.deadline, now)

    def _at(self, version: VersionRef, shapes: ChunkShapes, usual: DeviceModel) -> DeviceModel:
        """The model at these shapes, the last few of which are kept; at the `usual` length for a plan where it is not
        computed at the one they have, or that is too short. Raises DeviceOutOfMemory."""
        whole = self._models[version]
        lengths = [model for model in (*whole.cut, whole) if model.length == shapes.length]
        model = lengths[0] if lengths and lengths[0].is_as_long_as(usual) else usual
        shapes = replace(shapes, length=model.length)
        if shapes == model.shapes:
            return model
        name = version, shapes
        if name not in self._at_other_shapes:
            try:
                reshaped = model.at(shapes)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                detail = f"the device has not the memory for chunks of {shapes} rows"
                raise DeviceOutOfMemory(detail) from error
            if len(self._at_other_shapes) >= MAX_OTHER_SHAPES:
                del self._at_other_shapes[next(iter(self._at_other_shapes))]
            self._at_other_shapes[name] = reshaped
        return self._at_other_shapes[name]

    def _keep(self, version: VersionRef, model: DeviceModel) -> None:
        self._forget_other_shapes(version)  # which have other baseline sets
        self._models[version] = model

    def _forget_other_shapes(self, version: VersionRef) -> None:
        self._at_other_shapes = {name: model for name, model in self._at_other_shapes.items() if name[0] != version}
