"""The twin is the deployed model, or the version does not load; and no file is ever unpickled."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from service.artefacts.loading import load_model
from service.artefacts.onnx import twin_source as onnx_twins
from service.artefacts.onnx.parsing import parse_onnx
from service.artefacts.onnx.twins import build_twin, check_parity
from service.catalog.manifest import read_manifest
from service.domain import OutputSpace
from service.errors import CatalogError

if TYPE_CHECKING:
    from tests.conftest import Version

CPU = torch.device("cpu")


def test_twin_and_artefact_agree_on_held_out_rows(version: Version) -> None:
    model = load_model(version.folder, CPU)
    rows = load_file(version.folder / "heldout.safetensors")["rows"]
    deployed = model.deployed.outputs(rows)
    with torch.no_grad():
        logits = model.twin(torch.from_numpy(rows))

    np.testing.assert_allclose(logits.numpy(), deployed[OutputSpace.LOGIT], rtol=1e-4, atol=1e-4)
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    np.testing.assert_allclose(probabilities, deployed[OutputSpace.PROBABILITY], atol=1e-5)
    assert 0 <= model.parity < 1e-4
    assert not any(parameter.requires_grad for parameter in model.twin.parameters())


def test_a_twin_that_differs_is_refused(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    def perturbed(*arguments: Any) -> Any:
        twin = build_twin(*arguments)
        with torch.no_grad():
            next(iter(twin.parameters())).mul_(1.01)
        return twin

    monkeypatch.setattr(onnx_twins, "build_twin", perturbed)
    with pytest.raises(CatalogError, match="differ"):
        load_model(version.folder, CPU)


def registered() -> dict[Any, Any]:
    """The converters, where onnx2torch keeps them."""
    registry: dict[Any, Any] = sys.modules["onnx2torch.node_converters.registry"]._CONVERTER_REGISTRY
    return registry


def test_the_operator_that_differs_most_is_named(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the second of three activations, each of which makes larger what went wrong before it."""
    path = version.folder / "model.onnx"
    model = onnx.load(path)
    wrong = [node for node in model.graph.node if node.op_type == "Relu"][-1]
    wrong.op_type, wrong.name = "Softplus", "the wrong one"
    onnx.save(model, path)
    version.sign()
    load_model(version.folder, CPU)  # which imports the converters

    registry = dict(registered())
    sys.modules["service.artefacts.onnx.conversion"].converts("Softplus")(lambda _: torch.relu)
    try:
        with pytest.raises(CatalogError, match=r"differs most, .* Softplus .*the wrong one.*, by 0\.69"):
            load_model(version.folder, CPU)
    finally:
        registered().clear()
        registered().update(registry)


def test_a_difference_that_the_manifest_allows_is_shown(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    def perturbed(*arguments: Any) -> Any:
        twin = build_twin(*arguments)
        with torch.no_grad():
            next(iter(twin.parameters())).mul_(1.0005)
        return twin

    monkeypatch.setattr(onnx_twins, "build_twin", perturbed)
    with pytest.raises(CatalogError, match=r"over 0\.0001"):
        load_model(version.folder, CPU)
    version.edit(lambda manifest: manifest.update(parity=0.02))
    assert 1e-4 < load_model(version.folder, CPU).parity < 0.02


def test_probabilities_that_are_not_the_softmax_of_the_logits_are_refused(version: Version) -> None:
    path = version.folder / "model.onnx"
    model = onnx.load(path)
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    halved = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half")
    model.graph.initializer.append(halved)
    scaled = onnx.helper.make_node("Mul", [softmax.input[0], "half"], ["halved_logits"])
    softmax.input[0] = "halved_logits"
    model.graph.node.insert(list(model.graph.node).index(softmax), scaled)
    onnx.save(model, path)
    version.sign()
    with pytest.raises(CatalogError, match="differ"):
        load_model(version.folder, CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_no_parity(value: float) -> None:
    with pytest.raises(CatalogError):
        check_parity(torch.tensor([[1.0, value]]), torch.tensor([[1.0, 2.0]]))


def test_an_operator_without_a_gradient_is_named(version: Version) -> None:
    path = version.folder / "model.onnx"
    model = onnx.load(path)
    manifest, _, _ = read_manifest(version.folder)
    given = manifest.inputs.tensor
    for node in model.graph.node:
        node.input[:] = ["pooled" if name == given else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("ImageDecoder", [given], ["pooled"]))
    graph = onnx.load_model_from_string(model.SerializeToString())
    with pytest.raises(CatalogError, match=r"cannot be differentiated|no twin"):
        build_twin(graph, given, manifest.outputs.tensors[OutputSpace.LOGIT])


def external(model: onnx.ModelProto, location: str) -> bytes:
    """The model with its first weight said to be in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "link", "parent/weights.bin"])
def test_data_outside_the_artefact_is_refused(version: Version, tmp_path: Path, location: str) -> None:
    model = onnx.load(version.folder / "model.onnx")
    weights = np.zeros(100_000, dtype=np.float32).tobytes()
    (tmp_path / "secret").write_bytes(weights)
    (version.folder / "weights.bin").write_bytes(weights)
    (version.folder / "link").symlink_to(tmp_path / "secret")
    (version.folder / "parent").symlink_to(tmp_path, target_is_directory=True)
    (version.folder / "model.onnx").write_bytes(external(model, location))
    version.sign()
    with pytest.raises(CatalogError, match="outside itself"):
        load_model(version.folder, CPU)


def hidden_in_a_constant(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def hidden_in_a_branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    answer = onnx.helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, [4])
    same = onnx.helper.make_node("Identity", [tensor.name], ["answer"])
    branch = onnx.helper.make_graph([same], "branch", [], [answer], [tensor])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    choice = onnx.helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, choice)


def hidden_in_a_sparse_tensor(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), "places"))
    sparse.dims.extend([8])


@pytest.mark.parametrize("hide", [hidden_in_a_constant, hidden_in_a_branch, hidden_in_a_sparse_tensor])
@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../weights.bin",
        "nothing.bin",
        "weights.bin",
    ],
)
def test_data_outside_is_found_wherever_it_hides(
    version: Version,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hide: Callable[[onnx.ModelProto, onnx.TensorProto], None],
    location: str,
) -> None:
    """A path that is relative is one to the folder in which the worker runs: bytes that no digest covers."""
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    monkeypatch.chdir(tmp_path)
    tensor = numpy_helper.from_array(np.zeros(4, dtype=np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    model = onnx.load(version.folder / "model.onnx")
    hide(model, tensor)
    with pytest.raises(CatalogError):
        parse_onnx(model.SerializeToString())


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def torch_archive(payload: bytes) -> bytes:
    """A file as torch.save writes it, with this pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("disguise", ["pickle", "torch archive"])
@pytest.mark.parametrize("place", ["model.onnx", "baselines/training.safetensors", "manifest.yaml"])
def test_no_pickle_is_ever_opened(version: Version, tmp_path: Path, place: str, disguise: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(canary), protocol)
    (version.folder / place).write_bytes(payload if disguise == "pickle" else torch_archive(payload))
    if place != "manifest.yaml":
        version.sign()
    with pytest.raises(CatalogError):
        load_model(version.folder, CPU)
    assert not canary.exists()
    pickle.loads(payload)
    assert canary.exists(), "the canary would not have sung"
