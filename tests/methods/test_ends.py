"""What follows from where a path begins and ends, on a served model: its ends exchanged, and 200 categories."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from service.catalog.manifest import read_manifest
from service.catalog.outputs.classes import Classes
from service.catalog.versions import ModelVersion
from service.domain import Floats, OutputSpace
from service.engine.worker.device import DeviceModel
from service.lifecycle.checking.trial import load_trial
from service.usecases.planning import Parameters, make_plan
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.methods.conftest import Run

LOAN = MODELS / "loan" / "1"
LEVELS = 200


@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize(
    ("method", "options", "within"),
    [
        ("integrated_gradients", {"rule": "exact"}, 1e-5),
        ("integrated_gradients", {"rule": "midpoint"}, 1e-2),
        ("expected_gradients", {}, 1e-2),
    ],
)
def test_exchanged_ends_negate_what_is_between(
    model: DeviceModel, heldout: Floats, run: Run, method: str, options: Any, within: float, space: OutputSpace
) -> None:
    manifest, key, digest = read_manifest(LOAN)
    version = ModelVersion(key, manifest, LOAN, digest, environment={}, traits=model.traits)
    names, plans = manifest.inputs.names, []
    for row, other in zip(heldout[:6], heldout[6:12], strict=True):
        for start, end in ((row, other), (other, row)):
            baseline = dict(zip(names, start.tolist(), strict=True))
            asked = Parameters(
                method=method, target=manifest.outputs.names[1], output_space=space, baseline=baseline, options=options
            )
            plans.append(make_plan(version, tuple(end.tolist()), asked))
    found = [np.array(explanation.attributions) for explanation in run(model, plans)]
    for there, back in zip(found[::2], found[1::2], strict=True):
        assert np.abs(there).sum() > 0.01
        assert np.abs(there + back).sum() <= within * np.abs(there).sum()


@pytest.fixture(scope="module")
def with_levels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Floats, Floats]:
    """A linear model of a number and a category with 200 levels, its weights, and its baselines."""
    generator = np.random.default_rng(3)
    weights = generator.standard_normal((1 + LEVELS, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["z"])],
        "levels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1 + LEVELS])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = np.stack([generator.uniform(0, 1, 16), generator.integers(0, LEVELS, 16)], axis=1).astype(np.float32)
    baselines = save({"rows": rows})
    folder = tmp_path_factory.mktemp("models") / "levels" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "rows.safetensors").write_bytes(baselines)
    levels = [f"level {number}" for number in range(LEVELS)]
    manifest = {
        "name": "levels",
        "version": "1",
        "title": "Levels",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": {
            "kind": "tabular",
            "tensor": "x",
            "features": [
                {"name": "number", "title": "Number", "range": [0, 1]},
                {"name": "level", "title": "Level", "categories": levels},
            ],
        },
        "outputs": {"labels": ["no", "yes"], "link": "sigmoid", "tensors": {"logit": "z"}},
        "baselines": [
            {
                "name": "training",
                "version": "1",
                "size": 16,
                "file": "rows.safetensors",
                "sha256": hashlib.sha256(baselines).hexdigest(),
            }
        ],
        "defaults": {"baseline": "training"},
        "example": {"number": 0.5, "level": "level 7"},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder, weights[:, 0].astype(np.float64), rows.astype(np.float64)


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients"])
@pytest.mark.parametrize("target", [0, 1])
def test_a_category_of_200_levels_is_one_number(
    with_levels: tuple[Path, Floats, Floats], method: str, target: int
) -> None:
    folder, weights, rows = with_levels
    torch.set_num_threads(1)
    trial = load_trial(folder, torch.device("cpu"))
    asked = Parameters(method=method, target=("no", "yes")[target], output_space="logit", tolerance=1e-4)
    for level in (0, 7, LEVELS - 1):
        found = trial.explained(make_plan(trial.version, (0.25, float(level)), asked))
        of_number = weights[0] * (0.25 - rows[:, 0].mean())
        of_level = weights[1 + level] - weights[1 + rows[:, 1].astype(int)].mean()
        sign = 1 if target else -1
        assert found.attributions == pytest.approx([sign * of_number, sign * of_level], abs=1e-5)
