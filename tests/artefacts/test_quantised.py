"""Quantised files: the twin computes what ONNX Runtime does but for rounding, and its gradients explain it.

The figures in the assertions are what rounding to 8 bits costs on these networks; the float network's attributions are
Captum's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from captum.attr import IntegratedGradients
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from service.artefacts.onnx.twins import build_twin
from tests.artefacts.quantised_files import FORMS, NETWORKS, answers, exported, network, quantised

OPERATORS = {
    "qdq": {"QuantizeLinear", "DequantizeLinear"},
    "qdq-per-channel": {"QuantizeLinear", "DequantizeLinear"},
    "qoperator": {"QGemm", "QLinearConv", "QLinearMatMul"},
    "dynamic": {"DynamicQuantizeLinear", "DynamicQuantizeLSTM"},
}
"""Of which a file of each form has some."""


@dataclass(frozen=True, slots=True)
class File:
    """A quantised file, the network that it was made of, and rows."""

    made: nn.Module
    model: onnx.ModelProto
    rows: Tensor
    twin: fx.GraphModule


@pytest.fixture(scope="module", params=[(name, form) for name in NETWORKS for form in FORMS], ids="-".join)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    name, form = request.param
    torch.set_num_threads(1)
    made, rows = network(name)
    model = quantised(exported(made, rows), rows, form, tmp_path_factory.mktemp("quantised"))
    operators = Counter(node.op_type for node in model.graph.node)
    if name != "recurrent" or form != "qoperator":  # whose LSTM stays as it is
        assert OPERATORS[form] & operators.keys()
    return File(made, model, rows, build_twin(model, "rows", "logits"))


def test_the_twin_differs_from_the_artefact_by_rounding(file: File) -> None:
    expected = answers(file.model, file.rows.numpy())
    with torch.no_grad():
        found = file.twin(file.rows).numpy()
    assert np.abs(found - expected).max() < 0.025 * np.abs(expected).max()
    assert np.abs(found - expected).mean() < 0.005 * np.abs(expected).max()


def test_attributions_are_those_of_the_network_before_quantisation(file: File) -> None:
    """But for what quantised weights and cut-off values change: 2% in the mean, 5% for one row, relative L1."""
    rows = file.rows[:8]
    with torch.no_grad():
        targets = file.made(rows).argmax(1)
    found, expected = (
        IntegratedGradients(module).attribute(rows, target=targets, n_steps=64, method="gausslegendre")
        for module in (file.twin, file.made)
    )
    apart = (found - expected).flatten(1).abs().sum(1) / expected.flatten(1).abs().sum(1)
    assert apart.mean() < 0.02
    assert apart.max() < 0.05


def test_attributions_are_complete_but_for_rounding(file: File) -> None:
    """Against the artefact's own outputs, whose logits are up to 12."""
    rows, nothing = file.rows[:8], np.zeros((1, *file.rows.shape[1:]), np.float32)
    ends, start = answers(file.model, rows.numpy()), answers(file.model, nothing)
    targets = torch.from_numpy(ends.argmax(1))
    found = IntegratedGradients(file.twin).attribute(rows, target=targets, n_steps=64, method="gausslegendre")
    change = (ends - start)[np.arange(8), ends.argmax(1)]
    assert np.abs(found.flatten(1).sum(1).numpy() - change).max() < 0.15


def parsed(body: str, **constants: Any) -> onnx.ModelProto:
    """A graph in ONNX's own notation, from `rows` [count, 6] to `logits`."""
    versions = '"" : 21, "com.microsoft" : 1'
    ends = "(float[count, 6] rows) => (float[count, all] logits)"
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{versions}]> graph {ends} {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


SCALE, ZERO = np.float32(0.02), np.uint8(100)
WEIGHTS = np.random.default_rng(0).integers(-100, 100, (6, 3)).astype(np.int8)
GRIDS: dict[str, Any] = {"scale": SCALE, "zero": ZERO, "weights": WEIGHTS, "w": np.float32(0.01), "z": np.int8(3)}
QUANTISED = "q = QuantizeLinear (rows, scale, zero)"
REAL = "logits = DequantizeLinear (r, scale, zero)"


@pytest.mark.parametrize(
    "body",
    [
        f"{QUANTISED} r = com.microsoft.QLinearAdd (q, scale, zero, q, scale, zero, scale, zero) {REAL}",
        f"{QUANTISED} r = com.microsoft.QLinearMul (q, scale, zero, q, scale, zero, scale, zero) {REAL}",
        f"{QUANTISED} r = com.microsoft.QLinearSigmoid (q, scale, zero, scale, zero) {REAL}",
        f"{QUANTISED} r = com.microsoft.QLinearLeakyRelu <alpha = 0.2> (q, scale, zero, scale, zero) {REAL}",
        f"{QUANTISED} r = com.microsoft.QLinearSoftmax <axis = 1, opset = 13> (q, scale, zero, scale, zero) {REAL}",
        f"{QUANTISED} r = com.microsoft.QLinearConcat <axis = 1> (scale, zero, q, scale, zero, q, scale, zero) {REAL}",
        f"{QUANTISED} r = QLinearMatMul (q, scale, zero, weights, w, z, scale, zero) {REAL}",
        f"{QUANTISED} logits = com.microsoft.QGemm (q, scale, zero, weights, w, z)",
        "logits = com.microsoft.DynamicQuantizeMatMul (rows, weights, w, z)",
        "q, s, o = DynamicQuantizeLinear (rows) logits = com.microsoft.MatMulIntegerToFloat (q, weights, s, w, o, z)",
        "q, s, o = DynamicQuantizeLinear (rows) i = MatMulInteger (q, weights, o, z) f = Cast <to = 1> (i)"
        " both = Mul (s, w) logits = Mul (f, both)",
        f"{QUANTISED} flat = Flatten (q) logits = DequantizeLinear (flat, scale, zero)",
        f"{QUANTISED} logits = com.microsoft.DequantizeLinear (q, scale, zero)",
    ],
    ids=lambda body: body[-60:],
)
def test_an_operator_computes_what_it_does_in_the_artefact(body: str) -> None:
    """To half a step of each rounding on the way; and beyond its range, where nothing changes any more."""
    model = parsed(body, **GRIDS)
    twin = build_twin(model, "rows", "logits")
    rows = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    expected = answers(model, rows)
    at = torch.from_numpy(rows).requires_grad_()
    found = twin(at)
    assert np.abs(found.detach().numpy() - expected).max() < 0.045
    (gradient,) = torch.autograd.grad(found.square().sum(), at)
    assert gradient.abs().sum() > 0
    if QUANTISED in body:
        assert (gradient[at > (255 - 100) * 0.02] == 0).all()
        assert (gradient[at < -100 * 0.02] == 0).all()


@pytest.mark.parametrize("body", [f"{QUANTISED} logits = DequantizeLinear (q, scale, zero)"])
def test_quantised_and_back_is_one_clamp(body: str) -> None:
    """So that a piecewise linear network stays one, in the precision of the network itself."""
    twin = build_twin(parsed(body, **GRIDS), "rows", "logits")
    calls = [node.target for node in twin.graph.nodes if node.op == "call_function"]
    assert calls == [torch.clamp]
    rows = torch.tensor([[0.0, 1.23456, -1.9999, 3.05, 5.0, -5.0]])
    assert twin(rows)[0].tolist() == pytest.approx([0.0, 1.23456, -1.9999, 3.05, 3.1, -2.0], abs=1e-6)


def test_weights_that_the_graph_quantises_itself_are_rounded() -> None:
    """They are constants, which no gradient is taken of: as they are in the artefact, bit for bit."""
    body = "q = QuantizeLinear (real, w, z) r = DequantizeLinear (q, w, z) logits = Mul (rows, r)"
    model = parsed(body, **GRIDS, real=np.random.default_rng(2).normal(size=6).astype(np.float32))
    twin, rows = build_twin(model, "rows", "logits"), torch.randn(9, 6)
    np.testing.assert_allclose(twin(rows).numpy(), answers(model, rows.numpy()), atol=1e-5)


@pytest.mark.parametrize("has_zeros", [True, False])
def test_weights_of_four_bits(has_zeros: bool) -> None:
    """As language models are quantised, in blocks: ONNX Runtime's answers to float's precision."""
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 255, (3, 2, 8)).astype(np.uint8)
    scales = generator.uniform(0.01, 0.1, (3, 2)).astype(np.float32)
    zeros = [numpy_helper.from_array(generator.integers(0, 255, (3, 1)).astype(np.uint8), "zeros")] * has_zeros
    node = helper.make_node(
        "MatMulNBits",
        ["rows", "packed", "scales", *(["zeros"] if has_zeros else [])],
        ["logits"],
        domain="com.microsoft",
        bits=4,
        block_size=16,
        K=32,
        N=3,
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["count", 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["count", 3])],
        [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(scales, "scales"), *zeros],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    rows = torch.randn(5, 32)
    found = build_twin(model, "rows", "logits")(rows)
    np.testing.assert_allclose(found.numpy(), answers(model, rows.numpy()), rtol=1e-4, atol=1e-4)


def test_a_file_is_saved_and_read_again(tmp_path: Path) -> None:
    """The rewriting leaves the model that it is given as it is."""
    made, rows = network("relu")
    model = quantised(exported(made, rows), rows, "qoperator", tmp_path)
    before = model.SerializeToString()
    build_twin(model, "rows", "logits")
    assert model.SerializeToString() == before
