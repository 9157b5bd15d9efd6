"""Integrated Decision Gradients, driven by a plain function: closed forms, dense midpoints, and where the nodes go."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OutputSpace
from service.methods.decision_ig import decision_ig
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Method
from service.methods.questions import DeadlinePassed, Points

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

LOGIT = OutputSpace.LOGIT
X, BASELINE = np.array([1.0, 2.0, -3.0]), np.array([0.5, -1.0, 1.1])
WEIGHTS = np.array([1.5, -2.0, 0.25])
INNER = torch.from_numpy(np.random.default_rng(5).normal(size=(3, 8)))
OUTER = torch.from_numpy(np.random.default_rng(6).normal(size=(8, 2)))


def both(score: Tensor) -> Tensor:
    return torch.stack([-score, score], dim=1)


def linear(rows: Tensor) -> Tensor:
    return both(rows @ torch.from_numpy(WEIGHTS) + 0.3)


def quadratic(rows: Tensor) -> Tensor:
    return both((rows**2).sum(dim=1) / 2)


def two_layers(rows: Tensor) -> Tensor:
    return torch.relu(rows @ INNER) @ OUTER


def step_at(place: float, steepness: float) -> Any:
    """A logistic step of the mean of the inputs."""

    def network(rows: Tensor) -> Tensor:
        return both(torch.sigmoid(steepness * (rows.mean(dim=1) - place)))

    return network


def watched(method: Method, alphas: list[float]) -> Generator[Any, Any, Any]:
    """The method, with the alphas that it asks for written down."""
    question = next(method)
    while True:
        assert isinstance(question, Points)
        alphas += question.alphas.tolist()
        answer = yield question
        try:
            question = method.send(answer)
        except StopIteration as stop:
            return stop.value


def dense(network: Any, space: OutputSpace, nodes: int = 20_000) -> Floats:
    at = torch.from_numpy(BASELINE + (np.arange(nodes) + 0.5)[:, None] / nodes * (X - BASELINE)).requires_grad_()
    logits = network(at)
    outputs = logits[:, 1] if space is LOGIT else torch.softmax(logits, dim=1)[:, 1]
    (gradients,) = torch.autograd.grad(outputs.sum(), at)
    contributions = gradients.numpy() * (X - BASELINE)
    values: Floats = contributions.sum(axis=1) @ contributions / nodes
    return values


def test_on_a_linear_model_it_is_proportional_to_integrated_gradients(pose: Pose, drive: Drive) -> None:
    problem = pose(linear, X, BASELINE[None], LOGIT)
    result = drive(decision_ig(problem), linear)
    integrated = drive(integrated_gradients(problem), linear).values
    np.testing.assert_allclose(result.values, integrated * integrated.sum(), rtol=1e-12)
    assert (result.completeness, result.path_error, result.evaluations) == (Completeness.NONE, None, 8)


def test_on_a_quadratic_model_from_zeros_it_is_in_closed_form(pose: Pose, drive: Drive) -> None:
    problem = pose(quadratic, X, np.zeros((1, 3)), LOGIT, tolerance=1e-4)
    result = drive(decision_ig(problem), quadratic)
    expected = X**2 * (X**2).sum() / 3
    assert np.abs(result.values - expected).sum() <= 1e-4 * expected.sum()


@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize("tolerance", [0.05, 0.01, 0.001])
def test_refinement_ends_within_the_tolerance(pose: Pose, drive: Drive, space: OutputSpace, tolerance: float) -> None:
    problem = pose(two_layers, X, BASELINE[None], space, tolerance=tolerance)
    result = drive(decision_ig(problem), two_layers)
    truth = dense(two_layers, space)
    assert result.stopped is None
    assert np.abs(result.values - truth).sum() <= 2 * tolerance * np.abs(truth).sum()


@pytest.mark.parametrize("place", [0.125, 0.37, 0.5, 0.93])
def test_a_decision_between_the_first_nodes_is_found_and_gets_the_nodes(pose: Pose, drive: Drive, place: float) -> None:
    steepness, alphas = 1000.0, list[float]()
    network = step_at(place, steepness)
    problem = pose(network, np.ones(2), np.zeros((1, 2)), LOGIT)
    result = drive(watched(decision_ig(problem), alphas), network)
    # The integral of the squared logistic density is its steepness over six.
    np.testing.assert_allclose(result.values, steepness / 12, rtol=0.01)
    assert (np.abs(np.array(alphas) - place) < 10 / steepness).mean() > 0.3, "a third of the nodes on 2% of the path"
    assert result.evaluations == len(alphas) < 70


def test_a_saturated_stretch_counts_little(pose: Pose, drive: Drive) -> None:
    def network(rows: Tensor) -> Tensor:
        """The first input decides early; the second has all of the small slope that is left behind."""
        first = torch.sigmoid(60 * (rows[:, 0] - 0.2))
        return both(first + 0.3 * torch.relu(rows[:, 1] - 0.4))

    problem = pose(network, np.ones(2), np.zeros((1, 2)), LOGIT)
    weighted, plain = (drive(method(problem), network).values for method in (decision_ig, integrated_gradients))
    assert weighted[1] / weighted.sum() < 0.01
    assert plain[1] / plain.sum() > 0.1


def test_where_nothing_changes_all_values_are_zero(pose: Pose, drive: Drive) -> None:
    result = drive(decision_ig(pose(two_layers, X, X[None], LOGIT)), two_layers)
    np.testing.assert_array_equal(result.values, 0)
    assert result.stopped is None


@pytest.mark.parametrize("budget", [1, 5, 10, 30])
def test_a_spent_budget_is_said_and_never_exceeded(pose: Pose, drive: Drive, budget: int) -> None:
    problem = pose(two_layers, X, BASELINE[None], LOGIT, tolerance=1e-9, max_evaluations=budget)
    result = drive(decision_ig(problem), two_layers)
    assert result.stopped == "budget"
    assert budget - 2 < result.evaluations <= budget


def test_after_a_deadline_what_is_known_is_returned(pose: Pose, drive: Drive) -> None:
    problem = pose(two_layers, X, BASELINE[None], LOGIT, tolerance=1e-9)
    result = drive(decision_ig(problem), two_layers, answers=3)
    truth = dense(two_layers, LOGIT)
    assert result.stopped == "deadline"
    assert np.abs(result.values - truth).sum() <= 0.1 * np.abs(truth).sum()
    with pytest.raises(DeadlinePassed):
        drive(decision_ig(problem), two_layers, answers=0)
