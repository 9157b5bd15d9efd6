"""The file that is served answers what the original model does, in whatever way its exporter ended it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from service.artefacts.onnx.twins import build_twin
from service.errors import CatalogError
from service.lifecycle.adding.equivalence import refuse_difference
from service.lifecycle.adding.graphs import LOGITS, PROBABILITIES, make_servable
from tests.lifecycle.adding.conftest import IRIS_OF_ONNXRUNTIME, MAKERS, Original


@pytest.mark.parametrize("name", list(MAKERS))
def test_what_is_served_is_the_original(original: Callable[[str], Original], name: str) -> None:
    given = original(name)
    found = make_servable(given.model, None, is_logit=False)
    session = onnxruntime.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run([LOGITS, PROBABILITIES], {found.input.name: given.rows})

    assert probabilities == pytest.approx(given.probabilities, abs=2e-5)
    assert found.labels == given.labels
    assert refuse_difference(given.model, found, given.rows) < 1e-5
    onnx.checker.check_model(found.model)
    twin = build_twin(found.model, found.input.name, LOGITS)
    assert twin(torch.from_numpy(given.rows)).numpy() == pytest.approx(logits, abs=1e-3, rel=1e-4)


def test_a_file_that_onnxruntime_ships() -> None:
    """One label against the others, three rows at a time and no more; expected: the sigmoids, in sum made one."""
    model = onnx.load(IRIS_OF_ONNXRUNTIME)
    found = make_servable(model, None, is_logit=False)
    rows = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    attributes = {one.name: helper.get_attribute_value(one) for one in model.graph.node[0].attribute}
    scores = rows @ np.reshape(attributes["coefficients"][:6], (3, 2)).T + attributes["intercepts"]
    sigmoids = 1 / (1 + np.exp(-scores))
    session = onnxruntime.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run([PROBABILITIES], {"float_input": rows})

    assert probabilities == pytest.approx(sigmoids / sigmoids.sum(axis=1, keepdims=True), abs=1e-6)
    assert found.input.rows == 3
    assert found.labels == ("0", "1", "2")
    assert refuse_difference(model, found, rows) < 1e-6


def test_scores_that_were_read_wrongly_are_refused(original: Callable[[str], Original]) -> None:
    given = original("torch, softmax")
    (softmax,) = (node for node in given.model.graph.node if node.op_type == "Softmax")
    with pytest.raises(CatalogError, match=r"holds probabilities.*leave --logits out"):
        make_servable(given.model, softmax.output[0], is_logit=True)
    other = onnx.ModelProto()
    other.CopyFrom(given.model)
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[::-1]
    with pytest.raises(CatalogError, match="read wrongly"):
        refuse_difference(other, make_servable(given.model, None, is_logit=False), given.rows)


def graph(
    inputs: int = 1, element: int = TensorProto.FLOAT, sizes: Sequence[int | None] = (None, 2), outputs: int = 1
) -> onnx.ModelProto:
    """A product with a constant, with so many inputs and outputs."""
    given = [helper.make_tensor_value_info(f"x{at}", element, sizes) for at in range(inputs)]
    answers = [helper.make_tensor_value_info(f"y{at}", TensorProto.FLOAT, [None, 2]) for at in range(outputs)]
    nodes = [helper.make_node("Mul", ["x0", f"x{inputs - 1}"], [f"y{at}"]) for at in range(outputs)]
    return helper.make_model(
        helper.make_graph(nodes, "graph", given, answers), opset_imports=[helper.make_opsetid("", 17)]
    )


@pytest.mark.parametrize(
    ("model", "output", "advice"),
    [
        (graph(inputs=2), None, "has 2 inputs"),
        (graph(element=TensorProto.UINT8), None, "float32"),
        (graph(sizes=(None, None)), None, "does not declare the shape"),
        (graph(outputs=2), None, "--output"),
        (graph(), "z", "no tensor 'z'; its outputs are 'y0'"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(model: onnx.ModelProto, output: str | None, advice: str) -> None:
    with pytest.raises(CatalogError, match=advice):
        make_servable(model, output, is_logit=False)


def test_of_several_outputs_the_one_is_asked_for() -> None:
    """Named by a user or an option; without either the sentence has all names."""
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 4])
    heads = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("sex", "age")]
    nodes = [helper.make_node("Sin", ["rows"], ["sex"]), helper.make_node("Mul", ["rows", "rows"], ["age"])]
    model = helper.make_model(helper.make_graph(nodes, "graph", [rows], heads), ir_version=8)
    asked = []

    def ask(question: str, _default: str) -> str:
        asked.append(question)
        return "age"

    assert make_servable(model, None, is_logit=True, ask=ask).output == "age"
    assert asked == ["which output holds the scores: sex, age?"]
    assert make_servable(model, "sex", is_logit=True, ask=ask).output == "sex"
    assert len(asked) == 1
    with pytest.raises(CatalogError, match=r"'sex', 'age'; name one with --output"):
        make_servable(model, None, is_logit=True, ask=lambda _question, default: default)
