"""Probabilities of three labels and more: closed forms, and the textbook models of iris and wine.

The references are float64 and dense; nothing in them is shared with the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from service.domain import Explanation, Floats, OutputSpace

if TYPE_CHECKING:
    from tests.methods.conftest import ModelOf, PlanFor, Run

X, BASELINE = np.array([1.0, 0.5]), np.zeros(2)
NODES = 20_000


def dense(weight: Floats, bias: Floats, start: Floats, end: Floats, target: int, until: float = 1.0) -> Floats:
    """Integrated gradients of the softmax of weight x + bias, by midpoints from `start` to so much of the way."""
    alphas = until * (np.arange(NODES) + 0.5) / NODES
    logits = (start + alphas[:, None] * (end - start)) @ weight.T + bias
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    slopes = -chances * chances[:, target, None]
    slopes[:, target] += chances[:, target]
    values: Floats = until * (end - start) * (slopes.mean(axis=0) @ weight)
    return values


class Scores(nn.Module):
    """weight x + bias."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})

    def forward(self, rows: Tensor) -> Tensor:
        scores: Tensor = self.linear(rows)
        return scores


@pytest.fixture
def explained(model_of: ModelOf, plan_for: PlanFor, run: Run) -> Any:
    """Explanations of a linear model's probabilities, through the kernels in float32."""

    def make(
        weight: Floats,
        bias: Floats,
        rows: Floats,
        baseline: Floats,
        method: str = "integrated_gradients",
        **fields: Any,
    ) -> list[Explanation]:
        model = model_of(Scores(weight, bias), baseline[None])
        fields = {"output_space": OutputSpace.PROBABILITY, "max_evaluations": 4096, **fields}
        return run(model, [plan_for(model, row, method, **fields) for row in rows])

    return make


@pytest.mark.parametrize("slope", [1.0, 10.0, 40.0, 4000.0])
@pytest.mark.parametrize("rule", ["auto", "exact"])
def test_a_logit_that_passes_two_others(explained: Any, slope: float, rule: str) -> None:
    weight, bias = np.array([[0.0, 0.0], [slope, -slope / 4], [0.0, 0.0]]), np.array([0.0, 0.0, -1.0])
    (result,) = explained(weight, bias, X[None], BASELINE, options={"rule": rule})
    # Both features move one logit only, u, so that each has its share of the change of exp(u) / (exp(u) + 1 + 1/e).
    others = 1 + np.exp(-1)
    change = 1 / (1 + others * np.exp(-slope * 0.875)) - 1 / (1 + others)
    shares = np.array([1.0, -0.125]) / 0.875
    np.testing.assert_allclose(result.attributions, shares * change, rtol=1e-5)
    if slope == 10:
        np.testing.assert_allclose(result.attributions, [0.6600, -0.0825], atol=5e-5)
    assert result.converged
    assert result.evaluations == 3
    assert result.attribution_error < 1e-7 * max(slope, 100)


def textbook(loaded: Any, scaled: bool) -> tuple[Floats, Floats, Floats]:
    """Weight and bias of scikit-learn's logistic regression in the units of the data, and the data's rows."""
    rows, labels = loaded(return_X_y=True)
    scaler = StandardScaler().fit(rows) if scaled else StandardScaler(with_mean=False, with_std=False).fit(rows)
    fitted = LogisticRegression(max_iter=20_000).fit(scaler.transform(rows), labels)
    scale = scaler.scale_ if scaled else np.ones(rows.shape[1])
    mean = scaler.mean_ if scaled else np.zeros(rows.shape[1])
    weight = (fitted.coef_ / scale).astype(np.float32).astype(np.float64)
    bias = (fitted.intercept_ - weight @ mean).astype(np.float32).astype(np.float64)
    return weight, bias, rows.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("loaded", "scaled"),
    [
        (load_iris, True),
        (load_iris, False),
        (load_wine, True),
        pytest.param(load_wine, False, marks=pytest.mark.slow),  # thousands of steps until the regression has converged
    ],
)
def test_every_row_of_the_textbook_models_is_explained_to_the_stated_error(
    explained: Any, loaded: Any, scaled: bool
) -> None:
    weight, bias, rows = textbook(loaded, scaled)
    center = rows.mean(axis=0).astype(np.float32).astype(np.float64)
    results = explained(weight, bias, rows, center, target=None)
    assert all(result.converged for result in results)
    assert {result.reason for result in results} == {None}
    assert max(result.evaluations for result in results) <= 3
    covered = []
    for row, result in zip(rows, results, strict=True):
        truth = dense(weight, bias, center, row, result.target)
        error, size = np.abs(np.array(result.attributions) - truth).sum(), np.abs(truth).sum()
        assert error <= 1e-4 * size
        covered.append(error <= result.attribution_error * max(size, 0.01))
        assert result.attribution_error <= 1e-3
    assert np.mean(covered) >= 0.95


def test_other_methods_on_the_straight_path_have_the_same_integral(explained: Any) -> None:
    weight, bias, rows = textbook(load_iris, True)
    center = rows.mean(axis=0).astype(np.float32).astype(np.float64)
    some = rows[::10]
    for row, left in zip(some, explained(weight, bias, some, center, "split_ig"), strict=True):
        assert left.converged
        until = float(left.rule.split(", to ")[1].split()[0]) if ", to " in left.rule else 1.0
        truth = dense(weight, bias, center, row, 1, until)
        assert np.abs(np.array(left.attributions) - truth).sum() <= 1e-4 * np.abs(truth).sum()
    for row, shares in zip(some, explained(weight, bias, some, center, "directional_ig"), strict=True):
        dividends = dense(weight, bias, center, row, 1) / np.where(row == center, np.inf, np.abs(row - center))
        np.testing.assert_allclose(shares.attributions, dividends / np.abs(dividends).sum(), atol=1e-4)
    for found in explained(weight, bias, some[:5], center, "boundary_ig"):
        assert (found.converged, found.rule) == (True, "exact")
        assert sum(found.attributions) == pytest.approx(found.output - found.baseline_output, abs=1e-5)


def test_where_the_budget_has_no_gradient_for_every_label_the_integral_is_refined(explained: Any) -> None:
    draws = np.random.default_rng(0)
    weight, bias, rows = 4 * draws.normal(size=(12, 5)), draws.normal(size=12), draws.uniform(size=(10, 5))
    for row, result in zip(rows, explained(weight, bias, rows, np.zeros(5), max_evaluations=11), strict=True):
        assert result.rule == "midpoint"
        assert result.evaluations <= 11
        truth = dense(weight, bias, np.zeros(5), row, 1)
        error = np.abs(np.array(result.attributions) - truth).sum()
        assert error <= result.attribution_error * np.abs(result.attributions).sum()
