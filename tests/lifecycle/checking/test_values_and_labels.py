"""Checks and comparisons of models that answer values or several labels, held against what linear models answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from service.domain import Floats
from service.errors import InvalidRequest
from service.lifecycle.checking.checks import Report, check
from service.lifecycle.checking.comparison import Comparison, compare
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.tables import comparison_json, comparison_text, report_text
from service.lifecycle.checking.trial import load_trial
from tests.linear_models import ALARMS, EXAMPLE, FEATURES, SCORES, Linear, baselines, write_version

CPU = torch.device("cpu")
ROWS = 15
ADVERSE = {"scores": 0, "alarms": 1}
"""Which output is explained where nobody asks."""
UNBOUND = replace(SCORES, name="tiny", outputs={"kind": "values", "values": [{"name": "y"}]}, rules={})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def later(model: Linear) -> Linear:
    """A version that hardly looks at the income."""
    return replace(model, weight=model.weight * np.array([0.2, 1.0, 1.2, 1.0]))


def versions(folder: Path, before: Linear, after: Linear) -> tuple[Path, Path]:
    return write_version(folder, before, "1"), write_version(folder, after, "2")


def compared(folder: Path, before: Linear, after: Linear) -> Comparison:
    trials = [load_trial(version, CPU) for version in versions(folder, before, after)]
    return compare(trials[0], trials[1], ROWS, seed=0)


def checked(version: Path, against: Path | None = None) -> Report:
    return check(version, against, CPU, Limits(), ROWS, seed=0)


def sampled() -> Floats:
    """The rows of a comparison: the example, and some of the baseline set."""
    own = baselines()
    example = np.array([[EXAMPLE[name] for name in FEATURES]])
    return np.concatenate([example, own[np.random.default_rng(0).permutation(len(own))[:ROWS]]])


def importance(model: Linear) -> dict[str, float]:
    """The mean absolute attributions over these rows: of a probability, each feature's share of the change."""
    index, rows = ADVERSE.get(model.name, 0), sampled()
    center = baselines().mean(axis=0)
    moved = model.weight[index] * (rows - center)
    if model.outputs["kind"] == "labels":
        before, after = (1 / (1 + np.exp(-(model.weight[index] @ x.T + model.bias[index]))) for x in (center, rows))
        moved = moved / moved.sum(axis=1, keepdims=True) * (after - before)[:, None]
    return dict(zip(FEATURES, np.abs(moved).mean(axis=0).tolist(), strict=True))


def decided(model: Linear, row: Floats) -> Any:
    numbers = model.weight @ row + model.bias
    if model.outputs["kind"] == "values":
        return "score below 600" if numbers[0] < 600 else "score not below 600"
    chances = 1 / (1 + np.exp(-numbers))
    limits = (0.5, 0.5, 0.3)
    over = [label for label, p, limit in zip(model.outputs["labels"], chances, limits, strict=True) if p > limit]
    return ", ".join(over) or "no label"


@pytest.mark.parametrize("model", [SCORES, ALARMS], ids=lambda model: str(model.name))
def test_a_version_alone_passes_and_its_profile_is_of_what_is_adverse(model: Linear, tmp_path: Path) -> None:
    report = checked(write_version(tmp_path, model))
    assert report.failed == []
    assert [finding.check for finding in report.findings] == [
        "digest", "parity", "completeness", "protected share", "stability",
    ]  # fmt: skip
    assert report.profile is not None
    assert report.profile.target == ("score" if model is SCORES else "arrears")
    assert report.profile.importance == pytest.approx(importance(model), rel=1e-3)


@pytest.mark.parametrize("model", [SCORES, ALARMS], ids=lambda model: str(model.name))
def test_two_versions_differ_by_what_they_look_at_and_by_what_they_decide(model: Linear, tmp_path: Path) -> None:
    other = later(model)
    comparison = compared(tmp_path, model, other)
    assert {one.feature: one.before for one in comparison.features} == pytest.approx(importance(model), rel=1e-3)
    assert {one.feature: one.after for one in comparison.features} == pytest.approx(importance(other), rel=1e-3)
    pairs = [(decided(model, row), decided(other, row)) for row in sampled()]
    flips = [(at, before, after) for at, (before, after) in enumerate(pairs) if before != after]
    assert flips
    assert [(flip.row, flip.before, flip.after) for flip in comparison.flips] == flips
    text = comparison_text(comparison)
    assert f"{len(flips)} rows" in text
    assert f"row {flips[0][0]}: {flips[0][1]} -> {flips[0][2]}; " in text

    report = checked(tmp_path / model.name / "2", tmp_path / model.name / "1")
    assert report.failed == ["rank correlation", "flips"]
    assert "FAILED: rank correlation, flips" in report_text(report)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_values_without_a_bound_decide_nothing_and_are_told_in_any_unit(size: float, tmp_path: Path) -> None:
    before = replace(UNBOUND, weight=size * SCORES.weight[:1], bias=size * SCORES.bias[:1])
    comparison = compared(tmp_path, before, replace(before, weight=2 * before.weight))
    assert comparison.flips == []
    told = orjson.loads(comparison_json(comparison))
    assert told["flipped"] is None
    text = comparison_text(comparison)
    assert "decide nothing that could flip" in text
    assert "predicted otherwise" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("income"))
    for at, factor in ((1, 1), (3, 2), (5, 1)):
        assert float(line.split()[at]) == pytest.approx(factor * importance(before)["income"], rel=1e-3)
    report = checked(tmp_path / "tiny" / "2", tmp_path / "tiny" / "1")
    assert report.failed == []
    assert [finding.passed for finding in report.findings if finding.check == "flips"] == [None]


OTHER_UNIT = {**SCORES.outputs, "values": [{"name": "score", "unit": "points"}, {"name": "loss", "unit": "USD"}]}
OTHER_BOUND = {**SCORES.outputs, "adverse": {"above": 900, "value": "loss"}}
OTHER_NAMES = {**SCORES.outputs, "values": [{"name": "score"}, {"name": "gain"}]}
AS_LABELS = {"kind": "labels", "labels": ["score", "loss"]}


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        (OTHER_UNIT, "scores@1 and scores@2 have values in different units"),
        (OTHER_BOUND, "scores@1 and scores@2 name different values as adverse"),
        (OTHER_NAMES, "scores@1 and scores@2 have different values"),
        (AS_LABELS, "scores@1 and scores@2 have different values"),
    ],
)
def test_versions_whose_figures_mean_something_else_are_not_compared(
    outputs: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        compared(tmp_path, SCORES, replace(SCORES, outputs=outputs, rules={}))
