"""The manifest of a model of which nothing is known but its graph, some rows, and a few answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
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
from service.lifecycle.adding.pictures import image_inputs
from service.lifecycle.adding.rows import Rows

MOST_BASELINES = 128
UNKNOWN_RANGE = (-100.0, 100.0)
"""Of a feature of which no value is known."""
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
    inputs = _inputs(found, filled, missing, answers)
    middle = np.full_like(baseline, np.mean(inputs["range"])) if filled is None and "range" in inputs else baseline
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
        "example": _example(found, filled, middle, answers),
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
    drawn = np.random.default_rng(0).permutation(len(rows))[:MOST_BASELINES]
    return rows[np.sort(drawn)], f"{len(drawn)} rows drawn from {len(rows)}"


def _inputs(found: Found, rows: Floats | None, missing: Sequence[float | None], answers: Answers) -> dict[str, Any]:
    if len(found.given.shape) == 3:
        return image_inputs(found.given.name, found.given.shape, rows, answers.normalise)
    features = []
    for at, (name, title) in enumerate(zip(answers.features, answers.titles, strict=True)):
        low, high = UNKNOWN_RANGE if rows is None else _range(rows[:, at])
        feature: dict[str, Any] = {"name": name, "title": title, "range": [low, high]}
        if missing[at] is not None:
            feature["missing"] = missing[at]
        features.append(feature)
    return {"kind": "tabular", "tensor": found.given.name, "features": features}


def _range(values: Floats) -> tuple[float, float]:
    """What was seen, and as much again to either side; what was never negative stays so, and shares stay shares."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    spread = (high - low) or max(abs(high), 1.0)
    digits = 2 - math.floor(math.log10(spread))
    return (0.0 if low >= 0 else _outwards(low - spread, digits, math.floor)), _outwards(
        high + spread, digits, math.ceil
    )


def _outwards(value: float, digits: int, whole: Callable[[float], int]) -> float:
    """Rounded to so many digits after the point, or before it where they are negative, away from what was seen."""
    return round(whole(value * 10.0**digits) / 10.0**digits, digits)


def _example(found: Found, rows: Floats | None, baseline: Floats, answers: Answers) -> Any:
    """The median of every column, which is nobody's; ones where none is known. Of one image a grey, and of several the
    mean of the brighter half: that of all is what they are explained against, and would explain nothing."""
    if len(found.given.shape) == 3:
        grey = np.full(baseline.shape[1], (baseline.min() + baseline.max()) / 2)
        brighter = baseline[baseline.mean(axis=1).argsort()[-max(2, -(-len(baseline) // 2)) :]]
        image = brighter.mean(axis=0) if len(baseline) > 1 else grey
        return image.astype(np.float32).reshape(found.given.shape).tolist()
    middle = np.ones(len(answers.features)) if rows is None or not len(rows) else np.median(rows, axis=0)
    return {name: float(f"{value:.12g}") for name, value in zip(answers.features, middle, strict=True)}
