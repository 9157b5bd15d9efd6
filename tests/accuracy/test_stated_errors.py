"""Stated errors hold on networks that they were not tuned to: a few of those that `make accuracy` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from service.domain import OutputSpace
from tests.accuracy.approaches import APPROACHES, BY_NAME
from tests.accuracy.measuring import lines_of
from tests.accuracy.networks import NETWORKS
from tests.accuracy.results import Results
from tests.accuracy.table import HEAD, rows_of, summary

QUICK = ["mish_table", "hardswish_table", "leaky_layer_norm_table", "elu_layer_norm_table", "attention_silu"]
IG = BY_NAME["integrated_gradients"]


def test_at_least_twenty_networks_are_not_tuned_to() -> None:
    assert sum(not network.is_tuned for network in NETWORKS.values()) >= 20


def test_the_true_error_is_within_the_stated_one() -> None:
    found = [line for name in QUICK for line in lines_of(NETWORKS[name], IG, 5, (0.05, 0.01))]
    lines = [line for line in found if line.rule == "integrated_gradients"]
    assert {line.space for line in lines} == set(OutputSpace)
    assert all(line.of("sure").all() for line in lines)
    ratios = np.concatenate([line.ratios for line in lines])
    assert len(ratios) == 100
    assert (ratios <= 1).mean() >= 0.95
    assert all(np.median(line.ratios) >= 0.01 for line in lines), "no network's is overstated out of all proportion"
    assert all(line.of("converged").all() for line in lines)


def test_each_approach_is_taken_where_it_applies_and_kept_with_what_is_true(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results = Results(path)
    for approach in APPROACHES:
        for name in ("wine_relu", "attention_silu", "pixel_shuffle"):
            lines = lines_of(NETWORKS[name], approach, 1, (0.05,), tmp_path)
            results.keep((name, approach.name), lines)
            assert all(line.of("sure").all() for line in lines), "the truth is dense enough"
            assert all(line.ratios.max() <= 10 for line in lines), "a single answer is not far beyond what it states"
    rules = {(line.network, line.rule) for lines in results.known.values() for line in lines}
    ig = {"integrated_gradients", "integrated_gradients, gauss_legendre"}
    linear = {*ig, "integrated_gradients, midpoint", "integrated_gradients, exact"}
    all_have = {"expected_gradients", "guided_ig, 40 steps", "guided_ig, 200 steps"}
    assert {rule for name, rule in rules if name == "wine_relu"} == linear | all_have | {
        "integrated_hessians, softplus"
    }
    assert {rule for name, rule in rules if name == "attention_silu"} == ig | all_have | {"integrated_hessians"}
    assert {rule for name, rule in rules if name == "pixel_shuffle"} == linear | all_have | {"blur_ig"}
    assert Results(path).known == results.known
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    assert lines_of(NETWORKS["wine_relu"], IG, 1, (0.05,), tmp_path) == results.known["wine_relu", IG.name]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")} == kept
    (row, *_) = rows_of(results.known["wine_relu", IG.name])
    assert row.startswith("| wine_relu* | integrated_gradients | probability | 0.05 | 1 of 1 |")
    assert row.count("|") == HEAD.splitlines()[0].count("|")
    assert "- integrated_hessians: 2 of 2 (100.0%)" in summary(
        [line for lines in results.known.values() for line in lines]
    )
