"""Split IG, driven by a plain function: where the path is cut, exactly and by search, and both of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OutputSpace
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Problem
from service.methods.questions import DeadlinePassed
from service.methods.split_ig import ROUNDS, split_ig

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

LOGIT, PROBABILITY = OutputSpace.LOGIT, OutputSpace.PROBABILITY
X, BASELINE = np.array([1.0, 2.0, -3.0]), np.array([0.513, -1.037, 1.071])
INNER = torch.from_numpy(np.random.default_rng(5).normal(size=(3, 8)))
OUTER = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 3)))
CAP = 2.0
WAYS = ["exact", "search"]


def capped(rows: Tensor) -> Tensor:
    score = rows.sum(dim=1).clamp(max=CAP)
    return torch.stack([-score, score], dim=1)


def two_labels(rows: Tensor) -> Tensor:
    return torch.relu(rows @ INNER) @ OUTER[:, :2]


def three_labels(rows: Tensor) -> Tensor:
    return torch.relu(rows @ INNER) @ OUTER


def returning(rows: Tensor) -> Tensor:
    """The target's probability peaks at 0.25, within the first of two linear pieces, and ends at a half."""
    at = rows[:, 0]
    behind = torch.relu(at - 0.5)
    return torch.stack([torch.zeros_like(at), 6 - 40 * at, -14 + 40 * at - 52 * behind], dim=1)


@pytest.fixture
def posed(pose: Pose) -> Any:
    def make(
        network: Any, *, way: str = "exact", phi: float = 0.9, x: Floats = X, baseline: Floats = BASELINE, **fields: Any
    ) -> Problem:
        traits = {"obstacle": None if way == "exact" else "not looked for"}
        fields = {"space": LOGIT, "options": {"phi": phi, "rule": "auto"}, "traits": traits} | fields
        return pose(network, x, baseline[None], **fields)

    return make


def first_crossing(problem: Problem, network: Any) -> float:
    """The first alpha past phi, by a scan of a million points."""
    alphas = np.linspace(0, 1, 1_000_001)
    logits = network(torch.from_numpy(problem.center + alphas[:, None] * (problem.input - problem.center)))
    outputs = logits if problem.output_space is LOGIT else torch.softmax(logits, dim=1)
    made = (outputs[:, problem.target_index].numpy() - problem.center_output) / (problem.output - problem.center_output)
    return float(alphas[np.argmax(made > problem.number("phi"))])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phi", [0.5, 0.9])
def test_of_a_sum_with_a_cap_it_is_the_part_below_the_cap(posed: Any, drive: Drive, way: str, phi: float) -> None:
    x = np.array([1.0, 2.5, 0.5])
    result = drive(split_ig(posed(capped, way=way, phi=phi, x=x, baseline=np.zeros(3))), capped)
    np.testing.assert_allclose(result.values, phi * CAP / x.sum() * x, rtol=1e-6)
    assert result.rule.endswith(f"to {phi * CAP / x.sum():.6g} of the path")
    assert (result.completeness, result.path_error) == (Completeness.NONE, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize(
    ("network", "target"),
    [
        (two_labels, 0),
        (three_labels, 1),
        pytest.param(two_labels, 1, marks=pytest.mark.slow),
        pytest.param(three_labels, 0, marks=pytest.mark.slow),
    ],
)
def test_left_and_right_are_integrated_gradients(
    posed: Any, drive: Drive, network: Any, way: str, space: OutputSpace, target: int
) -> None:
    problem = posed(network, way=way, space=space, target=target, phi=0.6, tolerance=1e-4)
    left = drive(split_ig(problem), network)
    split = first_crossing(problem, network)
    assert 0 < split < 1
    middle = problem.center + split * (problem.input - problem.center)
    logits = network(torch.from_numpy(middle)[None])
    outputs = logits if space is LOGIT else torch.softmax(logits, dim=1)
    right = drive(
        integrated_gradients(replace(problem, center=middle, center_output=outputs[0, target].item())), network
    )
    whole = drive(integrated_gradients(problem), network).values
    assert np.abs(left.values + right.values - whole).sum() <= 2e-3 * np.abs(whole).sum()
    assert np.abs(left.values - whole).sum() > 0.05 * np.abs(whole).sum()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phi", [0.3, 0.9])
def test_values_sum_to_phi_times_the_change(posed: Any, drive: Drive, way: str, phi: float) -> None:
    problem = posed(three_labels, way=way, phi=phi, space=PROBABILITY)
    result = drive(split_ig(problem), three_labels)
    change = problem.output - problem.center_output
    assert abs(result.values.sum() - phi * change) <= problem.tolerance * abs(change)


@pytest.mark.parametrize("way", WAYS)
def test_the_first_crossing_counts_also_within_a_piece(posed: Any, drive: Drive, way: str) -> None:
    problem = posed(returning, way=way, x=np.ones(1), baseline=np.zeros(1), space=PROBABILITY, target=0)
    result = drive(split_ig(problem), returning)
    split = float(result.rule.split()[-4])
    assert split == pytest.approx(first_crossing(problem, returning), abs=2e-6)
    assert split < 0.25
    # The first bend, and the end of the path, are elsewhere.
    assert result.values.sum() == pytest.approx(0.9 * (problem.output - problem.center_output), rel=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_a_change_too_small_to_be_shared_is_not_split(posed: Any, drive: Drive, way: str) -> None:
    problem = posed(two_labels, way=way)
    problem = replace(problem, floor=1.01 * abs(problem.output - problem.center_output))
    np.testing.assert_array_equal(
        drive(split_ig(problem), two_labels).values, drive(integrated_gradients(problem), two_labels).values
    )


@pytest.mark.parametrize("way", WAYS)
def test_where_no_point_makes_more_than_phi_of_the_way_it_is_integrated_gradients(
    posed: Any, drive: Drive, way: str
) -> None:
    def rising(rows: Tensor) -> Tensor:
        score = rows.sum(dim=1) + torch.relu(rows.sum(dim=1) - 1)
        return torch.stack([-score, score], dim=1)

    problem = posed(rising, way=way, phi=1.0, x=np.ones(3), baseline=np.zeros(3))
    result = drive(split_ig(problem), rising)
    np.testing.assert_allclose(result.values, drive(integrated_gradients(problem), rising).values, rtol=1e-9)


@pytest.mark.parametrize("budget", [1, 5, 30])
def test_a_spent_budget_is_said_and_never_exceeded(posed: Any, drive: Drive, budget: int) -> None:
    result = drive(split_ig(posed(two_labels, way="search", tolerance=1e-9, max_evaluations=budget)), two_labels)
    assert result.stopped == "budget"
    assert result.evaluations <= budget


def test_pieces_that_do_not_fit_the_budget_are_searched_instead(posed: Any, drive: Drive) -> None:
    exact, searched = (
        drive(split_ig(posed(two_labels, tolerance=1e-3)), two_labels, most_pieces=most) for most in (None, 1)
    )
    assert [result.rule.split(",")[0] for result in (exact, searched)] == ["exact", "midpoint"]
    assert np.abs(exact.values - searched.values).sum() <= 5e-3 * np.abs(exact.values).sum()


@pytest.mark.parametrize("answers", range(ROUNDS + 1))
def test_a_deadline_before_the_first_gradients_passes_through(posed: Any, drive: Drive, answers: int) -> None:
    with pytest.raises(DeadlinePassed):
        drive(split_ig(posed(two_labels, way="search")), two_labels, answers=answers)


def test_after_a_deadline_what_is_known_is_returned(posed: Any, drive: Drive) -> None:
    late = drive(split_ig(posed(two_labels, way="search", tolerance=1e-9)), two_labels, answers=ROUNDS + 3)
    truth = drive(split_ig(posed(two_labels)), two_labels)
    assert late.stopped == "deadline"
    assert np.abs(late.values - truth.values).sum() <= 0.1 * np.abs(truth.values).sum()
