"""The manifest of a model of which nothing is known but its graph, some rows, and a few answers."""

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

from service.catalog.inputs.image import Normalisation
from service.domain import Floats
from service.lifecycle.adding.graphs import Found
from service.lifecycle.adding.kinds import added_inputs
from service.lifecycle.adding.rows import Rows

MAX_BASELINES = 128
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked: names, the manifest's `outputs`, and how pixels are normalised."""

    name: str
    version: str
    features: tuple[str, ...]
    titles: tuple[str, ...]
    outputs: Mapping[str, Any]
    normalise: Normalisation | None = None


def imputed(model: ModelProto, tensor: str, columns: int) -> list[float | None]:
    """The value that each column has where it is missing, by the graph's own imputer; None where there is none."""
    for node in model.graph.node:
        if node.op_type == "Imputer" and node.input[0] == tensor:
            values = {one.name: helper.get_attribute_value(one) for one in node.attribute}.get(
                "imputed_value_floats", []
            )
            found = list(values) * columns if len(values) == 1 else list(values)
            return [float(value) for value in found]
    return [None] * columns


def write_version(folder: Path, found: Found, rows: Rows | None, answers: Answers) -> None:
    """Writes the artefact, the baseline set, and the manifest that binds them."""
    artefact = found.model.SerializeToString()
    (folder / "model.onnx").write_bytes(artefact)
    (folder / "baselines").mkdir()
    missing = imputed(found.model, found.given.name, prod(found.given.shape))
    filled = None if rows is None else _filled(rows.values, missing)
    baseline, description = _baseline(found, filled)
    content = save({"rows": baseline.astype(np.float32)})
    (folder / "baselines" / "training.safetensors").write_bytes(content)
    added = added_inputs(found.given)
    inputs = added.declared(filled, missing, answers)
    manifest = {
        "name": answers.name,
        "version": answers.version,
        "title": answers.name.replace("-", " ").replace("_", " "),
        "description": f"Added from an ONNX file; {found.how}.",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(artefact).hexdigest()},
        "inputs": inputs,
        "outputs": answers.outputs,
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
        **({} if found.parity is None else {"parity": found.parity}),
        "defaults": {"method": "integrated_gradients", "baseline": "training", "tolerance": 0.01},
        "example": added.example(filled, baseline, inputs),
    }
    (folder / "manifest.yaml").write_text(yaml.dump(manifest, Dumper=DUMPER, sort_keys=False, width=120))


def _filled(values: Floats, missing: Sequence[float | None]) -> Floats:
    """Rows with the imputer's values where something is missing, and without those that miss what it does not know."""
    known = np.array([np.nan if value is None else value for value in missing])
    filled: Floats = np.where(np.isnan(values), known, values)
    return filled[~np.isnan(filled).any(axis=1)]


def _baseline(found: Found, rows: Floats | None) -> tuple[Floats, str]:
    if rows is None or not len(rows):
        columns = int(np.prod(found.given.shape))
        return np.zeros((1, columns)), "one row of zeros; rows of the training data would say more"
    drawn = np.random.default_rng(0).permutation(len(rows))[:MAX_BASELINES]
    return rows[np.sort(drawn)], f"{len(drawn)} rows drawn from {len(rows)}"
