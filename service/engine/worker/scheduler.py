"""The scheduler: packs points of many live explanations into chunks of one (model, kernel), fairly.

It pulls: `step` packs one chunk from whatever is waiting, runs it, and moves every explanation on whose question was
answered; there is no timer and no waiting for a fuller chunk. Kernels take turns, those with interactive work before
those without. Inside a chunk, too, interactive work is packed before bulk, and inside a class each explanation gets
`quantum` slots in turn, so that a large one never keeps a small one waiting for more than a chunk. Explanations that
were cancelled, or whose deadline passed, are dropped when the next chunk is packed.

An error of the device itself (a CUDA error sticks to the process) is let through: the worker ends and is replaced.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from service.domain import Explanation, Prediction, Priority, Timings
from service.engine.kernels.kernel import Kernel, Kernels, Overlapping, Segment, slots_of
from service.engine.messages import Done, Failed, Outcome
from service.engine.protocol import ChunkReport, Evaluation
from service.engine.worker.explanation import Steps
from service.engine.worker.memory import is_out_of_memory
from service.errors import AnswerableError, ComputationFailed, DeadlineExceeded, DeviceOutOfMemory
from service.methods.questions import DeadlinePassed

LOG = logging.getLogger("answerable.worker")

MIN_QUANTUM = 64
SHARES = 4
MAX_FLIGHTS = 2
"""How many chunks of a stream are launched at once: one that the device computes, one that waits for it."""
PATIENCE_SECONDS = (0.0005, 0.002)
PATIENCE_SHARE = 1 / 16
POLLS = 3
"""For a chunk under way the worker waits for that share of the time that it has taken so far, within these limits, and
then looks for new requests; it looks so often whether the chunk is done. Beside a chunk of 0.15 s there is no need to
look every 0.2 ms."""


@dataclass(slots=True, eq=False)
class Live:
    """An explanation under way.

    Its open `question`, the `asked`th, counts `slots`; `parts` are the answers so far, to `answered` slots, by their
    first slot.
    """

    task: int
    steps: Steps
    kernels: Kernels
    model: str
    priority: Priority
    deadline: float | None
    received: float
    started: float | None = None
    question: object = None
    asked: int = 0
    slots: int = 0
    answered: int = 0
    parts: dict[int, object] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Portion:
    """Slots of an open question that one kernel answers: those before `packed` are in chunks, those to `stop` wait.

    Whole questions of the same `identity` have the same answer; None for parts of one, and where nobody asks the same.
    """

    live: Live
    kernel: Kernel
    packed: int
    stop: int
    identity: Hashable = None

    @property
    def remaining(self) -> int:
        """Slots that no chunk has taken yet."""
        return self.stop - self.packed


_Taken = list[tuple[_Portion, Segment]]
"""What of which portion is in a chunk."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A chunk: what of which portion is in it, the calls of `Launched`, and when it was started. Portions that ask the
    same have the same segment, which is in the chunk once."""

    kernel: Kernel
    taken: _Taken
    is_done: Callable[[], bool]
    collect: Callable[[], list[object]]
    started: float
    withdraw: Callable[[], bool] = lambda: False

    @property
    def is_bulk(self) -> bool:
        """Whether no interactive explanation has a part in it."""
        return all(portion.live.priority is Priority.BULK for portion, _ in self.taken)


def _wait(flights: Sequence[_Flight]) -> None:
    """Returns when one of them is done, or after a while that is short beside the time that it takes."""
    now = time.monotonic()
    least, most = PATIENCE_SECONDS
    seconds = min(max(least, (now - max(flight.started for flight in flights)) * PATIENCE_SHARE), most)
    while not any(flight.is_done() for flight in flights) and time.monotonic() < now + seconds:
        time.sleep(seconds / POLLS)


def _each_once(taken: _Taken) -> list[Segment]:
    return list({id(segment): segment for _, segment in taken}.values())


def _always() -> bool:
    return True


def quantum(capacity: int) -> int:
    """The slots of a chunk that one explanation gets before the next has its turn.

    A quarter of the chunk, since each explanation in it costs the host some time; at least 64, so that small questions
    are not cut up.
    """
    return max(MIN_QUANTUM, capacity // SHARES)


class _Queue:
    """What waits for one kernel of one model, by class; and, of questions that no chunk has begun, which are alike."""

    def __init__(self) -> None:
        self._waiting: dict[Priority, deque[_Portion]] = {priority: deque() for priority in Priority}
        self._alike: defaultdict[Hashable, list[_Portion]] = defaultdict(list)

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    @property
    def is_urgent(self) -> bool:
        """Whether interactive work waits here."""
        return bool(self._waiting[Priority.INTERACTIVE])

    def add(self, portion: _Portion) -> None:
        self._waiting[portion.live.priority].append(portion)
        if portion.identity is not None and not portion.packed:
            self._alike[portion.identity].append(portion)

    def take(self, capacity: int, alive: dict[int, Live]) -> _Taken:
        """Segments of at most `capacity` slots together; cancelled and expired explanations are dropped.

        Whoever asks what one of them asks as a whole gets the same segment, for no slots of its own.
        """
        taken: dict[_Portion, Segment] = {}
        followers: list[tuple[_Portion, _Portion]] = []
        most = quantum(capacity)
        for priority in Priority:
            waiting = self._waiting[priority]
            while waiting and capacity:
                portion = waiting.popleft()
                live = portion.live
                alike = [one for one in self._alike.pop(portion.identity, []) if one is not portion]
                if alive.get(live.task) is not live:
                    self._keep_alike(alike)
                    continue
                slots = min(most, portion.remaining, capacity)
                start = taken[portion].start if portion in taken else portion.packed
                portion.packed += slots
                capacity -= slots
                taken[portion] = Segment(live.question, start, portion.packed)
                if portion.remaining:
                    waiting.append(portion)
                if slots < portion.stop:
                    self._keep_alike(alike)
                    continue
                for other in alike:
                    self._waiting[other.live.priority].remove(other)
                    other.packed = other.stop
                    followers.append((other, portion))
        shared = ((other, taken[leader]) for other, leader in followers if alive.get(other.live.task) is other.live)
        return [*taken.items(), *shared]

    def _keep_alike(self, others: list[_Portion]) -> None:
        if others:
            self._alike[others[0].identity] = others


class Scheduler:
    """All live explanations of one device."""

    def __init__(self) -> None:
        self._alive: dict[int, Live] = {}
        self._queues: defaultdict[Kernel, _Queue] = defaultdict(_Queue)
        self._deadlines: list[tuple[float, int]] = []
        self._flights: defaultdict[str, deque[_Flight]] = defaultdict(deque)
        self._outcomes: list[Outcome] = []
        self.reports: list[ChunkReport] = []

    def __bool__(self) -> bool:
        """Whether anything waits for a chunk, or for the end of one."""
        return bool(self._queues) or any(self._flights.values())

    def add(self, live: Live) -> None:
        """Starts an explanation; its first question waits for a chunk."""
        self._alive[live.task] = live
        if live.deadline is not None:
            heapq.heappush(self._deadlines, (live.deadline, live.task))
        self._advance(live, None)

    def cancel(self, task: int) -> None:
        """Drops an explanation; only its part of the current chunk is still computed, in vain."""
        live = self._alive.pop(task, None)
        if live is not None:
            live.steps.close()

    def outcomes(self) -> list[Outcome]:
        """What ended since the last call."""
        ended, self._outcomes = self._outcomes, []
        return ended

    def step(self) -> None:
        """Packs and runs, or launches, one chunk, and delivers what is done; does nothing when nothing waits.

        While the device computes, explanations that do not need it are moved on. With nothing else to do it waits for
        the device, but not for long: there may be new requests.
        """
        self._expire()
        self._make_way()
        taken = self._take()
        if taken is not None:
            self._go(*taken)
        elif under_way := [flights[0] for flights in self._flights.values() if flights]:
            _wait(under_way)
        for flights in self._flights.values():
            while flights and flights[0].is_done():
                self._deliver(flights.popleft())

    def _make_way(self) -> None:
        """Withdraws chunks of bulk work that the device has not begun, where interactive work would wait for them."""
        urgent = {
            kernel.stream
            for kernel, queue in self._queues.items()
            if queue.is_urgent and isinstance(kernel, Overlapping)
        }
        for flights in (self._flights[stream] for stream in urgent):
            while flights and flights[-1].is_bulk and flights[-1].withdraw():
                self._requeue(flights.pop().taken)

    def _take(self) -> tuple[Kernel, _Taken] | None:
        """The next chunk: its kernel, and what of which portion is in it."""
        able = [
            kernel for kernel in self._queues if not (isinstance(kernel, Overlapping) and self._is_full(kernel.stream))
        ]
        if not able:
            return None
        kernel = next((kernel for kernel in able if self._queues[kernel].is_urgent), able[0])
        queue = self._queues.pop(kernel)
        segments = queue.take(kernel.capacity, self._alive)
        if queue:
            self._queues[kernel] = queue
        return (kernel, segments) if segments else None

    def _is_full(self, stream: str) -> bool:
        return len(self._flights[stream]) == MAX_FLIGHTS

    def _go(self, kernel: Kernel, taken: _Taken) -> None:
        """Launches a chunk, or computes it, where its kernel does not overlap or could not launch it."""
        now = time.monotonic()
        for portion, _ in taken:
            portion.live.started = portion.live.started or now
        segments = _each_once(taken)
        if isinstance(kernel, Overlapping):
            flights = self._flights[kernel.stream]
            try:
                launched = kernel.launch(segments)
            except torch.AcceleratorError:
                raise
            except Exception:  # noqa: BLE001 - whatever it was, it comes again where each error has its answer
                if flights:  # behind the chunks under way, in order
                    self._requeue(taken)
                    self._deliver(flights.popleft())
                    return
            else:
                flight = _Flight(kernel, taken, launched.is_done, launched.collect, now, launched.withdraw)
                flights.append(flight)
                return
        self._deliver(_Flight(kernel, taken, _always, partial(kernel.run, segments), now))

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, task = heapq.heappop(self._deadlines)
            live = self._alive.get(task)
            if live is not None:
                self._advance(live, DeadlinePassed())

    def _deliver(self, flight: _Flight) -> None:
        """Waits for a chunk, and moves on every explanation whose question is answered by it."""
        for live, segment, part in self._parts(flight):
            if isinstance(part, AnswerableError):
                self._fail(live, part)
                continue
            live.parts[segment.start] = part
            live.answered += len(segment)
            if live.answered == live.slots and self._alive.get(live.task) is live:
                self._advance(live, flight.kernel.join([live.parts[start] for start in sorted(live.parts)]))

    def _parts(self, flight: _Flight) -> Iterator[tuple[Live, Segment, object | AnswerableError]]:
        """Each explanation's part of the chunk; when the chunk fails, each is run alone, so that one bad row fails
        nobody else."""
        kernel, taken = flight.kernel, flight.taken
        try:
            parts = flight.collect()
        except torch.AcceleratorError:  # it persists: every later answer of this process would be wrong or missing
            raise
        except Exception as error:
            if is_out_of_memory(error):
                yield from self._after_out_of_memory(kernel, taken)
                return
            if len(taken) == 1:
                LOG.exception("a chunk of one explanation failed")
                failure = ComputationFailed(f"the model failed on this input: {type(error).__name__}")
                yield taken[0][0].live, taken[0][1], failure
                return
            for one in taken:
                if len(one[1]) > kernel.capacity:  # it was halved since the chunk was packed
                    self._requeue([one])
                else:
                    alone = partial(kernel.run, [one[1]])
                    yield from self._parts(_Flight(kernel, [one], _always, alone, time.monotonic()))
        else:
            seconds = time.monotonic() - flight.started
            segments = _each_once(taken)
            slots = sum(map(len, segments))
            model = taken[0][0].live.model
            self.reports.append(ChunkReport(model, kernel.name, slots, kernel.capacity, len(taken), seconds))
            part_of = {id(segment): part for segment, part in zip(segments, parts, strict=True)}
            yield from ((portion.live, segment, part_of[id(segment)]) for portion, segment in taken)

    def _after_out_of_memory(
        self, kernel: Kernel, taken: _Taken
    ) -> Iterator[tuple[Live, Segment, object | AnswerableError]]:
        """Halves the chunk, for good, and queues what it held once more; gives up when one row does not fit."""
        flights = self._flights[kernel.stream] if isinstance(kernel, Overlapping) else []
        while flights:  # launched behind this one: computed in vain, or parts would get out of order
            self._requeue(flights.pop().taken)
        if kernel.capacity == 1:
            for portion, segment in taken:
                yield (
                    portion.live,
                    segment,
                    DeviceOutOfMemory("the device has not the memory for one row of this model"),
                )
            return
        kernel.capacity //= 2
        LOG.warning("out of memory: chunks of the %s kernel now have %d slots", kernel.name, kernel.capacity)
        self._requeue(taken)

    def _requeue(self, taken: _Taken) -> None:
        for portion, segment in taken:
            if not portion.remaining:
                self._queues[portion.kernel].add(portion)
            portion.packed = segment.start

    def _advance(self, live: Live, answer: object) -> None:
        """Sends the answer, or throws the deadline, into the explanation, and queues its next question."""
        live.question, live.slots, live.answered, live.parts = None, 0, 0, {}
        try:
            if isinstance(answer, DeadlinePassed):
                live.steps.throw(answer)
                raise RuntimeError("a method went on after its deadline")
            live.question = live.steps.send(answer)
            live.asked, live.slots = live.asked + 1, slots_of(live.question)
            portions = live.kernels.portions(live.question)
            for kernel, start, stop in portions:
                identity = kernel.identity_of(live.question) if len(portions) == 1 else None
                self._queues[kernel].add(_Portion(live, kernel, start, stop, identity))
        except StopIteration as stop:
            ended = isinstance(answer, DeadlinePassed)
            self._finish(live, replace(stop.value, answers=live.asked - 1) if ended else stop.value)
        except DeadlinePassed:
            self._fail(live, DeadlineExceeded("the deadline passed before any result"))
        except torch.AcceleratorError:
            raise
        except AnswerableError as error:
            self._fail(live, error)
        except Exception as error:
            if is_out_of_memory(error):
                self._fail(live, DeviceOutOfMemory("the device has not the memory to sum up this explanation"))
                return
            LOG.exception("an explanation failed")
            self._fail(live, ComputationFailed(f"the computation failed: {type(error).__name__}"))

    def _finish(self, live: Live, result: Explanation | Evaluation | Prediction) -> None:
        del self._alive[live.task]
        now = time.monotonic()
        started = live.started or now
        self._outcomes.append(Done(live.task, result, Timings(started - live.received, now - started)))

    def _fail(self, live: Live, error: AnswerableError) -> None:
        if self._alive.pop(live.task, None) is live:
            live.steps.close()
            self._outcomes.append(Failed(live.task, error))
