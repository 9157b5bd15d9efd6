"""Chunks that are left to the device while the next one is packed: the same answers, in the same bits."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch

from service.domain import ChunkShapes, Explanation, Plan, Priority
from service.engine.kernels.gradient import NICENESS, BackgroundGradientKernel
from service.engine.kernels.kernel import Kernel, Launched, Overlapping, Segment
from service.engine.worker import model_kernels
from service.engine.worker.device import DeviceModel
from service.errors import ComputationFailed
from service.methods.questions import Points

if TYPE_CHECKING:
    from tests.engine.conftest import Driver, MakeDriver, MakePlan

Alone = Callable[[Plan], Explanation]
Fault = Callable[[int, Sequence[Segment]], None]


@dataclass(eq=False)
class Left(Overlapping):
    """The model's kernel, computing only when collected, as a device that was left to itself would.

    One that is slow is done only when the next is launched, or after a few looks. `at_launch` and `at_collection` are
    called with the chunk's number and may raise; `events` tells the order.
    """

    wrapped: Kernel
    at_launch: Fault = lambda _number, _segments: None
    at_collection: Fault = lambda _number, _segments: None
    name: str = "gradient"
    events: list[tuple[str, int]] = field(default_factory=list)
    chunks: int = 0
    is_slow: bool = False

    @property
    def capacity(self) -> int:
        return self.wrapped.capacity

    @capacity.setter
    def capacity(self, rows: int) -> None:
        self.wrapped.capacity = rows

    def launch(self, segments: Sequence[Segment]) -> Launched:
        number, self.chunks = self.chunks, self.chunks + 1
        self.events.append(("launch", number))
        self.at_launch(number, segments)

        def collect() -> list[object]:
            self.events.append(("collect", number))
            self.at_collection(number, segments)
            return self.wrapped.run(segments)

        polls = itertools.count()
        return Launched(lambda: not self.is_slow or self.chunks > number + 1 or next(polls) > 3, collect)

    def run(self, segments: Sequence[Segment]) -> list[object]:
        return self.launch(segments).collect()

    def join(self, parts: Sequence[object]) -> object:
        return self.wrapped.join(parts)


@pytest.fixture
def expected(driver: MakeDriver, gradient: Kernel, various: Sequence[Plan]) -> list[Explanation]:
    """What each explanation is alone, at the one shape that these tests use."""

    def alone(plan: Plan) -> Explanation:
        single = driver({Points: gradient})
        single.add(0, plan)
        single.finish()
        return single.result(0)

    return [alone(plan) for plan in various]


@pytest.fixture
def gradient(device_model: DeviceModel) -> Kernel:
    return device_model.kernels[Points][0]


@pytest.fixture
def copied(gradient: Kernel) -> Kernel:
    """The same kernel with a capacity of its own, which a test may shrink."""
    return copy(gradient)


def finished(driver: Driver, plans: Sequence[Plan]) -> list[Explanation]:
    for number, plan in enumerate(plans):
        driver.add(number, plan)
    driver.finish()
    return [driver.result(number) for number in range(len(plans))]


def test_the_next_chunk_is_launched_before_the_last_is_collected(
    driver: MakeDriver, gradient: Kernel, various: Sequence[Plan], expected: list[Explanation]
) -> None:
    kernel = Left(gradient, is_slow=True)
    assert finished(driver({Points: kernel}), various) == expected
    order = kernel.events
    both = [order.index(("launch", n + 1)) < order.index(("collect", n)) for n in range(kernel.chunks - 1)]
    assert sum(both) > 0.8 * len(both)
    assert all(order.index(("collect", n)) < order.index(("collect", n + 1)) for n in range(kernel.chunks - 1))
    under_way = 0
    for event, _ in order:
        under_way += 1 if event == "launch" else -1
        assert 0 <= under_way <= 2


def test_memory_that_ends_while_two_chunks_are_under_way(
    driver: MakeDriver, various: Sequence[Plan], expected: list[Explanation], copied: Kernel
) -> None:
    def run_out(number: int, _segments: Sequence[Segment]) -> None:
        if number == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    kernel = Left(copied, at_collection=run_out, is_slow=True)
    rows = kernel.capacity
    results = finished(driver({Points: kernel}), various)
    assert kernel.capacity == rows // 2
    assert [result.evaluations for result in results] == [result.evaluations for result in expected]
    for result, usual in zip(results, expected, strict=True):
        assert result.attributions == pytest.approx(usual.attributions, rel=1e-4, abs=1e-6)


def test_memory_that_ends_at_a_launch(
    driver: MakeDriver, various: Sequence[Plan], expected: list[Explanation], copied: Kernel
) -> None:
    def run_out(_number: int, _segments: Sequence[Segment]) -> None:
        if kernel.capacity > rows // 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    kernel = Left(copied, at_launch=run_out)
    rows = kernel.capacity
    results = finished(driver({Points: kernel}), various)
    assert kernel.capacity == rows // 4
    assert [result.evaluations for result in results] == [result.evaluations for result in expected]


@pytest.mark.parametrize("when", ["launch", "collection"])
def test_a_failing_row_fails_its_own_request_only(
    driver: MakeDriver, gradient: Kernel, various: Sequence[Plan], expected: list[Explanation], when: str
) -> None:
    bad = various[3].input

    def fail(_number: int, segments: Sequence[Segment]) -> None:
        for segment in segments:
            assert isinstance(segment.question, Points)
            if tuple(segment.question.end.tolist()) == bad:
                raise RuntimeError("this row is bad")

    kernel = (
        Left(gradient, at_launch=fail, is_slow=True)
        if when == "launch"
        else Left(gradient, at_collection=fail, is_slow=True)
    )
    shared = driver({Points: kernel})
    for number, plan in enumerate(various):
        shared.add(number, plan)
    shared.finish()
    assert isinstance(shared.error(3), ComputationFailed)
    assert [shared.result(n) for n in range(64) if n != 3] == [expected[n] for n in range(64) if n != 3]


def test_an_explanation_cancelled_while_its_chunk_is_under_way_disturbs_no_other(
    driver: MakeDriver, gradient: Kernel, make_plan: MakePlan
) -> None:
    shared = driver({Points: Left(gradient, is_slow=True)})
    for number in range(4):
        shared.add(number, make_plan(number, rule="midpoint"))
    shared.step()
    shared.step()
    shared.scheduler.cancel(2)
    shared.finish()
    assert sorted(shared.outcomes) == [0, 1, 3]
    assert not shared.scheduler


def test_what_needs_no_device_goes_on_while_a_chunk_is_under_way(
    driver: MakeDriver, gradient: Kernel, make_plan: MakePlan
) -> None:
    done: list[bool] = [False]
    kernel = Left(gradient)
    shared = driver({Points: kernel})

    def launch(segments: Sequence[Segment]) -> Launched:
        return Launched(lambda: done[0], lambda: gradient.run(segments))

    kernel.launch = launch  # type: ignore[method-assign]
    shared.add(0, make_plan(0, rule="midpoint"))
    for _ in range(3):
        shared.step()
    second = shared.add(1, make_plan(1, rule="auto"))
    for _ in range(3):
        shared.step()
    assert isinstance(second.question, Points), "its output and its breakpoints were not waited for"
    done[0] = True
    shared.finish()
    assert sorted(shared.outcomes) == [0, 1]


def test_a_chunk_of_another_stream_is_not_waited_for(
    driver: MakeDriver, gradient: Kernel, make_plan: MakePlan, expected: list[Explanation], various: Sequence[Plan]
) -> None:
    """Chunks of slow networks, of which two are under way, take as long as they take."""
    large, small = OneAtATime(gradient), Left(gradient)
    large.stream = "slow networks"
    of_large, of_small = driver({Points: large}), driver({Points: small})
    of_small.scheduler = of_large.scheduler
    for number in range(2):
        of_large.add(number, make_plan(number, method="expected_gradients", tolerance=1e-9))
    while len(large.waiting) < 2:
        of_large.step()
    first = len(various)
    for number, plan in enumerate(various):
        of_small.add(first + number, plan)
    for _ in range(1000):
        if len(of_small.outcomes) == len(various):
            break
        of_small.step()
    assert [of_small.result(first + number) for number in range(len(various))] == expected
    assert not large.computed
    while of_large.scheduler:
        of_large.step()
        if large.waiting:
            large.compute()
    assert [of_large.result(number).evaluations for number in range(2)] == [4080] * 2


@dataclass(eq=False)
class OneAtATime(Overlapping):
    """The model's kernel on a device that computes chunks in their order, each when it is told to.

    The first of `waiting` is under way; those behind it can be taken back.
    """

    wrapped: Kernel
    name: str = "gradient"
    waiting: list[Sequence[Segment]] = field(default_factory=list)
    computed: list[Sequence[Segment]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.capacity = self.wrapped.capacity

    def launch(self, segments: Sequence[Segment]) -> Launched:
        self.waiting.append(segments)

        def withdraw() -> bool:
            if segments is self.waiting[0]:
                return False
            self.waiting = [chunk for chunk in self.waiting if chunk is not segments]
            return True

        return Launched(
            lambda: any(segments is chunk for chunk in self.computed), lambda: self.wrapped.run(segments), withdraw
        )

    def compute(self) -> None:
        self.computed.append(self.waiting.pop(0))

    def run(self, segments: Sequence[Segment]) -> list[object]:
        return self.wrapped.run(segments)

    def join(self, parts: Sequence[object]) -> object:
        return self.wrapped.join(parts)


@pytest.mark.parametrize("bulk", [1, 16])
def test_a_question_in_a_hurry_waits_for_the_chunk_under_way_and_for_no_other(
    driver: MakeDriver, gradient: Kernel, make_plan: MakePlan, bulk: int
) -> None:
    kernel = OneAtATime(gradient)
    shared = driver({Points: kernel})
    for number in range(bulk):
        plan = make_plan(number, method="expected_gradients", tolerance=1e-9)
        shared.add(number, plan, Priority.BULK)
    while len(kernel.waiting) < 2:
        shared.step()

    for number in range(bulk, bulk + 4):
        live = shared.add(number, make_plan(number, rule="midpoint", baseline="approved"))
        before, own = len(kernel.computed), 0
        while number not in shared.outcomes:
            for _ in range(6):  # whatever needs no device is done
                shared.step()
            if number not in shared.outcomes:
                own += any(segment.question is live.question for segment in kernel.waiting[0])
                kernel.compute()
        assert own > 0
        assert len(kernel.computed) - before <= 2 * own, "of others there was one before each of its own"
    while shared.scheduler:
        shared.step()
        if kernel.waiting:
            kernel.compute()
    assert [shared.result(n).evaluations for n in range(bulk)] == [4080] * bulk


@pytest.mark.parametrize("graded", [False, True])
def test_shapes_are_in_order_however_often_the_largest_was_halved(device_model: DeviceModel, *, graded: bool) -> None:
    """Others are no shapes that a record can be replayed at."""
    model = device_model.at(ChunkShapes(4, 16, graded=graded))
    model.kernels[Points][-1].capacity = 2
    assert model.shapes == ChunkShapes(2, 8 if graded else 4, graded=graded)
    assert ChunkShapes.read(str(model.shapes)).rows == ((2, 4, 8) if graded else (2, 4))


@pytest.mark.parametrize("shapes", [ChunkShapes(1, 1), ChunkShapes(1, 4), ChunkShapes(1, 4, graded=True)])
def test_all_chunks_of_a_slow_network_are_left_to_one_thread(
    device_model: DeviceModel, monkeypatch: pytest.MonkeyPatch, shapes: ChunkShapes
) -> None:
    """Also where it has one size of them, because the next costs as much a row."""
    monkeypatch.setattr(model_kernels, "MAX_RECORDED_VALUES", 1)
    kernels = device_model.kernels_at(shapes)[Points]
    counts = range(shapes.brief, shapes.long + 1) if shapes.graded else shapes.rows
    assert [kernel.capacity for kernel in kernels] == [*counts], "one for every number of rows, where they are graded"
    threads = set()
    for kernel in kernels:
        assert isinstance(kernel, BackgroundGradientKernel)
        assert kernel.stream != Overlapping.stream
        threads.add(kernel._thread)
    assert len(threads) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
def test_long_chunks_leave_the_processor_to_what_single_requests_wait_for(
    driver: MakeDriver, device_model: DeviceModel, make_plan: MakePlan
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert isinstance(device_model.kernels[Points][-1], BackgroundGradientKernel)
    computing = driver()
    computing.add(0, make_plan(0, method="expected_gradients", tolerance=1e-9))
    computing.finish()
    threads = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("gradient")]
    assert threads
    for thread in threads:
        assert thread is not None
        assert os.getpriority(os.PRIO_PROCESS, thread) == min(19, own + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
