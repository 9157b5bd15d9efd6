"""`answerable models add` as it is typed: what it prints, and that nothing ends it but a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.__main__ import main
from service.cli import models_add as commands
from service.lifecycle.adding import adding
from tests.lifecycle.adding.conftest import Original

Add = Callable[..., int]


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Add]:
    """Runs the command, with no questions, for a model and perhaps rows. The environment stays as it was."""
    before = dict(os.environ)

    def run(model: onnx.ModelProto, rows: np.ndarray | None = None, *options: str) -> int:
        onnx.save(model, tmp_path / "model.onnx")
        data: tuple[str, ...] = ()
        if rows is not None:
            np.save(tmp_path / "rows.npy", rows)
            data = ("--data", str(tmp_path / "rows.npy"))
        places = ("--models", str(tmp_path / "models"))
        return main(["models", "add", str(tmp_path / "model.onnx"), *data, *places, "--yes", *options])

    yield run
    os.environ.clear()
    os.environ.update(before)


def linear(weights: list[list[float]], bias: list[float]) -> onnx.ModelProto:
    """A softmax of a product and a sum."""
    given = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, len(weights)])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [None, len(bias)])
    constants = {"weights": np.array(weights, np.float32), "bias": np.array(bias, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["rows", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["answer"], axis=1),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "graph", [given], [answer], initializers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_an_example_that_changes_no_probability_is_shown_by_its_logit(
    add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second label's logit is 30 + x + 2 y over the first's; rows have the mean (2, 5) and the median (1, 4)."""
    rows = np.array([[0.0, 3.0], [1.0, 4.0], [5.0, 8.0]])
    add(linear([[0, 1], [0, 2]], [0, 30]), rows)

    shown = capsys.readouterr().out
    assert "1.000 -> 1.000" not in shown
    assert "label_1, as a logit, since the probability hardly changes: 42.000 -> 39.000" in shown
    assert "feature_1 -1.000" in shown
    assert "feature_2 -2.000" in shown


def test_an_example_that_changes_its_probability_is_shown_by_it(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(linear([[0, 1], [0, 2]], [0, -10]), np.array([[0.0, 3.0], [1.0, 4.0], [5.0, 8.0]])) == 0
    assert "as a logit" not in capsys.readouterr().out


def mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The file with something wrong in it, a node or a constant at a time."""
    for at, node in enumerate(model.graph.node):
        for name in ("removed", "without attributes", "of another kind", "without inputs"):
            other = onnx.ModelProto()
            other.CopyFrom(model)
            changed = other.graph.node[at]
            if name == "removed":
                del other.graph.node[at]
            elif name == "without attributes":
                del changed.attribute[:]
            elif name == "of another kind":
                changed.op_type = "Relu" if changed.op_type != "Relu" else "Softmax"
            else:
                del changed.input[1:]
            yield f"{node.op_type} {name}", other
    for at, tensor in enumerate(model.graph.initializer):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        other.graph.initializer[at].CopyFrom(numpy_helper.from_array(np.zeros(7, np.float32), tensor.name))
        yield f"{tensor.name} of another shape", other


def test_no_file_ends_the_command_otherwise_than_in_a_sentence(
    original: Callable[[str], Original],
    add: Add,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong is in the file; whether it is added or refused, it is so in words."""
    monkeypatch.setattr(commands, "ROWS", 2)
    given = original("logistic regression of three")
    for mutant, model in mutants(given.model):
        code = add(model, given.rows)
        told = capsys.readouterr()
        assert code in (0, 1), mutant
        assert "Traceback" not in told.err, mutant
        assert (told.err == "") == told.out.startswith("model@"), mutant
        assert len(told.err.splitlines()) <= 3, (mutant, told.err)


def test_what_nobody_thought_of_is_a_sentence_too(
    add: Add, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **_options: object) -> None:
        raise RuntimeError("no such thing\nas this")

    monkeypatch.setattr(adding, "make_servable", fails)
    assert add(linear([[0, 1]], [0, 0])) == 1
    told = capsys.readouterr().err
    assert told.startswith(
        "model.onnx cannot be added: something in it is not understood (RuntimeError: no such thing)"
    )
    assert len(told.splitlines()) == 1
