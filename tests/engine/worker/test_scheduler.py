"""The scheduler, stepped by hand with the real model: sharing, failing rows, fairness, deadlines, memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from service.catalog.outputs.classes import Classes
from service.domain import Explanation, OutputSpace, Plan, Priority
from service.engine.kernels.kernel import Deployed, Kernel, Kernels, Segment
from service.engine.worker.device import DeviceModel
from service.engine.worker.packing import quantum
from service.errors import ComputationFailed, DeadlineExceeded, DeviceOutOfMemory
from service.methods.questions import Breakpoints, Points

if TYPE_CHECKING:
    from tests.engine.conftest import Driver, MakeDriver, MakePlan, WrappedKernel

Wrap = Callable[..., "WrappedKernel"]
Alone = Callable[[Plan], Explanation]

A_THOUSAND_YEARS = 3e10
"""A finite, recognisable loan amount, by which a kernel knows the marked row."""


def marked(plan: Plan) -> Plan:
    """The plan, its row marked for a wrapped kernel."""
    return replace(plan, input=(A_THOUSAND_YEARS, *plan.input[1:]))


def is_marked(segment: Segment) -> bool:
    question: Any = segment.question
    return bool((question.end if hasattr(question, "end") else question.rows)[..., 0].max() == A_THOUSAND_YEARS)


def test_64_explanations_together_are_what_each_is_alone(
    driver: MakeDriver, various: Sequence[Plan], alone: Alone
) -> None:
    together = driver()
    for number, plan in enumerate(various):
        together.add(number, plan)
    together.finish()

    assert [together.result(number) for number in range(64)] == [alone(plan) for plan in various]
    gradients = [report for report in together.scheduler.reports if report.kernel == "gradient"]
    assert max(report.explanations for report in gradients) >= 8
    assert all(report.slots <= report.capacity for report in gradients)
    shapes = together.model.shapes
    assert {report.capacity for report in gradients} == {shapes.brief, shapes.long}


def test_only_what_was_asked_is_computed(driver: MakeDriver, various: Sequence[Plan]) -> None:
    together = driver()
    for number, plan in enumerate(various):
        together.add(number, plan)
    together.finish()

    gradients = sum(report.slots for report in together.scheduler.reports if report.kernel == "gradient")
    assert gradients == sum(together.result(number).evaluations for number in range(64))


def test_what_several_ask_alike_is_computed_once(
    driver: MakeDriver, wrap: Wrap, make_plan: MakePlan, alone: Alone
) -> None:
    """Targets and output spaces of one row: one forward pass, and one walk along the line; and its neighbour's."""
    lines, rows = wrap(Breakpoints), wrap(Deployed)
    together = driver({Breakpoints: lines, Deployed: rows})
    asked = [(number, space, target) for number in (3, 4) for space in Classes.spaces for target in (0, 1, None)]
    plans = [make_plan(number, output_space=space, target=target) for number, space, target in asked]
    for number, plan in enumerate(plans):
        together.add(number, plan, list(Priority)[number % 2])
    together.finish()

    assert [together.result(number) for number in range(len(plans))] == [alone(plan) for plan in plans]
    assert [(chunk.slots, chunk.questions) for chunk in (*rows.chunks, *lines.chunks)] == [(2, 2), (2, 2)]
    reports = [report for report in together.scheduler.reports if report.kernel != "gradient"]
    assert [(report.slots, report.explanations) for report in reports] == [(2, 12), (2, 12)]


def test_one_that_asks_alike_waits_for_nobody_who_left(driver: MakeDriver, make_plan: MakePlan, alone: Alone) -> None:
    """Whoever asked first, or one of the others, is cancelled before and while it is computed."""
    expected = [alone(make_plan(0, target=target)) for target in (0, 1)]
    for cancelled, steps in itertools.product(range(4), range(2)):
        together = driver()
        for number in range(4):
            together.add(number, make_plan(0, target=number % 2))
        for _ in range(steps):
            together.step()
        together.scheduler.cancel(cancelled)
        together.finish()
        left = [number for number in range(4) if number != cancelled]
        assert sorted(together.outcomes) == left
        assert [together.result(number) for number in left] == [expected[number % 2] for number in left]


def test_what_is_asked_alike_fails_each_that_asks_it(driver: MakeDriver, wrap: Wrap, make_plan: MakePlan) -> None:
    def fail(_kernel: WrappedKernel, segments: Sequence[Segment]) -> None:
        if any(is_marked(segment) for segment in segments):
            raise RuntimeError("this row is bad")

    together = driver({Deployed: wrap(Deployed, fail)})
    for number in range(3):
        together.add(number, marked(make_plan(0, target=number % 2)))
    together.add(3, make_plan(1))
    together.finish()
    assert all(isinstance(together.error(number), ComputationFailed) for number in range(3))
    assert together.result(3).converged


@pytest.mark.parametrize("question", [Points, Deployed, Breakpoints])
def test_a_failing_row_fails_its_own_request_only(
    driver: MakeDriver, wrap: Wrap, make_plan: MakePlan, question: type, caplog: pytest.LogCaptureFixture
) -> None:
    def alone(plan: Plan) -> Explanation:
        single = driver({question: wrap(question)})
        single.add(0, plan)
        single.finish()
        return single.result(0)

    def fail(_kernel: WrappedKernel, segments: Sequence[Segment]) -> None:
        if any(is_marked(segment) for segment in segments):
            raise RuntimeError("this row is bad")

    together = driver({question: wrap(question, fail)})
    plans = [make_plan(number) for number in range(32)]
    bad = 13
    for number, plan in enumerate(plans):
        together.add(number, marked(plan) if number == bad else plan)
    together.finish()

    good = [number for number in range(32) if number != bad]
    assert [together.result(number) for number in good] == [alone(plans[number]) for number in good]
    assert isinstance(together.error(bad), ComputationFailed)
    assert "this row is bad" not in str(together.error(bad))
    assert "this row is bad" in caplog.text


@pytest.mark.slow
def test_a_hundred_runs_with_a_failing_row_among_32(
    driver: MakeDriver, wrap: Wrap, make_plan: MakePlan, record_property: Callable[[str, object], None]
) -> None:
    """Each time another of them, in another question, beside others."""

    def alone(plan: Plan, question: type) -> Explanation:
        single = driver({question: wrap(question)})
        single.add(0, plan)
        single.finish()
        return single.result(0)

    def fail(_kernel: WrappedKernel, segments: Sequence[Segment]) -> None:
        if any(is_marked(segment) for segment in segments):
            raise RuntimeError("this row is bad")

    answered = 0
    for run in range(100):
        question = (Points, Breakpoints, Deployed)[run % 3]
        together = driver({question: wrap(question, fail)})
        plans = [make_plan(32 * run + number) for number in range(32)]
        bad = run % 32
        for number, plan in enumerate(plans):
            together.add(number, marked(plan) if number == bad else plan)
        together.finish()
        assert isinstance(together.error(bad), ComputationFailed)
        for number, plan in enumerate(plans):
            if number != bad:
                assert together.result(number) == alone(plan, question)
                answered += 1
    record_property("good ones answered, bit-equal to each alone", f"{answered} of {100 * 31}")
    assert answered == 3100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_whose_output_is_not_finite_spoils_no_other(
    driver: MakeDriver, device_model: DeviceModel, make_plan: MakePlan, alone: Alone, value: float
) -> None:
    class Spoiled(Kernel):
        name, capacity = "deployed", device_model.kernels[Deployed][0].capacity

        def run(self, segments: Sequence[Segment]) -> list[object]:
            parts: list[Any] = device_model.kernels[Deployed][0].run(segments)
            return [
                {space: np.full_like(outputs, value) for space, outputs in part.items()} if is_marked(segment) else part
                for segment, part in zip(segments, parts, strict=True)
            ]

        def join(self, parts: Sequence[object]) -> object:
            return device_model.kernels[Deployed][0].join(parts)

    together = driver({Deployed: Spoiled()})
    plans = [make_plan(number) for number in range(8)]
    for number, plan in enumerate(plans):
        together.add(number, marked(plan) if number == 3 else plan)
    together.finish()

    spoiled = together.result(3)
    assert (spoiled.converged, spoiled.reason) == (False, "non_finite")
    assert (spoiled.outputs, spoiled.output, spoiled.attributions, spoiled.completeness_error) == (None,) * 4
    assert all(together.result(number) == alone(plans[number]) for number in range(8) if number != 3)


def test_gradients_that_are_not_finite_are_said_to_be(
    driver: MakeDriver, device_model: DeviceModel, make_plan: MakePlan
) -> None:
    plan = make_plan(0, rule="midpoint", output_space=OutputSpace.LOGIT, max_evaluations=64)
    kernel: Any = device_model.kernels[Points][0]

    class Spoiled(Kernel):
        name, capacity = "gradient", kernel.capacity

        def run(self, segments: Sequence[Segment]) -> list[object]:
            return [
                replace(part, derivatives=part.derivatives * np.nan, pieces=(part.pieces[0] * np.nan,))
                for part in kernel.run(segments)
            ]

        def join(self, parts: Sequence[object]) -> object:
            joined: object = kernel.join(parts)
            return joined

    single = driver({Points: Spoiled()})
    single.add(0, plan)
    single.finish()

    spoiled = single.result(0)
    assert (spoiled.converged, spoiled.reason, spoiled.attributions) == (False, "non_finite", None)
    assert spoiled.outputs is not None


def big(make_plan: MakePlan, number: int) -> Plan:
    """More than 10,000 points."""
    return make_plan(number, method="expected_gradients", tolerance=1e-5, max_evaluations=30_000)


def test_a_small_one_waits_for_one_chunk_of_a_large_bulk_one(driver: MakeDriver, make_plan: MakePlan) -> None:
    single = driver()
    single.add(0, make_plan(1))
    own_chunks = 0
    while single.scheduler:
        own_chunks += single.step() is not None

    loaded = driver()
    loaded.add(0, big(make_plan, 0), Priority.BULK)
    small, waited = 1, []
    while loaded.scheduler:
        loaded.step()
        if loaded.outcomes.keys() & {0}:
            break
        loaded.add(small, make_plan(1))
        chunks = 0
        while small not in loaded.outcomes:
            loaded.step()
            chunks += 1
        waited.append(chunks)
        small += 1
    loaded.finish()

    assert loaded.result(0).evaluations > 10_000
    assert len(waited) >= 3
    assert max(waited) <= own_chunks + 1
    assert all(loaded.result(number) == single.result(0) for number in range(1, small))


def test_inside_a_chunk_interactive_points_come_first(driver: MakeDriver, wrap: Wrap, make_plan: MakePlan) -> None:
    order: list[list[object]] = []

    def look(_kernel: WrappedKernel, segments: Sequence[Segment]) -> None:
        order.append([segment.question for segment in segments])

    shared = driver({Points: wrap(Points, look)})
    bulk = shared.add(0, big(make_plan, 0), Priority.BULK)
    while not isinstance(bulk.question, Points):
        shared.step()
    small = shared.add(1, make_plan(1, rule="midpoint"))
    while not isinstance(small.question, Points):
        shared.step()
    questions = bulk.question, small.question
    order.clear()
    shared.step()

    assert order[0] == [questions[1], questions[0]]


def test_equals_take_turns_by_points(driver: MakeDriver, wrap: Wrap, make_plan: MakePlan) -> None:
    taken: list[list[tuple[object, int]]] = []

    def look(_kernel: WrappedKernel, segments: Sequence[Segment]) -> None:
        taken.append([(segment.question, len(segment)) for segment in segments])

    shared = driver({Points: wrap(Points, look)})
    three = [shared.add(number, big(make_plan, number)) for number in range(3)]
    while not all(isinstance(live.question, Points) for live in three):
        shared.step()
    taken.clear()
    shared.step()

    (chunk,) = taken
    shares = [size for _, size in chunk]
    assert sum(shares) == shared.model.shapes.long
    assert max(shares) - min(shares) <= quantum(shared.model.shapes.long)


def test_a_cancelled_one_takes_no_more_points(driver: MakeDriver, wrap: Wrap, make_plan: MakePlan) -> None:
    seen: list[object] = []

    def look(_kernel: WrappedKernel, segments: Sequence[Segment]) -> None:
        seen.extend(segment.question for segment in segments)

    shared = driver({Points: wrap(Points, look)})
    four = [shared.add(number, big(make_plan, number)) for number in range(4)]
    while not all(isinstance(live.question, Points) for live in four):
        shared.step()
    shared.scheduler.cancel(2)
    seen.clear()
    cancelled = four[2].question
    shared.finish()

    assert all(question is not cancelled for question in seen)
    assert sorted(shared.outcomes) == [0, 1, 3]
    assert not shared.scheduler


def test_a_deadline_before_any_result(driver: MakeDriver, make_plan: MakePlan) -> None:
    late = driver()
    late.add(0, make_plan(0), deadline=time.monotonic() - 1)
    late.add(1, make_plan(1))
    late.finish()

    assert isinstance(late.error(0), DeadlineExceeded)
    assert late.result(1).converged


@pytest.mark.parametrize(
    "options", [{"rule": "midpoint"}, {"rule": "gauss_legendre"}, {"method": "expected_gradients"}]
)
def test_a_deadline_after_a_round_ends_with_what_is_known(
    driver: MakeDriver, wrap: Wrap, make_plan: MakePlan, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = wrap(Points)
    late = driver({Points: kernel})
    deadline = time.monotonic() + 3600
    live = late.add(0, make_plan(0, tolerance=1e-9, max_evaluations=100_000, **options), deadline=deadline)
    first = live.question
    while not isinstance(first, Points) or live.question is first:
        late.step()
        first = first if isinstance(first, Points) else live.question
    before = len(kernel.chunks)
    monkeypatch.setattr("service.engine.worker.scheduler.time.monotonic", lambda: deadline)
    late.finish()

    result = late.result(0)
    assert (result.converged, result.reason) == (False, "deadline")
    assert result.attributions is not None
    assert result.evaluations > 0
    assert len(kernel.chunks) == before


def ask_the_cpu_for_too_much() -> object:
    return torch.empty(2**60, dtype=torch.uint8)


def ask_numpy_for_too_much() -> object:
    return np.empty(2**60, dtype=np.uint8)


def ask_the_device_for_too_much() -> object:
    raise torch.OutOfMemoryError("CUDA out of memory")


def ask_the_artefact_for_too_much() -> object:
    raise RuntimeError("std::bad_alloc")


ASKING = [ask_the_device_for_too_much, ask_the_cpu_for_too_much, ask_numpy_for_too_much, ask_the_artefact_for_too_much]


@pytest.mark.parametrize("ask", ASKING)
def test_out_of_memory_halves_the_chunk_for_good(
    driver: MakeDriver, wrap: Wrap, various: Sequence[Plan], alone: Alone, ask: Callable[[], object]
) -> None:
    fits = 100

    def need_memory(kernel: WrappedKernel, _segments: Sequence[Segment]) -> None:
        if kernel.capacity > fits:
            ask()

    kernel = wrap(Points, need_memory)
    rows = kernel.capacity
    small = driver({Points: kernel})
    for number, plan in enumerate(various):
        small.add(number, plan)
    small.finish()

    assert kernel.capacity == rows // 8
    assert sum(chunk.slots > fits for chunk in kernel.chunks) == 3
    for number, plan in enumerate(various):
        # Another number of rows: the last bits may differ, and no more than those.
        result, usual = small.result(number), alone(plan)
        assert (result.evaluations, result.converged) == (usual.evaluations, usual.converged)
        assert result.attributions == pytest.approx(usual.attributions, rel=1e-3, abs=1e-6)
    later = len(kernel.chunks)
    small.add(64, various[0])
    small.finish()
    assert all(chunk.slots <= fits for chunk in kernel.chunks[later:])


@pytest.mark.parametrize("ask", ASKING)
def test_one_row_that_does_not_fit_is_the_end(
    driver: MakeDriver, wrap: Wrap, make_plan: MakePlan, ask: Callable[[], object]
) -> None:
    def no_memory(_kernel: WrappedKernel, _segments: Sequence[Segment]) -> None:
        ask()

    kernel = wrap(Points, no_memory)
    small = driver({Points: kernel})
    for number in range(3):
        small.add(number, make_plan(number))
    small.finish()

    assert all(isinstance(small.error(number), DeviceOutOfMemory) for number in range(3))
    assert kernel.capacity == 1


def test_an_error_of_the_device_ends_the_worker(driver: MakeDriver, wrap: Wrap, make_plan: MakePlan) -> None:
    def stick(_kernel: WrappedKernel, _segments: Sequence[Segment]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    broken = driver({Points: wrap(Points, stick)})
    broken.add(0, make_plan(0))
    with pytest.raises(torch.AcceleratorError):
        broken.finish()
    assert not broken.outcomes


def test_a_question_that_the_model_cannot_answer_fails_alone(
    driver: MakeDriver, make_plan: MakePlan, caplog: pytest.LogCaptureFixture
) -> None:
    lacking: Driver = driver()
    kernels = Kernels({k: v for k, v in lacking.model.kernels.items() if k is not Breakpoints})
    lacking.model = replace(lacking.model, kernels=kernels)
    lacking.add(0, make_plan(0, rule="exact"))
    lacking.add(1, make_plan(1, rule="midpoint"))
    lacking.finish()

    assert isinstance(lacking.error(0), ComputationFailed)
    assert lacking.result(1).converged
    assert "an explanation failed" in caplog.text
