"""Checks and comparisons of loaded versions: what they find, against a slow reference, and what makes them fail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import orjson
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from service.domain import Floats
from service.errors import InvalidRequest
from service.lifecycle.checking.checks import Report, check
from service.lifecycle.checking.comparison import compare
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.tables import comparison_json, comparison_text
from service.lifecycle.checking.trial import Trial, load_trial
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.lifecycle.checking.conftest import Edit

LOAN = MODELS / "loan"
CPU = torch.device("cpu")
ROWS = 15
PROTECTED = {"tract_minority_over_30_percent", "black", "hispanic", "male", "older_than_median", "married"}


def run(folder: Path, against: Path | None = None, limits: Limits | None = None) -> Report:
    return check(folder, against, CPU, limits or Limits(), ROWS, seed=0)


@pytest.fixture(scope="module")
def trials() -> tuple[Trial, Trial]:
    """Both versions."""
    torch.set_num_threads(1)
    return load_trial(LOAN / "1", CPU), load_trial(LOAN / "2", CPU)


def slow_attributions(folder: Path, rows: Floats, steps: int = 4000) -> Floats:
    """Integrated gradients of the probability of denial from the mean of the training baselines, by many midpoints."""
    graph = onnx.load(folder / "model.onnx").graph
    of = {t.name: torch.from_numpy(numpy_helper.to_array(t).astype(np.float64)) for t in graph.initializer}
    (baselines,) = load_file(folder / "baselines" / "training.safetensors").values()
    start = torch.from_numpy(baselines.astype(np.float64).mean(axis=0))

    def probability(x: torch.Tensor) -> torch.Tensor:
        hidden = (torch.minimum(torch.maximum(x, of["low"]), of["high"]) - of["mean"]) / of["deviation"]
        for layer in (1, 2):
            hidden = torch.relu(hidden @ of[f"weight_{layer}"].T + of[f"bias_{layer}"])
        return torch.softmax(hidden @ of["weight_3"].T + of["bias_3"], dim=1)[:, 1]

    alphas = (torch.arange(steps, dtype=torch.float64)[:, None] + 0.5) / steps
    found = []
    for row in torch.from_numpy(rows):
        points = (start + alphas * (row - start)).requires_grad_()
        (gradients,) = torch.autograd.grad(probability(points).sum(), points)
        found.append(((row - start) * gradients.mean(dim=0)).numpy())
    return np.stack(found)


def test_a_comparison_is_that_of_slow_attributions_over_the_same_cases(trials: tuple[Trial, Trial]) -> None:
    before, after = trials
    comparison = compare(before, after, ROWS, seed=3)
    sample = before.sample(ROWS, seed=3)
    kept = [at for at, name in enumerate(before.features) if name not in PROTECTED]
    slow = [
        dict(zip(trial.features, np.abs(slow_attributions(LOAN / version, rows)).mean(axis=0).tolist(), strict=True))
        for trial, version, rows in ((before, "1", sample), (after, "2", sample[:, kept]))
    ]

    assert comparison.rows == ROWS + 1
    assert comparison.filled == []
    for feature in comparison.features:
        for found, expected in ((feature.before, slow[0]), (feature.after, slow[1])):
            assert (found is None) == (feature.feature not in expected)
            assert (found or 0.0) == pytest.approx(expected.get(feature.feature, 0.0), rel=5e-3, abs=1e-5)
    assert {f.feature for f in comparison.features if f.after is None} == PROTECTED
    correlation = spearmanr([slow[0][name] for name in slow[1]], list(slow[1].values())).statistic
    assert comparison.correlation == pytest.approx(correlation, abs=0.01)
    in_order = sorted(slow[0], key=lambda name: -slow[0][name])[:5]
    by_rank = {f.rank_before: f.feature for f in comparison.features}
    assert [by_rank[rank] for rank in range(1, 6)] == in_order


def test_the_other_way_round_inputs_that_the_rows_hold_are_not_filled_in(trials: tuple[Trial, Trial]) -> None:
    one, two = trials
    there, back = compare(one, two, ROWS, seed=0), compare(two, one, ROWS, seed=0)

    assert back.correlation == pytest.approx(there.correlation)
    assert back.filled == there.filled == []
    assert {f.feature: -f.difference for f in back.features} == pytest.approx(
        {f.feature: f.difference for f in there.features}
    )


def test_inputs_that_no_row_holds_are_filled_in_and_named(loan_folder: Path, edit: Edit) -> None:
    def renamed(manifest: dict[str, Any]) -> None:
        manifest["inputs"]["features"][0]["name"] = "amount"
        manifest["example"]["amount"] = manifest["example"].pop("loan_amount")

    edit(loan_folder / "2", renamed)
    trials = [load_trial(loan_folder / version, CPU) for version in ("1", "2")]

    assert compare(trials[0], trials[1], ROWS, seed=0).filled == ["amount"]


def test_a_comparison_says_whether_it_is_of_one_model_or_of_two(trials: tuple[Trial, Trial]) -> None:
    one, two = trials
    other, same = compare(one, two, ROWS, seed=0), compare(one, one, ROWS, seed=0)

    digests = [trial.version.key.digest for trial in trials]
    assert f"two different models, {digests[0][:19]}… and {digests[1][:19]}…" in comparison_text(other)
    assert "one model: " in comparison_text(same)
    assert orjson.loads(comparison_json(other))["digests"] == digests
    assert not orjson.loads(comparison_json(other))["one_model"]


def test_versions_that_answer_different_questions_are_not_compared(trials: tuple[Trial, Trial]) -> None:
    digits = load_trial(LOAN.parent / "digits" / "1", CPU)

    with pytest.raises(InvalidRequest, match="loan@2 and digits@1 have different labels"):
        compare(trials[1], digits, ROWS, seed=0)


def test_both_versions_pass() -> None:
    report = run(LOAN / "2", LOAN / "1")
    assert report.failed == []
    assert [finding.check for finding in report.findings] == [
        "digest",
        "parity",
        "completeness",
        "protected share",
        "stability",
        "rank correlation",
        "flips",
    ]
    assert all(finding.passed for finding in report.findings)


def test_what_protected_features_carry_is_counted_by_the_manifests_rule(loan_folder: Path, edit: Edit) -> None:
    edit(loan_folder / "1", lambda manifest: manifest["review"].update(protected_share=0.03))
    report = run(loan_folder / "1")
    (found,) = [finding for finding in report.findings if finding.check == "protected share"]
    trial = load_trial(loan_folder / "1", CPU)
    sizes = np.abs(slow_attributions(LOAN / "1", trial.sample(ROWS, seed=0)))
    protected = [at for at, name in enumerate(trial.features) if name in PROTECTED]

    assert report.failed == ["protected share"]
    assert found.figure == (sizes[:, protected].sum(axis=1) > 0.03 * sizes.sum(axis=1)).mean()
    edit(loan_folder / "1", lambda manifest: manifest.pop("review"))
    assert {f.check: f.passed for f in run(loan_folder / "1").findings}["protected share"] is None


def test_another_artefact_or_another_baseline_fails_alone(loan_folder: Path) -> None:
    for file in ("model.onnx", "baselines/approved.safetensors"):
        whole = (loan_folder / "2" / file).read_bytes()
        (loan_folder / "2" / file).write_bytes(whole[:-1] + b"!")
        report = run(loan_folder / "2", loan_folder / "1")
        assert report.failed == ["digest"]
        assert f"{file} has the sha256" in report.findings[0].detail
        assert len(report.findings) == 1
        (loan_folder / "2" / file).write_bytes(whole)


def test_a_version_that_turns_everything_round_fails(loan_folder: Path, edit: Edit) -> None:
    path = loan_folder / "1" / "model.onnx"
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    first, last = (numpy_helper.to_array(constants[name]) for name in ("weight_1", "weight_3"))
    constants["weight_1"].CopyFrom(numpy_helper.from_array(first[:, ::-1].copy(), "weight_1"))
    constants["weight_3"].CopyFrom(numpy_helper.from_array(-last, "weight_3"))
    onnx.save(model, path)
    edit(loan_folder / "1", dict)

    report = run(loan_folder / "2", loan_folder / "1")

    assert report.failed == ["rank correlation", "flips"]
    assert report.comparison is not None
    flip = report.comparison.flips[0]
    assert {flip.before, flip.after} == {"approved", "denied"}
    assert len(flip.features) == 3
    (kept,) = [finding.detail for finding in report.findings if finding.check == "flips"]
    named = kept.partition("; their attributions changed most by ")[2].split(", ")
    assert len(named) == 3
    assert set(named) <= {name for one in report.comparison.flips for name in one.features}


def test_an_earlier_version_that_cannot_be_loaded_fails_the_comparison(loan_folder: Path) -> None:
    (loan_folder / "1" / "model.onnx").write_bytes(b"")

    assert run(loan_folder / "2", loan_folder / "1").failed == ["comparison"]


def test_a_tolerance_that_no_explanation_meets_fails(loan_folder: Path, edit: Edit) -> None:
    edit(loan_folder / "1", lambda manifest: manifest["defaults"].update(tolerance=1e-12))

    assert run(loan_folder / "1").failed == ["completeness"]
    assert run(loan_folder / "1", limits=Limits(least_converged=0.0)).failed == []


def test_an_unstable_version_fails() -> None:
    assert run(LOAN / "2", limits=Limits(least_stability=0.99)).failed == ["stability"]


def test_the_profile_is_what_the_features_count_for() -> None:
    report = run(LOAN / "1")
    trial = load_trial(LOAN / "1", CPU)
    expected = np.abs(slow_attributions(LOAN / "1", trial.sample(ROWS, seed=0))).mean(axis=0)

    assert report.profile is not None
    assert list(report.profile.importance) == list(trial.features)
    assert list(report.profile.importance.values()) == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
    assert (report.profile.target, report.profile.rows) == ("denied", ROWS + 1)
