"""Copies of the loan model with something wrong in them: versions that must not load."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import yaml

from tests.conftest import MODELS


def copy_of_loan(folder: Path, version: str = "1") -> Path:
    """A copy in `folder` that is another version to an engine: its manifest has another digest."""
    copied = folder / "loan" / version
    shutil.copytree(MODELS / "loan" / "1", copied)
    path = copied / "manifest.yaml"
    path.write_text(path.read_text().replace('version: "1"', f'version: "{version}"', 1) + "\n# a copy\n")
    return copied


def resigned(folder: Path) -> None:
    """Makes the manifest's digest that of the artefact as it is now."""
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["artefact"]["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    path.write_text(yaml.safe_dump(manifest))


def wrong_digest(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)


def no_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"this is no model" * 100)
    resigned(folder)


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")
    resigned(folder)


def truncated(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])
    resigned(folder)


def external_data(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    resigned(folder)


def other_input(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    (given,) = model.graph.input
    given.type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, folder / "model.onnx")
    resigned(folder)


def renamed_input(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["inputs"]["tensor"] = "nothing_of_this_name"
    path.write_text(yaml.safe_dump(manifest))


def renamed_output(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["outputs"]["tensors"]["probability"] = "nothing_of_this_name"
    path.write_text(yaml.safe_dump(manifest))


def swapped_outputs(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    tensors = manifest["outputs"]["tensors"]
    tensors["logit"], tensors["probability"] = tensors["probability"], tensors["logit"]
    path.write_text(yaml.safe_dump(manifest))


def third_label(folder: Path) -> None:
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["outputs"]["labels"].append("undecided")
    path.write_text(yaml.safe_dump(manifest))


def integer_input(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    cast = onnx.helper.make_node("Cast", [model.graph.input[0].name], ["as_float"], to=onnx.TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["as_float" if name == model.graph.input[0].name else name for name in node.input]
    model.graph.node.insert(0, cast)
    onnx.save(model, folder / "model.onnx")
    resigned(folder)


def no_manifest(folder: Path) -> None:
    (folder / "manifest.yaml").unlink()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


SPOILT: tuple[Callable[[Path], Any], ...] = (
    wrong_digest,
    no_onnx,
    empty,
    truncated,
    external_data,
    other_input,
    renamed_input,
    renamed_output,
    swapped_outputs,
    third_label,
    integer_input,
    no_manifest,
    no_folder,
)
