"""What is read off perturbation curves, against a loop over single steps that asks the artefact itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.domain import Floats, OutputSpace, read_target
from tests.faithfulness.conftest import Judge, measure

STEPS = 16


def reference(judge: Judge, row: Floats, values: Floats, stand_in: Floats, target: int, ascending: bool) -> Floats:
    """The probabilities [STEPS + 1] of a target while components fall, one step at a time."""
    order = sorted(range(len(values)), key=lambda at: (values[at], -at) if ascending else (-values[at], at))
    left, outputs = row.copy(), []
    size = len(values) // STEPS
    for step in range(STEPS + 1):
        for at in order[(step - 1) * size : step * size] if step else ():
            left[at] = stand_in[at]
        outputs.append(float(judge.trial.deployed(left[None])[OutputSpace.PROBABILITY][0, target]))
    return np.array(outputs)


@pytest.fixture(scope="module")
def judged(digits: Judge, images: Floats) -> tuple[Floats, Floats, Floats, int]:
    """An image, attributions with equal ones among them, its mean colour and its label."""
    row = images[3]
    values = np.rint(np.random.default_rng(0).normal(size=64) * 3)
    target = int(digits.trial.deployed(row[None])[OutputSpace.PROBABILITY][0].argmax())
    return row, values, np.full(64, row.mean()), target


def test_the_figures_are_those_of_a_loop_over_the_artefact(
    digits: Judge, judged: tuple[Floats, Floats, Floats, int]
) -> None:
    row, values, stand_in, target = judged
    most = reference(digits, row, values, stand_in, target, ascending=False)
    least = reference(digits, row, values, stand_in, target, ascending=True)
    halved = (most[1:] + most[:-1]) / 2, (least[1:] + least[:-1]) / 2
    expected = {
        "deletion": halved[0].mean(),
        "insertion": halved[1].mean(),
        "aopc_morf": (most[0] - most).mean(),
        "aopc_lerf": (least[0] - least).mean(),
        "abpc": (halved[1] - halved[0]).mean(),
        "monotonicity": (np.diff(most[::-1]) >= 0).mean(),
    }
    found = digits.figures(row, values, *(measure(name, "mean", steps=STEPS) for name in expected), target=target)
    assert [one.value for one in found] == pytest.approx(list(expected.values()), abs=1e-6)
    assert found[0].curve == pytest.approx(tuple(most), abs=1e-6)
    assert found[1].curve == pytest.approx(tuple(least[::-1]), abs=1e-6)


def test_random_orders_are_what_chance_is_worth(digits: Judge, images: Floats) -> None:
    """Of attributions that are noise there is next to nothing; integrated gradients are worth much more."""
    asked = measure("deletion_against_random", "mean", orders=10)
    noise = np.random.default_rng(1).normal(size=(12, 64))
    chance = [digits.figures(row, values, asked)[0].value for row, values in zip(images, noise, strict=True)]
    explained = [digits.figures(row, None, asked)[0].value for row in images]
    assert abs(np.mean(np.array(chance, dtype=float))) < 0.05
    assert np.mean(np.array(explained, dtype=float)) > 0.2


def test_curves_that_several_figures_need_are_asked_for_once(digits: Judge, images: Floats) -> None:
    plan = digits.plan(images[1])
    names = ["deletion", "insertion", "aopc_morf", "aopc_lerf", "abpc", "monotonicity"]
    asked = rows_asked(digits, replace(plan, method="saliency", options=()), names)
    assert asked == [1, 1, 20, 20]  # the input, its gradient, and both curves


def test_rows_of_a_curve_are_asked_for_in_parts(digits: Judge, images: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all of them together were too much memory; the figures are the same."""
    asked = [measure("abpc", "marginal", steps=7), measure("average_drop", "marginal")]
    plan = replace(digits.plan(images[1]), method="saliency", options=())
    whole = digits.evaluation(plan, asked)
    monkeypatch.setattr("service.faithfulness.subject.MOST_BYTES", 2 * 8 * 64 * 8)  # two masks of eight rows each
    assert digits.evaluation(plan, asked) == whole
    assert rows_asked(digits, plan, ["deletion"]) == [1, 1, 16, 4]


def rows_asked(judge: Judge, plan: object, names: list[str]) -> list[int]:
    """How many rows each question has."""
    from service.domain import Plan
    from service.engine.kernels.kernel import Segment, slots_of
    from service.engine.worker.evaluation import evaluate

    assert isinstance(plan, Plan)
    model = judge.trial.model
    steps = evaluate(plan, [measure(name, "mean") for name in names], None, model)
    question, sizes = next(steps), []
    while True:
        sizes.append(slots_of(question))
        kernel = model.kernels.of(question)
        try:
            question = steps.send(kernel.join(kernel.run([Segment(question, 0, slots_of(question))])))
        except StopIteration:
            return sizes


def test_alone_equals_amid_traffic(digits: Judge, images: Floats) -> None:
    measures = [measure("deletion", "mean"), measure("infidelity", "mean"), measure("max_sensitivity", samples=2)]
    asked = [(digits.plan(row), measures, None) for row in images[:4]]
    together = digits.together(asked)
    assert together == [digits.evaluation(*one) for one in asked]


def test_the_marginal_is_the_mean_over_rows_of_the_set(loan: Judge, applications: Floats) -> None:
    """Everything removed: the mean output over eight rows of the baseline set."""
    plan = loan.plan(applications[2], seed=5)
    (found,) = loan.evaluation(plan, [measure("deletion", "marginal", steps=3)]).measured
    rows = loan.trial.baseline_rows()
    drawn = rows[np.random.default_rng(5).permutation(len(rows))[:8]]
    target = loan.trial.explained(plan).target
    expected = read_target(loan.trial.deployed(drawn)[plan.output_space], target).mean()
    assert found.curve is not None
    assert found.curve[-1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["mean", "zero", "noise", "marginal", "blur", "inpainting"])
def test_what_stands_in_decides_the_figure_and_not_the_ends(digits: Judge, images: Floats, name: str) -> None:
    """Every replacement begins at the output of the whole image."""
    (found,) = digits.figures(images[2], None, measure("deletion", name))
    output = digits.trial.explained(digits.plan(images[2])).output
    assert found.curve is not None
    assert found.curve[0] == output
    assert len(found.curve) == 21
