"""AGI: the closed form of linear models, dense integrals along the paper's walk, errors, budgets and deadlines.

The authors' code is no oracle: it takes every step from the input again and never walks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, OptionValue, OutputSpace
from service.methods.agi import AGI, agi
from service.methods.problem import Method, Problem
from service.methods.questions import DeadlinePassed, Question, Rows
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

Network = Callable[[Tensor], Tensor]
INPUTS, LABELS, TARGET = 6, 5, 2
RIVALS = (0, 1, 3, 4)
WEIGHTS = np.random.default_rng(0).normal(size=(LABELS, INPUTS))
BASELINE = np.zeros((1, INPUTS))
EXTENT = np.array([1.0, 2.0, 0.5, 4.0, 1.0, 0.0])
LOGIT = OutputSpace.LOGIT
DENSE = 20_000
"""Midpoints a step."""
ACTIVATIONS = (nn.Tanh, nn.ReLU)


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


def posed_on(pose: Pose, activation: Callable[[], nn.Module], **fields: object) -> tuple[nn.Sequential, Problem]:
    """A small network and a problem about it, whose traits say whether it has kinks."""
    net = network(activation)
    traits = {"kinks": ("relu",) if activation is nn.ReLU else ()}
    fields = {"target": TARGET, "high": EXTENT, "options": options(eps=0.1), "traits": traits} | fields
    return net, pose(net, predicted_as(TARGET, net), BASELINE, **fields)


def watched(method: Method, asked: list[Question]) -> Method:
    """The same method; its questions are noted in `asked`."""
    question = next(method)
    while True:
        asked.append(question)
        try:
            question = method.send((yield question))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def gradients_in(asked: list[Question]) -> list[Rows]:
    return [question for question in asked if isinstance(question, Rows)]


def outputs_of(net: Network, rows: Floats, space: OutputSpace) -> Floats:
    logits = net(torch.from_numpy(rows))
    outputs: Floats = (logits if space is LOGIT else torch.softmax(logits, dim=1)).numpy()
    return outputs


def gradients_of(net: Network, rows: Floats, label: int, space: OutputSpace) -> Floats:
    at = torch.from_numpy(rows).requires_grad_()
    logits = net(at)
    outputs = logits if space is LOGIT else torch.softmax(logits, dim=1)
    gradients: Floats = torch.autograd.grad(outputs[:, label].sum(), at)[0].numpy()
    return gradients


def walked(net: Network, x: Floats, rival: int, space: OutputSpace, eps: float, steps: int) -> Floats:
    """The walk of the paper's algorithm 1 to one class: the corners [steps + 1, inputs]."""
    corners = [x]
    for _ in range(steps):
        if outputs_of(net, corners[-1][None], space).argmax() == rival:
            break
        step = eps * EXTENT * np.sign(gradients_of(net, corners[-1][None], rival, space)[0])
        corners.append(corners[-1] + step)
    return np.array(corners)


def integrated(net: Network, corners: Floats, space: OutputSpace) -> Floats:
    """Minus the integral of the target's gradient along the corners, by midpoints: [inputs]."""
    shares = (np.arange(DENSE)[:, None] + 0.5) / DENSE
    total = np.zeros(INPUTS)
    for start, end in pairwise(corners):
        mean = gradients_of(net, start + shares * (end - start), TARGET, space).mean(axis=0)
        total -= mean * (end - start)
    return total


@cache
def integrated_to_every_class(activation: Callable[[], nn.Module], space: OutputSpace) -> tuple[Floats, list[Floats]]:
    """What AGI is of the problem of `posed_on`, and the walks of which it is the mean."""
    net = network(activation)
    walks = [walked(net, predicted_as(TARGET, net), rival, space, 0.1, 50) for rival in RIVALS]
    return np.mean([integrated(net, walk, space) for walk in walks], axis=0), walks


@pytest.mark.parametrize(
    ("activation", "space"),
    [
        (nn.ReLU, OutputSpace.PROBABILITY),
        (nn.Tanh, OutputSpace.LOGIT),
        pytest.param(nn.ReLU, OutputSpace.LOGIT, marks=pytest.mark.slow),
        pytest.param(nn.Tanh, OutputSpace.PROBABILITY, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("tolerance", [0.05, 0.01, 1e-4])
def test_it_is_the_integral_along_the_paper_s_walk_to_every_class(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module], space: OutputSpace, tolerance: float
) -> None:
    net, problem = posed_on(pose, activation, space=space, tolerance=tolerance)
    result = drive(agi(problem), net)
    truth, walks = integrated_to_every_class(activation, space)
    assert len({len(walk) for walk in walks}) > 1, "walks differ in length"
    difference = np.abs(result.values - truth).sum()
    assert result.path_error is not None
    assert difference <= result.path_error <= 5 * tolerance * np.abs(result.values).sum()
    assert difference <= 2 * tolerance * np.abs(truth).sum()
    ends = outputs_of(net, np.array([walk[-1] for walk in walks]), space)[:, TARGET]
    assert result.baseline_output == pytest.approx(ends.mean(), rel=1e-9)
    assert result.values[-1] == 0, "an input without a range stays"
    assert result.rule == ("midpoint" if activation is nn.ReLU else "gauss_legendre")


@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_sum_to_the_change_of_the_output_within_the_tolerance(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module], space: OutputSpace
) -> None:
    for eps in (0.05, 0.3, 1.0):
        net, problem = posed_on(pose, activation, space=space, options=options(eps=eps))
        result = drive(agi(problem), net)
        change = problem.output - result.baseline_output
        assert abs(result.values.sum() - change) <= problem.tolerance * max(abs(change), problem.floor)
        assert (result.completeness, result.stopped) == (Completeness.ASYMPTOTIC, None)


def test_on_a_linear_model_it_is_weight_times_difference_to_the_adversarial_examples(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    problem = pose(linear, x, BASELINE, LOGIT, target=TARGET, high=EXTENT, options=options())
    result = drive(agi(problem), linear)
    walks = [walked(linear, x, rival, LOGIT, 0.05, 50) for rival in RIVALS]
    ends = np.array([walk[-1] for walk in walks])
    np.testing.assert_allclose(result.values, -WEIGHTS[TARGET] * (ends - x).mean(axis=0), atol=1e-12)
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, rel=1e-12)
    assert result.path_error == pytest.approx(0, abs=1e-12)
    steps = sum(len(walk) - 1 for walk in walks)
    assert result.evaluations == 2 * steps, "a step costs one gradient to take and one to begin the integral"


def test_all_classes_advance_in_one_question_the_largest_first(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    order = [label for label in np.argsort(-WEIGHTS @ x) if label != TARGET]
    for classes in (1, 3, 20):
        asked: list[Question] = []
        chosen = options(classes=classes)
        problem = pose(linear, x, BASELINE, LOGIT, target=TARGET, high=EXTENT, options=chosen)
        result = drive(watched(agi(problem), asked), linear)
        walks = min(classes, LABELS - 1)
        *onward, integral = gradients_in(asked)
        np.testing.assert_array_equal(onward[0].targets, order[:walks])
        longest = max(len(walked(linear, x, rival, LOGIT, 0.05, 50)) for rival in order[:walks])
        assert len(onward) == longest - 1
        assert set(integral.targets) == {TARGET}
        assert result.evaluations == sum(len(question) for question in gradients_in(asked))
        facts = Facts(problem.traits, 1, chosen)
        assert AGI.least_points(facts) == 2
        assert AGI.usual_points(facts) == 100 * walks


@pytest.mark.parametrize("steps", [1, 3])
def test_walks_end_after_the_steps_that_were_asked_for(pose: Pose, drive: Drive, steps: int) -> None:
    net, problem = posed_on(pose, nn.Tanh, options=options(eps=0.001, steps=steps))
    result = drive(agi(problem), net)
    ends = np.array([walked(net, problem.input, rival, problem.output_space, 0.001, steps)[-1] for rival in RIVALS])
    outputs = outputs_of(net, ends, problem.output_space)
    assert set(outputs.argmax(axis=1)) == {TARGET}
    assert result.baseline_output == pytest.approx(outputs[:, TARGET].mean(), rel=1e-9)


def by_output(x: Floats) -> list[int]:
    """The labels of the linear model, the one with the largest output first."""
    order: list[int] = np.argsort(-WEIGHTS @ x).tolist()
    return order


def test_a_class_that_is_predicted_already_is_not_walked_to(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    target = by_output(x)[1]
    problem = pose(linear, x, BASELINE, LOGIT, target=target, options=options(classes=1))
    result = drive(agi(problem), linear)
    assert not result.values.any()
    assert result.baseline_output == problem.output
    assert (result.path_error, result.evaluations, result.rule, result.stopped) == (0, 0, "none", None)


def test_a_class_that_is_predicted_already_counts_with_zeros(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    target, rival = by_output(x)[1:3]
    problem = pose(linear, x, BASELINE, LOGIT, target=target, high=EXTENT, options=options(classes=2))
    result = drive(agi(problem), linear)
    way = walked(linear, x, rival, LOGIT, 0.05, 50)[-1] - x
    np.testing.assert_allclose(result.values, -WEIGHTS[target] * way / 2, atol=1e-12)
    assert result.values.any()
    assert result.values.sum() == pytest.approx(problem.output - result.baseline_output, rel=1e-12)


def test_a_class_without_a_gradient_is_not_walked_to(pose: Pose, drive: Drive) -> None:
    def constant(rows: Tensor) -> Tensor:
        return 0 * rows[:, :3] + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    problem = pose(constant, np.ones(INPUTS), BASELINE, target=TARGET, options=options())
    result = drive(agi(problem), constant)
    assert not result.values.any()
    assert result.evaluations == 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("budget", [2, 3, 7, 8, 15, 41, 100])
def test_a_spent_budget_is_said_and_never_exceeded(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module], budget: int
) -> None:
    asked: list[Question] = []
    net, problem = posed_on(pose, activation, max_evaluations=budget, tolerance=1e-9)
    result = drive(watched(agi(problem), asked), net)
    spent = sum(len(question) for question in gradients_in(asked))
    assert (result.stopped, result.evaluations) == ("budget", spent)
    assert spent <= budget
    on_walks = sum(len(question) for question in gradients_in(asked) if TARGET not in question.targets)
    assert 0 < on_walks <= budget // 2
    assert result.values.any()
    assert result.path_error is not None
    assert abs(result.values.sum() - (problem.output - result.baseline_output)) <= result.path_error


def test_a_budget_that_ends_the_walks_is_said_though_the_integral_converges(pose: Pose, drive: Drive) -> None:
    x = predicted_as(TARGET, linear)
    problem = pose(linear, x, BASELINE, LOGIT, target=TARGET, high=EXTENT, options=options(), max_evaluations=16)
    result = drive(agi(problem), linear)
    assert (result.stopped, result.evaluations) == ("budget", 16)
    assert result.path_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_deadline_ends_the_refinement_and_passes_through_before_it(
    pose: Pose, drive: Drive, activation: Callable[[], nn.Module]
) -> None:
    asked: list[Question] = []
    net, problem = posed_on(pose, activation, tolerance=1e-6)
    assert drive(watched(agi(problem), asked), net).stopped is None
    first = next(k for k, one in enumerate(asked) if isinstance(one, Rows) and TARGET in one.targets)
    assert first + 2 < len(asked)
    for answers in (0, 1, first // 2, first):
        with pytest.raises(DeadlinePassed):
            drive(agi(problem), net, answers=answers)
    truth, _ = integrated_to_every_class(activation, problem.output_space)
    for answers in (first + 1, first + 2):
        result = drive(agi(problem), net, answers=answers)
        assert result.stopped == "deadline"
        assert result.path_error is not None
        assert 0 < np.abs(result.values - truth).sum() <= result.path_error
