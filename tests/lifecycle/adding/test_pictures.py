"""Image models: every kind of network is added with its rows, and what the file does not say is asked or refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from service.artefacts.loading import load_model
from service.catalog.assessments import Assessments
from service.catalog.inputs.image import ImageInputs
from service.catalog.outputs.kind import KnownOutputs
from service.cli.models_add import _summary
from service.errors import CatalogError
from service.lifecycle.adding.adding import Added, AddOptions, add_model
from service.lifecycle.adding.graphs import make_servable
from service.lifecycle.adding.kinds import added_inputs
from service.lifecycle.adding.manifests import ManifestChoices, write_version
from service.lifecycle.adding.pictures import image_inputs, read_normalisation, read_pictures, refuse_channels_last
from service.lifecycle.checking.tables import report_text
from service.settings import Settings

SHAPE = (3, 12, 12)
CPU = torch.device("cpu")


def convolution(given: int, channels: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(given, channels, kernel, padding=kernel // 2, **options)


def ended(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.normal = convolution(3, 6), convolution(6, 6), nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.first(images))
        logits: Tensor = self.last(torch.relu(hidden + self.normal(self.second(hidden))).mean((2, 3)))
        return logits


class Enlarged(nn.Module):
    """Two scales beside each other, weighted by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.weight = convolution(3, 4), convolution(3, 4, 1), nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        small = functional.max_pool2d(functional.silu(self.first(images)), 2)
        large = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        hidden = torch.cat([large, functional.hardswish(self.other(images))], 1)
        weight = torch.sigmoid(self.weight(hidden.mean((2, 3))))[:, :, None, None]
        logits: Tensor = self.last((hidden * weight).amax((2, 3)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "max pool": lambda: nn.Sequential(
        convolution(3, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 4), nn.Softmax(1)
    ),
    "batch norm, depthwise": lambda: nn.Sequential(
        convolution(3, 6), nn.BatchNorm2d(6), nn.ReLU6(), convolution(6, 6, groups=6), nn.Hardswish(), *ended(6)
    ),
    "group norm, GELU": lambda: nn.Sequential(convolution(3, 6), nn.GroupNorm(2, 6), nn.GELU(), *ended(6)),
    "instance norm, leaky": lambda: nn.Sequential(
        convolution(3, 6, stride=2), nn.InstanceNorm2d(6, affine=True), nn.LeakyReLU(), *ended(6)
    ),
    "average and adaptive pools, ELU": lambda: nn.Sequential(
        convolution(3, 6), nn.ELU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    ),
    "dilated, PReLU, adaptive max": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, dilation=2), nn.PReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ),
    "transposed, shuffled, padded": lambda: nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.PixelShuffle(2),
        nn.ConvTranspose2d(2, 4, 2, stride=2), nn.ReLU(), *ended(4),
    ),
    "residual": Residual,
    "resized, joined, weighted": Enlarged,
    "without a convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh(), nn.Linear(8, 4)),
    "a sigmoid": lambda: nn.Sequential(
        convolution(3, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1), nn.Sigmoid()
    ),
}  # fmt: skip


def exported(network: nn.Module) -> bytes:
    written: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.rand(2, *SHAPE),), written, dynamo=False, input_names=["image"],
            dynamic_axes={"image": {0: "rows"}},
        )  # fmt: skip
    content: bytes = written.getvalue()
    return content


def images(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def never(question: str, usual: str) -> str:
    return usual


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_is_written_and_loaded_with_rows(name: str, tmp_path: Path) -> None:
    """To the point where twin and artefact were compared, which is where the networks differ."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    np.save(tmp_path / "images.npy", images(9, *SHAPE))
    is_logit = name not in ("max pool", "a sigmoid")
    found = make_servable(onnx.load_from_string(exported(NETWORKS[name]())), None, is_logit)
    rows = read_pictures(tmp_path / "images.npy", SHAPE, never)
    labels = tuple("abcd") if name != "a sigmoid" else ("a", "b")
    folder = tmp_path / "network" / "1"
    folder.mkdir(parents=True)
    outputs = found.outputs.declaration(KnownOutputs(labels, (), None, found.tensors, found.has_one_logit))
    write_version(folder, found, added_inputs(found.input), rows, ManifestChoices("network", "1", (), (), outputs))
    loaded = load_model(folder, CPU)

    assert loaded.parity < 1e-4
    assert loaded.shape == SHAPE
    (baselines,) = loaded.baselines.values()
    np.testing.assert_array_equal(np.sort(baselines, axis=0), np.sort(rows.values.astype(np.float32), axis=0))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "pictures.onnx"
    path.write_bytes(exported(nn.Sequential(NETWORKS["max pool"]()[:-1])))  # type: ignore[index]
    return path


def add(network: Path, models: Path, rows: NDArray[Any], answers: dict[str, str] | None = None, **more: Any) -> Added:
    """Adds it; a question that has one of the words in `answers` gets that, any other what is usual."""
    np.save(models / "images.npy", rows)

    def ask(question: str, usual: str) -> str:
        return next((answer for words, answer in (answers or {}).items() if words in question), usual)

    asked = AddOptions(network, data=models / "images.npy", is_logit=True, output=last_of(network), **more)
    return add_model(asked, models, ask, 4, Assessments(models / "assessments"))


def last_of(network: Path) -> str:
    return str(onnx.load(network).graph.output[0].name)


def test_a_model_with_its_images_says_what_becomes_of_files(network: Path, tmp_path: Path) -> None:
    added = add(network, tmp_path, images(20, *SHAPE))
    inputs = added.trial.manifest.inputs
    assert isinstance(inputs, ImageInputs)
    assert (inputs.range, inputs.takes_files) == ((0, 1), True)
    assert added.explanation.output != added.explanation.baseline_output
    said = "image files: PNG or JPEG, 8 bits a channel; turned as its EXIF orientation says"
    why = "stretched over the range 0 to 1, for the manifest has no `normalise`"
    for text in (report_text(added.report), _summary(added, Settings(models=tmp_path))):
        assert said in text
        assert why in text


def test_images_that_were_normalised_in_a_way_that_was_told(network: Path, tmp_path: Path) -> None:
    rows = (images(9, *SHAPE) - 0.5) / np.float32(0.25)
    text = "0.5,0.5,0.5/0.25,0.25,0.25"
    inputs = add(network, tmp_path, rows, {"means and deviations": text}).trial.manifest.inputs
    assert isinstance(inputs, ImageInputs)
    assert inputs.normalise is not None
    assert inputs.normalise.deviation == (0.25, 0.25, 0.25)
    assert inputs.range == pytest.approx((-2, 2), abs=0.01)
    with pytest.raises(CatalogError, match=r"pixels lie between 0 and 1, and the rows between -1\.9"):
        add(network, tmp_path, rows, normalise="0,0,0/1,1,1")


def test_images_that_were_normalised_in_a_way_nobody_tells(network: Path, tmp_path: Path) -> None:
    rows = (images(9, *SHAPE) - 0.5) / np.float32(0.25)
    added = add(network, tmp_path, rows)
    inputs = added.trial.manifest.inputs
    assert isinstance(inputs, ImageInputs)
    assert not inputs.takes_files
    assert added.report.notes[0].startswith("image files: not taken")


WHOLE = (255 * images(5, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "detail"),
    [
        (WHOLE, "save them as float32, as the model takes them"),
        (
            images(5, 12, 12, 3),
            r"shape \[5, 12, 12, 3\]; rows are .* here \[rows, 3, 12, 12\]; their channels come last",
        ),
        (images(5, 432), r"here \[rows, 3, 12, 12\]$"),
        (images(5, 12, 12), r"here \[rows, 3, 12, 12\]$"),
        (images(5, 3, 6, 24), r"here \[rows, 3, 12, 12\]$"),
        (images(0, *SHAPE), "holds no rows"),
        (np.full((2, *SHAPE), np.nan), "no numbers"),
        (np.full((2, *SHAPE), np.inf), "infinite"),
    ],
)
def test_rows_that_may_be_read_in_two_ways_are_refused(tmp_path: Path, rows: NDArray[Any], detail: str) -> None:
    np.save(tmp_path / "images.npy", rows)
    with pytest.raises(CatalogError, match=detail):
        read_pictures(tmp_path / "images.npy", SHAPE, never)


@pytest.mark.parametrize(("answer", "expected"), [("yes", WHOLE / 255), ("no", WHOLE)])
def test_bytes_are_what_the_user_says(tmp_path: Path, answer: str, expected: NDArray[Any]) -> None:
    np.save(tmp_path / "images.npy", WHOLE)
    rows = read_pictures(tmp_path / "images.npy", SHAPE, lambda _question, _usual: answer)
    np.testing.assert_array_equal(rows.values, expected.reshape(5, -1))
    assert image_inputs("image", SHAPE, rows.values, None)["range"] == [0, 1 if answer == "yes" else 255]


@pytest.mark.parametrize("shape", [(5, 1, 4, 6), (5, 4, 6), (5, 4, 6, 1), (5, 24)])
def test_one_channel_may_be_left_out(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = images(*shape)
    np.save(tmp_path / "images.npy", rows)
    found = read_pictures(tmp_path / "images.npy", (1, 4, 6), never).values
    np.testing.assert_array_equal(found, rows.reshape(5, 24))
    lines = "\n".join(",".join(map(str, row)) for row in found.tolist())
    (tmp_path / "images.csv").write_text(lines)
    np.testing.assert_array_equal(read_pictures(tmp_path / "images.csv", (1, 4, 6), never).values, found)


def of_keras(sizes: tuple[int, int, int], order: list[int] | None) -> onnx.ModelProto:
    """As tf2onnx writes a network with its channels last: scaled, turned, and then convolved."""
    nodes = [helper.make_node("Mul", ["image", "scale"], ["scaled"])]
    given, channels = "scaled", sizes[0]
    if order is not None:
        nodes.append(helper.make_node("Transpose", [given], ["turned"], perm=order))
        given, channels = "turned", sizes[order[1] - 1]
    nodes += [
        helper.make_node("Conv", [given, "kernel"], ["convolved"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["convolved"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    constants = {"scale": np.float32(0.5), "kernel": images(4, channels, 3, 3)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", *sizes])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("sizes", [(32, 32, 3), (8, 8, 8), (3, 8, 8)])
def test_a_network_that_turns_its_images_has_their_channels_last(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    onnx.save(of_keras(sizes, [0, 3, 1, 2]), tmp_path / "keras.onnx")
    asked = AddOptions(tmp_path / "keras.onnx", is_logit=True, output="logits")
    with pytest.raises(CatalogError, match=r"with their channels last.* inputs_as_nchw"):
        add_model(asked, tmp_path / "models", never, 4, Assessments(tmp_path / "assessments"))
    assert not list(tmp_path.rglob("manifest.yaml"))


@pytest.mark.parametrize(("sizes", "order"), [((8, 8, 8), None), ((8, 8, 3), None), ((8, 5, 6), [0, 1, 3, 2])])
def test_a_network_that_convolves_them_as_they_are_has_them_first(
    sizes: tuple[int, int, int], order: list[int] | None
) -> None:
    refuse_channels_last(of_keras(sizes, order), "image", sizes, None, never)


def test_where_the_network_does_not_say_it_the_sizes_do_or_the_user() -> None:
    flat = of_keras((8, 8, 8), None)
    flat.graph.node[1].op_type = "Other"
    refuse_channels_last(flat, "image", (3, 8, 8), None, never)
    with pytest.raises(CatalogError, match="channels last"):
        refuse_channels_last(flat, "image", (8, 8, 3), None, never)
    with pytest.raises(CatalogError, match="--channels first"):
        refuse_channels_last(flat, "image", (8, 8, 8), None, never)
    refuse_channels_last(flat, "image", (8, 8, 8), "first", never)
    refuse_channels_last(flat, "image", (8, 8, 8), None, lambda _question, _usual: "first")
    with pytest.raises(CatalogError, match="channels last"):
        refuse_channels_last(flat, "image", (8, 8, 8), None, lambda _question, _usual: "last")


@pytest.mark.parametrize("text", ["0.5", "0.5/0", "a/b", "1,1/1", "0.5,0.5/1,1"])
def test_what_is_no_normalisation_says_how_one_is_written(text: str) -> None:
    with pytest.raises(CatalogError, match=r"such as 0\.5/0\.5"):
        read_normalisation(text, 1)
