"""Sequential Integrated Gradients, driven by a plain function: one position against IG, all against Captum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.outputs.classes import Classes
from service.catalog.traits import Traits
from service.domain import Completeness, Floats, OutputSpace
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Problem
from service.methods.questions import DeadlinePassed, Points
from service.methods.sequential_ig import SEQUENTIAL_IG, sequential_ig
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

SHAPE = (5, 3)
DRAWS = np.random.default_rng(11)
X, BASELINE = DRAWS.normal(size=(2, *SHAPE))
BASELINE[[0, 4]] = X[[0, 4]]  # special tokens
CHANGED = [1, 2, 3]
INNER, OUTER = (torch.from_numpy(DRAWS.normal(size=size)) for size in ((15, 8), (8, 2)))


def smooth(tokens: Tensor) -> Tensor:
    return torch.tanh(tokens.flatten(1) @ INNER / 2) @ OUTER


def kinked(tokens: Tensor) -> Tensor:
    return torch.relu(tokens.flatten(1) @ INNER) @ OUTER


def masked(position: int) -> Floats:
    row: Floats = X.copy()
    row[position] = BASELINE[position]
    return row


def output(network: Any, row: Floats, space: OutputSpace) -> float:
    logits = network(torch.from_numpy(row)[None])
    outputs = logits if space is OutputSpace.LOGIT else torch.softmax(logits, dim=1)
    return float(outputs[0, 1])


@pytest.fixture
def posed(pose: Pose) -> Any:
    def make(network: Any, *, baseline: Floats = BASELINE, **fields: Any) -> Problem:
        fields = {"space": OutputSpace.LOGIT, "traits": {"kinks": () if network is smooth else ("relu",)}} | fields
        return pose(network, X, baseline[None], **fields)

    return make


@pytest.mark.parametrize("network", [smooth, kinked])
@pytest.mark.parametrize("space", Classes.spaces)
def test_where_one_token_differs_it_is_integrated_gradients(
    posed: Any, drive: Drive, network: Any, space: OutputSpace
) -> None:
    problem = posed(network, baseline=masked(2), space=space, tolerance=1e-5)
    result = drive(sequential_ig(problem), network, shape=SHAPE)
    integrated = drive(integrated_gradients(problem), network, shape=SHAPE)
    np.testing.assert_allclose(result.values, integrated.values, atol=1e-4 * np.abs(integrated.values).sum())


@pytest.mark.parametrize("space", Classes.spaces)
def test_each_token_has_the_values_that_captum_finds_on_its_path(posed: Any, drive: Drive, space: OutputSpace) -> None:
    from captum.attr import IntegratedGradients

    def forward(tokens: Tensor) -> Tensor:
        return smooth(tokens) if space is OutputSpace.LOGIT else torch.softmax(smooth(tokens), dim=1)

    result = drive(sequential_ig(posed(smooth, space=space, tolerance=1e-7)), smooth, shape=SHAPE)
    expected = np.zeros(SHAPE)
    for position in CHANGED:
        theirs = IntegratedGradients(forward).attribute(
            torch.from_numpy(X)[None],
            torch.from_numpy(masked(position))[None],
            target=1,
            n_steps=60,
            method="gausslegendre",
        )
        expected[position] = theirs[0, position].numpy()
    np.testing.assert_allclose(result.values.reshape(SHAPE), expected, atol=1e-7 * np.abs(expected).sum())


@pytest.mark.parametrize("network", [smooth, kinked])
@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize("tolerance", [0.05, 0.001])
def test_a_token_sums_to_what_masking_it_alone_changes(
    posed: Any, drive: Drive, network: Any, space: OutputSpace, tolerance: float
) -> None:
    problem = posed(network, space=space, tolerance=tolerance)
    result = drive(sequential_ig(problem), network, shape=SHAPE)
    changes = [problem.output - output(network, masked(position), space) for position in range(SHAPE[0])]
    missed = np.abs(problem.per_component(result.values) - changes).sum()
    assert missed <= tolerance * np.abs(result.values).sum()
    assert (result.completeness, result.path_error, result.stopped) == (Completeness.NONE, None, None)
    assert not np.isclose(result.values.sum(), problem.output - problem.center_output, rtol=0.02)


def test_tokens_that_are_those_of_the_baseline_cost_nothing_and_have_zeros(posed: Any, drive: Drive) -> None:
    result = drive(sequential_ig(posed(kinked, max_evaluations=len(CHANGED))), kinked, shape=SHAPE)
    np.testing.assert_array_equal(result.values.reshape(SHAPE)[[0, 4]], 0)
    assert (result.values.reshape(SHAPE)[CHANGED] != 0).all()
    assert result.evaluations == len(CHANGED)


def test_where_nothing_differs_nothing_is_asked(posed: Any) -> None:
    with pytest.raises(StopIteration) as stop:
        next(sequential_ig(posed(smooth, baseline=X)))
    np.testing.assert_array_equal(stop.value.value.values, 0)
    assert stop.value.value.evaluations == 0


def test_the_paths_that_err_most_get_more_nodes(posed: Any, drive: Drive) -> None:
    def rough(tokens: Tensor) -> Tensor:
        """Linear but for the token at 2."""
        score = tokens[:, 1].sum(dim=1) + torch.relu(50 * tokens[:, 2].sum(dim=1)) + tokens[:, 3].sum(dim=1)
        return torch.stack([-score, score], dim=1)

    counts = np.zeros(3, dtype=int)

    def watched() -> Any:
        method = sequential_ig(posed(rough, tolerance=1e-4))
        question = next(method)
        while True:
            if isinstance(question, Points):
                counts[:] += np.bincount(question.line, minlength=3)
            answer = yield question
            try:
                question = method.send(answer)
            except StopIteration as stop:
                return stop.value

    result = drive(watched(), rough, shape=SHAPE)
    assert counts[0] == counts[2] == 4
    assert counts[1] > 20
    assert counts.sum() == result.evaluations


@pytest.mark.parametrize("network", [smooth, kinked])
@pytest.mark.parametrize("budget", [3, 10, 30, 100])
def test_a_spent_budget_is_said_and_never_exceeded(posed: Any, drive: Drive, network: Any, budget: int) -> None:
    problem = posed(network, tolerance=1e-14, max_evaluations=budget)
    result = drive(sequential_ig(problem), network, shape=SHAPE)
    assert result.stopped in ("budget", "precision")
    assert result.evaluations <= budget
    if network is kinked:
        assert (result.stopped, result.evaluations >= budget - 2) == ("budget", True)


def test_after_a_deadline_what_is_known_is_returned(posed: Any, drive: Drive) -> None:
    late = drive(sequential_ig(posed(kinked, tolerance=1e-9)), kinked, answers=4, shape=SHAPE)
    truth = drive(sequential_ig(posed(kinked, tolerance=1e-5)), kinked, shape=SHAPE)
    assert late.stopped == "deadline"
    assert np.abs(late.values - truth.values).sum() <= 0.05 * np.abs(truth.values).sum()


@pytest.mark.parametrize("answers", [0, 1])
def test_a_deadline_before_the_first_gradients_passes_through(posed: Any, drive: Drive, answers: int) -> None:
    with pytest.raises(DeadlinePassed):
        drive(sequential_ig(posed(kinked)), kinked, answers=answers, shape=SHAPE)


def test_it_needs_a_point_a_position_and_is_for_tokens() -> None:
    tokens, table = (
        Facts(Traits(axes, SHAPE, 2, None, (), has_relu=False, has_convolution=False, biases_obstacle=None), 1, {})
        for axes in (TokenInputs.axes, TabularInputs.axes)
    )
    assert (SEQUENTIAL_IG.not_applicable(tokens), SEQUENTIAL_IG.least_points(tokens)) == (None, SHAPE[0])
    assert "use integrated_gradients" in str(SEQUENTIAL_IG.not_applicable(table))
