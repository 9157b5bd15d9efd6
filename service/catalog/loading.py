"""Loading a model version in a worker: the deployed artefact, its differentiable twin, its baseline sets.

Predictions come from the artefact, gradients from the twin; the two are compared before anything is answered. How both
come from a file is a matter of its format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from service.catalog.artefacts import read_baseline_rows, read_verified
from service.catalog.deployed import DeployedArtefact, Opened
from service.catalog.formats import Format
from service.catalog.manifest import (
    BaselineSet,
    Feature,
    Manifest,
    TabularInputs,
    TokenInputs,
    read_manifest,
)
from service.catalog.onnx_format import open_onnx
from service.catalog.pt2_format import open_pt2
from service.catalog.safetensors_format import open_safetensors
from service.catalog.twins import check_parity
from service.domain import Floats, ModelKey, OutputSpace
from service.errors import CatalogError

PARITY_ROWS = 256
OPEN: Mapping[Format, Callable[[bytes, Manifest, torch.device], Opened]] = {
    "onnx": open_onnx,
    "pt2": open_pt2,
    "safetensors": open_safetensors,
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that is ready to be put on a device.

    `baselines` maps the digest of a set to its rows, flat. `embedding` [vocabulary, dimensions] is that of tokens; the
    twin takes what it gives.
    """

    key: ModelKey
    manifest: Manifest
    deployed: DeployedArtefact
    twin: fx.GraphModule
    embedding: NDArray[np.float32] | None
    baselines: Mapping[str, NDArray[np.float32]]
    parity: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of the twin."""
        shape = self.manifest.inputs.shape
        return shape if self.embedding is None else (*shape, self.embedding.shape[1])

    def seen(self, rows: Floats) -> Floats:
        """What the twin takes, flat, where the artefact takes `rows` [n, columns]."""
        if self.embedding is None:
            return rows
        return self.embedding[rows.astype(np.int64)].reshape(len(rows), -1).astype(np.float64)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """The range of each of the twin's inputs, flat."""
        inputs = self.manifest.inputs
        if not isinstance(inputs, TokenInputs):
            return np.array(inputs.bounds[0]), np.array(inputs.bounds[1])
        assert self.embedding is not None
        table = self.embedding.astype(np.float64)
        return np.tile(table.min(axis=0), inputs.length), np.tile(table.max(axis=0), inputs.length)


def baseline_digest(baseline: BaselineSet) -> str:
    """The digest by which a plan names a baseline set."""
    return "sha256:" + baseline.sha256


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """The model version in `folder`, its twin on `device`.

    Raises CatalogError when a digest is wrong, the artefact cannot be opened or has no twin, or the two disagree.
    """
    manifest, key, _ = read_manifest(folder)
    content = read_verified(folder, manifest.artefact.file, manifest.artefact.sha256)
    opened = OPEN[manifest.artefact.format](content, manifest, device)
    baselines = {
        baseline_digest(baseline): read_baseline_rows(folder, manifest, baseline) for baseline in manifest.baselines
    }
    _check_imputation(manifest, opened.deployed)
    loaded = LoadedModel(key, manifest, opened.deployed, opened.twin, opened.embedding, baselines, parity=0.0)
    return replace(loaded, parity=_parity(loaded, device))


def _check_imputation(manifest: Manifest, deployed: DeployedArtefact) -> None:
    """Holds the manifest's `missing` values against the artefact: NaN in a feature must answer what its value does."""
    if not isinstance(manifest.inputs, TabularInputs) or not isinstance(manifest.example, Mapping):
        return
    features = manifest.inputs.features
    imputed = [at for at, feature in enumerate(features) if feature.missing is not None]
    if not imputed:
        return
    example = np.array([_filled(feature, manifest.example[feature.name]) for feature in features], dtype=np.float32)
    filled, missing = np.tile(example, (len(imputed), 1)), np.tile(example, (len(imputed), 1))
    for row, at in enumerate(imputed):
        filled[row, at], missing[row, at] = _filled(features[at], None), np.nan
    for space, expected in deployed.outputs(filled).items():
        differ = np.flatnonzero((deployed.outputs(missing)[space] != expected).any(axis=1))
        if len(differ):
            name = features[imputed[differ[0]]].name
            raise CatalogError(f"the artefact does not replace a missing {name} by the manifest's value")


def _filled(feature: Feature, value: float | None) -> float:
    return feature.missing if value is None and feature.missing is not None else float(value or 0.0)


def _random_rows(manifest: Manifest) -> NDArray[np.float32]:
    """Rows within the range of the inputs, flat."""
    generator = np.random.default_rng(0)
    inputs = manifest.inputs
    if isinstance(inputs, TokenInputs):
        return generator.integers(0, inputs.vocabulary, (PARITY_ROWS, inputs.length)).astype(np.float32)
    low, high = (np.array(limit, dtype=np.float32) for limit in inputs.bounds)
    return generator.uniform(low, high, (PARITY_ROWS, len(low))).astype(np.float32)


def _parity(model: LoadedModel, device: torch.device) -> float:
    """Compares twin and artefact on the baselines and on random rows within the features' ranges."""
    manifest = model.manifest
    rows = np.concatenate([*model.baselines.values(), _random_rows(manifest)])
    outputs = model.deployed.outputs(rows)
    logits, probabilities = (torch.from_numpy(outputs[s]) for s in (OutputSpace.LOGIT, OutputSpace.PROBABILITY))
    if logits.shape != (len(rows), len(manifest.outputs.labels)):
        raise CatalogError(
            f"the artefact answers {list(logits.shape)[1:]} logits for {len(manifest.outputs.labels)} labels"
        )
    with torch.no_grad():
        seen = model.seen(rows).astype(np.float32).reshape(-1, *model.shape)
        twin_logits = model.twin(torch.from_numpy(seen).to(device)).cpu()
    parity = check_parity(twin_logits, logits)
    return max(parity, check_parity(torch.softmax(twin_logits.double(), dim=1), probabilities.double()))
