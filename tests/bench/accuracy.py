"""The accuracy figures: how many points a given error costs, ours and Captum's, and Expected Gradients against shap.

Ours are asked of a running service, as a caller gets them; `tests/bench/truths.py` says what is true.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from tests.bench.models import make
from tests.bench.report import Figure, Section, Table
from tests.bench.rounds import LOAN, ROOT, Pace
from tests.bench.servers import Server, post, service
from tests.bench.truths import ERROR, PERCENTILE, SPACES, Floats, heldout, spread

SHAP_POINTS = 200
"""What shap draws when it is not told: D."""
MORE_POINTS = 1024
OUR_SEEDS = 10
POINTS_HEAD = (
    "389 held-out rows",
    "points, mean",
    "median",
    "range",
    "completeness error, 95th percentile",
    "true error (L1), median",
    "95th percentile",
)
EXPECTED_HEAD = (
    "Expected Gradients",
    "points at most",
    "squared error / squared norm, mean over rows",
    "of it variance",
)


@dataclass(frozen=True, slots=True)
class Steps:
    """Captum's `steps` and the completeness error at the 95th percentile there."""

    steps: int
    error: float


@functools.cache
def fewest_steps(folder: Path) -> Steps:
    """Peer B's number: the fewest steps of Captum's Integrated Gradients with a completeness error of at most 1% at the
    95th percentile of the held-out rows, in probability space."""
    return Steps(**_truths("steps", str(folder)))


def _truths(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.truths", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def accuracy(pace: Pace) -> Section:
    """Points for an error, and errors for a number of points."""
    with tempfile.TemporaryDirectory(prefix="bench-gelu-") as models:
        make("gelu", Path(models))
        gelu = Path(models, "loan", "1")
        with service() as relu_server, service(Path(models)) as gelu_server:
            points = _points_spent(relu_server, gelu_server, gelu)
            rows, seeds = (16, {SHAP_POINTS: 3}) if pace.is_quick else (48, {SHAP_POINTS: 10, MORE_POINTS: 3})
            expected = _expected_gradients(relu_server, rows, seeds)
    return Section(points.figures + expected.figures, points.tables + expected.tables, {**points.raw, **expected.raw})


def _points_spent(relu_server: Server, gelu_server: Server, gelu: Path) -> Section:
    b = fewest_steps(LOAN)
    figures, table, raw = [], [], {}
    for name, server, folder, rule, most in (
        ("ReLU", relu_server, LOAN, "midpoint", 1 / 3),
        ("GELU", gelu_server, gelu, "gauss_legendre", 1 / 20),
    ):
        truth = np.array(_truths("paths", str(folder)))
        answers = ask(server, folder, heldout(folder), tolerance=ERROR, options={"rule": rule})
        spent = [answer["evaluations"] for answer in answers]
        errors = np.abs(_values(answers) - truth).sum(axis=1) / np.abs(truth).sum(axis=1)
        residuals = [answer["completeness_error"] for answer in answers]
        mean, least, largest = (count / b.steps for count in (statistics.mean(spent), min(spent), max(spent)))
        what = (
            f"points per IG answer at tolerance 0.01, {name}, {rule}: mean against B's {b.steps} steps (single answers)"
        )
        figures.append(Figure(what, mean, least, largest, at_most=round(most, 4)))
        own = fewest_steps(folder)
        exactly = [*np.percentile(errors, [50, PERCENTILE]), np.percentile(residuals, PERCENTILE)]
        median_error, large_error, large_residual = (f"{error:.2g}" for error in exactly)
        counts = [f"{statistics.mean(spent):.1f}", f"{statistics.median(spent):.0f}", f"{min(spent)} to {max(spent)}"]
        table.append([f"ours, {name}, {rule}", *counts, large_residual, median_error, large_error])
        captum = [str(own.steps), str(own.steps), "", f"{own.error:.2g}", "", ""]
        table.append([f"Captum, {name}, fewest steps for 0.01", *captum])
        raw[f"points_{name}"] = {"spent": spent, "errors": errors.tolist(), "completeness": residuals}
    caption = "Points per answer of Integrated Gradients at tolerance 0.01, probability:"
    return Section(figures, [Table(caption, POINTS_HEAD, table)], raw)


def _expected_gradients(server: Server, rows: int, seeds: Mapping[int, int]) -> Section:
    """Ours and shap's at the same number of points: the variance over seeds, and the squared error against the truth,
    which holds the bias too. shap's is all variance; an answer that draws nothing is all bias."""
    known = _truths("expected", str(rows), *(f"{points}:{count}" for points, count in seeds.items()))
    inputs = spread(heldout(LOAN), rows)
    figures, table, raw = [], [], {}
    for points, count in seeds.items():
        for space, least in zip(SPACES, (20, 3), strict=True):
            truth, theirs = np.array(known[space]["truth"]), np.array(known[space][str(points)])
            asked = {
                "method": "expected_gradients",
                "output_space": space,
                "tolerance": 1e-6,
                "max_evaluations": points,
            }
            ours = np.array([_values(ask(server, LOAN, inputs, **asked, seed=seed)) for seed in range(OUR_SEEDS)])
            scale = (truth**2).sum(axis=1)
            (our_error, our_variance), (error, variance) = (_errors(each, truth, scale) for each in (ours, theirs))
            where = f"EG at {points:,} points, {space}"
            if points == SHAP_POINTS:
                name = f"{where}: shap's variance against ours (quartiles of the rows)"
                figures.append(_against(name, variance, our_variance, at_least=least))
            name = f"{where}: shap's squared error against ours, bias included (quartiles of the rows)"
            figures.append(_against(name, error, our_error))
            names = (f"ours, {OUR_SEEDS} seeds", f"D: shap, {count} seeds")
            for who, squared, varied in zip(names, (our_error, error), (our_variance, variance), strict=True):
                table.append([f"{who}, {space}", f"{points:,}", f"{squared.mean():.1e}", f"{varied.mean():.1e}"])
                raw[f"expected {space} {points} {who}"] = {"error": squared.tolist(), "variance": varied.tolist()}
    caption = f"Expected Gradients on {rows} held-out rows, 128 baselines:"
    return Section(figures, [Table(caption, EXPECTED_HEAD, table)], raw)


def _against(name: str, theirs: Floats, ours: Floats, at_least: float | None = None) -> Figure:
    """The ratio of the means over the rows, and the quartiles of the ratios by row."""
    low, high = np.percentile(theirs / ours, [25, 75]).tolist()
    return Figure(name, float(theirs.mean() / ours.mean()), low, high, at_least=at_least)


def _errors(drawn: Floats, truth: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Mean squared error and variance over the draws [draws, rows, inputs], each relative to `scale` [rows]."""
    error = ((drawn - truth) ** 2).sum(axis=2).mean(axis=0)
    variance = (drawn - drawn[0]).var(axis=0, ddof=1).sum(axis=1)
    return error / scale, variance / scale


def ask(server: Server, folder: Path, rows: Floats, **parameters: Any) -> list[dict[str, Any]]:
    """The service's explanations of label 1 for rows [n, inputs]."""
    with safe_open(folder / "heldout.safetensors", "numpy") as file:
        names = file.metadata()["features"].split(",")
    explanations: list[dict[str, Any]] = []
    for start in range(0, len(rows), 50):
        instances = [dict(zip(names, row.tolist(), strict=True)) for row in rows[start : start + 50]]
        body = {"instances": instances, "parameters": {"target": 1, **parameters}}
        explanations += post(server.explain(), body)["explanations"]
    return explanations


def _values(explanations: list[dict[str, Any]]) -> Floats:
    """The attributions [explanations, inputs], in the order of the features."""
    return np.array([list(explanation["attributions"].values()) for explanation in explanations])
