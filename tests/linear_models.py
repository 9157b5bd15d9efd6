"""Linear models of several values and of several labels, as folders: what they answer and why has a closed form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from service.domain import Floats

FEATURES = ("income", "debt", "missed_payments", "age")
RANGES = {"income": [0, 100], "debt": [0, 100], "missed_payments": [0, 10], "age": [18, 99]}
EXAMPLE = {"income": 20.0, "debt": 60.0, "missed_payments": 3.0, "age": 40.0}
SET = "customers"


@dataclass(frozen=True, slots=True)
class Linear:
    """A model that answers weight x + bias, or of labels the sigmoids of these: weight [outputs, inputs]."""

    name: str
    outputs: Mapping[str, Any]
    rules: Mapping[str, str]
    weight: Floats
    bias: Floats

    def numbers(self, instance: Mapping[str, float]) -> Floats:
        """The network's own numbers [outputs] for an instance."""
        numbers: Floats = self.weight @ np.array([instance[name] for name in FEATURES]) + self.bias
        return numbers

    def moved(self, instance: Mapping[str, float], output: int) -> dict[str, float]:
        """What each feature moves that number by, from the mean of the baseline set: w (x - x')."""
        change = np.array([instance[name] for name in FEATURES]) - baselines().mean(axis=0)
        return dict(zip(FEATURES, (self.weight[output] * change).tolist(), strict=True))


SCORES = Linear(
    "scores",
    {
        "kind": "values",
        "values": [{"name": "score", "unit": "points"}, {"name": "loss", "unit": "EUR", "title": "Expected loss"}],
        "adverse": {"below": 600, "value": "score"},
    },
    {"low": "value(score) < 500", "dear": "value(loss) > 900", "old": "protected_share > 0.9"},
    np.array([[2.0, -1.5, -20.0, 0.5], [-3.0, 12.0, 80.0, 0.0]]),
    np.array([650.0, 100.0]),
)
ALARMS = Linear(
    "alarms",
    {
        "kind": "labels",
        "labels": ["fraud", "arrears", "churn"],
        "thresholds": {"churn": 0.3},
        "adverse": "arrears",
    },
    {"behind": "label == arrears", "stays": "label != churn", "sure": "probability(fraud) > 0.5"},
    np.array([[-0.02, 0.01, 0.1, 0.0], [-0.03, 0.02, 0.4, 0.01], [0.01, 0.0, -0.1, -0.02]]),
    np.array([-1.0, -1.0, 0.2]),
)


def baselines() -> Floats:
    """The baseline set [16, features], of whole numbers where the feature has no other."""
    generator = np.random.default_rng(0)
    columns = [
        generator.uniform(30, 90, 16),
        generator.uniform(0, 50, 16),
        generator.integers(0, 2, 16),
        generator.uniform(20, 80, 16),
    ]
    rows: Floats = np.stack(columns, axis=1).astype(np.float32).astype(float)
    return rows


def write_version(models: Path, model: Linear, version: str = "1") -> Path:
    """A version folder of the model, weights in safetensors."""
    folder = models / model.name / version
    folder.mkdir(parents=True)
    files = {
        "weights.safetensors": save(
            {
                "layers.0.weight": model.weight.astype(np.float32),
                "layers.0.bias": model.bias.astype(np.float32),
            }
        ),
        "customers.safetensors": save({"rows": baselines().astype(np.float32)}),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    weights, rows = ({"file": name, "sha256": hashlib.sha256(files[name]).hexdigest()} for name in files)
    features = [
        {
            "name": name,
            "title": name.replace("_", " ").capitalize(),
            "range": RANGES[name],
            "protected": name == "age",
            "reason": {"code": f"R{at}", "text": f"Your {name.replace('_', ' ')}"},
        }
        for at, name in enumerate(FEATURES, start=1)
    ]
    manifest = {
        "name": model.name,
        "version": version,
        "title": model.name.capitalize(),
        "artefact": {**weights, "architecture": {"name": "mlp", "widths": []}},
        "inputs": {"kind": "tabular", "features": features},
        "outputs": dict(model.outputs),
        "baselines": [{"name": SET, "version": "1", "size": 16, **rows}],
        "defaults": {"baseline": SET},
        "review": {"rules": dict(model.rules)},
        "example": EXAMPLE,
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder
