"""The engine in this process: a worker on a thread, with no process around it that could be replaced when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.domain import Conditions, Explanation, Plan, Prediction, Priority, Timings, VersionRef
from service.engine.messages import (
    Attach,
    Cancel,
    Detach,
    Done,
    Explain,
    Failed,
    Load,
    Memory,
    Predict,
    Progress,
    Ready,
    Refused,
    Reply,
    Request,
    SetAttached,
    Unload,
    VersionLoaded,
)
from service.engine.protocol import BaselineOutputs, ChunkReport, Engine, Loaded, Source, Stats
from service.engine.worker.worker import Worker
from service.errors import CatalogError, ModelNotReady, Overloaded, WorkerLost


class QueueChannel:
    """Leads from the thread of the event loop to that of the worker, and back."""

    def __init__(self, receive: Callable[[Reply], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()

    def ask(self, request: Request) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)

    def requests(self, *, wait: bool) -> Iterator[Request]:
        while wait or not self._requests.empty():
            request = self._requests.get()
            if request is None:
                raise EOFError
            wait = False
            yield request

    def send(self, reply: Reply) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed before the engine
            self._loop.call_soon_threadsafe(self._receive, reply)


class InProcessEngine(Engine):
    """One worker on a thread, and what is in flight by the number of its request."""

    def __init__(self, max_queued_points: int, observe: Callable[[ChunkReport], None] = lambda _: None) -> None:
        self._max_queued_points = max_queued_points
        self._observe = observe
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loaded: dict[VersionRef, Loaded] = {}
        self._times: Counter[VersionRef] = Counter()
        self._queued_points = 0
        self._environment: Mapping[str, str] = {}
        self._memory = 0
        self._is_stopped = False

    async def start(self) -> None:
        """Starts the thread."""
        torch.set_num_threads(1)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def receive(reply: Reply) -> None:
            if isinstance(reply, Ready):
                self._environment = reply.environment
                ready.set_result(None)
            else:
                self._receive(reply)

        self._channel = QueueChannel(receive)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        await ready

    def _run(self) -> None:
        with contextlib.suppress(EOFError):
            Worker(self._channel, torch.device("cpu")).run()

    def _receive(self, reply: Reply) -> None:
        match reply:
            case Progress(outcomes, chunks):
                for outcome in outcomes:
                    self._end(outcome.task, outcome.error if isinstance(outcome, Failed) else outcome)
                for chunk in chunks:
                    self._observe(chunk)
            case VersionLoaded(task, result) | SetAttached(task, result):
                self._end(task, result)
            case Refused(task, detail):
                self._end(task, CatalogError(detail))
            case Memory(used):
                self._memory = used

    def _end(self, task: int, result: object) -> None:
        future = self._waiting.get(task)
        if future is None or future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    async def _ask(self, request: Explain | Predict | Load | Attach) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[request.task] = future
        self._channel.ask(request)
        try:
            return await future
        except asyncio.CancelledError:
            self._channel.ask(Cancel(request.task))
            raise
        finally:
            del self._waiting[request.task]

    async def _compute(self, request: Explain | Predict, points: int) -> Done:
        if self._is_stopped:
            raise WorkerLost("the service is stopping")
        if request.version not in self._loaded:
            raise ModelNotReady("the model version is not loaded")
        if self._queued_points and self._queued_points + points > self._max_queued_points:
            raise Overloaded("the engine holds as much work as it may")
        self._queued_points += points
        try:
            done = await self._ask(request)
            assert isinstance(done, Done)
            return done
        finally:
            self._queued_points -= points

    async def explain(
        self,
        version: VersionRef,
        plan: Plan,
        expected_points: int,
        priority: Priority = Priority.INTERACTIVE,
        seconds_left: float | None = None,
    ) -> tuple[Explanation, Timings]:
        request = Explain(next(self._numbers), version, plan, priority, _deadline(seconds_left))
        done = await self._compute(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result, done.timings

    async def repeat(
        self, version: VersionRef, plan: Plan, expected_points: int, conditions: Conditions
    ) -> Explanation:
        request = Explain(next(self._numbers), version, plan, Priority.INTERACTIVE, None, conditions)
        done = await self._compute(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result

    async def predict(
        self, version: VersionRef, row: tuple[float, ...], seconds_left: float | None = None
    ) -> Prediction:
        done = await self._compute(Predict(next(self._numbers), version, row, _deadline(seconds_left)), 1)
        assert isinstance(done.result, Prediction)
        return done.result

    async def load(
        self,
        version: VersionRef,
        source: Source,
        known: BaselineOutputs,
        calibration: Calibration | None = None,
        *,
        beside: bool = False,  # noqa: ARG002 - one thread does one thing at a time
    ) -> Loaded:
        if self._is_stopped:
            raise CatalogError("the service is stopping")
        if version not in self._loaded:
            self._loaded[version] = await self._ask(Load(next(self._numbers), version, source, known, calibration))
        self._times[version] += 1
        return self._loaded[version]

    async def attach(self, version: VersionRef, baseline: BaselineSet, known: Outputs | None) -> Outputs:
        if self._is_stopped or version not in self._loaded:
            raise CatalogError("the model version is not loaded")
        outputs: Outputs = await self._ask(Attach(next(self._numbers), version, baseline, known))
        return outputs

    def detach(self, digest: str) -> None:
        self._channel.ask(Detach(digest))

    def unload(self, version: VersionRef) -> None:
        self._times[version] -= 1
        if not self._times[version]:
            del self._loaded[version]
            self._channel.ask(Unload(version))

    def stats(self) -> Stats:
        alive = self._thread.is_alive()
        return Stats(self._environment, alive, int(alive), self._queued_points, {0: self._memory})

    def stop(self) -> None:
        self._is_stopped = True
        for task in self._waiting:
            self._end(task, WorkerLost("the service is stopping"))

    async def close(self) -> None:
        self.stop()
        self._channel.close()
        await asyncio.to_thread(self._thread.join)


def _deadline(seconds_left: float | None) -> float | None:
    return None if seconds_left is None else time.monotonic() + seconds_left
