"""Files that ONNX Runtime's optimiser wrote, whose operators are several of ONNX's in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from service.artefacts.onnx.functions import without_fused
from service.artefacts.onnx.twins import build_twin
from service.errors import CatalogError
from tests.artefacts.test_converters import MICROSOFT, normal


def embedding(segments: bool, mask: bool) -> onnx.ModelProto:
    """EmbedLayerNormalization, of 11 words, 6 places and 2 kinds of segment."""
    constants = {
        "words": normal(11, 8),
        "places": normal(6, 8),
        "kinds": normal(2, 8),
        "scale": normal(8),
        "shift": normal(8),
    }
    ids = ["tokens", "segments" if segments else "", "words", "places", "kinds" if segments else "", "scale", "shift"]
    node = helper.make_node(
        "EmbedLayerNormalization", [*ids, *(["mask"] if mask else [])], ["normal", "lengths", "sum"], domain=MICROSOFT
    )
    names = ["tokens", *(["segments"] if segments else []), *(["mask"] if mask else [])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["n", 6]) for name in names]
    outputs = [helper.make_empty_tensor_value_info(name) for name in ("normal", "sum", *(["lengths"] if mask else []))]
    known = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(
        helper.make_graph([node], "graph", inputs, outputs, known), opset_imports=imports, ir_version=8
    )


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[Any] = session.run(None, feeds)
    return answers


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_an_embedding_is_what_it_was_before_it_was_fused(segments: bool, mask: bool) -> None:
    model = embedding(segments, mask)
    draw = np.random.default_rng(0)
    feeds = {"tokens": draw.integers(0, 11, (3, 6)).astype(np.int32)}
    if segments:
        feeds["segments"] = draw.integers(0, 2, (3, 6)).astype(np.int32)
    if mask:
        feeds["mask"] = np.tril(np.ones((3, 6), np.int32), 3)
    spelled = without_fused(model)
    assert {node.domain for node in spelled.graph.node} == {""}
    for own, expected in zip(run(spelled, feeds), run(model, feeds), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


def test_an_optimised_convolution_is_served_and_one_for_a_processor_is_refused(tmp_path: Path) -> None:
    constants = [numpy_helper.from_array(normal(16, 3, 3, 3), "kernel"), numpy_helper.from_array(normal(16), "bias")]
    rows, end = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None, None]) for name in ("a", "d"))
    for size, dimension in zip((3, 8, 8), rows.type.tensor_type.shape.dim[1:], strict=True):
        dimension.dim_value = size
    nodes = [
        helper.make_node("Conv", ["a", "kernel", "bias"], ["b"], kernel_shape=[3, 3]),
        helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.2),
        helper.make_node("AveragePool", ["c"], ["d"], kernel_shape=[2, 2]),
    ]
    graph = helper.make_graph(nodes, "graph", [rows], [end], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    levels = onnxruntime.GraphOptimizationLevel
    found = {}
    for level in (levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(tmp_path / "model.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        found[level] = onnx.load(tmp_path / "model.onnx")
    fused = found[levels.ORT_ENABLE_EXTENDED]
    assert "FusedConv" in {node.op_type for node in fused.graph.node}
    images = normal(2, 3, 8, 8)
    twin = build_twin(fused, "a", fused.graph.output[0].name)
    np.testing.assert_allclose(twin(torch.from_numpy(images)), run(model, {"a": images})[0], rtol=1e-4, atol=1e-4)
    laid_out = found[levels.ORT_ENABLE_ALL]
    assert "com.microsoft.nchwc" in {node.domain for node in laid_out.graph.node}
    with pytest.raises(CatalogError, match="one kind of processor: save the optimised file with"):
        build_twin(laid_out, "a", laid_out.graph.output[0].name)


def test_channels_at_the_end_and_activations_are_spelled_out() -> None:
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 6, 6, 4])
    constants = [numpy_helper.from_array(normal(2, 3, 3, 4), "kernel")]
    node = helper.make_node("NhwcConv", ["rows", "kernel"], ["logits"], domain=MICROSOFT, kernel_shape=[3, 3])
    graph = helper.make_graph([node], "graph", [rows], [helper.make_empty_tensor_value_info("logits")], constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    images = normal(2, 6, 6, 4)
    twin = build_twin(helper.make_model(graph, opset_imports=imports, ir_version=8), "rows", "logits")
    kernel = torch.from_numpy(normal(2, 3, 3, 4)).permute(0, 3, 1, 2)
    expected = torch.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), kernel).permute(0, 2, 3, 1)
    torch.testing.assert_close(twin(torch.from_numpy(images)), expected, rtol=1e-4, atol=1e-4)
