"""Evaluations as a whole: what is asked for, the summary over many explanations, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from scipy.stats import bootstrap

from service.cli.models_evaluate import evaluate
from service.domain import Floats
from service.errors import InvalidRequest, UsageError
from service.faithfulness.registry import METRICS
from service.faithfulness.subject import Measured, no_figure
from service.faithfulness.summary import bootstrap_interval, figure_of
from service.lifecycle.serving.evaluations import Evaluated, Evaluations, latest_of
from service.usecases.evaluating import expected_cost, read_measures
from service.usecases.planning import Parameters, make_plan
from tests.conftest import MODELS
from tests.faithfulness.conftest import Judge, measure


def test_the_interval_is_scipys() -> None:
    """Of the same kind, with other resamples."""
    values = np.random.default_rng(0).exponential(size=200)
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_a_figure_says_what_it_leaves_out() -> None:
    found = figure_of("saliency", measure("deletion", "blur"), [Measured(1.0, (1.0, 0.0)), no_figure("why"), None])
    assert (found.mean, found.explanations, found.skipped) == (1.0, 1, {"why": 1})
    assert (found.values, found.curve, found.replaced) == ((1.0, None, None), (1.0, 0.0), "blur")
    nothing = figure_of("saliency", measure("gini"), [no_figure("why")])
    assert (nothing.mean, nothing.low, nothing.curve) == (None, None, None)


@pytest.mark.parametrize(
    ("metrics", "options", "pointer", "said"),
    [
        (["deletio"], {}, "/metrics/0", "did you mean deletion?"),
        (["gini", "sic"], {}, "/metrics/1", "information curves are of images"),
        (["gini"], {"deletion": {}}, "/options/deletion", "not among them"),
        (["gini"], {"gini": {"replace": "mean"}}, "/options/gini/replace", "no option"),
        (["deletion"], {"deletion": {"steps": 0}}, "/options/deletion/steps", "from 1 to 1000"),
        (["deletion"], {"deletion": {"replace": "blur"}}, "/options/deletion/replace", "mean, marginal, noise"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_with_its_place(
    loan: Judge, metrics: list[str], options: dict[str, Any], pointer: str, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        read_measures(loan.trial.version, metrics, options)
    assert [fault.pointer for fault in refused.value.faults] == [pointer]


def test_without_metrics_all_are_measured_that_apply(loan: Judge, digits: Judge) -> None:
    of_images = {one.metric for one in read_measures(digits.trial.version, None, {}, has_boxes=True)}
    assert of_images == {spec.name for spec in METRICS}
    without = {one.metric for one in read_measures(digits.trial.version, None, {})}
    assert of_images - without == {"pointing_game", "energy_pointing_game", "localisation"}
    assert without - {one.metric for one in read_measures(loan.trial.version, None, {})} == {"aic", "sic"}


def test_the_cost_is_what_is_asked_of_the_model(loan: Judge, applications: Floats) -> None:
    plan = loan.plan(applications[0], "saliency")
    measures = [measure("deletion", "mean"), measure("max_sensitivity"), measure("gini")]
    assert expected_cost(loan.trial.version, plan, measures, is_explained=True) == 20 + 10 + 10
    assert expected_cost(loan.trial.version, plan, measures, is_explained=False) == 20 + 10 + 10 + 1


def test_the_best_method_is_not_offered(loan: Judge) -> None:
    row = tuple(loan.trial.sample(0, 0)[0].tolist())
    with pytest.raises(InvalidRequest, match="metrics of faithfulness disagree"):
        make_plan(loan.trial.version, row, Parameters(method="best"))


def test_the_command_prints_a_table_keeps_the_figures_and_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], loan: Judge
) -> None:
    report = tmp_path / "report.md"
    asked: dict[str, Any] = {"methods": "saliency,grad_cam", "metrics": "deletion,gini", "replace": "noise", "rows": 3}
    assert evaluate("loan@1", **asked, report=report, data=tmp_path, models=str(MODELS)) == 0
    printed = capsys.readouterr().out
    assert "deletion" in printed
    assert "grad_cam: grad_cam needs" in printed  # why a table has none
    assert "replaced by `noise`: numbers drawn evenly" in report.read_text()
    version = loan.trial.version
    (kept,) = Evaluations(tmp_path / "evaluations").find(version.key, version.manifest_digest, "bank")
    assert [(figure.method, figure.metric, figure.replaced, figure.explanations) for figure in kept.figures] == [
        ("saliency", "deletion", "noise", 3),
        ("saliency", "gini", None, 3),
    ]
    assert orjson.dumps(kept.figures[0].mean).decode()[:5] in printed
    with pytest.raises(UsageError, match="deletion"):
        evaluate("loan@1", metrics="delet", data=tmp_path, models=str(MODELS))


def test_the_command_says_what_is_left_of_each_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {"methods": "saliency", "metrics": "gini", "rows": 2, "randomise": "cascading"}
    assert evaluate("loan@1", **asked, data=tmp_path, models=str(MODELS)) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-4].split() == ["RANDOM", "FROM", "METHOD", "SPEARMAN", "ABSOLUTE"]
    assert [line.split()[:2] for line in lines[-3:]] == [[f"linear_{at}", "saliency"] for at in (3, 2, 1)]


def test_what_is_kept_is_its_tenants_and_of_exactly_these_files(tmp_path: Path, loan: Judge) -> None:
    key, manifest = loan.trial.version.key, loan.trial.version.manifest_digest
    figures = tuple(figure_of("saliency", measure("gini"), [Measured(value)]) for value in (0.5, 0.75))
    evaluations = Evaluations(tmp_path)
    for number, (tenant, figure) in enumerate(zip((None, "bank"), figures, strict=True)):
        fields = key.name, key.version, key.digest, manifest, tenant, "instances", 1, (figure,)
        evaluations.keep(Evaluated(f"e{number}", *fields, created=number))
    assert [one.id for one in evaluations.find(key, manifest, "bank")] == ["e1", "e0"]
    assert [one.id for one in evaluations.find(key, manifest, "other")] == ["e0"]
    assert evaluations.find(key, "sha256:other", "bank") == []
    assert latest_of(evaluations.find(key, manifest, "bank"), "saliency") == [figures[1]]
