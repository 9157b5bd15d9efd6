"""Model folders made for the benchmark: the loan network with GELU, and synthetic networks of any size.

`python -m tests.bench.models gelu|growth FOLDER` fills a models folder; torch stays out of the benchmark's own process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from tests.bench.rounds import LOAN, ROOT

FEATURES = (10, 30, 100, 300, 1000)
WIDTHS = (64, 128, 256, 512, 1024)
BASELINES = (16, 64, 256, 1024)
USUAL_FEATURES, USUAL_WIDTH, USUAL_BASELINES = 38, 64, 128
BOUND = 10.0


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A ReLU network features-width-width-2 with random weights, and its baseline sets by name and size."""

    name: str
    features: int
    width: int
    baselines: Mapping[str, int]


def growth_models() -> list[Synthetic]:
    """What the growth tables go over; all but the named size are the loan model's."""
    usual = {"training": USUAL_BASELINES}
    return [
        *(Synthetic(f"features-{n}", n, USUAL_WIDTH, usual) for n in FEATURES),
        *(Synthetic(f"width-{n}", USUAL_FEATURES, n, usual) for n in WIDTHS),
        Synthetic("baselines", USUAL_FEATURES, USUAL_WIDTH, {f"baselines-{n}": n for n in BASELINES}),
    ]


def make(what: str, models: Path) -> None:
    """Fills the folder `models` in a process of its own."""
    subprocess.run([sys.executable, "-m", "tests.bench.models", what, str(models)], cwd=ROOT, check=True)


def gelu_twin(folder: Path) -> None:
    """The loan network with GELU in the place of ReLU, trained the same way on the same rows, as a model version.

    GELU is spelt x (1 + erf(x / sqrt 2)) / 2, as torch exports it: the ONNX operator of that name has no torch
    counterpart in `onnx2torch`. It keeps the name `loan`, and the clipping of outlying inputs.
    """
    from torch import nn

    train = _training()
    folder.mkdir(parents=True)
    shutil.copytree(LOAN / "baselines", folder / "baselines")
    shutil.copy(LOAN / "heldout.safetensors", folder)
    shutil.copy(LOAN / "manifest.yaml", folder)
    with_relu = train.start_network

    def with_gelu(inputs: int) -> nn.Sequential:
        return nn.Sequential(*(nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in with_relu(inputs)))

    train.__dict__["start_network"] = with_gelu
    rows, denied = train.load()
    training = np.random.RandomState(train.SEED).permutation(len(rows))[: train.TRAINING_ROWS]
    scaling = train.fit_scaling(rows[training])
    network = train.train(scaling(rows[training]), denied[training])
    model = _gelu_for_relu(train.build_graph(scaling, network))
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    train.stamp(folder / "manifest.yaml")


def _training() -> ModuleType:
    """`models/loan/1/train.py` as a module."""
    spec = importlib.util.spec_from_file_location("train_loan", LOAN / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _gelu_for_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    constants = {"root_two": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, dtype=np.float32), name) for name, value in constants.items()
    )
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Relu":
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        nodes += [
            helper.make_node("Div", [x, "root_two"], [f"{y}_scaled"]),
            helper.make_node("Erf", [f"{y}_scaled"], [f"{y}_erf"]),
            helper.make_node("Add", [f"{y}_erf", "one"], [f"{y}_raised"]),
            helper.make_node("Mul", [x, f"{y}_raised"], [f"{y}_twice"]),
            helper.make_node("Mul", [f"{y}_twice", "half"], [y]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


def synthetic(folder: Path, size: Synthetic) -> None:
    """A model version whose inputs are standard normal."""
    (folder / "baselines").mkdir(parents=True)
    random = np.random.default_rng(size.features * 10_000 + size.width)
    sizes = (size.features, size.width, size.width, 2)
    weights = [random.normal(0, np.sqrt(2 / a), (b, a)) for a, b in itertools.pairwise(sizes)]
    (folder / "model.onnx").write_bytes(_network(weights).SerializeToString(deterministic=True))
    names = [f"feature_{k}" for k in range(size.features)]
    heldout = random.normal(size=(256, size.features)).clip(-BOUND, BOUND).astype(np.float32)
    save_file({"rows": heldout}, folder / "heldout.safetensors", metadata={"features": ",".join(names)})
    sets = []
    for name, count in size.baselines.items():
        file = f"baselines/{name}.safetensors"
        rows = random.normal(size=(count, size.features)).clip(-BOUND, BOUND).astype(np.float32)
        save_file({"rows": rows}, folder / file)
        sets.append({"name": name, "version": "1", "size": count, "file": file, "sha256": _sha256(folder / file)})
    manifest: dict[str, Any] = {
        "name": size.name,
        "version": "1",
        "title": f"Synthetic network {'-'.join(map(str, sizes))}",
        "artefact": {"file": "model.onnx", "sha256": _sha256(folder / "model.onnx")},
        "inputs": {
            "kind": "tabular",
            "tensor": "features",
            "features": [{"name": name, "title": name, "range": [-BOUND, BOUND]} for name in names],
        },
        "outputs": {
            "labels": ["no", "yes"],
            "link": "softmax",
            "tensors": {"logit": "logits", "probability": "probabilities"},
            "default_space": "probability",
        },
        "baselines": sets,
        "defaults": {"method": "integrated_gradients", "baseline": sets[0]["name"], "tolerance": 0.01},
        "floor": {"probability": 0.01},
        "example": dict.fromkeys(names, 0.5),
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


def _network(weights: Sequence[NDArray[np.float64]]) -> onnx.ModelProto:
    nodes, constants, rows = [], [], "features"
    for depth, weight in enumerate(weights, start=1):
        last = depth == len(weights)
        affine = "logits" if last else f"affine_{depth}"
        constants += [
            numpy_helper.from_array(weight.astype(np.float32), f"weight_{depth}"),
            numpy_helper.from_array(np.zeros(len(weight), dtype=np.float32), f"bias_{depth}"),
        ]
        nodes.append(helper.make_node("Gemm", [rows, f"weight_{depth}", f"bias_{depth}"], [affine], transB=1))
        if not last:
            rows = f"hidden_{depth}"
            nodes.append(helper.make_node("Relu", [affine], [rows]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    widths = {"features": weights[0].shape[1], "logits": 2, "probabilities": 2}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n]) for name, n in widths.items()]
    graph = helper.make_graph(nodes, "synthetic", ends[:1], ends[1:], constants)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(what: str, models: str) -> None:
    """Fills a models folder."""
    if what == "gelu":
        gelu_twin(Path(models) / "loan" / "1")
        return
    for size in growth_models():
        synthetic(Path(models) / size.name / "1", size)


if __name__ == "__main__":
    main(*sys.argv[1:])
