"""Expected Gradients, driven by a plain function: closed forms, standard errors, budgets and deadlines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OutputSpace
from service.methods.expected_gradients import expected_gradients
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import DeadlinePassed, Points, Readout, evaluated
from service.methods.shared.one_gradient import of_one_gradient
from service.numerics.sampling_error import sampling_error

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose, Reference

WEIGHTS = np.array([1.5, -2.0, 0.25])
X = np.array([1.0, 2.0, -3.0])
BASELINES = np.random.default_rng(3).normal(size=(24, 3))


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def bent(rows: Tensor) -> Tensor:
    score = torch.relu(rows @ torch.from_numpy(WEIGHTS)) + torch.relu(rows[:, 0] - rows[:, 1])
    return torch.stack([torch.zeros_like(score), score], dim=1)


def quadratic(rows: Tensor) -> Tensor:
    score = rows[:, 0] ** 2 + 3 * rows[:, 1] * rows[:, 2]
    return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.mark.parametrize("budget", [24, 48, 72, 4096])
def test_on_a_linear_model_it_is_weight_times_difference_from_the_mean(pose: Pose, drive: Drive, budget: int) -> None:
    problem = pose(linear, X, BASELINES, OutputSpace.LOGIT, max_evaluations=budget)
    result = drive(expected_gradients(problem), linear)
    np.testing.assert_allclose(result.values, WEIGHTS * (X - BASELINES.mean(axis=0)), rtol=1e-9)
    assert result.standard_error is not None
    of_baselines = WEIGHTS * (X - BASELINES)
    expected = sampling_error(of_baselines)
    np.testing.assert_allclose(result.standard_error, expected, rtol=1e-9)
    spread = np.abs(WEIGHTS) * BASELINES.std(axis=0, ddof=1) / np.sqrt(len(BASELINES))
    assert (result.standard_error > spread).all()
    assert (result.standard_error < 1.4 * spread).all()


def test_on_a_quadratic_model_it_is_exact(pose: Pose, drive: Drive) -> None:
    result = drive(expected_gradients(pose(quadratic, X, BASELINES, OutputSpace.LOGIT)), quadratic)
    middle = (X + BASELINES) / 2
    gradient = np.stack([2 * middle[:, 0], 3 * middle[:, 2], 3 * middle[:, 1]], axis=1)
    np.testing.assert_allclose(result.values, ((X - BASELINES) * gradient).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("tolerance", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("space", Classes.spaces)
def test_it_is_complete_by_construction(pose: Pose, drive: Drive, space: OutputSpace, tolerance: float) -> None:
    problem = pose(bent, X, BASELINES, space, tolerance=tolerance)
    result = drive(expected_gradients(problem), bent)
    assert result.completeness is Completeness.BY_CONSTRUCTION
    assert result.baseline_output == pytest.approx(problem.baseline_outputs.mean())
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, abs=1e-12)


def test_with_one_baseline_it_has_no_standard_error(pose: Pose, drive: Drive) -> None:
    result = drive(expected_gradients(pose(linear, X, BASELINES[:1], OutputSpace.LOGIT)), linear)
    np.testing.assert_allclose(result.values, WEIGHTS * (X - BASELINES[0]), rtol=1e-12)
    assert result.standard_error is None


@pytest.mark.parametrize("budget", [24, 50, 100, 300])
def test_a_spent_budget_is_said_and_never_exceeded(pose: Pose, drive: Drive, budget: int) -> None:
    problem = pose(bent, X, BASELINES, OutputSpace.LOGIT, tolerance=1e-6, max_evaluations=budget)
    result = drive(expected_gradients(problem), bent)
    assert result.stopped == "budget"
    assert result.evaluations <= budget


def test_after_a_deadline_what_is_known_is_returned(pose: Pose, drive: Drive) -> None:
    problem = pose(bent, X, BASELINES, OutputSpace.LOGIT, tolerance=1e-6)
    result = drive(expected_gradients(problem), bent, answers=1)
    assert (result.stopped, result.evaluations) == ("deadline", 4 * len(BASELINES))
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, abs=1e-12)


def test_a_deadline_before_the_first_answer_passes_through(pose: Pose, drive: Drive) -> None:
    with pytest.raises(DeadlinePassed):
        drive(expected_gradients(pose(bent, X, BASELINES)), bent, answers=0)


@pytest.mark.slow
def test_two_standard_errors_cover_the_population_in_nineteen_draws_of_twenty(pose: Pose, drive: Drive) -> None:
    """Of baseline sets drawn from a population, of which the true value is the mean."""
    draws = np.random.default_rng(8)
    population = draws.gamma(4.0, size=(400, 3)) / 2

    def explained(baselines: Floats) -> Attribution:
        problem = pose(bent, X, baselines, OutputSpace.LOGIT, max_evaluations=50_000)
        return drive(expected_gradients(problem), bent)

    truth, covered = explained(population).values, []
    for _ in range(300):
        result = explained(population[draws.integers(0, len(population), 32)])
        assert result.standard_error is not None
        covered.append(np.abs(result.values - truth) <= 1.96 * result.standard_error)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_more_points_leave_the_standard_error_where_it_is(
    pose: Pose, drive: Drive, reference: Reference, heldout: Floats, training_baselines: Floats
) -> None:
    """It is a property of the baseline set, not of the quadrature."""

    def network(rows: Tensor) -> Tensor:
        return reference.logits(rows, torch.relu)

    baselines = training_baselines.astype(np.float64)[:32]
    row = heldout[0]
    of_baselines = reference.walked(baselines, np.tile(row, (32, 1)))[OutputSpace.LOGIT]
    expected = sampling_error(of_baselines)
    for tolerance in (0.05, 0.01):
        problem = pose(network, row, baselines, OutputSpace.LOGIT, tolerance=tolerance)
        result = drive(expected_gradients(problem), network)
        assert result.standard_error is not None
        assert np.abs(result.standard_error - expected).sum() <= 2 * tolerance * expected.sum()


@pytest.fixture
def shap_explains() -> Iterator[Callable[..., tuple[Floats, Floats]]]:
    """shap's Expected Gradients of label 1 and their standard errors, [inputs] each.

    shap makes its rows in torch's default type and draws from numpy's global generator; both are as before afterwards.
    Its `return_variances` are var / sqrt(n), not var / n.
    """
    with warnings.catch_warnings(action="ignore"):  # of what shap imports to plot
        from shap import GradientExplainer

    class Logits(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return bent(rows)

    state, dtype = np.random.get_state(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def explain(draws: int, seed: int) -> tuple[Floats, Floats]:
        explainer = GradientExplainer(Logits(), torch.from_numpy(BASELINES))
        values, variances = explainer.shap_values(
            torch.from_numpy(X)[None], nsamples=draws, rseed=seed, return_variances=True
        )
        return values[0, :, 1], np.sqrt(variances[1][0] / np.sqrt(draws))

    yield explain
    torch.set_default_dtype(dtype)
    np.random.set_state(state)


def test_at_the_draws_of_shap_the_contributions_are_those_of_shap(
    pose: Pose, drive: Drive, shap_explains: Callable[..., tuple[Floats, Floats]]
) -> None:
    values, _ = shap_explains(200, seed=7)
    replayed = np.random.RandomState(7)
    draws = [(replayed.choice(len(BASELINES)), replayed.uniform()) for _ in range(200)]
    line, alphas = np.array([line for line, _ in draws]), np.array([alpha for _, alpha in draws])

    def mean_over_the_draws(problem: Problem) -> Method:
        known = yield from evaluated(Points(problem.baselines, problem.input, line, alphas, Readout.LOGIT, 1))
        return of_one_gradient(problem, known.weighted_sum(np.full(200, 1 / 200)))

    ours = drive(mean_over_the_draws(pose(bent, X, BASELINES, OutputSpace.LOGIT)), bent)
    np.testing.assert_allclose(ours.values, values, rtol=2e-7)


def test_shap_draws_its_way_to_the_same_values(
    pose: Pose, drive: Drive, shap_explains: Callable[..., tuple[Floats, Floats]]
) -> None:
    ours = drive(expected_gradients(pose(bent, X, BASELINES, OutputSpace.LOGIT, tolerance=0.001)), bent)
    theirs, error = shap_explains(4_000, seed=0)
    assert np.abs(ours.values - theirs).max() > 0
    np.testing.assert_array_less(np.abs(ours.values - theirs), 4 * error)
