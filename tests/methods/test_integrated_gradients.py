"""Integrated Gradients, driven by a plain function: closed forms, budgets, deadlines, and Captum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OutputSpace, ToleranceOf
from service.methods.integrated_gradients import integrated_gradients
from service.methods.questions import Breakpoints, DeadlinePassed, Points
from service.numerics.quadrature import gauss_legendre

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose, Reference

RULES = ["gauss_legendre", "midpoint"]
WEIGHTS = np.array([1.5, -2.0, 0.25])
X, BASELINE = np.array([1.0, 2.0, -3.0]), np.array([0.513, -1.037, 1.071])


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def quadratic(rows: Tensor) -> Tensor:
    score = rows[:, 0] ** 2 + 3 * rows[:, 1] * rows[:, 2] - rows[:, 0]
    return torch.stack([torch.zeros_like(score), score], dim=1)


def two_layers(rows: Tensor) -> Tensor:
    hidden = torch.relu(rows @ torch.tensor([[1.0, -1, 2], [0.5, 1, 0], [-1, 1, 1]], dtype=torch.float64))
    return hidden @ torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
def test_on_a_linear_model_it_is_weight_times_difference(pose: Pose, drive: Drive, rule: str) -> None:
    problem = pose(linear, X, BASELINE[None], OutputSpace.LOGIT, rule=rule)
    result = drive(integrated_gradients(problem), linear)
    np.testing.assert_allclose(result.values, WEIGHTS * (X - BASELINE), rtol=1e-12)
    assert result.path_error == pytest.approx(0, abs=1e-10)
    assert result.stopped is None


@pytest.mark.parametrize("rule", RULES)
def test_it_starts_from_the_mean_of_the_baselines(pose: Pose, drive: Drive, rule: str) -> None:
    baselines = np.random.default_rng(0).normal(size=(7, 3))
    problem = pose(linear, X, baselines, OutputSpace.LOGIT, rule=rule)
    result = drive(integrated_gradients(problem), linear)
    np.testing.assert_allclose(result.values, WEIGHTS * (X - baselines.mean(axis=0)), rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_on_a_quadratic_model_both_rules_are_exact(pose: Pose, drive: Drive, rule: str) -> None:
    problem = pose(quadratic, X, BASELINE[None], OutputSpace.LOGIT, rule=rule)
    result = drive(integrated_gradients(problem), quadratic)
    middle = (X + BASELINE) / 2
    gradient = np.array([2 * middle[0] - 1, 3 * middle[2], 3 * middle[1]])
    np.testing.assert_allclose(result.values, (X - BASELINE) * gradient, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.sampled_from(RULES),
    st.sampled_from([0.05, 0.01, 0.001]),
)
@example([0.0, 0.0, 0.0], [0.0, 1.5, 1.0], "midpoint", 0.05)  # all inputs err alike: the sum tells by how much
def test_on_the_sigmoid_of_a_linear_margin_shares_are_those_of_the_margin(
    pose: Pose, drive: Drive, x: list[float], baseline: list[float], rule: str, tolerance: float
) -> None:
    end, start = np.array(x), np.array(baseline)
    problem = pose(
        linear,
        end,
        start[None],
        OutputSpace.PROBABILITY,
        rule=rule,
        tolerance=tolerance,
        tolerance_of=ToleranceOf.COMPLETENESS,
    )
    result = drive(integrated_gradients(problem), linear)
    of_margin = WEIGHTS * (end - start)
    sigmoid = [1 / (1 + np.exp(-2 * (WEIGHTS @ row + 0.3))) for row in (start, end)]
    # The mean slope along the path, finite also where the margin does not move.
    nodes, weights = np.polynomial.legendre.leggauss(100)
    scores = WEIGHTS @ start + 0.3 + of_margin.sum() * (nodes + 1) / 2
    chance = 1 / (1 + np.exp(-2 * scores))
    slope = float(weights @ (2 * chance * (1 - chance))) / 2
    assert result.stopped is None
    norm = max(np.abs(of_margin * slope).sum(), problem.floor)
    assert result.path_error is not None
    assert np.abs(result.values - of_margin * slope).sum() <= result.path_error + 1e-9 * norm
    assert abs(result.values.sum() - (sigmoid[1] - sigmoid[0])) <= tolerance * max(
        abs(sigmoid[1] - sigmoid[0]), problem.floor
    )


@pytest.mark.parametrize("space", Classes.spaces)
def test_the_exact_rule_is_exact_with_one_gradient_a_piece(pose: Pose, drive: Drive, space: OutputSpace) -> None:
    problem = pose(two_layers, X, BASELINE[None], space, rule="exact", traits={"obstacle": None})
    result = drive(integrated_gradients(problem), two_layers)
    dense = drive(
        integrated_gradients(pose(two_layers, X, BASELINE[None], space, rule="midpoint", tolerance=1e-6)), two_layers
    )
    assert (result.completeness, result.rule) == (Completeness.EXACT, "exact")
    assert result.evaluations <= 4
    assert result.values.sum() == pytest.approx(problem.output - problem.center_output, abs=1e-12)
    np.testing.assert_allclose(result.values, dense.values, atol=1e-5)


def test_the_exact_rule_with_three_labels_needs_three_nodes_a_piece(pose: Pose, drive: Drive) -> None:
    def three(rows: Tensor) -> Tensor:
        return torch.cat([two_layers(rows), rows[:, :1]], dim=1)

    problem = pose(three, X, BASELINE[None], OutputSpace.PROBABILITY, rule="exact", traits={"obstacle": None})
    result = drive(integrated_gradients(problem), three)
    assert result.evaluations % 3 == 0
    assert result.path_error is not None
    assert abs(result.values.sum() - (problem.output - problem.center_output)) <= result.path_error + 1e-12
    assert result.path_error < 0.01


@pytest.mark.parametrize(("has_kinks", "rule"), [(True, "midpoint"), (False, "midpoint")])
def test_auto_refines_where_pieces_do_not_fit_the_budget(pose: Pose, drive: Drive, has_kinks: bool, rule: str) -> None:
    problem = pose(
        two_layers,
        X,
        BASELINE[None],
        OutputSpace.LOGIT,
        rule="auto",
        traits={"obstacle": None, "kinks": ("relu",) if has_kinks else ()},
        max_evaluations=2,
    )
    assert drive(integrated_gradients(problem), two_layers, most_pieces=1).rule == rule


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [1, 5, 10, 30])
def test_a_spent_budget_is_said_and_never_exceeded(pose: Pose, drive: Drive, rule: str, budget: int) -> None:
    problem = pose(two_layers, X, BASELINE[None], OutputSpace.LOGIT, rule=rule, tolerance=1e-9, max_evaluations=budget)
    result = drive(integrated_gradients(problem), two_layers)
    assert result.stopped == "budget"
    assert result.evaluations <= budget


@pytest.mark.parametrize("rule", RULES)
def test_after_a_deadline_what_is_known_is_returned(pose: Pose, drive: Drive, rule: str) -> None:
    problem = pose(two_layers, X, BASELINE[None], OutputSpace.LOGIT, rule=rule, tolerance=1e-9)
    result = drive(integrated_gradients(problem), two_layers, answers=2)
    assert result.stopped == "deadline"
    truth = drive(
        integrated_gradients(pose(two_layers, X, BASELINE[None], OutputSpace.LOGIT, rule="midpoint", tolerance=1e-5)),
        two_layers,
    )
    assert np.abs(result.values - truth.values).sum() <= result.path_error


@pytest.mark.parametrize("rule", [*RULES, "exact"])
def test_a_deadline_before_the_first_answer_passes_through(pose: Pose, drive: Drive, rule: str) -> None:
    problem = pose(two_layers, X, BASELINE[None], OutputSpace.LOGIT, rule=rule, traits={"obstacle": None})
    with pytest.raises(DeadlinePassed):
        drive(integrated_gradients(problem), two_layers, answers=0)


def test_the_first_nodes_are_few(pose: Pose) -> None:
    questions = {rule: next(integrated_gradients(pose(linear, X, BASELINE[None], rule=rule))) for rule in RULES}
    counts = {rule: len(question) for rule, question in questions.items() if isinstance(question, Points)}
    assert counts == {"gauss_legendre": 6, "midpoint": 5}
    exact = next(integrated_gradients(pose(linear, X, BASELINE[None], rule="exact")))
    assert isinstance(exact, Breakpoints)


def test_at_the_same_nodes_it_agrees_with_captum(
    pose: Pose, drive: Drive, reference: Reference, heldout: Floats, training_baselines: Floats
) -> None:
    from captum.attr import IntegratedGradients

    def gelu(rows: Tensor) -> Tensor:
        return reference.logits(rows, nn.functional.gelu)

    def probability(rows: Tensor) -> Tensor:
        return torch.softmax(gelu(rows), dim=1)

    order = len(gauss_legendre(6).nodes)
    center = training_baselines.mean(axis=0, dtype=np.float64)
    for row in heldout[:20]:
        for space, forward in ((OutputSpace.LOGIT, gelu), (OutputSpace.PROBABILITY, probability)):
            # A budget that allows the first nodes only.
            problem = pose(gelu, row, center[None], space, rule="gauss_legendre", max_evaluations=order)
            ours = drive(integrated_gradients(problem), gelu).values
            theirs = IntegratedGradients(forward).attribute(
                torch.from_numpy(row)[None],
                torch.from_numpy(center)[None],
                target=1,
                n_steps=order,
                method="gausslegendre",
            )[0]
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-6 * np.abs(ours).sum())
