"""Programs of torch.export and weights in safetensors are deployed models like any other; what is code needs trust."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.export import Dim

from service.artefacts.loading import load_model
from service.artefacts.networks import CnnNetwork, MlpNetwork
from service.catalog.architectures import Cnn, Mlp
from service.catalog.calibrations import Calibration
from service.catalog.manifest import read_manifest
from service.catalog.outputs.classes import Classes
from service.catalog.refusals import message_for_clients
from service.domain import BaselineChoice, ChunkShapes, Completeness, Explanation, OutputSpace, Plan
from service.engine.worker.device import put_on_device
from service.errors import CatalogError
from service.methods.registry import BY_NAME
from service.settings import Settings
from tests.methods.conftest import run_in_process

if TYPE_CHECKING:
    from tests.conftest import Version

CPU = torch.device("cpu")
TRUST = "ANSWERABLE_TRUSTED_ARTEFACTS"
IMAGE, LABELS = (1, 8, 8), 3
MLP = {"name": "mlp", "widths": [8, 6], "activation": "tanh", "scaling": True}
CNN = {
    "name": "cnn",
    "blocks": [{"channels": 4}, {"channels": 4, "bias": False, "normal": True, "residual": True, "pool": 2}],
    "scaling": True,
}

Change = Callable[[dict[str, Any]], object]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Served:
    """A version folder, and the network that the artefact in it was made from."""

    folder: Path
    network: nn.Module

    @property
    def digest(self) -> str:
        manifest: dict[str, Any] = yaml.safe_load((self.folder / "manifest.yaml").read_text())
        digest: str = manifest["artefact"]["sha256"]
        return digest

    def edit(self, change: Change) -> None:
        path = self.folder / "manifest.yaml"
        manifest = yaml.safe_load(path.read_text())
        change(manifest)
        path.write_text(yaml.safe_dump(manifest))

    def replace(self, content: bytes) -> None:
        """Puts another file in the artefact's place, with its digest."""
        manifest = yaml.safe_load((self.folder / "manifest.yaml").read_text())
        (self.folder / manifest["artefact"]["file"]).write_bytes(content)
        self.edit(lambda m: m["artefact"].update(sha256=hashlib.sha256(content).hexdigest()))


class Exported(nn.Module):
    """A little of what networks are written with: a buffer, a constant, batch normalisation, slices, views, sizes."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.normal = nn.BatchNorm2d(4)
        self.inner = nn.Linear(4 * 4 * 3, 6)
        self.last = nn.Linear(6, LABELS)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.normal(self.convolution(images / self.scale)))
        hidden = nn.functional.max_pool2d(hidden, 2)[:, :, :, 1:].float()
        hidden = nn.functional.leaky_relu(self.inner(hidden.reshape(images.shape[0], -1)))
        logits: Tensor = self.last(self.dropout(hidden)) + torch.tensor([0.1, 0.2, 0.3])
        return logits


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode with weights and statistics that are not those it starts with."""
    draws = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=draws) / 3
            tensor.copy_(values.abs() + 0.5 if name.endswith(("deviation", "var")) else values)
    return network.eval()


def program(network: nn.Module, rows: Any = Dim.AUTO, shape: tuple[int, ...] = IMAGE) -> bytes:
    """The network as torch.export.save writes it."""
    example = (torch.ones(4, *shape),)
    content = io.BytesIO()
    torch.export.save(
        torch.export.export(network, example, dynamic_shapes=None if rows is None else ({0: rows},)), content
    )
    return content.getvalue()


def weights(network: nn.Module) -> bytes:
    """The network's state as safetensors.torch.save_file writes it."""
    return save_tensors(network.state_dict())


def serve(root: Path, network: nn.Module, file: str, content: bytes, shape: tuple[int, ...], **artefact: Any) -> Served:
    """A version folder for the artefact, with a baseline set of nine rows."""
    folder = root / "models" / "shapes" / "1"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    rows = np.random.default_rng(0).uniform(0, 1, (9, prod(shape))).astype(np.float32)
    baselines = save_arrays({"rows": rows})
    (folder / "rows.safetensors").write_bytes(baselines)
    names = [f"x{at}" for at in range(prod(shape))]
    features = [{"name": name, "title": name, "range": [0, 1]} for name in names]
    tabular = {"kind": "tabular", "features": features}
    image = {"kind": "image", "shape": list(shape), "range": [0, 1]}
    baseline = {"file": "rows.safetensors", "sha256": hashlib.sha256(baselines).hexdigest()}
    manifest = {
        "name": "shapes",
        "version": "1",
        "title": "Shapes",
        "artefact": {"file": file, "sha256": hashlib.sha256(content).hexdigest(), **artefact},
        "inputs": image if len(shape) == 3 else tabular,
        "outputs": {"labels": ["round", "square", "neither"], "link": "softmax"},
        "baselines": [{"name": "rows", "version": "1", "size": 9, **baseline}],
        "defaults": {"baseline": "rows"},
        "example": np.zeros(shape).tolist() if len(shape) == 3 else dict.fromkeys(names, 0.5),
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return Served(folder, network)


@pytest.fixture(scope="module")
def original() -> tuple[nn.Module, bytes]:
    """A network, and its program."""
    network = filled(Exported())
    return network, program(network)


@pytest.fixture
def exported(original: tuple[nn.Module, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A trusted program."""
    network, content = original
    served = serve(tmp_path, network, "model.pt2", content, IMAGE)
    monkeypatch.setenv(TRUST, served.digest)
    return served


def mlp_of(root: Path) -> Served:
    network = filled(MlpNetwork(Mlp.model_validate(MLP), (5,), LABELS))
    return serve(root, network, "weights.safetensors", weights(network), (5,), architecture=MLP)


def cnn_of(root: Path) -> Served:
    network = filled(CnnNetwork(Cnn.model_validate(CNN), IMAGE, LABELS))
    return serve(root, network, "weights.safetensors", weights(network), IMAGE, architecture=CNN)


@pytest.fixture(params=["exported", "mlp", "cnn"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Served:
    """One of each kind."""
    if request.param == "exported":
        program: Served = request.getfixturevalue("exported")
        return program
    return mlp_of(tmp_path) if request.param == "mlp" else cnn_of(tmp_path)


@pytest.fixture
def cnn(tmp_path: Path) -> Served:
    return cnn_of(tmp_path)


def rows_of(shape: tuple[int, ...], count: int = 50) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 1, (count, prod(shape))).astype(np.float32)


def explained(served: Served, row: NDArray[np.float32], method: str = "integrated_gradients") -> list[Explanation]:
    """Explanations of one row in both output spaces."""
    torch.set_num_threads(1)
    model = put_on_device(served.folder, CPU, {}, Calibration(ChunkShapes(16, 64)))
    (digest, baseline), *_ = model.baselines.items()
    choice = BaselineChoice("rows", "1", digest, len(baseline.rows))
    options = tuple(sorted(BY_NAME[method].defaults().items()))
    values = tuple(row.astype(np.float64).tolist())
    plans = [
        Plan(model.key, method, options, values, 1, space, choice, 0.01, 20_000, 0, None) for space in Classes.spaces
    ]
    return run_in_process(model, plans)


def test_predictions_are_the_networks(served: Served) -> None:
    model = load_model(served.folder, CPU)
    shape = model.manifest.inputs.shape
    rows = rows_of(shape)
    outputs = model.deployed.outputs(rows)
    with torch.no_grad():
        logits = served.network(torch.from_numpy(rows).reshape(-1, *shape))
    np.testing.assert_allclose(outputs[OutputSpace.LOGIT], logits.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs[OutputSpace.PROBABILITY], torch.softmax(logits, 1).numpy(), atol=1e-6)
    assert np.ptp(outputs[OutputSpace.LOGIT], axis=0).min() > 1e-3
    assert 0 <= model.parity < 1e-5
    assert not any(parameter.requires_grad for parameter in model.twin.parameters())


def test_explanations_are_complete(served: Served) -> None:
    shape = read_manifest(served.folder)[0].inputs.shape
    for one in explained(served, rows_of(shape)[0]):
        assert one.attributions is not None
        assert one.output is not None
        assert one.baseline_output is not None
        assert one.completeness_error is not None
        assert one.completeness_error <= 0.01
        change = one.output - one.baseline_output
        assert abs(change) > 1e-3
        assert sum(one.attributions) == pytest.approx(change, rel=0.01)


def test_a_program_is_understood_operator_by_operator(exported: Served) -> None:
    """Its operators are those of ATen, which the engine knows by the names that people write."""
    model = put_on_device(exported.folder, CPU, {}, Calibration(ChunkShapes(16, 64)))
    assert model.traits.is_piecewise_linear
    assert model.traits.kinks == ("relu", "max_pool2d", "leaky_relu")
    assert model.traits.has_convolution
    for one in explained(exported, rows_of(IMAGE)[0]):
        assert (one.completeness, one.rule) == (Completeness.EXACT, "exact")


@pytest.mark.parametrize("rows", [Dim.AUTO, Dim.DYNAMIC, Dim("rows"), Dim("rows", max=20)])
def test_a_program_takes_as_many_rows_as_it_declares(
    exported: Served, monkeypatch: pytest.MonkeyPatch, rows: Any
) -> None:
    exported.replace(program(exported.network, rows))
    monkeypatch.setenv(TRUST, exported.digest)
    model = load_model(exported.folder, CPU)
    images = rows_of(IMAGE, 41)
    with torch.no_grad():
        logits = exported.network(torch.from_numpy(images).reshape(-1, *IMAGE))
    np.testing.assert_allclose(model.deployed.outputs(images)[OutputSpace.LOGIT], logits.numpy(), rtol=1e-5, atol=1e-5)


class Rectified(nn.Module):
    """Two hidden layers behind one ReLU that both share, or behind one each."""

    def __init__(self, is_shared: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, LABELS)
        self.relu = nn.ReLU()
        self.other = self.relu if is_shared else nn.ReLU()

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.last(self.other(self.second(self.relu(self.first(rows)))))
        return logits


def as_onnx(network: nn.Module) -> bytes:
    content = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["rows"], "output_names": ["logits"], "dynamic_axes": {"rows": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.ones(4, 5),), content, dynamo=False, **names)
    return content.getvalue()


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("method", ["integrated_gradients", "guided_backprop", "deconvnet"])
def test_a_relu_that_two_layers_share_is_one_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, method: str
) -> None:
    found = []
    for is_shared in (True, False):
        network = filled(Rectified(is_shared), seed=2)
        content = program(network, shape=(5,)) if form == "pt2" else as_onnx(network)
        served = serve(tmp_path / str(is_shared), network, f"model.{form}", content, (5,))
        if form == "onnx":
            served.edit(lambda m: m["inputs"].update(tensor="rows"))
            served.edit(lambda m: m["outputs"].update(tensors={"logit": "logits"}))
        monkeypatch.setenv(TRUST, served.digest)
        found.append([one.attributions for one in explained(served, rows_of((5,))[0], method)])
    assert found[0] == found[1]
    assert all(np.any(values) for values in found[0])


# What is refused of a program.


def test_a_program_is_opened_only_with_trust(exported: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for trusted in ("", "0" * 64):
        monkeypatch.setenv(TRUST, trusted)
        monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("it was opened"))
        with pytest.raises(CatalogError, match=f"{TRUST}: {exported.digest}"):
            load_model(exported.folder, CPU)


def test_trust_is_a_list_of_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST, f"{'a' * 64}, sha256:{'b' * 64},\n{'c' * 64}")
    assert Settings().trusted_artefacts == {"a" * 64, "b" * 64, "c" * 64}
    monkeypatch.setenv(TRUST, "everything")
    with pytest.raises(ValueError, match="trusted_artefacts"):
        Settings()


def test_trust_is_in_the_bytes(exported: Served) -> None:
    path = exported.folder / "model.pt2"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CatalogError, match="sha256"):
        load_model(exported.folder, CPU)
    exported.replace(path.read_bytes())
    with pytest.raises(CatalogError, match=TRUST):
        load_model(exported.folder, CPU)


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def rewritten(content: bytes, changes: Mapping[str, bytes]) -> bytes:
    """The archive with these records instead, or besides."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        records = {name: old.read(name) for name in old.namelist()}
        for name, value in (records | {f"archive/{name}": value for name, value in changes.items()}).items():
            new.writestr(name, value)
    return result.getvalue()


def saved(value: object) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def as_a_pickle(_: bytes, canary: Canary) -> bytes:
    return pickle.dumps(canary)


def as_a_checkpoint(_: bytes, canary: Canary) -> bytes:
    return saved(canary)


def as_sample_inputs(content: bytes, canary: Canary) -> bytes:
    return rewritten(content, {"data/sample_inputs/model.pt": saved(((canary,), {}))})


def as_weights_of_an_older_format(content: bytes, canary: Canary) -> bytes:
    return rewritten(content, {"data/weights/model.pt": saved({"scale": canary})})


def as_a_weight(content: bytes, canary: Canary) -> bytes:
    name = "data/weights/model_weights_config.json"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read(f"archive/{name}"))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    changes = {name: json.dumps(config).encode(), f"data/weights/{first['path_name']}": saved(canary)}
    return rewritten(content, changes)


def as_a_constant(content: bytes, canary: Canary) -> bytes:
    name = "data/constants/model_constants_config.json"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read(f"archive/{name}"))
    first = next(iter(config["config"].values()))
    first["path_name"] = "opaque_obj_0"
    first["use_pickle"] = True
    changes = {name: json.dumps(config).encode(), "data/constants/opaque_obj_0": pickle.dumps(canary)}
    return rewritten(content, changes)


DISGUISES = [as_a_pickle, as_a_checkpoint, as_sample_inputs, as_weights_of_an_older_format, as_a_weight, as_a_constant]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_pickle_is_opened_even_with_trust(
    exported: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disguise: Callable[[bytes, Canary], bytes]
) -> None:
    path = tmp_path / "canary"
    content = disguise((exported.folder / "model.pt2").read_bytes(), Canary(path))
    exported.replace(content)
    monkeypatch.setenv(TRUST, exported.digest)
    with pytest.raises(CatalogError) as refusal:
        load_model(exported.folder, CPU)
    for advice in ("weights_only", "torch.load", "pytorch.org"):
        assert advice not in message_for_clients(refusal.value)
    assert not path.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    if content.startswith(b"PK") and disguise is not as_a_checkpoint:
        with contextlib.suppress(Exception):
            torch.export.load(io.BytesIO(content))
        assert path.exists(), "the canary would not have sung"


@pytest.mark.parametrize("file", ["model.pt", "model.pth", "model.PKL", "model.ckpt"])
@pytest.mark.parametrize("declared", [{}, {"format": "pt2"}])
def test_a_file_that_is_named_a_pickle_is_refused(exported: Served, file: str, declared: dict[str, str]) -> None:
    (exported.folder / file).write_bytes((exported.folder / "model.pt2").read_bytes())
    exported.edit(lambda m: m["artefact"].update(file=file, **declared))
    with pytest.raises(CatalogError, match="is a pickle"):
        load_model(exported.folder, CPU)


class Pair(Exported):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), images


class Rounded(Exported):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: program(filled(Exported()), None), "4 rows at a time"),
        (lambda: program(filled(Exported()), Dim("rows", min=3)), "rows at a time"),
        (lambda: program(filled(Pair())), "one tensor"),
        (lambda: program(filled(Exported()).train()), "evaluation mode"),
        (lambda: program(filled(Rounded())), "no gradient"),
        (lambda: program(filled(nn.Sequential(nn.Flatten(), nn.Linear(16, 3))), shape=(1, 4, 4)), r"\[1, 4, 4\]"),
        (lambda: program(filled(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))), r"\[2\] logits for 3 labels"),
    ],
)
def test_a_program_that_is_no_classifier_of_rows_is_refused(
    exported: Served, monkeypatch: pytest.MonkeyPatch, content: Callable[[], bytes], message: str
) -> None:
    exported.replace(content())
    monkeypatch.setenv(TRUST, exported.digest)
    with pytest.raises(CatalogError, match=message):
        load_model(exported.folder, CPU)


# What is refused of weights.


def renamed(tensors: Tensors) -> Tensors:
    return {name.replace("last.bias", "head.bias"): tensor for name, tensor in tensors.items()}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def but(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: change(value) if key == name else value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.convolution.weight"), r"lacks the tensor 'blocks\.1\.convolution\.weight'"),
        (without("scaling.mean"), r"lacks the tensor 'scaling\.mean'"),
        (renamed, r"lacks the tensor 'last\.bias'"),
        (lambda tensors: {**tensors, "more": torch.ones(1)}, "no tensor 'more'"),
        (
            but("last.weight", lambda t: t.T.contiguous()),
            r"'last\.weight' is float32 \[64, 3\] in the file, not .* \[3, 64",
        ),
        (but("last.bias", lambda t: t.half()), r"'last\.bias' is float16"),
        (but("last.bias", lambda t: t / 0), r"'last\.bias' holds values that are not finite"),
    ],
)
def test_weights_that_are_not_the_architectures_are_refused(
    cnn: Served, change: Callable[[Tensors], dict[str, Tensor]], message: str
) -> None:
    cnn.replace(save_tensors(change(cnn.network.state_dict())))
    with pytest.raises(CatalogError, match=message):
        load_model(cnn.folder, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(name="transformer"), "mlp"),
        (lambda a: a.update(surprise=1), "surprise"),
        (lambda a: a.update(activation="eval"), "activation"),
        (lambda a: a.update(blocks=[]), "blocks"),
        (lambda a: a.update(blocks=[{"channels": 10**9}]), "channels"),
        (lambda a: a.update(blocks=[{"channels": 4, "kernel": 2}]), "odd"),
        (
            lambda a: a.update(blocks=[{"channels": 4, "pool": 8}, {"channels": 4, "pool": 2}]),
            "block 1 leaves no pixels",
        ),
        (lambda a: a.update(blocks=[{"channels": 4, "residual": True}]), "block 0 is residual"),
    ],
)
def test_an_architecture_that_is_not_on_the_list_is_refused(cnn: Served, change: Change, message: str) -> None:
    cnn.edit(lambda m: change(m["artefact"]["architecture"]))
    with pytest.raises(CatalogError, match=message):
        load_model(cnn.folder, CPU)


def test_sizes_without_the_file_to_match_take_no_memory(tmp_path: Path) -> None:
    served = mlp_of(tmp_path)
    served.edit(lambda m: m["artefact"]["architecture"].update(widths=[16_384] * 32))
    with pytest.raises(
        CatalogError, match=r"'layers\.0\.weight' is float32 \[8, 5\] in the file, not float32 \[16384, 5"
    ):
        load_model(served.folder, CPU)


def test_another_architecture_is_another_model(cnn: Served) -> None:
    """Two activations over the same weights are two models, though the file is one."""
    _, before, _ = read_manifest(cnn.folder)
    cnn.edit(lambda m: m["artefact"]["architecture"].update(activation="relu"))
    _, same, _ = read_manifest(cnn.folder)
    cnn.edit(lambda m: m["artefact"]["architecture"].update(activation="gelu"))
    _, other, _ = read_manifest(cnn.folder)
    assert before.digest == same.digest != other.digest


@pytest.mark.parametrize("content", [b"", b"weights", pickle.dumps({}), saved({"last.bias": torch.ones(3)})])
def test_what_is_no_safetensors_file_is_refused(cnn: Served, content: bytes) -> None:
    cnn.replace(content)
    with pytest.raises(CatalogError, match="not a valid safetensors file"):
        load_model(cnn.folder, CPU)


# What a manifest has to say for each format.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["inputs"].pop("tensor"), r"inputs\.tensor is missing"),
        (lambda m: m["outputs"].pop("tensors"), r"outputs\.tensors names"),
        (lambda m: m["artefact"].update(architecture=MLP), "architecture is for safetensors"),
        (lambda m: m["artefact"].update(format="pt2"), r"inputs\.tensor is for ONNX"),
        (lambda m: m["artefact"].update(format="safetensors"), "architecture is missing"),
        (lambda m: m["artefact"].update(file="model"), "'onnx', 'pt2', 'safetensors' or 'transformers'"),
        (lambda m: m["artefact"].update(format="pickle"), "'onnx', 'pt2', 'safetensors' or 'transformers'"),
    ],
)
def test_the_manifest_says_what_is_missing(version: Version, change: Change, message: str) -> None:
    version.edit(change)
    with pytest.raises(CatalogError, match=message):
        read_manifest(version.folder)


def test_the_format_may_be_said_where_the_suffix_does_not(version: Version) -> None:
    (version.folder / "model.onnx").rename(version.folder / "network")
    version.edit(lambda m: m["artefact"].update(file="network", format="onnx"))
    assert load_model(version.folder, CPU).manifest.artefact.format == "onnx"


def test_tables_are_no_images_and_tokens_need_onnx(tmp_path: Path) -> None:
    served = mlp_of(tmp_path)
    served.edit(lambda m: m["artefact"].update(architecture=CNN))
    with pytest.raises(CatalogError, match="takes images"):
        read_manifest(served.folder)
    tokens = {"kind": "tokens", "tensor": "tokens", "length": 3, "vocabulary": 9, "padding": 0, "mask": 1}
    served.edit(lambda m: m.update(inputs=tokens, example=[1, 2, 3]))
    with pytest.raises(CatalogError, match="embedding of an ONNX graph"):
        read_manifest(served.folder)
