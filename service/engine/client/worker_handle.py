"""A worker process as the front sees it: the requests sent to it, its answers, and what it has loaded."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.domain import VersionRef
from service.engine.messages import (
    Attach,
    Cancel,
    Detach,
    Done,
    Explain,
    Load,
    Memory,
    Outcome,
    Predict,
    Progress,
    Ready,
    Refused,
    Reply,
    SetAttached,
    Unload,
    VersionLoaded,
)
from service.engine.protocol import BaselineOutputs, ChunkReport, Loaded, Source
from service.errors import AnswerableError, CatalogError, WorkerLost
from service.processes.children import AwakeClock, Connection


@dataclass(slots=True, eq=False)
class Task:
    """A request in flight, with the gradient points it is expected to cost, and the worker that computes it."""

    request: Explain | Predict
    points: int
    future: asyncio.Future[Done]
    attempts: int = 0
    worker: WorkerHandle | None = None

    def end(self, outcome: Outcome) -> None:
        """Sets the outcome that the caller waits for, unless the task has ended."""
        if isinstance(outcome, Done):
            if not self.future.done():
                self.future.set_result(outcome)
        else:
            self.fail(outcome.error)

    def fail(self, error: AnswerableError) -> None:
        """Ends it with an error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class WorkerHandle:
    """A worker. `number` is that of its device.

    `versions` are those that it has loaded, `tasks` what it computes, `points` expected of these together, `memory` the
    bytes it uses as it last reported. `is_gone` once its socket has closed.

    `observe` is called with every chunk it computed, `lost` when it is gone; not before it was ready.
    """

    def __init__(
        self,
        number: int,
        process: subprocess.Popen[bytes],
        clock: AwakeClock,
        observe: Callable[[ChunkReport], None],
        lost: Callable[[WorkerHandle], None],
    ) -> None:
        self.number = number
        self.process = process
        self.connection = Connection(self._received, self._closed)
        self.ready: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self.versions: set[VersionRef] = set()
        self.tasks: dict[int, Task] = {}
        self.points = 0
        self.memory = 0
        self.is_gone = False
        self._clock = clock
        self._observe = observe
        self._lost = lost
        self._is_retired = False
        self._heard = clock.now
        self._calls: dict[int, asyncio.Future[Loaded | Outputs]] = {}
        self._loading: set[int] = set()
        self._numbers = itertools.count()

    @property
    def silent_seconds(self) -> float:
        """For how long a computing worker has sent nothing; 0 for an idle or loading one, which need not send
        anything."""
        return self._clock.now - self._heard if self.tasks and not self._loading else 0.0

    def give(self, task: Task) -> None:
        """Sends the task to the worker."""
        if not self.tasks:
            self._heard = self._clock.now
        task.attempts += 1
        task.worker = self
        self.tasks[task.request.task] = task
        self.points += task.points
        self.connection.send(task.request)

    def cancel(self, task: Task) -> None:
        """Cancels a task that nobody waits for any more, if it is still being computed."""
        if self._take(task.request.task) is not None:
            self.connection.send(Cancel(task.request.task))

    async def load(
        self, version: VersionRef, source: Source, known: BaselineOutputs, calibration: Calibration | None
    ) -> Loaded:
        """Loads a version, which is added to `versions` later: some of its sets may still be missing. Raises
        CatalogError."""
        number = next(self._numbers)
        self._loading.add(number)
        try:
            loaded = await self._call(number, Load(number, version, source, known, calibration))
        finally:
            self._loading.discard(number)
        assert isinstance(loaded, Loaded)
        return loaded

    async def attach(self, version: VersionRef, baseline: BaselineSet, known: Outputs | None) -> Outputs:
        """Gives a version a baseline set; the outputs over it. Raises CatalogError."""
        number = next(self._numbers)
        outputs = await self._call(number, Attach(number, version, baseline, known))
        assert not isinstance(outputs, Loaded)
        return outputs

    def detach(self, digest: str) -> None:
        """Takes a baseline set from all versions that it was attached to."""
        self.connection.send(Detach(digest))

    def unload(self, version: VersionRef) -> None:
        """Forgets a version."""
        self.versions.discard(version)
        self.connection.send(Unload(version))

    def retire(self) -> None:
        """Ends the worker once it has computed its tasks."""
        self._is_retired = True
        self._end_if_idle()

    async def _call(self, number: int, request: Load | Attach) -> Loaded | Outputs:
        if self.is_gone:
            raise CatalogError("the worker has died")
        answer: asyncio.Future[Loaded | Outputs] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.connection.send(request)
        try:
            return await answer
        finally:
            self._calls.pop(number, None)

    def _received(self, reply: Reply) -> None:
        self._heard = self._clock.now
        match reply:
            case Ready(environment):
                if not self.ready.done():
                    self.ready.set_result(environment)
            case Progress(outcomes, chunks):
                for outcome in outcomes:
                    task = self._take(outcome.task)
                    if task is not None:
                        task.end(outcome)
                for chunk in chunks:
                    self._observe(chunk)
            case Memory(used):
                self.memory = used
            case VersionLoaded(number, answer) | SetAttached(number, answer):
                call = self._calls.get(number)
                if call is not None and not call.done():  # else the caller was cancelled
                    call.set_result(answer)
            case Refused(number, detail):
                self._refuse(number, detail)

    def _closed(self) -> None:
        if not self.ready.done():
            self.ready.set_exception(WorkerLost("a worker process ended before it was ready"))
            return
        self.is_gone = True
        for number in self._calls:
            self._refuse(number, "the worker died while it loaded the model")
        self._lost(self)

    def _refuse(self, number: int, detail: str) -> None:
        call = self._calls.get(number)
        if call is not None and not call.done():
            call.set_exception(CatalogError(detail))

    def _take(self, number: int) -> Task | None:
        task = self.tasks.pop(number, None)
        if task is not None:
            self.points -= task.points
            task.worker = None
            self._end_if_idle()
        return task

    def _end_if_idle(self) -> None:
        if self._is_retired and not self.tasks:
            self.connection.close()
