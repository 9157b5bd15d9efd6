"""ONNX graphs that answer one number a row in a tensor [rows], as regressions do that end in a squeeze."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from service.domain import OutputSpace
from service.lifecycle.checking.checks import check
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.trial import Trial, load_trial

CPU = torch.device("cpu")
VALUE = ({"kind": "values", "values": [{"name": "price", "unit": "USD"}], "tensors": {"value": "y"}}, OutputSpace.VALUE)
LABEL = ({"kind": "labels", "labels": ["spam"], "tensors": {"logit": "y"}}, OutputSpace.LOGIT)
WITH_PROBABILITY = (
    {"kind": "labels", "labels": ["spam"], "tensors": {"logit": "y", "probability": "p"}},
    OutputSpace.LOGIT,
)


def write(folder: Path, outputs: dict[str, Any], rank: int) -> Path:
    """A version folder: y = w relu(V x) + b, in a tensor [rows] or [rows, 1], and p, its sigmoid."""
    generator = np.random.default_rng(0)
    constants = {
        "V": generator.normal(size=(3, 6)),
        "w": generator.normal(size=(6, 1)),
        "b": np.array([0.5]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "V"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y" if rank == 2 else "column"]),
        *([helper.make_node("Squeeze", ["column", "axes"], ["y"])] if rank == 1 else []),
        helper.make_node("Sigmoid", ["y"], ["p"]),
    ]
    shape: list[str | int | None] = ["rows", 1]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[:rank]) for name in ("y", "p")],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    files = {
        "model.onnx": model.SerializeToString(),
        "rows.safetensors": save({"rows": generator.uniform(0, 1, (8, 3)).astype(np.float32)}),
    }
    folder = folder / "one" / "1"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    artefact, rows = ({"file": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items())
    features = [{"name": name, "title": name, "range": [0, 1]} for name in "abc"]
    manifest = {
        "name": "one",
        "version": "1",
        "title": "One",
        "artefact": artefact,
        "inputs": {"kind": "tabular", "tensor": "x", "features": features},
        "outputs": outputs,
        "baselines": [{"name": "rows", "version": "1", "size": 8, **rows}],
        "defaults": {"baseline": "rows"},
        "example": {"a": 0.9, "b": 0.1, "c": 0.7},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def attributions(trial: Trial) -> Any:
    return trial.answers(trial.sample(8, seed=0)).attributions


@pytest.mark.parametrize(
    ("outputs", "space"), [VALUE, LABEL, WITH_PROBABILITY], ids=["a value", "a label", "with its probability"]
)
def test_one_number_a_row_is_served_as_one_column(outputs: dict[str, Any], space: OutputSpace, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    flat, column = (load_trial(write(tmp_path / str(rank), outputs, rank), CPU) for rank in (1, 2))
    rows = np.random.default_rng(1).uniform(0, 1, (20, 3)).astype(np.float32)
    path = str(tmp_path / "1" / "one" / "1" / "model.onnx")
    own, chances = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y", "p"], {"x": rows})
    assert own.shape == (20,)
    answered = flat.deployed(rows)
    assert answered[space] == pytest.approx(own[:, None])
    if space is OutputSpace.LOGIT:
        assert answered[OutputSpace.PROBABILITY] == pytest.approx(chances[:, None])
    assert attributions(flat).tolist() == attributions(column).tolist()
    assert check(tmp_path / "1" / "one" / "1", None, CPU, Limits(), 8, seed=0).failed == []
