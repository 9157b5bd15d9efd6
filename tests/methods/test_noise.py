"""Noise around methods: Captum's NoiseTunnel with the same draws, closed forms, cancellation, budgets and deadlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.catalog.outputs.classes import Classes
from service.domain import Completeness, Floats, GroupShare, Noise, NoiseKind, OutputSpace
from service.methods.expected_gradients import expected_gradients
from service.methods.integrated_gradients import integrated_gradients
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import DeadlinePassed, Forwards, Outputs, Rows, evaluated
from service.methods.shared.noise import COPIES_AT_ONCE, noisy
from service.methods.shared.refining import FIRST_OF_ONE_LINE

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, Pose

SMOOTHGRAD, VARGRAD = NoiseKind.SMOOTHGRAD, NoiseKind.VARGRAD
X, BASELINE = np.array([1.0, 2.0, -3.0]), np.array([0.5, -1.0, 1.0])
HESSIAN = np.array([[2.0, 0.5, -1.0], [0.5, -3.0, 0.0], [-1.0, 0.0, 1.0]])


def quadratic(rows: Tensor) -> Tensor:
    score = torch.einsum("ni,ij,nj->n", rows, torch.from_numpy(HESSIAN), rows) / 2
    return torch.stack([torch.zeros_like(score), score], dim=1)


def bent(rows: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    inner, outer = (torch.randn(size, generator=generator, dtype=torch.float64) for size in [(3, 16), (16, 3)])
    return torch.tanh(rows @ inner + 0.3) @ outer


def attributed(problem: Problem, values: Floats, **fields: Any) -> Attribution:
    known: dict[str, Any] = {
        "baseline_output": problem.center_output,
        "completeness": Completeness.NONE,
        "path_error": None,
        "evaluations": 1,
        "rule": "gradient",
    }
    return Attribution(values=values, **(known | fields))


def gradient(problem: Problem) -> Method:
    answer = yield from evaluated(Rows(problem.input[None], problem.readout, np.array([problem.target])))
    return attributed(problem, answer.contributions[0])


def told(values: Callable[[Problem], Floats], **fields: Any) -> Callable[[Problem], Method]:
    """A method that asks nothing."""

    def method(problem: Problem) -> Method:
        return attributed(problem, values(problem), **fields)
        yield

    return method


def copies_of(problem: Problem, noise: Noise) -> Floats:
    """The copies that are drawn: [samples, inputs]."""
    seen = []

    def remember(one: Problem) -> Floats:
        seen.append(one.input)
        return one.input

    steps = noisy(told(remember), problem, noise)
    question = next(steps)
    try:
        while True:
            assert isinstance(question, Forwards)
            question = steps.send(dict.fromkeys(Classes.spaces, np.zeros((len(question), problem.labels))))
    except StopIteration:
        return np.array(seen)


@pytest.mark.parametrize("kind", NoiseKind)
@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize("name", ["gradient", "integrated_gradients"])
def test_with_the_same_draws_it_agrees_with_captum(
    pose: Pose, drive: Drive, monkeypatch: pytest.MonkeyPatch, name: str, space: OutputSpace, kind: NoiseKind
) -> None:
    from captum.attr import IntegratedGradients, NoiseTunnel, Saliency

    def forward(rows: Tensor) -> Tensor:
        return bent(rows) if space is OutputSpace.LOGIT else torch.softmax(bent(rows), dim=1)

    noise, nodes = Noise(kind, 40, 0.3), 6
    problem = pose(bent, X, BASELINE[None], space, rule="gauss_legendre", max_evaluations=nodes * noise.samples)
    draws = copies_of(problem, noise) - X
    monkeypatch.setattr(torch, "normal", lambda *_: torch.from_numpy(draws))
    rows, given = torch.from_numpy(X)[None], {"nt_type": kind.value, "nt_samples": noise.samples, "target": 1}
    if name == "gradient":
        ours = drive(noisy(gradient, problem, noise), bent)
        theirs = NoiseTunnel(Saliency(forward)).attribute(rows.requires_grad_(), **given, abs=False)
    else:
        ours = drive(noisy(integrated_gradients, problem, noise), bent)
        path = {"baselines": torch.from_numpy(BASELINE)[None], "n_steps": nodes, "method": "gausslegendre"}
        theirs = NoiseTunnel(IntegratedGradients(forward)).attribute(rows, **given, **path)
    np.testing.assert_allclose(
        ours.values, theirs[0].detach().numpy(), rtol=1e-6, atol=1e-6 * np.abs(ours.values).sum()
    )


def test_on_a_quadratic_the_mean_is_the_gradient_and_the_variance_that_of_the_hessian(pose: Pose, drive: Drive) -> None:
    samples, scale = 2000, 0.1
    spread = np.array([1.0, 5.0, 0.2])
    problem = pose(quadratic, X, BASELINE[None], OutputSpace.LOGIT, low=X - spread, high=X + spread)
    of_inputs = scale * 2 * spread
    variance = HESSIAN**2 @ of_inputs**2
    mean = drive(noisy(gradient, problem, Noise(SMOOTHGRAD, samples, scale)), quadratic).values
    np.testing.assert_array_less(np.abs(mean - HESSIAN @ X), 4 * np.sqrt(variance / samples))
    found = drive(noisy(gradient, problem, Noise(VARGRAD, samples, scale)), quadratic).values
    np.testing.assert_allclose(found, variance, rtol=4 * np.sqrt(2 / samples))


def test_a_small_variance_of_large_values_does_not_cancel(pose: Pose, drive: Drive) -> None:
    def large(problem: Problem) -> Floats:
        return 1e9 + 1e-2 * problem.input

    noise = Noise(VARGRAD, 50, 1.0)
    problem = pose(bent, X, BASELINE[None])
    values = 1e9 + 1e-2 * copies_of(problem, noise)
    in_two_passes = ((values - values.mean(axis=0)) ** 2).mean(axis=0)
    of_squares = (values**2).mean(axis=0) - values.mean(axis=0) ** 2
    found = drive(noisy(told(large), problem, noise), bent).values
    np.testing.assert_allclose(found, in_two_passes, rtol=1e-4)
    assert (np.abs(of_squares - in_two_passes) > in_two_passes).all()


def test_the_mean_sums_to_the_mean_change(pose: Pose, drive: Drive) -> None:
    noise = Noise(SMOOTHGRAD, 12, 0.2)
    problem = pose(bent, X, BASELINE[None], rule="gauss_legendre", tolerance=1e-6)
    result = drive(noisy(integrated_gradients, problem, noise), bent)
    outputs = torch.softmax(bent(torch.from_numpy(copies_of(problem, noise))), dim=1)[:, 1].numpy()
    assert result.output is not None
    assert result.output == pytest.approx(outputs.mean(), rel=1e-12)
    assert result.baseline_output == pytest.approx(problem.center_output, rel=1e-12)
    assert result.values.sum() == pytest.approx(result.output - result.baseline_output, rel=1e-6)
    assert result.completeness is Completeness.ASYMPTOTIC
    assert result.path_error is not None


def test_a_variance_promises_no_sum_and_no_error(pose: Pose, drive: Drive) -> None:
    problem = pose(bent, X, BASELINE[None], rule="gauss_legendre")
    result = drive(noisy(integrated_gradients, problem, Noise(VARGRAD, 5, 0.2)), bent)
    assert (result.completeness, result.path_error) == (Completeness.NONE, None)
    assert (result.values >= 0).all()


def test_the_mean_is_as_strict_as_the_least_strict_copy_and_names_every_rule(pose: Pose, drive: Drive) -> None:
    senses = [Completeness.EXACT, Completeness.ASYMPTOTIC, Completeness.EXACT]
    rules = iter(["exact", "midpoint", "exact"])

    def method(problem: Problem) -> Method:
        rule = next(rules)
        return attributed(
            problem, X, completeness=senses.pop(), rule=rule, path_error=0.5, stopped="budget" if senses else None
        )
        yield

    result = drive(noisy(method, pose(bent, X, BASELINE[None]), Noise(SMOOTHGRAD, 3, 0.1)), bent)
    assert (result.completeness, result.rule) == (Completeness.ASYMPTOTIC, "exact or midpoint")
    assert (result.path_error, result.stopped, result.evaluations) == (0.5, "budget", 3)


def test_a_path_that_ends_elsewhere_is_complete_there(pose: Pose, drive: Drive) -> None:
    problem = pose(bent, X, BASELINE[None])
    result = drive(noisy(told(lambda one: one.input, output=7.0), problem, Noise(SMOOTHGRAD, 3, 0.1)), bent)
    assert result.output == 7.0


@pytest.mark.parametrize("kind", NoiseKind)
def test_interactions_and_groups_are_averaged_too(pose: Pose, drive: Drive, kind: NoiseKind) -> None:
    def method(problem: Problem) -> Method:
        first, second, _ = problem.input
        groups = (GroupShare((0, 1), first, second), GroupShare((2,), 1.0, first * second))
        return attributed(problem, problem.input, interactions=np.outer(problem.input, problem.input), groups=groups)
        yield

    noise = Noise(kind, 9, 0.3)
    problem = pose(bent, X, BASELINE[None])
    copies = copies_of(problem, noise)
    pairs = copies[:, :, None] * copies[:, None, :]
    result = drive(noisy(method, problem, noise), bent)
    over = np.mean if kind is SMOOTHGRAD else np.var
    assert result.interactions is not None
    np.testing.assert_allclose(result.interactions, over(pairs, axis=0), rtol=1e-9)
    assert [group.members for group in result.groups] == [(0, 1), (2,)]
    shares = np.array([[group.dividend, group.value] for group in result.groups])
    ones = np.ones(len(copies))
    of_copies = np.array([[copies[:, 0], copies[:, 1]], [ones, pairs[:, 0, 1]]])
    np.testing.assert_allclose(shares, over(of_copies, axis=2), rtol=1e-9)


def test_every_copy_has_an_equal_share_of_the_budget(pose: Pose, drive: Drive) -> None:
    given = []

    def method(problem: Problem) -> Method:
        given.append(problem.max_evaluations)
        return (yield from integrated_gradients(problem))

    problem = pose(bent, X, BASELINE[None], rule="midpoint", tolerance=1e-9, max_evaluations=100)
    result = drive(noisy(method, problem, Noise(SMOOTHGRAD, 7, 0.1)), bent)
    assert given == [100 // 7] * 7
    assert result.evaluations <= 100
    assert result.stopped == "budget"


def test_copies_are_drawn_in_blocks_and_their_outputs_asked_for_together(pose: Pose) -> None:
    problem = pose(bent, X, BASELINE[None])
    steps = noisy(told(lambda one: one.input), problem, Noise(SMOOTHGRAD, 2 * COPIES_AT_ONCE + 5, 0.1))
    asked = [next(steps)]
    answer: Callable[[int], Outputs] = lambda rows: dict.fromkeys(Classes.spaces, np.zeros((rows, 3)))  # noqa: E731
    for _ in range(2):
        question = asked[-1]
        assert isinstance(question, Forwards)
        asked.append(steps.send(answer(len(question))))
    assert [len(question) for question in asked if isinstance(question, Forwards)] == [32, 32, 5]


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_copies(pose: Pose, drive: Drive) -> None:
    noise = Noise(SMOOTHGRAD, 10, 0.1)
    baselines = np.random.default_rng(0).normal(size=(6, 3))
    first, again, other = (
        drive(noisy(expected_gradients, pose(bent, X, baselines, seed=seed, max_evaluations=60), noise), bent).values
        for seed in (5, 5, 6)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.allclose(first, other)


def test_what_a_method_draws_differs_between_the_copies_and_from_the_noise(pose: Pose, drive: Drive) -> None:
    noise = Noise(SMOOTHGRAD, 40, 1.0)
    problem = pose(bent, X, BASELINE[None], seed=3)
    drawn = []

    def own(one: Problem) -> Floats:
        drawn.append(np.random.default_rng(one.seed).standard_normal(3))
        return one.input

    drive(noisy(told(own), problem, noise), bent)
    assert len(np.unique(drawn)) == 3 * 40
    assert not np.isclose(np.array(drawn), copies_of(problem, noise) - X).any()


@pytest.mark.parametrize(("answers", "kind", "copies"), [(2, SMOOTHGRAD, 1), (4, SMOOTHGRAD, 3), (4, VARGRAD, 3)])
def test_after_a_deadline_it_speaks_of_the_copies_that_are_done(
    pose: Pose, drive: Drive, answers: int, kind: NoiseKind, copies: int
) -> None:
    """The first answer is that of all outputs."""
    noise = Noise(kind, 10, 0.1)
    problem = pose(quadratic, X, BASELINE[None], OutputSpace.LOGIT)
    result = drive(noisy(gradient, problem, noise), quadratic, answers=answers)
    of_copies = copies_of(problem, noise)[:copies] @ HESSIAN
    assert (result.stopped, result.evaluations) == ("deadline", copies)
    expected = of_copies.mean(axis=0) if kind is SMOOTHGRAD else of_copies.var(axis=0)
    np.testing.assert_allclose(result.values, expected, rtol=1e-9)


def test_after_a_deadline_a_copy_that_was_left_unfinished_counts(pose: Pose, drive: Drive) -> None:
    problem = pose(bent, X, BASELINE[None], rule="midpoint", tolerance=1e-9)
    result = drive(noisy(integrated_gradients, problem, Noise(SMOOTHGRAD, 10, 0.1)), bent, answers=2)
    assert result.stopped == "deadline"
    assert result.evaluations == FIRST_OF_ONE_LINE


@pytest.mark.parametrize(("answers", "kind"), [(0, SMOOTHGRAD), (1, SMOOTHGRAD), (2, VARGRAD)])
def test_a_deadline_with_too_few_copies_done_passes_through(
    pose: Pose, drive: Drive, answers: int, kind: NoiseKind
) -> None:
    """The variance of one copy would be zero."""
    with pytest.raises(DeadlinePassed):
        drive(noisy(gradient, pose(bent, X, BASELINE[None]), Noise(kind, 10, 0.1)), bent, answers=answers)
