"""AGI: the closed form of linear models, a slow re-implementation from the paper, errors, budgets and deadlines.

The authors' code is no oracle: it takes every step from the input again and never walks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.domain import Completeness, Floats, OptionValue, OutputSpace
from service.methods.agi import AGI, agi
from service.methods.entry import Facts
from service.methods.oracle import DeadlinePassed, Method, Question, Rows

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

Network = Callable[[Tensor], Tensor]
INPUTS, LABELS, TARGET = 6, 5, 2
WEIGHTS = np.random.default_rng(0).normal(size=(LABELS, INPUTS))
BASELINE = np.zeros((1, INPUTS))
EXTENT = np.array([1.0, 2.0, 0.5, 4.0, 1.0, 0.0])


def options(**named: OptionValue) -> dict[str, OptionValue]:
    return {**AGI.defaults(), **named}


def linear(rows: Tensor) -> Tensor:
    return rows @ torch.from_numpy(WEIGHTS.T)


def network(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(3)
    layers = (nn.Linear(INPUTS, 24), activation(), nn.Linear(24, LABELS))
    return nn.Sequential(*layers).double().requires_grad_(False)


def predicted_as(target: int, net: Network, seed: int = 0) -> Floats:
    """An input that the network gives this label, by a clear margin."""
    draws = np.random.default_rng(seed).normal(size=(20_000, INPUTS))
    logits = net(torch.from_numpy(draws)).numpy()
    others = np.delete(logits, target, axis=1).max(axis=1)
    row: Floats = draws[np.argsort(logits[:, target] - others)[-200]]
    return row


def watched(method: Method, asked: list[Rows]) -> Method:
    """The same method; its gradient points are noted in `asked`."""
    question: Question = next(method)
    while True:
        if isinstance(question, Rows):
            asked.append(question)
        try:
            question = method.send((yield question))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def walked(net: Network, x: Floats, rival: int, space: OutputSpace, eps: float, steps: int) -> tuple[Floats, Floats]:
    """The paper's algorithm 1 for one class: what it accumulates, and where it ends."""

    def gradient(at: Floats, label: int) -> Floats:
        row = torch.from_numpy(at).requires_grad_()
        logits = net(row[None])[0]
        output = (logits if space is OutputSpace.LOGIT else torch.softmax(logits, dim=0))[label]
        result: Floats = torch.autograd.grad(output, row)[0].numpy()
        return result

    at, values = x.copy(), np.zeros(INPUTS)
    for _ in range(steps):
        if int(net(torch.from_numpy(at)[None])[0].argmax()) == rival:
            break
        step = eps * EXTENT * np.sign(gradient(at, rival))
        values -= gradient(at, TARGET) * step
        at = at + step
    return values, at


@pytest.mark.parametrize("space", OutputSpace)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_it_is_the_paper_s_algorithm_for_every_class(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module], space: OutputSpace
) -> None:
    net = network(activation)
    x = predicted_as(TARGET, net)
    problem = pose(net, x, BASELINE, space, target=TARGET, high=EXTENT, options=options(eps=0.1, steps=30))
    result = drive(agi(problem), net)
    walks = [walked(net, x, rival, space, 0.1, 30) for rival in (0, 1, 3, 4)]
    np.testing.assert_allclose(result.values, np.mean([values for values, _ in walks], axis=0), rtol=1e-9)
    found = np.array([end for _, end in walks])
    logits = net(torch.from_numpy(found))
    outputs = (logits if space is OutputSpace.LOGIT else torch.softmax(logits, dim=1))[:, TARGET].numpy()
    assert result.baseline_output == pytest.approx(outputs.mean(), rel=1e-12)
    assert result.values[-1] == 0, "an input without a range stays"
    assert (np.abs(found - x) > 0.11 * EXTENT)[:, :-1].any(), "walks have more than one step"
    assert result.stopped is None


def test_on_a_linear_model_it_is_weight_times_difference_to_the_adversarial_examples(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    problem = pose(linear, x, BASELINE, OutputSpace.LOGIT, target=TARGET, high=EXTENT, options=options())
    result = drive(agi(problem), linear)
    found = np.array([walked(linear, x, rival, OutputSpace.LOGIT, 0.05, 50)[1] for rival in (0, 1, 3, 4)])
    np.testing.assert_allclose(result.values, -WEIGHTS[TARGET] * (found - x).mean(axis=0), atol=1e-12)
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, rel=1e-12)
    assert result.path_error == pytest.approx(0, abs=1e-12)
    assert result.completeness is Completeness.ASYMPTOTIC


@pytest.mark.parametrize("space", OutputSpace)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_shorter_steps_come_nearer_to_the_change_of_the_output(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module], space: OutputSpace
) -> None:
    net = network(activation)
    x = predicted_as(TARGET, net)
    errors = []
    for eps in (0.05, 0.005):
        chosen = options(eps=eps, steps=1000)
        problem = pose(net, x, BASELINE, space, target=TARGET, high=EXTENT, options=chosen)
        result = drive(agi(problem), net)
        residual = abs(result.values.sum() - (problem.output - result.baseline_output))
        assert result.path_error is not None
        assert residual <= result.path_error
        errors.append(result.path_error)
    assert errors[1] < errors[0] / 4


def test_all_classes_advance_in_one_question_the_largest_first(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    order = [label for label in np.argsort(-WEIGHTS @ x) if label != TARGET]
    for classes in (1, 3, 20):
        asked: list[Rows] = []
        chosen = options(classes=classes)
        problem = pose(linear, x, BASELINE, OutputSpace.LOGIT, target=TARGET, options=chosen)
        result = drive(watched(agi(problem), asked), linear)
        walks = min(classes, LABELS - 1)
        np.testing.assert_array_equal(asked[0].targets, [*order[:walks], *[TARGET] * walks])
        assert result.evaluations == sum(len(question) for question in asked)
        assert len(asked) <= 51
        facts = Facts(problem.traits, 1, chosen)
        assert AGI.least_points(facts) == 2
        assert AGI.usual_points(facts) == 20 * walks


def test_a_class_that_is_predicted_already_is_not_walked_to(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    first = next(label for label in np.argsort(-WEIGHTS @ x) if label != TARGET)
    problem = pose(linear, x, BASELINE, OutputSpace.LOGIT, target=first, options=options(classes=1))
    result = drive(agi(problem), linear)
    assert not result.values.any()
    assert result.baseline_output == pytest.approx(problem.output)


def test_a_class_without_a_gradient_is_not_walked_to(pose: Pose, drive: Drive) -> None:
    def constant(rows: Tensor) -> Tensor:
        return 0 * rows[:, :3] + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    problem = pose(constant, np.ones(INPUTS), BASELINE, target=TARGET, options=options())
    result = drive(agi(problem), constant)
    assert not result.values.any()
    assert result.evaluations == 4


@pytest.mark.parametrize("budget", [2, 3, 7, 8, 15, 41])
def test_a_spent_budget_is_said_and_never_exceeded(pose: Pose, drive: Drive, budget: int) -> None:
    net = network()
    x = predicted_as(TARGET, net)
    chosen = options(eps=0.01)
    problem = pose(net, x, BASELINE, target=TARGET, options=chosen, max_evaluations=budget)
    result = drive(agi(problem), net)
    assert (result.stopped, result.evaluations <= budget) == ("budget", True)
    assert result.path_error is not None
    assert abs(result.values.sum() - (problem.output - result.baseline_output)) <= result.path_error


@pytest.mark.parametrize("answers", [3, 4, 10])
def test_after_a_deadline_the_walks_end_where_they_are(pose: Pose, drive: Drive, answers: int) -> None:
    net = network()
    x = predicted_as(TARGET, net)
    problem = pose(net, x, BASELINE, OutputSpace.LOGIT, target=TARGET, options=options(eps=0.01))
    result = drive(agi(problem), net, answers=answers)
    assert result.stopped == "deadline"
    assert result.values.any()
    assert result.path_error is not None
    assert abs(result.values.sum() - (problem.output - result.baseline_output)) <= result.path_error


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_deadline_before_the_first_step_passes_through(pose: Pose, drive: Drive, answers: int) -> None:
    x = predicted_as(TARGET, linear)
    with pytest.raises(DeadlinePassed):
        drive(agi(pose(linear, x, BASELINE, target=TARGET, options=options())), linear, answers=answers)
