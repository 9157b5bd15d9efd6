"""What clients read of a model that was refused: our sentence, and nothing that a library said to whoever called it."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from service.artefacts.onnx.parsing import parse_onnx
from service.artefacts.onnx.twins import build_twin
from service.catalog.manifest import read_manifest
from service.catalog.refusals import message_for_clients
from service.errors import CatalogError
from tests.conftest import MODELS

LOAN = MODELS / "loan" / "1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "loan" / "1"
    copy.mkdir(parents=True)
    shutil.copy(LOAN / "manifest.yaml", copy)
    return copy


def refused(folder: Path) -> CatalogError:
    with pytest.raises(CatalogError) as refusal:
        read_manifest(folder)
    return refusal.value


def test_a_file_that_is_none_is_told_without_the_parsers_words() -> None:
    with pytest.raises(CatalogError) as refusal:
        parse_onnx(b"no graph")

    said = "not a valid ONNX model: the file is cut off, spoilt, or of another kind"
    assert message_for_clients(refusal.value) == str(refusal.value) == said


def test_a_manifests_fields_are_told_in_one_line(folder: Path) -> None:
    manifest = yaml.safe_load((folder / "manifest.yaml").read_bytes())
    del manifest["title"]
    manifest["zodiac"] = "a-secret"
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))

    error = refused(folder)

    assert (
        message_for_clients(error)
        == str(error)
        == "loan/1/manifest.yaml: title is required; zodiac is not a known field"
    )


def test_a_manifest_that_is_no_yaml(folder: Path) -> None:
    (folder / "manifest.yaml").write_text("name: [loan")

    error = refused(folder)

    assert (
        message_for_clients(error)
        == "loan/1/manifest.yaml: line 2, column 1: this is no YAML: did not find expected ',' or ']'"
    )


def test_what_the_system_and_what_this_program_says_stays(folder: Path) -> None:
    (folder / "manifest.yaml").unlink()
    error = refused(folder)
    assert message_for_clients(error) == str(error) == "loan/1/manifest.yaml: No such file or directory"

    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [given], [answer])
    model = onnx.helper.make_model(graph)
    with pytest.raises(CatalogError) as refusal:
        build_twin(model, "x", "z")
    assert message_for_clients(refusal.value) == str(refusal.value)
