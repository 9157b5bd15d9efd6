"""Recurrent layers: as ONNX Runtime computes them, with torch's own gradients."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from service.artefacts.onnx.twins import build_twin
from service.errors import CatalogError

STEPS, FEATURES, HIDDEN = 7, 3, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def graph(operator: str, direction: str = "forward", *, opset: int = 21, biased: bool = True, **more: Any) -> Any:
    """A layer over [steps, rows, features], behind the transposition of the rows, whose last state is read out."""
    ways, draws = 2 if direction == "bidirectional" else 1, np.random.default_rng(0)
    width = GATES[operator] * HIDDEN
    values = {
        "W": draws.normal(size=(ways, width, FEATURES)),
        "R": draws.normal(size=(ways, width, HIDDEN)),
        "B": draws.normal(size=(ways, 2 * width)),
        "out": draws.normal(size=(ways * HIDDEN, 2)),
        **more.pop("inputs", {}),
    }
    taken = ["steps first", "W", "R", "B" if biased else "", more.pop("lengths", ""), *more.pop("states", ())]
    while not taken[-1]:
        taken.pop()
    constants = [
        numpy_helper.from_array(value if value.dtype.kind == "i" else value.astype(np.float32), name)
        for name, value in values.items()
    ]
    outputs = ["Y", "Y_h", "Y_c"] if operator == "LSTM" else ["Y", "Y_h"]
    nodes = [
        helper.make_node("Transpose", ["rows"], ["steps first"], perm=[1, 0, 2]),
        helper.make_node(operator, taken, outputs, hidden_size=HIDDEN, direction=direction, **more),
        helper.make_node("Transpose", ["Y_h"], ["rows first"], perm=[1, 0, 2]),
        helper.make_node("Flatten", ["rows first"], ["flat"]),
        helper.make_node("MatMul", ["flat", "out"], ["logits"]),
    ]
    ends = (
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["count", STEPS, FEATURES])],
        [helper.make_empty_tensor_value_info("logits")],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(helper.make_graph(nodes, "graph", *ends, constants), opset_imports=imports, ir_version=10)


def assert_equal_to_onnx_runtime(model: onnx.ModelProto, rows: torch.Tensor) -> torch.nn.Module:
    twin = build_twin(model, "rows", "logits")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"rows": rows.numpy()})
    np.testing.assert_allclose(twin(rows).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    return twin


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("RNN", {}),
        ("RNN", {"activations": ["Relu"]}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("LSTM", {}),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"], "opset": 14}),
        ("LSTM", {"biased": False, "opset": 7}),
    ],
)
def test_a_layer(operator: str, options: dict[str, Any], direction: str) -> None:
    names = options.get("activations")
    options = {**options, "activations": names * 2} if names and direction == "bidirectional" else options
    for rows in (torch.randn(1, STEPS, FEATURES), torch.randn(5, STEPS, FEATURES)):
        assert_equal_to_onnx_runtime(graph(operator, direction, **options), rows)


class Recurrent(nn.Module):
    """As people write them."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layers = getattr(nn, kind)(FEATURES, HIDDEN, batch_first=True, num_layers=2, **options)
        self.out = nn.Linear(HIDDEN * (2 if options else 1), 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.layers(rows)
        logits: torch.Tensor = self.out(outputs[:, -1])
        return logits


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_the_gradients_are_torchs(kind: str, options: dict[str, Any]) -> None:
    """Also the second ones, which interactions need."""
    torch.manual_seed(0)
    network = Recurrent(kind, **options).eval()
    rows, content = torch.randn(5, STEPS, FEATURES), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (rows,),
            content,
            input_names=["rows"],
            output_names=["logits"],
            dynamic_axes={"rows": {0: "count"}},
            dynamo=False,
        )
    twin = assert_equal_to_onnx_runtime(onnx.load_from_string(content.getvalue()), rows).double()

    def derivatives(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        at = rows.double().requires_grad_()
        (gradient,) = torch.autograd.grad(module(at)[:, 1].sum(), at, create_graph=True)
        (second,) = torch.autograd.grad((gradient * rows.double().cos()).sum(), at)
        return gradient.detach(), second

    for own, theirs in zip(derivatives(twin), derivatives(network.double()), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
def test_states_at_the_start_that_every_row_shares(operator: str) -> None:
    """As exporters write them: a constant, expanded to as many rows as there are."""
    model = graph(operator, "bidirectional", states=["h", "c"] if operator == "LSTM" else ["h"])
    start = np.random.default_rng(1).normal(size=(2, 1, HIDDEN)).astype(np.float32)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in (
            ("once", start),
            ("two", np.array([2])),
            ("hidden", np.array([HIDDEN])),
            ("at", np.array(1)),
        )
    )
    shaping = [
        helper.make_node("Shape", ["steps first"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "at"], ["count of rows"]),
        helper.make_node("Reshape", ["count of rows", "one"], ["as list"]),
        helper.make_node("Concat", ["two", "as list", "hidden"], ["target"], axis=0),
        *(helper.make_node("Expand", ["once", "target"], [name]) for name in ("h", "c")),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    first, *others = model.graph.node
    del model.graph.node[:]
    model.graph.node.extend([first, *shaping, *others])

    assert_equal_to_onnx_runtime(model, torch.randn(5, STEPS, FEATURES))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (graph("LSTM", clip=1.0), "clip"),
        (graph("RNN", activations=["Affine"]), "affine"),
        (
            graph("LSTM", states=["", "", "P"], inputs={"P": np.ones((1, 3 * HIDDEN))}),
            "peepholes",
        ),
    ],
    ids=["clip", "activation", "peepholes"],
)
def test_what_is_not_converted_is_named(model: onnx.ModelProto, says: str) -> None:
    with pytest.raises(CatalogError, match=says):
        build_twin(model, "rows", "logits")
