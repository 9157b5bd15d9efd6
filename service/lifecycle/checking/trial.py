"""A model version tried out in the command's own process: loaded as a worker loads it, explained without a service."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from service.catalog.calibrations import Calibration
from service.catalog.inputs.instances import read_instance
from service.catalog.inputs.kind import Row
from service.catalog.manifest import BaselineSet, Manifest, read_manifest
from service.catalog.version_files import read_baseline_rows
from service.catalog.versions import ModelVersion
from service.domain import ChunkShapes, Explanation, Floats, OutputSpace, Plan, Priority
from service.engine.kernels.kernel import Deployed, DeployedKernel
from service.engine.messages import Done, Failed
from service.engine.worker.device import DeviceModel, put_on_device
from service.engine.worker.explanation import explain
from service.engine.worker.packing import Live
from service.engine.worker.prepared_baselines import outputs_over
from service.engine.worker.scheduler import Scheduler
from service.usecases.planning import Parameters
from service.usecases.references import plans_of, referred_rows, with_instances_read

SHAPES = ChunkShapes(32, 128)
"""Fixed chunk shapes: calibration takes time that only traffic pays back, and small chunks fit any device."""
NO_NUMBER = "no number"
"""The decision of outputs that are no finite numbers."""
CALIBRATED_BYTES = 2**20
"""Of an artefact whose network is calibrated all the same: 128 rows of a larger one may take minutes."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a version answered for some rows.

    `attributions` [rows, features] are NaN where the model answered no number; those of an image are summed over its
    channels. `decisions` [rows] are what the outputs decide, None where they decide nothing.
    """

    explanations: Sequence[Explanation]
    attributions: Floats
    decisions: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Trial:
    """A version that is loaded."""

    version: ModelVersion
    model: DeviceModel

    @property
    def manifest(self) -> Manifest:
        return self.version.manifest

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the attributions, or the place of each."""
        return self.manifest.inputs.component_labels

    @property
    def baseline(self) -> BaselineSet | None:
        """The baseline set of requests that name none; None where the default is not a set."""
        default = self.manifest.defaults.baseline
        named = [declared for declared in self.manifest.baselines if declared.name == default]
        return named[-1] if named else None

    def baseline_rows(self) -> Floats:
        """The rows [size, columns] of that set; without one, no rows."""
        if self.baseline is None:
            return np.empty((0, len(self._example())))
        return read_baseline_rows(self.version.folder, self.manifest, self.baseline).astype(np.float64)

    def sample(self, rows: int, seed: int) -> Floats:
        """The example, then at most so many rows drawn from the held-out ones, or else from the baseline set.

        `heldout.safetensors` is not verified by a digest, since nothing that is served depends on it.
        """
        example = self._example()
        known = self._heldout(len(example))
        drawn = np.random.default_rng(seed).permutation(len(known))[:rows]
        return np.concatenate([example[None], known[drawn]])

    def typical(self, rows: Floats) -> Floats:
        """One row of the median of every column, or its most frequent category."""
        return self.manifest.inputs.nearest_row(np.median(rows, axis=0), rows)

    def mean_instance(self, rows: Floats) -> object:
        """The mean of the rows as an instance, with the most frequent category of each."""
        mean = self.manifest.inputs.nearest_row(rows.mean(axis=0), rows)
        return self.manifest.inputs.as_instance(mean.tolist())

    def answers(
        self, rows: Floats, method: str | None = None, baseline: object = None, space: OutputSpace | None = None
    ) -> Answers:
        """Explains the rows: the adverse output if there is one, else the predicted one.

        Arguments that are left out have the manifest's defaults. Raises InvalidRequest, or what an explanation failed
        with.
        """
        target = self.manifest.outputs.usual_request(self.manifest.example)
        parameters = Parameters(method=method, target=target, baseline=baseline, output_space=space)
        plans = self._plans([Row(tuple(row.tolist())) for row in rows], with_instances_read(self.version, parameters))
        explanations = self.explained_together(plans)
        attributions = np.stack([self.by_feature(explanation) for explanation in explanations])
        outputs = self.manifest.outputs
        decisions = [
            NO_NUMBER if one.outputs is None else outputs.decision(one.outputs, plan.output_space)
            for one, plan in zip(explanations, plans, strict=True)
        ]
        return Answers(explanations, attributions, decisions)

    def _plans(self, rows: Sequence[Row], parameters: Parameters) -> list[Plan]:
        needed = referred_rows(self.version, rows, parameters)
        outputs = self.deployed(np.array(needed))[self.manifest.outputs.default_space].tolist() if needed else []
        answers = dict(zip(needed, outputs, strict=True))
        return [plan for _, plan in plans_of(self.version, rows, parameters, answers)]

    def deployed(self, rows: NDArray[np.floating]) -> Mapping[OutputSpace, Floats]:
        """The artefact's outputs for rows [n, columns], in every output space: [n, outputs]."""
        (kernel,) = self.model.kernels[Deployed]
        assert isinstance(kernel, DeployedKernel)
        return outputs_over(kernel, rows.astype(np.float64))

    def explained(self, plan: Plan) -> Explanation:
        """The explanation of one plan. Raises the error that it failed with."""
        return self.explained_together([plan])[0]

    def explained_together(self, plans: Sequence[Plan]) -> list[Explanation]:
        """The explanations of plans, all under way at once. Raises the first error that one failed with."""
        scheduler = Scheduler()
        for task, plan in enumerate(plans):
            model = self.model.for_plan(plan)
            now = time.monotonic()
            scheduler.add(Live(task, explain(plan, model), model.kernels, str(plan.model), Priority.BULK, None, now))
        explained: dict[int, Explanation] = {}
        while scheduler:
            scheduler.step()
            for outcome in scheduler.outcomes():
                if isinstance(outcome, Failed):
                    raise outcome.error
                assert isinstance(outcome, Done)
                assert isinstance(outcome.result, Explanation)
                explained[outcome.task] = outcome.result
        return [explained[task] for task in range(len(plans))]

    def _example(self) -> Floats:
        return np.array(read_instance(self.manifest, self.manifest.example, self.version.folder))

    def _heldout(self, columns: int) -> Floats:
        try:
            rows = load_file(self.version.folder / "heldout.safetensors")["rows"].astype(np.float64)
        except (OSError, SafetensorError, KeyError):
            return self.baseline_rows()
        flat: Floats = rows.reshape(len(rows), -1)
        return flat if flat.shape[1] == columns else self.baseline_rows()

    def by_feature(self, explanation: Explanation) -> Floats:
        if explanation.attributions is None:
            return np.full(len(self.features), np.nan)
        values = np.array(explanation.attributions).reshape(explanation.shape)
        traits = self.model.traits
        return (values.sum(axis=traits.summed_axes) if values.ndim == len(traits.axes) else values).ravel()


def load_trial(folder: Path, device: torch.device) -> Trial:
    """Loads the version in `folder`. Raises CatalogError."""
    manifest, key, digest = read_manifest(folder)
    size = sum((folder / file).stat().st_size for file in manifest.artefact.sha256_by_file)
    model = put_on_device(folder, device, {}, Calibration(SHAPES) if size < CALIBRATED_BYTES else None)
    version = ModelVersion(key, manifest, folder, digest, {}, model.traits, model.parity)
    return Trial(version, model)
