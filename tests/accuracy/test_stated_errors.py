"""Stated errors hold on networks that they were not tuned to: a few of those that `make accuracy` takes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.catalog.outputs.classes import Classes
from tests.accuracy.approaches import APPROACHES, BY_NAME, Approach
from tests.accuracy.engine import device_model
from tests.accuracy.measuring import Figures, Line, case_of, lines_of
from tests.accuracy.networks import NETWORKS
from tests.accuracy.results import Results
from tests.accuracy.table import HEAD, HEAD_OF_NETWORKS, rows_of, rows_of_networks, summary

QUICK = ["softsign_table", "sine_table", "series_dilated", "text_attention_pooling", "attention_leaky"]
IG = BY_NAME["integrated_gradients"]


def test_at_least_twenty_networks_are_not_tuned_to() -> None:
    assert sum(not network.is_tuned for network in NETWORKS.values()) >= 20


def test_the_true_error_is_within_the_stated_one() -> None:
    found = [line for name in QUICK for line in lines_of(NETWORKS[name], IG, 5, (0.05, 0.01))]
    lines = [line for line in found if line.rule == "integrated_gradients"]
    assert {line.space for line in lines} == set(Classes.spaces)
    assert all(line.of("sure").all() for line in lines)
    ratios = np.concatenate([line.ratios for line in lines])
    assert len(ratios) == 100
    assert (ratios <= 1).mean() >= 0.95
    assert all(np.median(line.ratios) >= 0.01 for line in lines), "no network's is overstated out of all proportion"
    assert all(line.of("converged").all() for line in lines)


def test_a_smooth_network_takes_few_points() -> None:
    """Five nodes tell that a path is smooth, and how well the corrected rule does there."""
    for name in ("gelu_table", "hardswish_table"):
        lines = [line for line in lines_of(NETWORKS[name], IG, 5, (0.001,)) if line.rule == "integrated_gradients"]
        assert all(line.of("points").mean() <= 6 for line in lines)
        assert all(line.of("converged").all() and line.ratios.max() <= 1 for line in lines)


def rules_of(name: str) -> set[str]:
    case = case_of(name)
    traits = device_model(copy.deepcopy(case.network), case.baselines).traits
    return {rule.name for approach in APPROACHES for rule in approach.rules if rule.applies(traits)}


def test_each_rule_is_taken_where_it_is_offered() -> None:
    every = {"integrated_gradients", "integrated_gradients, gauss_legendre", "expected_gradients"}
    every |= {"guided_ig, 40 steps", "guided_ig, 200 steps"}
    linear = {"integrated_gradients, midpoint", "integrated_gradients, exact"}
    assert rules_of("wine_relu") == every | linear | {"integrated_hessians, softplus"}
    assert rules_of("attention_silu") == every | {"integrated_hessians"}
    assert rules_of("pixel_shuffle") == every | linear | {"blur_ig"}


@pytest.mark.parametrize("approach", APPROACHES, ids=lambda approach: approach.name)
def test_what_is_measured_is_sure_and_kept(approach: Approach, tmp_path: Path) -> None:
    name = {"blur_ig": "celu_image", "integrated_hessians": "mish_table"}.get(approach.name, "wine_relu")
    results = Results(tmp_path / "results.jsonl")
    lines = lines_of(NETWORKS[name], approach, 1, (0.05,), tmp_path)
    results.keep((name, approach.name), lines)
    assert lines
    assert all(line.of("sure").all() for line in lines), "the truth is dense enough"
    assert all(line.ratios.max() <= 3 for line in lines), "no answer is far beyond what it states"
    assert Results(tmp_path / "results.jsonl").known == results.known
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    assert kept
    assert lines_of(NETWORKS[name], approach, 1, (0.05,), tmp_path) == lines
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")} == kept


def line_of(network: str, true: float, stated: float, *, sure: bool = True) -> Line:
    return Line(network, "rule", "logit", 0.05, (Figures(true, stated, 8, True, sure),) * 10)


def test_the_summary_names_what_breaks_a_rule() -> None:
    lines = [line_of("relu_table", 0.01, 0.02), line_of("sine_table", 0.03, 0.02), line_of("elu_image", 0.001, 0.02)]
    (row,) = rows_of(lines[:1])
    assert row == "| relu_table* | rule | logit | 0.05 | 10 of 10 | 0.5 (0.5) | 1e-02 | 8 | 10 |"
    assert row.count("|") == HEAD.splitlines()[0].count("|")
    told = summary(lines)
    assert "- networks not seen before: 0 of 10 (0.0%): below 95%" in told
    assert "Within the tolerance, where `converged` says so: 30 of 30." in told
    assert "- fewer than 90 of 100 of a network covered: sine_table (0.0%)" in told
    assert "- fewer than 90 of 100 of a network covered, rule: sine_table (0%, 1.5)" in told
    assert "- fewer than 90 of 100 of a line covered: sine_table rule logit 0.05 (0 of 10)" in told
    assert "- stated too small, in the median, rule: sine_table" in told
    assert "- stated more than 10 times too large, in the median, rule: elu_image* (100%, 0.05)" in told
    assert "not known closely enough: sine_table rule logit 0.05 (10)" in summary(
        [line_of("sine_table", 1, 1, sure=False)]
    )
    assert "says so: 0 of 10." in summary([line_of("relu_table", 0.06, 0.02)])
    assert summary([line_of("relu_table", 0.01, 0.02)]).endswith("- nothing")


def test_networks_not_seen_before_come_first_each_with_its_methods() -> None:
    lines = [line_of("relu_table", 0.01, 0.02), line_of("sine_table", 0.03, 0.02)]
    guided = [replace(line, rule="guided_ig, 40 steps") for line in lines[:1]]
    rows = rows_of_networks([*lines, *guided])
    assert [row.split()[1] for row in rows] == ["sine_table", "relu_table*"]
    assert all(row.count("|") == HEAD_OF_NETWORKS.splitlines()[0].count("|") for row in rows)
    assert "| relu_table* | 100.0% |  |  |  | 100.0% (0.5) |  |" in rows
