"""One network in every version of ONNX's operators from 7 to 23: twin and file answer the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.artefacts.test_converters import assert_twin

OPSETS = range(7, 24)
IR = 10
SHAPE = (3, 8, 8)


def network(opset: int) -> onnx.ModelProto:
    """A small network of operators whose form changed: attributes that became inputs, and the axes of a softmax."""
    draw = np.random.default_rng(0)
    constants = {
        "kernel": draw.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "scale": np.ones(6, np.float32),
        "shift": np.zeros(6, np.float32),
        "mean": draw.normal(size=6).astype(np.float32),
        "variance": np.full(6, 2, np.float32),
        "slope": np.full((6, 1, 1), 0.25, np.float32),
        "weights": draw.normal(size=(6, 5)).astype(np.float32),
        "bias": draw.normal(size=(1, 5)).astype(np.float32),
        "more": np.array([1, 1, 2, 2], np.float32),
        "factor": np.array([1.5], np.float32),
    }
    nodes: list[Any] = []

    def add(operator: str, inputs: list[str], output: str, **options: Any) -> None:
        nodes.append(helper.make_node(operator, inputs, [output], **options))

    def integers(name: str, values: list[int]) -> str:
        constants[name] = np.array(values)
        return name

    add("Conv", ["rows", "kernel"], "convolved", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    add("BatchNormalization", ["convolved", "scale", "shift", "mean", "variance"], "normal")
    add("PRelu", ["normal", "slope"], "bent")
    if opset < 11:
        add("Clip", ["bent"], "cut", min=-2.0, max=2.0)
        add("Pad", ["cut"], "padded", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    else:
        constants |= {"low": np.array(-2, np.float32), "high": np.array(2, np.float32)}
        add("Clip", ["bent", "low", "high"], "cut")
        add("Pad", ["cut", integers("pads", [0, 0, 1, 1, 0, 0, 1, 1])], "padded")
    add("MaxPool", ["padded"], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    if opset < 9:
        add("Upsample", ["pooled"], "larger", scales=[1.0, 1.0, 2.0, 2.0])
    elif opset == 9:
        add("Upsample", ["pooled", "more"], "larger")
    elif opset == 10:
        add("Resize", ["pooled", "more"], "larger")
    else:
        constants["region"] = np.zeros(0, np.float32)  # which 11 and 12 cannot do without
        add("Resize", ["pooled", "region", "more"], "larger", mode="linear")
    if opset < 10:
        add("Slice", ["larger"], "part", starts=[1], ends=[9], axes=[2])
    else:
        places = [integers(name, [at]) for name, at in (("start", 1), ("end", 9), ("axis", 2))]
        add("Slice", ["larger", *places], "part")
    add("Dropout", ["part"], "kept", **({"ratio": 0.5} if opset < 12 else {}))
    if opset < 18:
        add("ReduceMax", ["kept"], "highest", axes=[2, 3], keepdims=1)
    else:
        add("ReduceMax", ["kept", integers("last axes", [2, 3])], "highest", keepdims=1)
    if opset < 13:
        add("Squeeze", ["highest"], "row", axes=[2, 3])
        add("ReduceSum", ["kept"], "sums", axes=[2, 3], keepdims=0)
    else:
        add("Squeeze", ["highest", integers("squeezed", [2, 3])], "row")
        add("ReduceSum", ["kept", integers("summed", [2, 3])], "sums", keepdims=0)
    add("Add", ["row", "sums"], "features")
    add("Gemm", ["features", "weights", "bias"], "scores", alpha=0.5)
    add("Mul", ["scores", "factor"], "logits before")
    add("LogSoftmax", ["logits before"], "logits", axis=1)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["count", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["count", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_has_a_twin(opset: int) -> None:
    model = network(opset)
    onnx.checker.check_model(model, full_check=True)
    assert_twin(model, SHAPE)


TEXTS = """<ir_version: 10, opset_import: ["" : 13]> graph (float[count, 4, 6] rows) => (float[count, 4, 6] logits) {
    last = Constant <value_ints = [-1]> ()
    mean = ReduceMean <axes = [-1]> (rows)
    centred = Sub (rows, mean)
    square = Mul (centred, centred)
    variance = ReduceMean <axes = [-1]> (square)
    deviation = Sqrt (variance)
    one = Constant <value = float {1.0}> ()
    more = Add (deviation, one)
    normal = Div (centred, more)
    turned = Transpose <perm = [0, 2, 1]> (normal)
    products = MatMul (normal, turned)
    shares = Softmax <axis = -1> (products)
    mixed = MatMul (shares, normal)
    half = Constant <value = float {0.7}> ()
    scaled = Mul (mixed, half)
    bell = Erf (scaled)
    wide = Add (bell, one)
    gelu = Mul (mixed, wide)
    first, second = Split <axis = 2> (gelu)
    logits = Concat <axis = 2> (second, first)
}"""


@pytest.mark.parametrize("opset", range(13, 24))
def test_files_that_were_upgraded_have_a_twin(opset: int) -> None:
    """By ONNX's own converter of versions: an attention with a normalisation, and a GELU, spelled out."""
    model = onnx.version_converter.convert_version(onnx.parser.parse_model(TEXTS), opset)
    assert {one.version for one in model.opset_import if not one.domain} == {opset}
    assert_twin(model, (4, 6))
