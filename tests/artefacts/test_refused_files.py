"""Files that are no model, a spoilt one, or another than the manifest says: each is refused with a sentence of ours."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import NodeProto, TensorProto, helper, numpy_helper

from service.artefacts.loading import load_model
from service.artefacts.reported import reported
from service.errors import CatalogError

CPU = torch.device("cpu")
WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
PRODUCT = helper.make_node("MatMul", ["rows", "weights"], ["logits"])


def graph(
    *nodes: NodeProto, sizes: Sequence[int] = (6,), opset: int = 17, **constants: np.generic | np.ndarray[Any, Any]
) -> onnx.ModelProto:
    body = helper.make_graph(
        nodes or [PRODUCT],
        "graph",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["count", *sizes])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["count", 3])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in ({"weights": WEIGHTS} | constants).items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def table(columns: int) -> dict[str, Any]:
    features = [{"name": f"f{at}", "title": "F", "range": [0, 1]} for at in range(columns)]
    return {"kind": "tabular", "tensor": "rows", "features": features}


def write(
    folder: Path, content: bytes, inputs: dict[str, Any] | None = None, labels: int = 3, probability: str | None = None
) -> Path:
    """The folder of a version with this file, which the `inputs` are of; these may have an `example`."""
    version = folder / "model" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.onnx").write_bytes(content)
    inputs = dict(inputs or table(6))
    usual = {one["name"]: 0.5 for one in inputs["features"]} if "features" in inputs else [0]
    example = inputs.pop("example", usual)
    tensors = {"logit": "logits"} | ({} if probability is None else {"probability": probability})
    manifest = {
        "name": "model",
        "version": "1",
        "title": "Model",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": inputs,
        "outputs": {"labels": [f"l{at}" for at in range(labels)], "link": "softmax", "tensors": tensors},
        "defaults": {"baseline": "zeros"},
        "example": example,
    }
    (version / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return version


def load(folder: Path, content: bytes, *arguments: Any) -> None:
    torch.set_num_threads(1)
    load_model(write(folder, content, *arguments), CPU)


def refused(folder: Path, content: bytes, *arguments: Any) -> str:
    with pytest.raises(CatalogError) as caught:
        load(folder, content, *arguments)
    sentence = str(caught.value)
    for raw in ("ONNXRuntimeError", "onnxruntime_src", "codec can't", "Traceback", "\n", "==>"):
        assert raw not in sentence
    return sentence


WHOLE = graph().SerializeToString()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (random.Random(0).randbytes(2000), "cut off, spoilt, or of another kind"),
        (b"hello world\n" * 20, "cut off, spoilt, or of another kind"),
        (b"<!doctype html><html>", "cut off, spoilt, or of another kind"),
        (WHOLE[:-20], "cut off, spoilt, or of another kind"),
        (WHOLE.replace(b"MatMul", b"MatMu\xff"), "cut off, spoilt, or of another kind"),
        (WHOLE.replace(b"MatMul", b"MatMux"), "No Op registered for MatMux"),
        (graph(helper.make_node("MatMul", ["rows", "none"], ["logits"])).SerializeToString(), "input 'none' of node"),
        (graph(weights=WEIGHTS[:4]).SerializeToString(), "ONNX Runtime cannot open model.onnx: .* Incompatible dim"),
        (graph(weights=WEIGHTS * np.float32("nan")).SerializeToString(), "no finite number .* are its weights whole"),
        (graph(opset=99).SerializeToString(), "Opset 99 is under development"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(CatalogError, match=sentence):
        load(tmp_path, content)
    refused(tmp_path, content)


@pytest.mark.parametrize(
    ("inputs", "labels", "sentence"),
    [
        (table(5), 3, "the graph's input 'rows' does not take 5 columns"),
        (table(6), 2, r"answers \[3\] logits for 2 labels"),
        (
            {"kind": "image", "tensor": "rows", "shape": [1, 2, 3], "range": [0, 1]},
            3,
            r"the graph's input 'rows' takes \[6\], the manifest says \[1, 2, 3\]",
        ),
    ],
)
def test_what_is_another_model_is_refused(tmp_path: Path, inputs: dict[str, Any], labels: int, sentence: str) -> None:
    load(tmp_path, WHOLE)
    with pytest.raises(CatalogError, match=sentence):
        load(tmp_path, WHOLE, inputs, labels)


def test_an_image_of_another_size_is_refused_with_both(tmp_path: Path) -> None:
    flat = helper.make_node("Flatten", ["rows"], ["flat"])
    product = helper.make_node("MatMul", ["flat", "weights"], ["logits"])
    content = graph(flat, product, sizes=(3, 2, 1)).SerializeToString()
    image = {"kind": "image", "tensor": "rows", "range": [0, 1]}
    load(tmp_path, content, {**image, "shape": [3, 2, 1]})
    assert "takes [3, 2, 1], the manifest says [3, 1, 2]" in refused(tmp_path, content, {**image, "shape": [3, 1, 2]})


def test_a_spoilt_byte_of_the_graph_is_refused_or_loads(tmp_path: Path) -> None:
    """Whatever the byte: none is an error that is not ours. Those of the weights are the digest's business."""
    draw = random.Random(0)
    for _ in range(120):
        spoilt = bytearray(WHOLE)
        spoilt[draw.randrange(WHOLE.index(b"weights", 40))] = draw.randrange(256)
        try:
            load(tmp_path, bytes(spoilt))
        except CatalogError as error:
            assert "codec can't" not in str(error)  # noqa: PT017


def test_an_answer_by_chance_is_refused_whatever_makes_it(tmp_path: Path) -> None:
    """On the way to the logits, where its operator is named; and behind them, where no gradient is taken."""
    product = helper.make_node("MatMul", ["rows", "weights"], ["product"])
    noise = helper.make_node("RandomNormal", [], ["noise"], shape=[1, 3])
    total = helper.make_node("Add", ["product", "noise"], ["logits"])
    assert "its result is random" in refused(tmp_path, graph(noise, product, total).SerializeToString())
    dropped = helper.make_node("Dropout", ["product", "", "on"], ["logits"])
    assert "in training" in refused(tmp_path, graph(product, dropped, on=np.bool_(True)).SerializeToString())

    behind = helper.make_node("Add", ["logits", "noise"], ["noisy"])
    softmax = helper.make_node("Softmax", ["noisy"], ["probability"], axis=1)
    content = graph(noise, PRODUCT, behind, softmax).SerializeToString()
    load(tmp_path, content)  # only the logits are asked for
    sentence = "the same row has different answers: export the model in evaluation mode"
    assert refused(tmp_path, content, None, 3, "probability") == sentence


def test_what_a_library_says_is_told_in_one_line() -> None:
    raw = (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Reshape node. "
        "Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:84 onnxruntime::"
        "ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) size != 0 was false. It cannot\nbe "
        "reshaped."
    )
    assert reported(RuntimeError(raw)) == (
        "Non-zero status code returned while running Reshape node. Status Message: size != 0 was false. It cannot be "
        "reshaped"
    )
    assert reported(KeyError()) == "KeyError"
    assert len(reported(ValueError("word " * 1000))) == 401
