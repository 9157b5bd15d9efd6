"""ONNX files that keep their weights beside them: every file is in the digest, and what is computed is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from service.artefacts.loading import LoadedModel, load_model
from service.artefacts.onnx import weights
from service.artefacts.onnx.parsing import parse_onnx
from service.artefacts.onnx.weights import open_session, write_model
from service.catalog.manifest import read_manifest
from service.domain import OutputSpace
from service.errors import CatalogError
from tests.conftest import MODELS, Version

CPU = torch.device("cpu")


def moved_apart(version: Version, location: str = "weights.bin") -> None:
    """Saves the weights of the version in another file, which the manifest names."""
    path = version.folder / "model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    name_files(version, {location: hashlib.sha256((version.folder / location).read_bytes()).hexdigest()})


def name_files(version: Version, files: Mapping[str, str]) -> None:
    version.edit(lambda manifest: manifest["artefact"].update(files=dict(files)))
    version.sign()


def answers(model: LoadedModel, rows: Any) -> list[bytes]:
    logits = model.twin(torch.from_numpy(rows)).numpy()
    return [logits.tobytes(), *(values.tobytes() for values in model.deployed.outputs(rows).values())]


@pytest.mark.parametrize("is_large", [False, True])
def test_weights_beside_the_file_compute_the_same(
    version: Version, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    whole = load_model(MODELS / "loan" / "1", CPU)
    before = read_manifest(version.folder)[1].digest
    moved_apart(version)
    if is_large:
        monkeypatch.setattr(weights, "LARGE", 0)
    apart = load_model(version.folder, CPU)
    rows = whole.manifest.inputs.random_rows(16, whole.row_type)
    assert answers(apart, rows) == answers(whole, rows)
    assert apart.key.digest != before
    assert apart.parity == whole.parity


def test_other_weights_are_another_artefact(version: Version) -> None:
    moved_apart(version)
    digest = read_manifest(version.folder)[1].digest
    path = version.folder / "weights.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"weights\.bin has the sha256"):
        load_model(version.folder, CPU)
    name_files(version, {"weights.bin": hashlib.sha256(content).hexdigest()})
    assert read_manifest(version.folder)[1].digest != digest


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/passwd", "parent/weights.bin", "link"])
def test_files_outside_of_the_folder_are_refused_though_they_are_named(
    version: Version, tmp_path: Path, place: str
) -> None:
    moved_apart(version)
    content = (version.folder / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(content)
    (version.folder / "parent").symlink_to(tmp_path, target_is_directory=True)
    (version.folder / "link").symlink_to(tmp_path / "weights.bin")
    model = onnx.load(version.folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        (entry,) = (one for one in tensor.external_data if one.key == "location")
        entry.value = place
    (version.folder / "model.onnx").write_bytes(model.SerializeToString())
    name_files(version, {place: hashlib.sha256(content).hexdigest()})
    with pytest.raises(CatalogError, match="inside"):
        load_model(version.folder, CPU)


def test_a_file_that_is_cut_off_is_refused(version: Version) -> None:
    moved_apart(version)
    content = (version.folder / "weights.bin").read_bytes()[:-1]
    (version.folder / "weights.bin").write_bytes(content)
    name_files(version, {"weights.bin": hashlib.sha256(content).hexdigest()})
    with pytest.raises(CatalogError, match=r"weights\.bin does not hold the \d+ bytes of .* cut off"):
        load_model(version.folder, CPU)


def test_a_large_model_is_opened_and_written_without_its_weights_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of several types, some written as lists; the session outlives the arrays that it was given."""
    draw = np.random.default_rng(0)
    table = draw.normal(size=(40, 30)).astype(np.float16)
    known: dict[str, NDArray[Any]] = {
        "table": table,
        "more": draw.normal(size=(30, 30)).astype(np.float32),
        "shape": np.array([-1, 30]),
    }
    nodes = [
        helper.make_node("Cast", ["table"], ["wide"], to=1),
        helper.make_node("MatMul", ["rows", "wide"], ["hidden"]),
        helper.make_node("Reshape", ["hidden", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "more"], ["end"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in known.items() if name != "more"]
    constants.append(helper.make_tensor("more", 1, [30, 30], known["more"].ravel().tolist()))
    taken, given = (helper.make_tensor_value_info(name, 1, ["n", None]) for name in ("rows", "end"))
    model = helper.make_model(helper.make_graph(nodes, "graph", [taken], [given], constants), ir_version=8)
    rows = draw.normal(size=(5, 40)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"rows": rows})[0]

    monkeypatch.setattr(weights, "LARGE", 0)
    session = open_session(model, onnxruntime.SessionOptions())
    assert [draw.normal(size=(40, 30)).astype(np.float32) for _ in range(50)]
    assert session.run(None, {"rows": rows})[0].tobytes() == expected.tobytes()
    written = write_model(tmp_path, "model.onnx", model)
    assert (tmp_path / "model.onnx").stat().st_size < 1500
    for file, digest in ({written["file"]: written["sha256"]} | written["files"]).items():
        assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() == digest
    own = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"rows": rows})[0]
    assert own.tobytes() == expected.tobytes()
    again = parse_onnx((tmp_path / "model.onnx").read_bytes(), lambda file: (tmp_path / file).read_bytes())
    assert numpy_helper.to_array(again.graph.initializer[-1]).tobytes() == known["more"].tobytes()


def test_functions_are_inlined_without_the_weights(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    path = version.folder / "model.onnx"
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type in {"Relu", "Gemm", "MatMul"})
    own = helper.make_function(
        "own", "Same", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], list(model.opset_import)
    )
    model.functions.append(own)
    model.opset_import.append(helper.make_opsetid("own", 1))
    before, node.output[0] = node.output[0], "before"
    place = list(model.graph.node).index(node) + 1
    model.graph.node.insert(place, helper.make_node("Same", ["before"], [before], domain="own"))
    onnx.save(model, path)
    version.sign()
    monkeypatch.setattr(weights, "LARGE", 0)
    loaded, whole = load_model(version.folder, CPU), load_model(MODELS / "loan" / "1", CPU)
    rows = whole.manifest.inputs.random_rows(16, whole.row_type)
    assert answers(loaded, rows)[0] == answers(whole, rows)[0]
    assert OutputSpace.LOGIT in loaded.deployed.outputs(rows)
