"""Guided IG: PAIR's own code, closed forms, the path it takes, and what it promises of errors, budgets and deadlines.

PAIR `saliency` 0.2.1 calls `np.quantile(interpolation=)`, which numpy 2.4 no longer takes; the comparison puts
`method=` in its place while PAIR's code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.domain import Completeness, Floats, OptionValue, OutputSpace
from service.methods.guided_ig import GUIDED_IG, guided_ig
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Method, Problem
from service.methods.questions import DeadlinePassed, Question, Rows
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

INPUTS = 24
WEIGHTS = np.array([1.5, -2.0, 0.25])
X, BASELINE = np.array([1.0, 2.0, -3.0]), np.array([0.513, -1.037, 1.071])
Activation = Callable[[], nn.Module]


def options(**named: OptionValue) -> dict[str, OptionValue]:
    return {**GUIDED_IG.defaults(), **named}


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def network(activation: Activation = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(INPUTS, 32), activation(), nn.Linear(32, 16), activation(), nn.Linear(16, 3))
    return nn.Sequential(*layers).double().requires_grad_(False)


def ends(seed: int) -> tuple[Floats, Floats]:
    """An input and a baseline that agree in a few features."""
    draws = np.random.default_rng(seed)
    x, baseline = draws.normal(size=INPUTS), draws.normal(size=INPUTS)
    baseline[:3] = x[:3]
    return x, baseline


def watched(method: Method, nodes: list[Floats]) -> Method:
    """The same method; the rows it asks for are noted in `nodes`."""
    question: Question = next(method)
    while True:
        assert isinstance(question, Rows)
        assert len(question) == 1, "each step needs the gradient at the end of the last"
        nodes.append(question.rows[0])
        try:
            question = method.send((yield question))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def path_of(problem: Problem, drive: Drive, net: Callable[[Tensor], Tensor]) -> Floats:
    """The nodes of the path and its end: [steps + 1, inputs]."""
    nodes: list[Floats] = []
    drive(watched(guided_ig(problem), nodes), net)
    return np.array([*nodes, problem.input])


@pytest.mark.parametrize(
    ("activation", "space"),
    [
        (nn.ReLU, OutputSpace.PROBABILITY),
        (nn.Tanh, OutputSpace.LOGIT),
        pytest.param(nn.ReLU, OutputSpace.LOGIT, marks=pytest.mark.slow),
        pytest.param(nn.Tanh, OutputSpace.PROBABILITY, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"steps": 37},
        {"steps": 37, "fraction": 0.05},
        {"steps": 37, "fraction": 1.0},
        {"steps": 37, "max_distance": 0.0},
        {"steps": 37, "max_distance": 1.0},
    ],
    ids=str,
)
def test_it_agrees_with_pair(
    pose: Pose,
    drive: Drive,
    monkeypatch: pytest.MonkeyPatch,
    space: OutputSpace,
    activation: Activation,
    named: dict[str, OptionValue],
) -> None:
    from saliency.core.base import INPUT_OUTPUT_GRADIENTS
    from saliency.core.guided_ig import GuidedIG

    net = network(activation)

    def gradients(rows: Floats, call_model_args: None, expected_keys: list[str]) -> dict[str, Floats]:
        at = torch.from_numpy(rows).requires_grad_()
        logits = net(at)
        output = (logits if space is OutputSpace.LOGIT else torch.softmax(logits, dim=1))[:, 1]
        return {INPUT_OUTPUT_GRADIENTS: torch.autograd.grad(output.sum(), at)[0].numpy()}

    quantile = np.quantile

    def quantile_of_old(values: Floats, q: float, interpolation: Any = None, method: Any = "linear") -> Any:
        return quantile(values, q, method=interpolation or method)

    chosen = options(**{"steps": 100, **named})
    for seed in range(3):
        x, baseline = ends(seed)
        problem = pose(net, x, baseline[None], space, options=chosen)
        ours = drive(guided_ig(problem), net).values
        with monkeypatch.context() as patched:
            patched.setattr(np, "quantile", quantile_of_old)
            theirs = GuidedIG().GetMask(
                x,
                gradients,
                x_baseline=baseline,
                x_steps=chosen["steps"],
                fraction=chosen["fraction"],
                max_dist=chosen["max_distance"],
            )
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).sum())


def test_on_a_linear_model_it_equals_integrated_gradients(pose: Pose, drive: Drive) -> None:
    problem = pose(linear, X, BASELINE[None], OutputSpace.LOGIT, options={**options(), "rule": "auto"})
    result = drive(guided_ig(problem), linear)
    np.testing.assert_allclose(result.values, WEIGHTS * (X - BASELINE), rtol=1e-12)
    np.testing.assert_allclose(result.values, drive(integrated_gradients(problem), linear).values, rtol=1e-12)
    assert result.path_error == pytest.approx(0, abs=1e-10)
    assert (result.completeness, result.stopped) == (Completeness.ASYMPTOTIC, None)
    assert result.evaluations == 200


def test_without_any_distance_the_path_is_the_straight_line(pose: Pose, drive: Drive) -> None:
    net, (x, baseline) = network(), ends(0)
    problem = pose(net, x, baseline[None], options=options(steps=50, max_distance=0.0))
    line = baseline + np.linspace(0, 1, 51)[:, None] * (x - baseline)
    np.testing.assert_allclose(path_of(problem, drive, net), line, atol=1e-12)


@pytest.mark.parametrize("max_distance", [0.02, 0.3])
def test_it_comes_nearer_evenly_and_stays_near_the_line(pose: Pose, drive: Drive, max_distance: float) -> None:
    net, (x, baseline) = network(), ends(1)
    problem = pose(net, x, baseline[None], options=options(steps=40, max_distance=max_distance))
    path = path_of(problem, drive, net)
    left = np.abs(x - path).sum(axis=1)
    np.testing.assert_allclose(left, left[0] * (1 - np.arange(41) / 40), atol=1e-7)
    differ = x != baseline
    gone = (path[:, differ] - baseline[differ]) / (x[differ] - baseline[differ])
    off = np.abs(gone - np.arange(41)[:, None] / 40)
    assert off.max() <= max_distance + 1e-9
    assert off.max() > max_distance / 2, "it does leave the line"


def test_the_inputs_with_the_smallest_gradients_go_first(pose: Pose, drive: Drive) -> None:
    def steep_in_the_first(rows: Tensor) -> Tensor:
        score = rows @ torch.tensor([5.0, 0.1, 0.2, 0.3], dtype=torch.float64)
        return torch.stack([-score, score], dim=1)

    chosen = options(steps=4, fraction=0.25, max_distance=1.0)
    problem = pose(steep_in_the_first, np.ones(4), np.zeros((1, 4)), OutputSpace.LOGIT, options=chosen)
    expected = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_allclose(path_of(problem, drive, steep_in_the_first), expected, atol=1e-9)


def test_units_do_not_matter(pose: Pose, drive: Drive) -> None:
    net, (x, baseline) = network(), ends(2)
    units = np.logspace(-3, 3, INPUTS)

    def in_units(rows: Tensor) -> Tensor:
        result: Tensor = net(rows / torch.from_numpy(units))
        return result

    plain = drive(guided_ig(pose(net, x, baseline[None], options=options())), net)
    problem = pose(in_units, x * units, (baseline * units)[None], low=0 * units, high=units, options=options())
    np.testing.assert_allclose(drive(guided_ig(problem), in_units).values, plain.values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_the_path_error_covers_what_the_steps_miss_of_the_integral(
    pose: Pose, drive: Drive, activation: Activation
) -> None:
    net = network(activation)
    for seed in range(5):
        x, baseline = ends(seed)
        problem = pose(net, x, baseline[None], OutputSpace.LOGIT, options=options())
        result = drive(guided_ig(problem), net)
        path = path_of(problem, drive, net)
        steps = np.diff(path, axis=0)[:, None]
        points = path[:-1, None] + (np.arange(20)[None, :, None] + 0.5) / 20 * steps
        at = torch.from_numpy(points.reshape(-1, INPUTS)).requires_grad_()
        (gradients,) = torch.autograd.grad(net(at)[:, 1].sum(), at)
        truth = (gradients.numpy().reshape(points.shape) * steps).sum(axis=0).mean(axis=0)
        assert truth.sum() == pytest.approx(problem.output - problem.center_output, abs=1e-3)
        assert result.path_error is not None
        assert np.abs(result.values - truth).sum() <= result.path_error <= 0.2 * np.abs(truth).sum()


def test_ten_times_the_steps_leave_a_tenth_of_the_error(pose: Pose, drive: Drive) -> None:
    net, (x, baseline) = network(nn.Tanh), ends(3)
    errors = []
    for steps in (100, 1000):
        problem = pose(net, x, baseline[None], OutputSpace.LOGIT, options=options(steps=steps))
        result = drive(guided_ig(problem), net)
        assert result.path_error is not None
        errors.append(result.path_error)
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.4)


@pytest.mark.parametrize("budget", [1, 2, 33])
def test_a_smaller_budget_takes_fewer_steps_to_the_same_end(pose: Pose, drive: Drive, budget: int) -> None:
    net, (x, baseline) = network(), ends(4)
    problem = pose(net, x, baseline[None], options=options(), max_evaluations=budget)
    result = drive(guided_ig(problem), net)
    assert (result.evaluations, result.stopped) == (budget, "budget")
    asked = pose(net, x, baseline[None], options=options(steps=budget))
    np.testing.assert_array_equal(result.values, drive(guided_ig(asked), net).values)
    assert drive(guided_ig(asked), net).stopped is None


@pytest.mark.parametrize("answers", [1, 2, 50, 199])
def test_after_a_deadline_the_rest_of_the_way_is_one_step(pose: Pose, drive: Drive, answers: int) -> None:
    net, (x, baseline) = network(), ends(5)
    problem = pose(net, x, baseline[None], OutputSpace.LOGIT, options=options())
    result = drive(guided_ig(problem), net, answers=answers)
    assert (result.evaluations, result.stopped) == (answers, "deadline")
    assert result.path_error is not None
    assert abs(result.values.sum() - (problem.output - problem.center_output)) <= result.path_error
    if answers == 1:
        at = torch.from_numpy(baseline).requires_grad_()
        (gradient,) = torch.autograd.grad(net(at)[1], at)
        np.testing.assert_allclose(result.values, gradient.numpy() * (x - baseline), rtol=1e-12)


def test_a_deadline_before_the_first_answer_passes_through(pose: Pose, drive: Drive) -> None:
    problem = pose(linear, X, BASELINE[None], options=options())
    with pytest.raises(DeadlinePassed):
        drive(guided_ig(problem), linear, answers=0)


def test_an_input_that_is_its_own_baseline_gets_zeros(pose: Pose, drive: Drive) -> None:
    result = drive(guided_ig(pose(linear, X, X[None], options=options())), linear)
    assert not result.values.any()
    assert result.path_error == 0


def test_a_gradient_that_is_not_a_number_does_not_hang_it(pose: Pose, drive: Drive) -> None:
    def root(rows: Tensor) -> Tensor:
        score = torch.sqrt(rows[:, 0] - 0.7)  # not a number up to 0.7
        return torch.stack([-score, score], dim=1)

    problem = pose(root, np.ones(2), np.zeros((1, 2)), options=options(steps=10))
    assert np.isnan(drive(guided_ig(problem), root).values).any()


def test_what_it_will_cost_is_known(pose: Pose) -> None:
    problem = pose(linear, X, BASELINE[None])
    facts = Facts(problem.traits, 128, options(steps=70))
    assert (GUIDED_IG.least_points(facts), GUIDED_IG.usual_points(facts)) == (1, 70)
