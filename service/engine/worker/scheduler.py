"""The scheduler: packs points of many live explanations into chunks of one (model, kernel), fairly.

It pulls: `step` packs one chunk from whatever is waiting, runs it, and moves every explanation on whose question was
answered; there is no timer and no waiting for a fuller chunk. Kernels take turns, those with interactive work before
those without; inside a chunk, `packing` says who gets how much. Explanations that were cancelled, or whose deadline
passed, are dropped when the next chunk is packed.

An error of the device itself (a CUDA error sticks to the process) is let through: the worker ends and is replaced.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from service.domain import Explanation, Prediction, Timings
from service.engine.kernels.kernel import Kernel, Launched, Overlapping, Segment, slots_of
from service.engine.messages import Done, Failed, Outcome
from service.engine.protocol import ChunkReport
from service.engine.worker.memory import is_out_of_memory
from service.engine.worker.packing import Live, PackedChunk, Portion, Queue, Taken
from service.engine.worker.streams import ChunkUnderWay, Streams
from service.errors import AnswerableError, ComputationFailed, DeadlineExceeded, DeviceOutOfMemory
from service.methods.questions import DeadlinePassed

LOG = logging.getLogger("answerable.worker")


class Scheduler:
    """All live explanations of one device."""

    def __init__(self) -> None:
        self._alive: dict[int, Live] = {}
        self._queues: defaultdict[Kernel, Queue] = defaultdict(Queue)
        self._deadlines: list[tuple[float, int]] = []
        self._streams = Streams()
        self._outcomes: list[Outcome] = []
        self.reports: list[ChunkReport] = []

    def __bool__(self) -> bool:
        """Whether anything waits for a chunk, or for the end of one."""
        return bool(self._queues or self._streams)

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
        packed = self._pack()
        if packed is not None:
            self._start(packed)
        elif self._streams:
            self._streams.wait()
        for chunk in self._streams.take_done():
            self._deliver(chunk)

    def _make_way(self) -> None:
        """Withdraws chunks of bulk work that the device has not begun, where interactive work would wait for them."""
        urgent = {
            kernel.stream
            for kernel, queue in self._queues.items()
            if queue.is_urgent and isinstance(kernel, Overlapping)
        }
        for stream in urgent:
            for packed in self._streams.withdraw_bulk(stream):
                self._requeue(packed.taken)

    def _pack(self) -> PackedChunk | None:
        """The next chunk; None where no kernel that has room waits for one."""
        able = [kernel for kernel in self._queues if self._streams.has_room_for(kernel)]
        if not able:
            return None
        kernel = next((kernel for kernel in able if self._queues[kernel].is_urgent), able[0])
        queue = self._queues.pop(kernel)
        taken = queue.take(kernel.capacity, self._alive)
        if queue:
            self._queues[kernel] = queue
        return PackedChunk(kernel, taken) if taken else None

    def _start(self, packed: PackedChunk) -> None:
        """Launches a chunk, or computes it, where its kernel does not overlap or could not launch it."""
        now = time.monotonic()
        for portion, _ in packed.taken:
            portion.live.started = portion.live.started or now
        kernel = packed.kernel
        if isinstance(kernel, Overlapping):
            try:
                self._streams.launch(kernel, packed)
            except torch.AcceleratorError:
                raise
            except Exception:  # noqa: BLE001 - whatever it was, it comes again where each error has its answer
                first = self._streams.take_first(kernel)
                if first is not None:  # behind the chunks under way, in order
                    self._requeue(packed.taken)
                    self._deliver(first)
                    return
            else:
                return
        self._deliver(_computed_at_once(packed))

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, task = heapq.heappop(self._deadlines)
            live = self._alive.get(task)
            if live is not None:
                self._advance(live, DeadlinePassed())

    def _deliver(self, chunk: ChunkUnderWay) -> None:
        """Waits for a chunk, and moves on every explanation whose question is answered by it."""
        for live, segment, part in self._parts(chunk):
            if isinstance(part, AnswerableError):
                self._fail(live, part)
                continue
            live.parts[segment.start] = part
            live.answered += len(segment)
            if live.answered == live.slots and self._alive.get(live.task) is live:
                self._advance(live, chunk.packed.kernel.join([live.parts[start] for start in sorted(live.parts)]))

    def _parts(self, chunk: ChunkUnderWay) -> Iterator[tuple[Live, Segment, object | AnswerableError]]:
        """Each explanation's part of the chunk; when the chunk fails, each is run alone, so that one bad row fails
        nobody else."""
        kernel, taken = chunk.packed.kernel, chunk.packed.taken
        try:
            parts = chunk.launched.collect()
        except torch.AcceleratorError:  # it persists: every later answer of this process would be wrong or missing
            raise
        except Exception as error:
            if is_out_of_memory(error):
                yield from self._after_out_of_memory(chunk.packed)
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
                    yield from self._parts(_computed_at_once(PackedChunk(kernel, [one])))
        else:
            seconds = time.monotonic() - chunk.started
            segments = chunk.packed.segments
            slots = sum(map(len, segments))
            model = taken[0][0].live.model
            self.reports.append(ChunkReport(model, kernel.name, slots, kernel.capacity, len(taken), seconds))
            part_of = {id(segment): part for segment, part in zip(segments, parts, strict=True)}
            yield from ((portion.live, segment, part_of[id(segment)]) for portion, segment in taken)

    def _after_out_of_memory(self, packed: PackedChunk) -> Iterator[tuple[Live, Segment, object | AnswerableError]]:
        """Halves the chunk, for good, and queues what it held once more; gives up when one row does not fit."""
        kernel = packed.kernel
        for later in self._streams.take_all(kernel):  # launched behind it: otherwise parts would get out of order
            self._requeue(later.taken)
        if kernel.capacity == 1:
            for portion, segment in packed.taken:
                error = DeviceOutOfMemory("the device has not the memory for one row of this model")
                yield portion.live, segment, error
            return
        kernel.capacity //= 2
        LOG.warning("out of memory: chunks of the %s kernel now have %d slots", kernel.name, kernel.capacity)
        self._requeue(packed.taken)

    def _requeue(self, taken: Taken) -> None:
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
                self._queues[kernel].add(Portion(live, kernel, start, stop, identity))
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

    def _finish(self, live: Live, result: Explanation | Prediction) -> None:
        del self._alive[live.task]
        now = time.monotonic()
        started = live.started or now
        self._outcomes.append(Done(live.task, result, Timings(started - live.received, now - started)))

    def _fail(self, live: Live, error: AnswerableError) -> None:
        if self._alive.pop(live.task, None) is live:
            live.steps.close()
            self._outcomes.append(Failed(live.task, error))


def _computed_at_once(packed: PackedChunk) -> ChunkUnderWay:
    """A chunk that is computed on this thread once its parts are collected."""
    launched = Launched(lambda: True, partial(packed.kernel.run, packed.segments))
    return ChunkUnderWay(packed, launched, time.monotonic())
