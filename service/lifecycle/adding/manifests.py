"""Writes the manifest of a model from its graph, some rows of data, and the user's answers to a few questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from onnx import ModelProto, helper
from safetensors.numpy import save

from service.artefacts.onnx.weights import write_model
from service.catalog.inputs.image import Normalisation
from service.catalog.manifest import MAX_PARITY, PARITY
from service.domain import Floats
from service.lifecycle.adding.added_inputs import AddedInputs
from service.lifecycle.adding.graphs import ServableModel
from service.lifecycle.adding.rows import Rows

MAX_BASELINES = 128
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class ManifestChoices:
    """What the user chose: names, the manifest's `outputs`, and how pixels are normalised."""

    name: str
    version: str
    features: tuple[str, ...]
    titles: tuple[str, ...]
    outputs: Mapping[str, Any]
    normalise: Normalisation | None = None


def imputed(model: ModelProto, tensor: str, columns: int) -> list[float | None]:
    """The value that the graph's imputer puts in each column where it is missing; None where there is no imputer."""
    for node in model.graph.node:
        if node.op_type == "Imputer" and node.input[0] == tensor:
            values = {one.name: helper.get_attribute_value(one) for one in node.attribute}.get(
                "imputed_value_floats", []
            )
            values_of_imputer = list(values) * columns if len(values) == 1 else list(values)
            return [float(value) for value in values_of_imputer]
    return [None] * columns


def write_version(
    folder: Path, servable: ServableModel, added: AddedInputs, rows: Rows | None, choices: ManifestChoices
) -> None:
    """Writes the artefact, the baseline set, and the manifest that names both by digest."""
    artefact = write_model(folder, "model.onnx", servable.model)
    (folder / "baselines").mkdir()
    missing = imputed(servable.model, servable.input.name, prod(servable.input.shape))
    filled = None if rows is None else _filled(rows.values, missing)
    baseline, description = _baseline(servable, filled)
    content = save({"rows": baseline.astype(np.float64 if servable.input.is_double else np.float32)})
    (folder / "baselines" / "training.safetensors").write_bytes(content)
    inputs = added.declared(filled, missing, choices)
    manifest = {
        "name": choices.name,
        "version": choices.version,
        "title": choices.name.replace("-", " ").replace("_", " "),
        "description": f"Added from an ONNX file; {servable.how}.",
        "artefact": artefact,
        "inputs": inputs,
        "outputs": choices.outputs,
        "baselines": [
            {
                "name": "training",
                "version": "1",
                "size": len(baseline),
                "file": "baselines/training.safetensors",
                "sha256": hashlib.sha256(content).hexdigest(),
                "description": description,
            }
        ],
        **({} if servable.parity is None else {"parity": servable.parity}),
        "defaults": {"method": "integrated_gradients", "baseline": "training", "tolerance": _tolerance(servable)},
        "example": added.example(filled, baseline, inputs),
    }
    (folder / "manifest.yaml").write_text(yaml.dump(manifest, Dumper=DUMPER, sort_keys=False, width=120))


def _tolerance(servable: ServableModel) -> float:
    """Completeness is held against the artefact's own outputs, of which rounding to 8 bits misses some hundredths."""
    return 0.05 if servable.is_quantised else 0.01


def say_parity(folder: Path, measured: float) -> None:
    """Writes into the manifest how far twin and artefact may be apart: twice what was measured, to one digit.

    Other processors and versions of ONNX Runtime round other values the other way.
    """
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["parity"] = min(MAX_PARITY, max(PARITY, float(f"{2 * measured:.0e}")))
    path.write_text(yaml.dump(manifest, Dumper=DUMPER, sort_keys=False, width=120))


def _filled(values: Floats, missing: Sequence[float | None]) -> Floats:
    """Rows with the imputer's values where something is missing, without rows where something is still missing."""
    known = np.array([np.nan if value is None else value for value in missing])
    filled: Floats = np.where(np.isnan(values), known, values)
    return filled[~np.isnan(filled).any(axis=1)]


def _baseline(servable: ServableModel, rows: Floats | None) -> tuple[Floats, str]:
    if rows is None or not len(rows):
        columns = int(np.prod(servable.input.shape))
        return np.zeros((1, columns)), "one row of zeros; rows of the training data would say more"
    drawn = np.random.default_rng(0).permutation(len(rows))[:MAX_BASELINES]
    return rows[np.sort(drawn)], f"{len(drawn)} rows drawn from {len(rows)}"
