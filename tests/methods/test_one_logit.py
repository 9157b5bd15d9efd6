"""Two labels that share one logit: the first label's logit is the negative of the second's, whatever is asked.

The oracle is the same network with both written out, [-z, z].
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from service.catalog.calibrations import Calibration
from service.catalog.manifest import read_manifest
from service.catalog.versions import ModelVersion
from service.domain import ChunkShapes, Explanation, Floats, OutputSpace
from service.engine.worker.device import DeviceModel, put_on_device
from service.methods.registry import BY_NAME, METHODS
from service.methods.spec import Facts
from service.usecases.planning import Parameters, make_plan

if TYPE_CHECKING:
    from tests.methods.conftest import Run

SHAPE = (1, 6, 6)
LABELS = ("no", "yes")
EITHER_WAY = {
    *("grad_cam", "grad_cam_pp", "smooth_grad_cam_pp", "deconvnet", "guided_backprop", "rectgrad", "xrai"),
    *("saliency", "fullgrad", "boundary_ig", "boundary_saliency", "agi", "neflag", "decision_ig"),
}
"""Methods that take positive parts, magnitudes or squares on the way, or that look for another label."""
ON_MARGINS = {"boundary_ig", "boundary_saliency"}
"""Methods whose path depends on z_t - z_other, which is 2 z where both are written out."""


def drawn(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32).astype(np.float64)


def constant(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(folder: Path, *, one_logit: bool, kind: str) -> Path:
    """A small network of convolutions on images, or of dense layers on tables, that ends in z or in [-z, z]."""
    is_image = kind == "image"
    constants = {"bias": np.array([0.2], np.float32), "top": constant(3, 4, 1)}
    if is_image:
        constants |= {"kernel": constant(1, 4, 1, 3, 3), "kernel bias": constant(2, 4)}
        nodes = [
            helper.make_node("Conv", ["x", "kernel", "kernel bias"], ["maps"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["maps"], ["bent"]),
            helper.make_node("GlobalAveragePool", ["bent"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
        ]
    else:
        constants |= {"weights": constant(1, 3, 4), "hidden bias": constant(2, 4)}
        nodes = [
            helper.make_node("MatMul", ["x", "weights"], ["product"]),
            helper.make_node("Add", ["product", "hidden bias"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["flat"]),
        ]
    nodes += [
        helper.make_node("MatMul", ["flat", "top"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["z"]),
        helper.make_node("Neg", ["z"], ["negative"]),
        helper.make_node("Concat", ["negative", "z"], ["both"], axis=1),
    ]
    shape = list(SHAPE) if is_image else [3]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n]) for name, n in (("z", 1), ("both", 2))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = save({"rows": drawn(5, 4, int(np.prod(shape))).astype(np.float32)})
    folder = folder / "network" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "rows.safetensors").write_bytes(rows)
    named = [{"name": name, "title": name, "range": [0, 1]} for name in "abc"]
    image: dict[str, Any] = {"kind": "image", "tensor": "x", "shape": shape, "range": [0, 1]}
    example: Any = drawn(6, *SHAPE).tolist() if is_image else dict.fromkeys("abc", 0.5)
    manifest = {
        "name": "network",
        "version": "1",
        "title": "Network",
        "artefact": {"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": image if is_image else {"kind": "tabular", "tensor": "x", "features": named},
        "outputs": {
            "labels": list(LABELS),
            "link": "sigmoid" if one_logit else "softmax",
            "tensors": {"logit": "z" if one_logit else "both"},
        },
        "baselines": [
            {
                "name": "training",
                "version": "1",
                "size": 4,
                "file": "rows.safetensors",
                "sha256": hashlib.sha256(rows).hexdigest(),
            }
        ],
        "defaults": {"baseline": "training"},
        "example": example,
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


class Served:
    """A model on a device, and the explanations of one row by it."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.model: DeviceModel = put_on_device(folder, torch.device("cpu"), {}, Calibration(ChunkShapes(16, 64)))
        manifest, key, digest = read_manifest(folder)
        self.version = ModelVersion(key, manifest, folder, digest, environment={}, traits=self.model.traits)
        self.row = tuple(drawn(7, int(np.prod(manifest.inputs.shape))).tolist())
        self._run = run

    def takes(self, method: str) -> bool:
        entry = BY_NAME[method]
        return entry.not_applicable(Facts(self.model.traits, 4, self.options(method))) is None

    def options(self, method: str) -> Any:
        options = BY_NAME[method].defaults()
        return options | {"smooth": "softplus"} if method == "integrated_hessians" else options

    def explained(self, method: str, target: int, space: str, **more: Any) -> Explanation:
        options = {"smooth": "softplus"} if method == "integrated_hessians" else {}
        asked = Parameters(
            method=method, target=LABELS[target], output_space=space, tolerance=1e-3, options=options, seed=1, **more
        )
        return self._run(self.model, [make_plan(self.version, self.row, asked)])[0]


@pytest.fixture(scope="module")
def one(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    return {
        kind: Served(write(tmp_path_factory.mktemp(kind), one_logit=True, kind=kind), run)
        for kind in ("image", "table")
    }


@pytest.fixture(scope="module")
def both(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    return {
        kind: Served(write(tmp_path_factory.mktemp(kind), one_logit=False, kind=kind), run)
        for kind in ("image", "table")
    }


def values_of(explanation: Explanation) -> Floats:
    assert explanation.attributions is not None
    return np.array(explanation.attributions)


@pytest.mark.parametrize("kind", ["table", "image"])
@pytest.mark.parametrize("name", [entry.name for entry in METHODS])
def test_every_method_explains_either_label(
    one: dict[str, Served], both: dict[str, Served], name: str, kind: str
) -> None:
    if not one[kind].takes(name):
        assert not both[kind].takes(name)
        return
    found = {target: one[kind].explained(name, target, "logit") for target in (0, 1)}
    assert found[0].output == -found[1].output  # type: ignore[operator]
    for target in (0, 1):
        expected = both[kind].explained(name, target, "logit")
        assert found[target].output == pytest.approx(expected.output, rel=1e-6)
        if name not in ON_MARGINS:
            np.testing.assert_allclose(values_of(found[target]), values_of(expected), rtol=1e-4, atol=1e-5)
    assert np.any(values_of(found[0])) or np.any(values_of(found[1]))
    if name not in EITHER_WAY:
        assert np.any(values_of(found[0]))
        np.testing.assert_allclose(values_of(found[0]), -values_of(found[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["table", "image"])
def test_probabilities_are_those_of_the_sigmoid(one: dict[str, Served], kind: str) -> None:
    logit, no, yes = (
        one[kind].explained("integrated_gradients", target, space).output
        for target, space in ((1, "logit"), (0, "probability"), (1, "probability"))
    )
    assert logit is not None
    assert yes == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-6)
    assert no == pytest.approx(1 / (1 + np.exp(logit)), rel=1e-6)


@pytest.mark.parametrize("noise", ["smoothgrad", "vargrad"])
def test_noisy_copies_too(one: dict[str, Served], noise: str) -> None:
    asked = {"kind": noise, "samples": 4, "scale": 0.1}
    no, yes = (one["table"].explained("input_x_gradient", target, "logit", noise=asked) for target in (0, 1))
    sign = -1 if noise == "smoothgrad" else 1
    np.testing.assert_allclose(values_of(no), sign * values_of(yes), rtol=1e-6)
    assert np.any(values_of(no))
    assert no.noisy_output == pytest.approx(-yes.noisy_output)  # type: ignore[operator]


def test_what_the_baselines_answer_is_negated_too(one: dict[str, Served]) -> None:
    (prepared,) = one["table"].model.baselines.values()
    outputs = prepared.outputs[OutputSpace.LOGIT]
    assert (outputs[:, 0] == -outputs[:, 1]).all()
    assert outputs.any()
    chances = prepared.outputs[OutputSpace.PROBABILITY]
    assert chances[:, 1] == pytest.approx(1 / (1 + np.exp(-outputs[:, 1])), rel=1e-6)
    assert chances.sum(axis=1) == pytest.approx(1, abs=1e-6)
