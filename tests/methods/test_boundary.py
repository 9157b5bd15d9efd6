"""Boundary-based IG and saliency, and the search they share: closed forms, brute force in the plane, and promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OutputSpace
from service.methods.boundary_ig import BOUNDARY_IG, boundary_ig
from service.methods.boundary_saliency import BOUNDARY_SALIENCY, boundary_saliency
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Method, Problem
from service.methods.questions import DeadlinePassed, Forwards, Points, Question, Readout, Rows
from service.methods.shared.boundary_search import BoundaryPoint, nearest_boundary
from service.methods.spec import Facts, MethodSpec

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

Network = Callable[[Tensor], Tensor]
WEIGHTS = np.array([1.5, -2.0, 0.25])
X, BASELINE = np.array([1.0, -0.5, -3.0]), np.zeros((1, 3))
EXTENT = np.array([1.0, 0.1, 20.0])


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def network(inputs: int, labels: int, activation: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(inputs, 32), activation(), nn.Linear(32, 16), activation(), nn.Linear(16, labels))
    return nn.Sequential(*layers).double().requires_grad_(False)


def predicted(net: Network, x: Floats) -> int:
    return int(net(torch.from_numpy(x)[None]).argmax())


def margins(net: Network, rows: Floats, target: int) -> Floats:
    """By how much the target's logit exceeds the largest other: [n]."""
    logits = net(torch.from_numpy(rows)).numpy()
    result: Floats = logits[:, target] - np.delete(logits, target, axis=1).max(axis=1)
    return result


def searched(problem: Problem, drive: Drive, net: Network, most: int = 380) -> tuple[BoundaryPoint, list[Question]]:
    """What a search finds, and what it asks."""
    asked: list[Question] = []
    found: list[BoundaryPoint] = []

    def method() -> Method:
        steps = nearest_boundary(problem, most)
        question = next(steps)
        while True:
            asked.append(question)
            try:
                question = steps.send((yield question))
            except StopIteration as stop:
                found.append(stop.value)
                return (yield from boundary_saliency(problem))

    drive(method(), net)
    return found[0], asked


@pytest.mark.parametrize("extent", [np.ones(3), EXTENT])
def test_on_a_linear_model_of_two_labels_the_values_are_as_the_squared_weights(
    pose: Pose, drive: Drive, extent: Floats
) -> None:
    problem = pose(linear, X, BASELINE, OutputSpace.LOGIT, high=extent)
    scaled = 2 * WEIGHTS * extent
    margin = 2 * (WEIGHTS @ X + 0.3)
    nearest = X - extent * margin / (scaled @ scaled) * scaled
    found, asked = searched(problem, drive, linear)
    np.testing.assert_allclose(found.point, nearest, atol=1e-12)
    assert found.is_found
    assert found.output == pytest.approx(0, abs=1e-12)
    assert found.evaluations == sum(len(question) for question in asked if isinstance(question, Rows)) == 2
    result = drive(boundary_ig(problem), linear)
    np.testing.assert_allclose(result.values, margin / 2 * scaled**2 / (scaled @ scaled), rtol=1e-9)
    assert result.stopped is None
    np.testing.assert_allclose(drive(boundary_saliency(problem), linear).values, WEIGHTS, rtol=1e-12)


def test_among_several_labels_the_nearest_is_found(pose: Pose, drive: Drive) -> None:
    for seed in range(20):
        draws = np.random.default_rng(seed)
        weights, x = draws.normal(size=(6, 4)), draws.normal(size=4)

        def several(rows: Tensor, weights: Floats = weights) -> Tensor:
            return rows @ torch.from_numpy(weights.T)

        target = predicted(several, x)
        normals = np.delete(weights[target] - weights, target, axis=0)
        distances = (normals @ x) / np.linalg.norm(normals, axis=1)
        found, _ = searched(pose(several, x, np.zeros((1, 4)), target=target), drive, several)
        assert np.linalg.norm(found.point - x) == pytest.approx(distances.min(), rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "activation"),
    [
        (2, nn.Tanh),
        (4, nn.ReLU),
        pytest.param(2, nn.ReLU, marks=pytest.mark.slow),
        pytest.param(4, nn.Tanh, marks=pytest.mark.slow),
    ],
)
def test_in_the_plane_no_direction_leads_to_a_nearer_point(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module], labels: int
) -> None:
    angles = np.linspace(0, 2 * np.pi, 361)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    excesses = []
    for seed in range(12):
        net = network(2, labels, activation, seed)
        x = np.random.default_rng(seed).normal(size=2)
        target = predicted(net, x)
        found, _ = searched(pose(net, x, np.zeros((1, 2)), target=target), drive, net)
        if not found.is_found:
            continue
        distance = float(np.linalg.norm(found.point - x))
        assert abs(margins(net, found.point[None], target)[0]) < 1e-4 * margins(net, x[None], target)[0]
        lengths = distance * np.linspace(0, 1, 201)[1:]
        rows = x + (lengths[:, None, None] * directions).reshape(-1, 2)
        is_behind = (margins(net, rows, target) <= 0).reshape(200, -1).any(axis=1)
        excesses.append(distance / lengths[is_behind.argmax()] if is_behind.any() else 1.0)
    assert len(excesses) >= 6
    assert np.mean(np.array(excesses) < 1.02) >= 0.7, "it is mostly the nearest; there are other minima"


def test_the_nearest_point_of_an_ellipsoid_is_found(pose: Pose, drive: Drive) -> None:
    axes = np.array([1.0, 2.0, 0.7])

    def inside(rows: Tensor) -> Tensor:
        score = 1 - ((rows / torch.from_numpy(axes)) ** 2).sum(dim=1)
        return torch.stack([torch.zeros_like(score), score], dim=1)

    surface = np.random.default_rng(0).normal(size=(1_000_000, 3))
    surface *= axes / np.linalg.norm(surface, axis=1, keepdims=True)
    for x in ([0.5, 0.2, 0.1], [0.1, 1.5, 0.2], [-0.2, 0.4, -0.4]):
        found, _ = searched(pose(inside, np.array(x), BASELINE, OutputSpace.LOGIT), drive, inside)
        assert margins(inside, found.point[None], 1)[0] == pytest.approx(0, abs=1e-6)
        nearest = np.linalg.norm(surface - x, axis=1).min()
        assert np.linalg.norm(found.point - x) == pytest.approx(nearest, rel=2e-3)


def test_lines_end_where_the_decision_first_turns(pose: Pose, drive: Drive) -> None:
    def banded(rows: Tensor) -> Tensor:
        """One label up to 1, the other to 1.1, then the first again up to 2."""
        at = rows[:, 0]
        score = torch.where(at < 1.05, 1 - at, torch.where(at < 1.55, at - 1.1, 2 - at))
        return torch.stack([torch.zeros_like(score), score], dim=1)

    problem = pose(banded, np.array([0.2, 0.0]), np.zeros((1, 2)), OutputSpace.LOGIT)
    found, _ = searched(problem, drive, banded)
    np.testing.assert_allclose(found.point, [1, 0], atol=1e-9)


@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize("labels", [2, 4])
def test_boundary_ig_is_integrated_gradients_from_the_boundary(
    pose: Pose, drive: Drive, space: OutputSpace, labels: int
) -> None:
    net = network(5, labels, nn.Tanh)
    x = np.random.default_rng(1).normal(size=5)
    target = predicted(net, x)
    problem = pose(net, x, np.zeros((1, 5)), space, target=target, tolerance=1e-3)
    found, _ = searched(problem, drive, net)
    assert margins(net, found.point[None], target)[0] == pytest.approx(0, abs=1e-6)
    moved = replace(problem, center=found.point, center_output=found.output)
    plain = drive(integrated_gradients(moved), net)
    result = drive(boundary_ig(problem), net)
    np.testing.assert_array_equal(result.values, plain.values)
    assert result.evaluations == found.evaluations + plain.evaluations
    assert result.baseline_output == found.output
    assert result.completeness is Completeness.ASYMPTOTIC
    assert result.values.sum() == pytest.approx(problem.output - found.output, rel=1e-3)


def test_on_a_piecewise_linear_network_the_integral_is_exact(pose: Pose, drive: Drive) -> None:
    net, x = network(5, 2), np.random.default_rng(2).normal(size=5)
    problem = pose(net, x, np.zeros((1, 5)), OutputSpace.LOGIT, target=predicted(net, x), traits={"obstacle": None})
    result = drive(boundary_ig(problem), net)
    assert (result.completeness, result.rule) == (Completeness.EXACT, "exact")
    assert result.completeness in BOUNDARY_IG.completeness
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, abs=1e-9)


@pytest.mark.parametrize("space", Classes.spaces)
def test_boundary_saliency_is_the_gradient_at_the_boundary(pose: Pose, drive: Drive, space: OutputSpace) -> None:
    net, x = network(5, 3, nn.Tanh), np.random.default_rng(3).normal(size=5)
    target = predicted(net, x)
    problem = pose(net, x, np.zeros((1, 5)), space, target=target)
    found, _ = searched(problem, drive, net)
    at = torch.from_numpy(found.point).requires_grad_()
    output = (net(at) if space is OutputSpace.LOGIT else torch.softmax(net(at), dim=0))[target]
    (gradient,) = torch.autograd.grad(output, at)
    result = drive(boundary_saliency(problem), net)
    np.testing.assert_allclose(result.values, gradient.numpy(), rtol=1e-9)
    assert (result.completeness, result.path_error) == (Completeness.NONE, None)
    assert result.evaluations == found.evaluations + 1


def test_a_target_that_is_not_predicted_is_held_against_the_label_that_is(pose: Pose, drive: Drive) -> None:
    net, x = network(5, 4), np.random.default_rng(5).normal(size=5)
    top = predicted(net, x)
    target = (top + 1) % 4
    problem = pose(net, x, np.zeros((1, 5)), OutputSpace.LOGIT, target=target)
    result = drive(boundary_ig(problem), net)
    found, asked = searched(problem, drive, net)
    logits = net(torch.from_numpy(found.point)[None])[0]
    assert float(logits[target] - logits[top]) == pytest.approx(0, abs=1e-4)
    assert {int(label) for question in asked if isinstance(question, Rows) for label in question.targets} == {
        target,
        top,
    }
    assert result.stopped is None


def test_an_input_without_a_range_stays(pose: Pose, drive: Drive) -> None:
    high = np.array([1.0, 0.0, 1.0])
    problem = pose(linear, X, BASELINE, OutputSpace.LOGIT, high=high)
    found, _ = searched(problem, drive, linear)
    assert found.point[1] == X[1]
    assert margins(linear, found.point[None], 1)[0] == pytest.approx(0, abs=1e-9)
    assert drive(boundary_ig(problem), linear).values[1] == 0


def test_where_no_decision_turns_the_nearest_to_turning_is_taken_and_said(pose: Pose, drive: Drive) -> None:
    def bowl(rows: Tensor) -> Tensor:
        score = 1 + (rows**2).sum(dim=1)
        return torch.stack([torch.zeros_like(score), score], dim=1)

    problem = pose(bowl, np.array([0.6, 0.8]), np.zeros((1, 2)), OutputSpace.LOGIT)
    found, _ = searched(problem, drive, bowl)
    assert not found.is_found
    assert found.output < problem.output
    result = drive(boundary_ig(problem), bowl)
    assert result.stopped == "budget"
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, rel=0.01)
    assert drive(boundary_saliency(problem), bowl).stopped == "budget"


def test_without_a_gradient_nothing_is_attributed(pose: Pose, drive: Drive) -> None:
    def constant(rows: Tensor) -> Tensor:
        return 0 * rows + torch.tensor([0.0, 1.0], dtype=torch.float64)

    result = drive(boundary_ig(pose(constant, X[:2], BASELINE[:, :2])), constant)
    assert not result.values.any()
    assert result.stopped == "budget"


def test_on_the_boundary_itself_nothing_is_attributed(pose: Pose, drive: Drive) -> None:
    x = np.array([0.2, 0.3, 0.0])

    def through(rows: Tensor) -> Tensor:
        score = (rows - torch.from_numpy(x)) @ torch.from_numpy(WEIGHTS)
        return torch.stack([-score, score], dim=1)

    for target in (0, 1):
        result = drive(boundary_ig(pose(through, x, BASELINE, OutputSpace.LOGIT, target=target)), through)
        assert not result.values.any()


@pytest.mark.parametrize(("labels", "rows"), [(2, 1), (4, 6), (15, 18)])
def test_walkers_to_all_rivals_advance_in_one_question(pose: Pose, drive: Drive, labels: int, rows: int) -> None:
    net, x = network(5, labels), np.random.default_rng(6).normal(size=5)
    problem = pose(net, x, np.zeros((1, 5)), target=predicted(net, x))
    found, asked = searched(problem, drive, net)
    questions = [question for question in asked if isinstance(question, Rows)]
    assert len(questions[0]) == rows
    assert {question.readout for question in questions} == {Readout.MARGIN if labels == 2 else Readout.LOGIT}
    assert found.evaluations == sum(len(question) for question in questions) <= 380
    assert len(questions) <= 60
    assert sum(len(question) for question in asked if isinstance(question, Forwards)) <= 400


@pytest.mark.parametrize("entry", [BOUNDARY_IG, BOUNDARY_SALIENCY], ids=lambda entry: entry.name)
@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("more", [0, 1, 4, 20])
def test_a_budget_is_never_exceeded(pose: Pose, drive: Drive, entry: MethodSpec, labels: int, more: int) -> None:
    net, x = network(5, labels), np.random.default_rng(7).normal(size=5)
    problem = pose(net, x, np.zeros((1, 5)), target=predicted(net, x))
    least = entry.least_points(Facts(problem.traits, 1, {}))
    assert least == (2 if labels == 2 else 3)
    budget = least + more
    result = drive(entry.attribute(replace(problem, max_evaluations=budget)), net)
    assert 0 < result.evaluations <= budget
    assert result.values.any()


def test_a_deadline_passes_through_the_search_and_is_said_of_the_integral(pose: Pose, drive: Drive) -> None:
    net, x = network(5, 4), np.random.default_rng(8).normal(size=5)
    problem = pose(net, x, np.zeros((1, 5)), OutputSpace.LOGIT, target=predicted(net, x), tolerance=1e-9)
    _, asked = searched(problem, drive, net)
    for answers in (0, 3, len(asked) - 1, len(asked)):
        with pytest.raises(DeadlinePassed):
            drive(boundary_ig(problem), net, answers=answers)
    result = drive(boundary_ig(problem), net, answers=len(asked) + 2)
    assert result.stopped == "deadline"
    assert result.path_error is not None
    assert abs(result.values.sum() - (problem.output - result.baseline_output)) <= result.path_error


def test_the_integral_runs_from_the_boundary_to_the_input(pose: Pose, drive: Drive) -> None:
    asked: list[Question] = []

    def watched(method: Method) -> Method:
        question = next(method)
        while True:
            asked.append(question)
            try:
                question = method.send((yield question))
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]

    problem = pose(linear, X, BASELINE, OutputSpace.LOGIT)
    drive(watched(boundary_ig(problem)), linear)
    points = [question for question in asked if isinstance(question, Points)]
    np.testing.assert_array_equal(points[0].end, X)
    assert margins(linear, points[0].starts, 1)[0] == pytest.approx(0, abs=1e-12)
