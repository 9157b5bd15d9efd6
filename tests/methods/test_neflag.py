"""NeFLAG: closed forms, a slow re-implementation, the sphere it asks about, budgets and deadlines."""

from __future__ import annotations

from math import gamma, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OptionValue, OutputSpace
from service.methods.neflag import NEFLAG, neflag
from service.methods.questions import DeadlinePassed, Rows

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

WEIGHTS = np.array([1.5, -2.0, 0.25, 0.0, 3.0])
X = np.array([0.3, 0.9, 0.1, 0.5, 0.7])
BASELINE = np.zeros((1, 5))


def options(**named: OptionValue) -> dict[str, OptionValue]:
    return {**NEFLAG.defaults(), **named}


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS)
    return torch.stack([-score, score], dim=1)


def expectation(weights: Floats) -> Floats:
    """Of a linear model, over uniform normals."""
    d = len(weights)
    mean: Floats = gamma(d / 2) / (2 * sqrt(pi) * gamma((d + 1) / 2)) * weights**2 / np.linalg.norm(weights)
    return mean


def test_on_a_linear_model_the_mean_is_the_closed_form_and_the_error_falls_with_the_root(
    pose: Pose, drive: Drive
) -> None:
    errors = {}
    for points in (100, 10_000):
        chosen = options(points=points)
        values = [
            drive(neflag(pose(linear, X, BASELINE, OutputSpace.LOGIT, options=chosen, seed=seed)), linear).values
            for seed in range(20)
        ]
        truth = expectation(WEIGHTS)
        errors[points] = float(np.sqrt(((np.array(values) - truth) ** 2).sum(axis=1).mean())) / truth.sum()
        assert np.abs(np.mean(values, axis=0) - truth).sum() <= errors[points] * truth.sum()
    assert errors[10_000] < 0.03
    assert errors[100] / errors[10_000] == pytest.approx(10, rel=0.35)


def test_lengths_are_in_units_of_the_ranges_and_inputs_without_a_range_stay(pose: Pose, drive: Drive) -> None:
    low, high = np.array([0.0, -1.0, 0.0, 5.0, 2.0]), np.array([1.0, 3.0, 10.0, 5.0, 2.5])
    chosen = options(points=10_000)
    problem = pose(linear, X, BASELINE, OutputSpace.LOGIT, options=chosen, low=low, high=high)
    result = drive(neflag(problem), linear)
    scaled = WEIGHTS * (high - low)
    np.testing.assert_allclose(result.values[[0, 1, 2, 4]], expectation(scaled[[0, 1, 2, 4]]), atol=0.05)
    assert result.values[3] == 0
    question = next(neflag(problem))
    assert isinstance(question, Rows)
    moved = question.rows - X
    assert not moved[:, 3].any()
    lengths = np.linalg.norm(moved[:, [0, 1, 2, 4]] / (high - low)[[0, 1, 2, 4]], axis=1)
    np.testing.assert_allclose(lengths, 0.1, rtol=1e-12)


@pytest.mark.parametrize(("sign", "total"), [(1, 0.1), (-1, 0.0)])
def test_at_the_top_of_a_hill_all_flows_in_and_in_a_hollow_nothing_does(
    pose: Pose, drive: Drive, sign: int, total: float
) -> None:
    def hill(rows: Tensor) -> Tensor:
        height = -sign * ((rows - torch.from_numpy(X)) ** 2).sum(dim=1) / 2
        return torch.stack([torch.zeros_like(height), height], dim=1)

    chosen = options(eps=0.1, points=7)
    result = drive(neflag(pose(hill, X, BASELINE, OutputSpace.LOGIT, options=chosen)), hill)
    assert result.values.sum() == pytest.approx(total, abs=1e-12)
    assert (result.values >= 0).all(), "what makes the class likelier here than around has positive values"


@pytest.mark.parametrize("space", Classes.spaces)
def test_it_is_the_sum_over_the_points_through_which_the_gradient_flows_in(
    pose: Pose, drive: Drive, space: OutputSpace
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).double().requires_grad_(False)
    extent = np.array([1.0, 2.0, 0.5, 4.0, 1.0])
    problem = pose(net, X, BASELINE, space, options=options(), high=extent, seed=11)
    question = next(neflag(problem))
    assert isinstance(question, Rows)
    expected = np.zeros(5)
    for row in question.rows:
        at = torch.from_numpy(row).requires_grad_()
        output = (net(at) if space is OutputSpace.LOGIT else torch.softmax(net(at), dim=0))[1]
        (gradient,) = torch.autograd.grad(output, at)
        normal = (row - X) / extent / 0.1
        flux = gradient.numpy() * extent * normal
        if flux.sum() < 0:
            expected -= flux / 20
    result = drive(neflag(problem), net)
    np.testing.assert_allclose(result.values, expected, rtol=1e-9)
    assert expected.any()
    assert (result.evaluations, result.stopped, result.path_error) == (20, None, None)
    assert result.completeness is Completeness.NONE


def test_the_seed_decides(pose: Pose, drive: Drive) -> None:
    def values(seed: int) -> Floats:
        return drive(neflag(pose(linear, X, BASELINE, options=options(), seed=seed)), linear).values

    np.testing.assert_array_equal(values(1), values(1))
    assert (values(1) != values(2)).any()
    assert NEFLAG.uses_seed


def test_a_smaller_budget_takes_fewer_points_and_says_so(pose: Pose, drive: Drive) -> None:
    result = drive(neflag(pose(linear, X, BASELINE, options=options(), max_evaluations=7)), linear)
    assert (result.evaluations, result.stopped) == (7, "budget")


def test_a_deadline_passes_through(pose: Pose, drive: Drive) -> None:
    with pytest.raises(DeadlinePassed):
        drive(neflag(pose(linear, X, BASELINE, options=options())), linear, answers=0)
