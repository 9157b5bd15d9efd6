"""What is said of a file that is no model to be added, and of a graph that takes something else than one table."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import CatalogError
from service.lifecycle.adding.files import read_model
from service.lifecycle.adding.graphs import make_servable


def _zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model/data.pkl", b"")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("model.pt", b"", r"torch\.onnx\.export\(model\.eval\(\), .*external_data=False\)"),
        ("model.pth", _zip(), r"torch\.onnx\.export"),
        ("model.pt2", _zip(), "program of torch.export"),
        ("rows.csv", b"a,b\n1,2\n", "name the ONNX file first, and the rows with --data"),
        ("booster.json", b"{}", "boosted trees"),
        ("model.pkl", pickle.dumps({}), r"skl2onnx\.to_onnx"),
        ("model.joblib", b"", "a pickle, which is never opened"),
        ("model.keras", b"", "tf2onnx"),
        ("model.safetensors", b"", "`architecture`"),
        ("model.onnx.data", b"", "kept apart"),
        ("model.onnx", b"", "is empty"),
        ("model.onnx", _zip(), "a zip archive"),
        ("model.onnx", pickle.dumps({}), "a pickle"),
        ("model.onnx", b'{"a": 1}', "JSON"),
        ("model.onnx", b"<!DOCTYPE html>", "web site"),
        ("model.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("model.onnx", b"\xff\xfe\x00", "not a valid ONNX model"),
    ],
)
def test_a_file_that_is_no_model_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, advice: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CatalogError, match=advice) as refused:
        read_model(tmp_path / name)
    assert name in str(refused.value)
    assert "Wire format" not in str(refused.value) or advice == "not a valid ONNX model"


def graph(*inputs: tuple[str, int, list[Any]]) -> onnx.ModelProto:
    """A graph with these inputs, of which it reads the first."""
    given = [helper.make_tensor_value_info(*one) for one in inputs]
    answers = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)]
    node = helper.make_node("Identity", [inputs[0][0]], ["scores"])
    return helper.make_model(helper.make_graph([node], "graph", given, answers))


FLOAT, INT64, STRING = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.STRING)
TOKENS: tuple[Any, ...] = tuple(
    (name, INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask", "token_type_ids")
)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (TOKENS, "the model takes tokens.*kind: tokens"),
        (TOKENS[:1], "the model takes tokens.*kind: tokens"),
        ((*TOKENS[:2], ("past_key_values.0.key", FLOAT, ["batch", 12, "past", 64])), "it writes texts"),
        ((("age", FLOAT, [None, 1]), ("city", STRING, [None, 1])), "takes text: city.*`categories`"),
        ((("city", STRING, [None, 1]),), "takes text: city.*`categories`"),
        ((("age", FLOAT, [None, 1]), ("debts", INT64, [None, 1])), r"2 inputs \(age, debts\).*single FloatTensorType"),
        ((("left", FLOAT, [None, 3, 8, 8]), ("right", FLOAT, [None, 3, 8, 8])), r"2 inputs \(left, right\)"),
    ],
)
def test_each_kind_of_inputs_has_its_own_sentence(inputs: Any, sentence: str) -> None:
    with pytest.raises(CatalogError, match=sentence) as refused:
        make_servable(graph(*inputs), None, is_logit=False)
    assert ("FloatTensorType" in str(refused.value)) == ("FloatTensorType" in sentence)
