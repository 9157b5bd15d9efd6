"""What torch exports, in the shapes and types that it comes in, is served as it answers itself, or refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from service.artefacts.onnx import weights
from service.catalog.assessments import Assessments
from service.catalog.manifest import read_manifest
from service.domain import OutputSpace
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask
from service.lifecycle.adding.adding import Added, AddOptions, add_model
from service.lifecycle.adding.graphs import PROBABILITIES, make_servable


def export(network: nn.Module, *shape: int, is_open: bool = True) -> onnx.ModelProto:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"dynamic_axes": {"rows": {0: "n"}}} if is_open else {}
        rows = torch.randn(shape)
        torch.onnx.export(network.eval(), (rows,), content, dynamo=False, input_names=["rows"], **axes)
    return onnx.load_from_string(content.getvalue())


def usual(_question: str, default: str) -> str:
    return default


def add(model: onnx.ModelProto, folder: Path, rows: Any = None, ask: Ask = usual, **options: Any) -> Added:
    onnx.save(model, folder / "model.onnx")
    if rows is not None:
        np.save(folder / "rows.npy", rows)
    asked = AddOptions(folder / "model.onnx", None if rows is None else folder / "rows.npy", **options)
    return add_model(asked, folder / "models", ask, 2, Assessments(folder / "assessments"))


def served(added: Added, rows: Any) -> Any:
    session = onnxruntime.InferenceSession(added.folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run([PROBABILITIES], {"rows": rows})[0]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def layers(*widths: int) -> nn.Sequential:
    """Linear layers with a tanh between them."""
    found: list[nn.Module] = []
    for before, after in pairwise(widths):
        found += [nn.Tanh(), nn.Linear(before, after)]
    return nn.Sequential(*found[1:])


class _Halves(nn.Module):
    """Computes in float16 between ends of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.network = layers(4, 8, 3).half()

    def forward(self, rows: Tensor) -> Tensor:
        return torch.softmax(self.network(rows.half()), dim=1).float()


class _Literal(nn.Module):
    """Says how many rows there are where a -1 would do."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.network, self.rows = layers(4, 3), rows

    def forward(self, rows: Tensor) -> Tensor:
        return torch.softmax(self.network(rows.reshape(self.rows, 4)), dim=1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "softmax": (lambda: nn.Sequential(layers(4, 8, 3), nn.Softmax(1)), (5, 4)),
    "logarithms": (lambda: nn.Sequential(layers(4, 8, 3), nn.LogSoftmax(1)), (5, 4)),
    "one sigmoid": (lambda: nn.Sequential(layers(4, 1), nn.Sigmoid()), (5, 4)),
    "one sigmoid, flat": (lambda: nn.Sequential(layers(4, 1), nn.Sigmoid(), nn.Flatten(0)), (5, 4)),
    "a softmax of one pixel's channels": (lambda: nn.Sequential(nn.Conv2d(2, 3, 4), nn.Softmax(1)), (5, 2, 4, 4)),
    "a series behind a layer": (
        lambda: nn.Sequential(nn.Unflatten(1, (5, 4)), nn.Flatten(), layers(20, 3), nn.Softmax(1)),
        (5, 20),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_served_is_what_the_network_answers(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    network = make()
    rows = torch.randn(40, *shape[1:])
    added = add(export(network, *shape), tmp_path, rows.numpy() if rows.ndim == 2 else None)
    own = network(rows).detach().reshape(40, -1)
    own = own.exp() if name == "logarithms" else own
    expected = torch.cat([1 - own, own], dim=1) if own.shape[1] == 1 else own

    assert served(added, rows.numpy()) == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("columns", [1, 3])
def test_logits_are_taken_for_such_when_that_is_said(columns: int, tmp_path: Path) -> None:
    network, rows = layers(4, columns), torch.randn(40, 4)
    model = export(network, 5, 4)
    with pytest.raises(CatalogError, match="say so with --logits; a regression"):
        add(model, tmp_path, rows.numpy())
    questions: list[str] = []

    def agrees(question: str, usual: str) -> str:
        questions.append(question)
        return "yes" if "are they logits" in question else usual

    asked = AddOptions(tmp_path / "model.onnx", tmp_path / "rows.npy")
    added = add_model(asked, tmp_path / "models", agrees, 2, Assessments(tmp_path / "assessments"))
    logits = network(rows).detach()
    logits = torch.cat([torch.zeros_like(logits), logits], dim=1) if columns == 1 else logits

    assert served(added, rows.numpy()) == pytest.approx(torch.softmax(logits, dim=1).numpy(), abs=1e-6)
    assert sum("are they logits" in question for question in questions) == 1


@pytest.mark.parametrize("is_told", [True, False], ids=["logits that are told to be several", "sigmoids"])
def test_a_sigmoid_each_makes_labels_that_may_be_right_at_once(is_told: bool, tmp_path: Path) -> None:
    network, rows = layers(4, 8, 3), torch.randn(40, 4)
    whole = network if is_told else nn.Sequential(network, nn.Sigmoid())
    added = add(export(whole, 5, 4), tmp_path, rows.numpy(), are_several=is_told)

    assert added.trial.manifest.outputs.kind == "labels"
    assert served(added, rows.numpy()) == pytest.approx(torch.sigmoid(network(rows)).detach().numpy(), abs=1e-6)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("says", ["on the command line", "when asked"])
def test_numbers_that_are_told_to_be_values_are_served_as_such(columns: int, says: str, tmp_path: Path) -> None:
    network, rows = layers(4, 8, columns), torch.randn(40, 4)
    model, names = export(network, 5, 4), ("x", "y", "z")[:columns]
    if says == "when asked":
        added = add(model, tmp_path, rows.numpy(), lambda q, usual: "values" if "are they logits" in q else usual)
    else:
        added = add(model, tmp_path, rows.numpy(), values=names)
        assert added.trial.manifest.outputs.names == names
    answered = added.trial.deployed(rows.numpy())[OutputSpace.VALUE]

    assert answered == pytest.approx(network(rows).detach().numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("make", "shape", "sentence"),
    [
        (
            lambda: nn.Sequential(layers(4, 8), nn.Tanh()),
            (5, 4),
            "8 numbers a row that are no probabilities.*an embedding",
        ),
        (lambda: nn.Sequential(layers(4, 2), nn.Hardsigmoid()), (5, 4), "If several labels may be right at once"),
        (lambda: nn.Sequential(layers(4, 1), nn.Hardsigmoid()), (5, 4), "does not say what it is"),
        (
            lambda: nn.Sequential(nn.Flatten(), layers(240, 3), nn.Softmax(1)),
            (5, 20, 12),
            r"`--channels first` for \[features, steps\]",
        ),
        (
            lambda: nn.Sequential(layers(4, 12), nn.Unflatten(1, (4, 3)), nn.Softmax(2)),
            (5, 4),
            "several places or tokens",
        ),
    ],
)
def test_what_is_no_classifier_of_one_label_is_refused(
    make: Callable[[], nn.Module], shape: tuple[int, ...], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(CatalogError, match=sentence):
        add(export(make(), *shape), tmp_path)


def test_a_literal_number_of_rows_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="at a time and cannot be opened for more") as refused:
        add(export(_Literal(2), 2, 4, is_open=False), tmp_path)
    assert "ONNXRuntimeError" not in str(refused.value)


def test_a_literal_one_is_opened(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network, rows = _Literal(1), torch.randn(40, 4)
    added = add(export(network, 1, 4, is_open=False), tmp_path, rows.numpy())
    one_by_one = torch.cat([network(row[None]) for row in rows]).detach().numpy()
    assert served(added, rows.numpy()) == pytest.approx(one_by_one, abs=1e-6)


def test_a_declared_number_of_rows_is_opened(tmp_path: Path) -> None:
    """One, or -1 as paddle2onnx has it."""
    network, rows = nn.Sequential(layers(4, 3), nn.Softmax(1)), torch.randn(40, 4)
    for declared in (1, -1):
        model = export(network, 1, 4, is_open=False)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = declared
        added = add(model, tmp_path, rows.numpy())
        assert served(added, rows.numpy()) == pytest.approx(network(rows).detach().numpy(), abs=1e-6)


def test_a_file_that_computes_in_float16_is_served_and_says_how_far_its_twin_may_be(tmp_path: Path) -> None:
    network, rows = _Halves(), torch.randn(40, 4)
    added = add(export(network, 5, 4), tmp_path, rows.numpy())

    assert served(added, rows.numpy()) == pytest.approx(network(rows).detach().numpy(), abs=2e-3)
    assert read_manifest(added.folder)[0].parity == 0.02


def test_a_file_whose_outputs_contradict_each_other_is_refused() -> None:
    """The scores that are named are those of sigmoids, which the file answers too."""
    model = export(layers(4, 3), 5, 4)
    (scores,) = (value.name for value in model.graph.output)
    model.graph.node.append(helper.make_node("Sigmoid", [scores], ["shares"]))
    model.graph.output.append(helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["n", 3]))
    with pytest.raises(CatalogError, match="'shares' of the file answers other probabilities"):
        make_servable(model, scores, is_logit=True)


@pytest.mark.parametrize("is_large", [False, True])
def test_weights_in_another_file_are_read_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """As torch's default export writes them; for the file and for its folder. A large version has two files, too."""
    model = export(nn.Sequential(layers(100, 3), nn.Softmax(1)), 5, 100)
    path = tmp_path / "mine" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    if is_large:
        monkeypatch.setattr(weights, "LARGE", 0)
    rows = torch.randn(4, 100).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for source in (path, path.parent):
        added = add_model(AddOptions(source), tmp_path / "models", usual, 2, Assessments(tmp_path))
        np.testing.assert_allclose(served(added, rows), session.run(None, {"rows": rows})[0], atol=1e-6)
        assert not added.report.failed
        assert set(read_manifest(added.folder)[0].artefact.files) == ({"model.onnx.data"} if is_large else set())


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("../weights", "does not lie in its folder; export it again as one file: .*external_data=False"),
        ("link", "a link out of its folder"),
        ("nothing", "which cannot be read .*; put that file beside it"),
        ("short", "does not hold the 48 bytes of 'weights'"),
    ],
)
def test_weights_elsewhere_are_not_read(tmp_path: Path, location: str, sentence: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "weights").write_bytes(bytes(1000))
    (folder / "link").symlink_to(tmp_path / "weights")
    (folder / "short").write_bytes(bytes(47))
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[4, 3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    rows, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("rows", "logits"))
    product = helper.make_node("MatMul", ["rows", "weights"], ["logits"])
    graph = helper.make_graph([product], "graph", [rows], [logits], [tensor])
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(CatalogError, match=sentence):
        add_model(AddOptions(folder / "model.onnx"), tmp_path / "models", usual, 2, Assessments(tmp_path))
