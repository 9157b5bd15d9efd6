"""Explanations of networks with random weights, how alike two maps are, and the gate that rests on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import pearsonr, spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity

from service.domain import Floats, OutputSpace
from service.engine.kernels.gradient import GradientKernel
from service.engine.worker.randomising import layers_of, randomised
from service.faithfulness.similarity import similarities
from service.lifecycle.checking.checks import check
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.randomisation import by_layer, of_whole_network
from service.methods.questions import Points
from tests.conftest import MODELS
from tests.faithfulness.conftest import Judge


def test_similarities_are_those_of_the_libraries() -> None:
    draws = np.random.default_rng(0)
    one = draws.normal(size=(24, 20))
    other = one + draws.normal(size=(24, 20))
    found = similarities(one.ravel(), other.ravel(), (24, 20))
    first, second = ((values - values.min()) / np.ptp(values) for values in (one, other))
    cells = {"pixels_per_cell": (5, 5)}
    assert found == pytest.approx(
        {
            "spearman": spearmanr(one.ravel(), other.ravel()).statistic,
            "spearman_abs": spearmanr(np.abs(one).ravel(), np.abs(other).ravel()).statistic,
            "ssim": structural_similarity(first, second, data_range=1.0),
            "hog": pearsonr(hog(first, **cells), hog(second, **cells)).statistic,
        },
        abs=1e-9,
    )
    assert similarities(one.ravel(), one.ravel(), (24, 20)) == pytest.approx(dict.fromkeys(found, 1.0))


def test_a_layer_is_randomised_and_nothing_else(digits: Judge, images: Floats) -> None:
    """The model itself stays as it is; the new one answers, and explains, what its own network says."""
    model = digits.trial.model
    before = digits.trial.deployed(images)[OutputSpace.LOGIT]
    first, *others = layers_of(model)
    assert (first, len(others)) == ("last", 4)
    other = replace(digits.trial, model=randomised(model, [first], seed=1))
    kernel, changed = model.kernels[Points][0], other.model.kernels[Points][0]
    assert isinstance(kernel, GradientKernel)
    assert isinstance(changed, GradientKernel)
    weights = dict(kernel.network.twin.named_parameters())
    differing = [
        name
        for name, value in changed.network.twin.named_parameters()
        if not torch.equal(value, weights[name]) and name not in ("last.weight", "last.bias")
    ]
    assert differing == []
    with torch.no_grad():
        expected = changed.network.twin(torch.from_numpy(images).float().reshape(-1, 1, 8, 8)).numpy()
    assert other.deployed(images)[OutputSpace.LOGIT] == pytest.approx(expected, abs=1e-4)
    assert (digits.trial.deployed(images)[OutputSpace.LOGIT] == before).all()
    assert np.abs(expected - before).max() > 1
    explanation = other.explained(replace(digits.plan(images[0]), target=3))
    assert explanation.converged
    assert explanation.attributions is not None
    assert explanation.output is not None
    assert explanation.baseline_output is not None
    change = explanation.output - explanation.baseline_output
    assert sum(explanation.attributions) == pytest.approx(change, abs=0.02)


def test_weights_keep_their_size(digits: Judge) -> None:
    model = digits.trial.model
    kernels = [one.kernels[Points][0] for one in (model, randomised(model, layers_of(model), 0))]
    tables = [dict(one.network.twin.named_parameters()) for one in kernels if isinstance(one, GradientKernel)]
    for name, before in tables[0].items():
        after = tables[1][name]
        if before.numel() > 500:
            assert not torch.equal(before, after)
            assert float(after.std()) == pytest.approx(float(before.std()), rel=0.1)


def test_guided_backprop_survives_the_top_layer_and_gradients_do_not(digits: Judge, images: Floats) -> None:
    """As in Adebayo et al.: it hardly depends on what the network decides."""

    def top(method: str) -> float:
        return next(by_layer(digits.trial, images, method, cascading=True)).similarities["spearman"]

    assert top("guided_backprop") > 0.7
    assert abs(top("saliency")) < 0.4
    assert abs(top("integrated_gradients")) < 0.4


def test_layers_alone_and_one_after_the_other_begin_alike(digits: Judge, images: Floats) -> None:
    """And end apart: the last of a cascade is the whole network."""
    few = images[:3]
    cascade = list(by_layer(digits.trial, few, "saliency", cascading=True))
    alone = list(by_layer(digits.trial, few, "saliency", cascading=False))
    assert [one.layer for one in cascade] == [one.layer for one in alone] == layers_of(digits.trial.model)
    assert cascade[0] == alone[0]
    assert cascade[-1].similarities == of_whole_network(digits.trial, few, "saliency")
    assert cascade[-1] != alone[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """A copy of `digits` with another default method and limits of faithfulness."""

    def make(method: str, limits: dict[str, Any]) -> Path:
        place = tmp_path / "digits" / "1"
        copytree(MODELS / "digits" / "1", place)
        manifest = yaml.safe_load((place / "manifest.yaml").read_text())
        manifest["defaults"]["method"] = method
        manifest["faithfulness"] = {**limits, "rows": 6}
        (place / "manifest.yaml").write_text(yaml.safe_dump(manifest))
        return place

    return make


def test_a_default_method_that_survives_random_weights_is_refused(folder: Callable[..., Path]) -> None:
    limits = {"most_surviving": 0.5, "least_against_random": 0.02, "most_sensitive": 1.0}
    report = check(folder("guided_backprop", limits), None, torch.device("cpu"), Limits(), 6, 0)
    findings = {finding.check: finding for finding in report.findings}
    assert "randomisation" in report.failed
    assert findings["randomisation"].figure is not None
    assert findings["randomisation"].figure > 0.5
    assert {"deletion", "sensitivity"} <= set(findings)


def test_one_that_depends_on_the_weights_passes(folder: Callable[..., Path]) -> None:
    limits = {"most_surviving": 0.5, "least_against_random": 0.1, "most_sensitive": 1.0}
    report = check(folder("integrated_gradients", limits), None, torch.device("cpu"), Limits(), 6, 0)
    findings = {finding.check: finding for finding in report.findings}
    for name in ("randomisation", "deletion", "sensitivity"):
        assert findings[name].passed, findings[name]


def test_what_the_manifest_has_no_limit_for_is_not_measured(folder: Callable[..., Path]) -> None:
    report = check(folder("saliency", {"most_sensitive": 0.0001}), None, torch.device("cpu"), Limits(), 6, 0)
    assert "sensitivity" in report.failed
    assert not {"randomisation", "deletion"} & {finding.check for finding in report.findings}
