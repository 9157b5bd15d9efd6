"""IDGI, driven by a plain function: closed forms, the paper's algorithm written out, and what the steps promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from service.catalog.inputs.tabular import TabularInputs
from service.catalog.outputs.classes import Classes
from service.catalog.traits import Traits
from service.domain import Completeness, Floats, OutputSpace
from service.methods import idgi as module
from service.methods.idgi import IDGI, idgi
from service.methods.problem import Problem
from service.methods.questions import DeadlinePassed
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

LOGIT = OutputSpace.LOGIT
X, BASELINE = np.array([1.0, 2.0, -3.0, 0.7]), np.array([0.5, -1.0, 1.1, 0.7])
INNER = torch.from_numpy(np.random.default_rng(5).normal(size=(4, 8)))
OUTER = torch.from_numpy(np.random.default_rng(6).normal(size=(8, 2)))
WEIGHTS = np.array([1.5, -2.0, 0.25, 1.0])


def linear(rows: Tensor) -> Tensor:
    score = rows @ torch.from_numpy(WEIGHTS) + 0.3
    return torch.stack([-score, score], dim=1)


def smooth(rows: Tensor) -> Tensor:
    return torch.tanh(rows @ INNER / 2) @ OUTER


def homogeneous(rows: Tensor) -> Tensor:
    return torch.relu(rows @ INNER) @ OUTER


def paused(rows: Tensor) -> Tensor:
    """Flat until the first input reaches 0.75, halfway."""
    score = torch.relu(rows[:, 0] - 0.75) * rows[:, 1]
    return torch.stack([-score, score], dim=1)


@pytest.fixture
def posed(pose: Pose) -> Any:
    def make(
        network: Any,
        *,
        path: str = "straight",
        steps: int = 64,
        x: Floats = X,
        baseline: Floats = BASELINE,
        **fields: Any,
    ) -> Problem:
        fields = {"space": LOGIT, "options": {"path": path, "steps": steps}} | fields
        return pose(network, x, baseline[None], **fields)

    return make


def written_out(steps: int) -> Floats:
    """The paper's algorithm on the smooth network: the gradient at the start of each step."""
    at = torch.from_numpy(BASELINE + np.linspace(0, 1, steps + 1)[:, None] * (X - BASELINE)).requires_grad_()
    outputs = smooth(at)[:, 1]
    (gradients,) = torch.autograd.grad(outputs.sum(), at)
    values = np.zeros_like(X)
    for k in range(steps):
        square = gradients[k].numpy() ** 2
        values += square * (outputs[k + 1] - outputs[k]).item() / square.sum()
    return values


def test_on_a_linear_model_the_change_is_shared_by_squared_weights(posed: Any, drive: Drive) -> None:
    problem = posed(linear)
    result = drive(idgi(problem), linear)
    expected = WEIGHTS**2 * (problem.output - problem.center_output) / (WEIGHTS**2).sum()
    np.testing.assert_allclose(result.values, expected, rtol=1e-12)
    assert result.values[3] != 0, "an input that does not move has a share where it has a gradient"
    assert result.path_error == pytest.approx(0, abs=1e-10)


def test_a_small_gradient_is_not_a_zero_gradient(posed: Any, drive: Drive) -> None:
    def faint(rows: Tensor) -> Tensor:
        return 1e-9 * smooth(rows)

    plain, result = (drive(idgi(posed(network)), network) for network in (smooth, faint))
    np.testing.assert_allclose(result.values, 1e-9 * plain.values, rtol=1e-6)


def test_it_has_the_limit_of_the_algorithm_in_the_paper(posed: Any, drive: Drive) -> None:
    limit = 2 * written_out(8000) - written_out(4000)
    errors = [
        float(np.abs(drive(idgi(posed(smooth, steps=steps)), smooth).values - limit).sum()) for steps in (64, 128, 1000)
    ]
    assert errors[0] / errors[1] > 3, "of second order"
    assert errors[0] < np.abs(written_out(64) - limit).sum() / 5
    assert errors[2] < 1e-3 * np.abs(limit).sum()


@pytest.mark.parametrize("steps", [1, 7, 64])
@pytest.mark.parametrize("space", Classes.spaces)
def test_values_sum_to_the_change_whatever_the_number_of_steps(
    posed: Any, drive: Drive, steps: int, space: OutputSpace
) -> None:
    problem = posed(smooth, steps=steps, space=space)
    result = drive(idgi(problem), smooth)
    assert result.values.sum() == pytest.approx(problem.output - problem.center_output, abs=1e-12)
    assert (result.completeness, result.baseline_output) == (Completeness.BY_CONSTRUCTION, problem.center_output)
    assert result.evaluations == steps


def test_a_network_without_biases_is_explained_from_zeros_in_full(posed: Any, drive: Drive) -> None:
    problem = posed(homogeneous, baseline=np.zeros(4))
    result = drive(idgi(problem), homogeneous)
    assert result.values.sum() == pytest.approx(problem.output - problem.center_output, abs=1e-12)


def test_a_table_may_be_told_in_other_units(posed: Any, drive: Drive) -> None:
    factor = np.array([1000.0, 1.0, 0.01, 3.0])

    def rescaled(rows: Tensor) -> Tensor:
        return smooth(rows / torch.from_numpy(factor))

    plain = drive(idgi(posed(smooth)), smooth)
    other = drive(idgi(posed(rescaled, x=factor * X, baseline=factor * BASELINE, high=factor)), rescaled)
    np.testing.assert_allclose(other.values, plain.values, rtol=1e-9)


def test_steps_without_a_gradient_are_skipped(posed: Any, drive: Drive) -> None:
    problem = posed(paused, steps=9)
    result = drive(idgi(problem), paused)
    assert np.isfinite(result.values).all()
    # The middle of the fifth step is the bend itself, where the gradient is zero though the step changes the output.
    row = torch.from_numpy(BASELINE + 5 / 9 * (X - BASELINE))
    assert result.values.sum() == pytest.approx(problem.output - paused(row[None])[0, 1].item(), abs=1e-12)
    assert result.path_error > problem.output - problem.center_output - result.values.sum() != 0


def test_where_nothing_changes_all_values_are_zero(posed: Any, drive: Drive) -> None:
    result = drive(idgi(posed(paused, x=BASELINE)), paused)
    np.testing.assert_array_equal(result.values, 0)


def test_the_path_error_falls_with_more_steps_and_covers_what_they_miss(posed: Any, drive: Drive) -> None:
    limit = drive(idgi(posed(homogeneous, steps=4096)), homogeneous)
    before = np.inf
    for steps in (16, 64, 256):
        result = drive(idgi(posed(homogeneous, steps=steps)), homogeneous)
        assert result.path_error is not None
        assert np.abs(result.values - limit.values).sum() <= result.path_error < before / 2
        before = result.path_error


def test_an_input_too_large_for_one_question_is_asked_in_parts(
    posed: Any, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = drive(idgi(posed(smooth)), smooth)
    monkeypatch.setattr(module, "MOST_NUMBERS", 5 * X.size)
    method, lengths = idgi(posed(smooth)), []

    def watched() -> Any:
        answer = None
        while True:
            try:
                question = method.send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                return stop.value
            lengths.append(len(question))  # type: ignore[arg-type]
            answer = yield question

    in_parts = drive(watched(), smooth)
    np.testing.assert_allclose(in_parts.values, together.values, rtol=1e-12)
    assert lengths == 2 * ([5] * 12 + [4])


def test_the_path_of_blurs_starts_from_the_blurred_image(pose: Pose, drive: Drive) -> None:
    image = np.random.default_rng(2).uniform(size=(2, 6, 5))
    weights = torch.from_numpy(np.random.default_rng(4).normal(size=(60, 2)))

    def network(images: Tensor) -> Tensor:
        return images.flatten(1) @ weights

    options = {"path": "blur", "steps": 30}
    problem = pose(network, image, np.zeros((1, *image.shape)), LOGIT, options=options)
    result = drive(idgi(problem), network, shape=image.shape)
    blurred = ndimage.gaussian_filter(image, [0, 0.2 * 6, 0.2 * 6], mode="reflect", truncate=8.0)
    start = network(torch.from_numpy(blurred)[None])[0, 1].item()
    squares = weights[:, 1].numpy() ** 2
    assert result.baseline_output == pytest.approx(start, abs=1e-12)
    np.testing.assert_allclose(result.values, squares * (problem.output - start) / squares.sum(), rtol=1e-12)
    assert result.path_error < 0.5 * np.abs(result.values).sum()


def test_a_budget_below_the_steps_is_used_up_and_said(posed: Any, drive: Drive) -> None:
    result = drive(idgi(posed(smooth, steps=64, max_evaluations=10)), smooth)
    assert (result.evaluations, result.stopped) == (10, "budget")
    assert drive(idgi(posed(smooth, steps=10, max_evaluations=10)), smooth).stopped is None


def test_without_a_number_of_steps_they_are_taken_in_three_until_the_tolerance_holds(posed: Any, drive: Drive) -> None:
    result = drive(idgi(posed(homogeneous, steps=0, tolerance=0.01, max_evaluations=50_000)), homogeneous)
    assert result.stopped is None
    assert result.path_error <= 0.01 * np.abs(result.values).sum()
    assert result.evaluations in 64 * 3 ** np.arange(1, 7)
    named = drive(idgi(posed(homogeneous, steps=result.evaluations)), homogeneous)
    np.testing.assert_allclose(result.values, named.values, rtol=1e-9)
    assert result.path_error == pytest.approx(named.path_error, rel=1e-9)
    before = drive(idgi(posed(homogeneous, steps=result.evaluations // 3)), homogeneous)
    assert before.path_error > 0.01 * np.abs(before.values).sum()


def test_it_stops_where_three_times_as_many_do_not_fit(posed: Any, drive: Drive) -> None:
    result = drive(idgi(posed(homogeneous, steps=0, tolerance=1e-9, max_evaluations=600)), homogeneous)
    assert (result.evaluations, result.stopped) == (576, "budget")
    late = drive(idgi(posed(homogeneous, steps=0, tolerance=1e-9)), homogeneous, answers=3)
    assert (late.evaluations, late.stopped) == (64, "deadline")


@pytest.mark.parametrize("answers", [0, 1])
def test_after_a_deadline_there_is_nothing_to_tell(posed: Any, drive: Drive, answers: int) -> None:
    with pytest.raises(DeadlinePassed):
        drive(idgi(posed(smooth)), smooth, answers=answers)


def test_it_says_that_blurs_are_for_images() -> None:
    traits = Traits(TabularInputs.axes, (4,), 2, None, (), has_relu=False, has_convolution=False, biases_obstacle=None)
    reason = IDGI.not_applicable(Facts(traits, 1, IDGI.defaults() | {"path": "blur"}))
    assert reason is not None
    assert "use path: straight" in reason
    assert IDGI.not_applicable(Facts(traits, 1, IDGI.defaults())) is None
