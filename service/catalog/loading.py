"""Loading a model version in a worker: the deployed artefact, its differentiable twin, its baseline sets.

Predictions come from the artefact in ONNX Runtime, gradients from the twin; the two are compared before anything is
answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import fx

from service.catalog.artefacts import read_baseline_rows, read_verified
from service.catalog.manifest import BaselineSet, Feature, Manifest, read_manifest
from service.catalog.twins import build_twin, check_parity, parse_onnx
from service.domain import ModelKey, OutputSpace
from service.errors import CatalogError

PARITY_ROWS = 256


class DeployedArtefact:
    """The artefact in production, in ONNX Runtime."""

    def __init__(self, content: bytes, manifest: Manifest, device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        self._input = manifest.inputs.tensor
        self._spaces = tuple(manifest.outputs.tensors)
        self._tensors = [manifest.outputs.tensors[space] for space in self._spaces]

    def outputs(self, rows: NDArray[np.float32]) -> Mapping[OutputSpace, NDArray[np.float32]]:
        """The outputs [n, labels] in every output space, for rows [n, inputs]."""
        return dict(zip(self._spaces, self._session.run(self._tensors, {self._input: rows}), strict=True))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that is ready to be put on a device. `baselines` maps the digest of a set to its rows."""

    key: ModelKey
    manifest: Manifest
    deployed: DeployedArtefact
    twin: fx.GraphModule
    baselines: Mapping[str, NDArray[np.float32]]
    parity: float


def baseline_digest(baseline: BaselineSet) -> str:
    """The digest by which a plan names a baseline set."""
    return "sha256:" + baseline.sha256


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """The model version in `folder`, its twin on `device`.

    Raises CatalogError when a digest is wrong, the graph has no twin, or twin and artefact disagree.
    """
    manifest, key, _ = read_manifest(folder)
    content = read_verified(folder, manifest.artefact.file, manifest.artefact.sha256)
    graph = parse_onnx(content)
    try:
        deployed = DeployedArtefact(content, manifest, device)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot open {manifest.artefact.file}: {error}") from error
    twin = build_twin(graph, manifest.inputs.tensor, manifest.outputs.tensors[OutputSpace.LOGIT]).to(device)
    baselines = {
        baseline_digest(baseline): read_baseline_rows(folder, manifest, baseline) for baseline in manifest.baselines
    }
    _check_imputation(manifest, deployed)
    return LoadedModel(key, manifest, deployed, twin, baselines, _parity(manifest, deployed, twin, device, baselines))


def _check_imputation(manifest: Manifest, deployed: DeployedArtefact) -> None:
    """Holds the manifest's `missing` values against the artefact: NaN in a feature must answer what its value does."""
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


def _parity(
    manifest: Manifest,
    deployed: DeployedArtefact,
    twin: fx.GraphModule,
    device: torch.device,
    baselines: Mapping[str, NDArray[np.float32]],
) -> float:
    """Compares twin and artefact on the baselines and on random rows within the features' ranges."""
    low, high = np.array([feature.range for feature in manifest.inputs.features], dtype=np.float32).T
    random = np.random.default_rng(0).uniform(low, high, (PARITY_ROWS, len(low))).astype(np.float32)
    rows = np.concatenate([*baselines.values(), random])
    outputs = deployed.outputs(rows)
    logits, probabilities = (torch.from_numpy(outputs[s]) for s in (OutputSpace.LOGIT, OutputSpace.PROBABILITY))
    if logits.shape != (len(rows), len(manifest.outputs.labels)):
        raise CatalogError(
            f"the artefact answers {list(logits.shape)[1:]} logits for {len(manifest.outputs.labels)} labels"
        )
    with torch.no_grad():
        twin_logits = twin(torch.from_numpy(rows).to(device)).cpu()
    parity = check_parity(twin_logits, logits)
    return max(parity, check_parity(torch.softmax(twin_logits.double(), dim=1), probabilities.double()))
