"""The engine's client side: a pool of local worker processes behind one small interface.

The front imports neither torch nor onnxruntime; it sends plans and receives explanations. A worker that dies is
replaced, and what it held is run once more. Whatever ends a worker, be it a file of the operator's, the front lives on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.domain import ChunkShapes, Conditions, Explanation, ModelKey, Plan, Prediction, Priority, Timings
from service.engine.connection import Connection
from service.engine.messages import (
    BaselineOutputs,
    Cancel,
    ChunkReport,
    Done,
    Explain,
    Load,
    Loaded,
    LoadFailed,
    Memory,
    Outcome,
    Predict,
    Progress,
    Ready,
    Reply,
    Unload,
)
from service.engine.processes import reap, start_worker
from service.errors import AnswerableError, CatalogError, DeadlineExceeded, Overloaded, WorkerLost

LOG = logging.getLogger("answerable.engine")
ATTEMPTS = 2
SILENCE_SECONDS = 30.0
"""After so long without a word from a worker that has work, it hangs; chunks take milliseconds and are reported."""
RESTART_DELAYS = (0.0, 0.5, 2.0, 5.0)
DEADLINE_GRACE_SECONDS = 0.5
"""How long after a deadline a worker may still answer; the scheduler keeps it, this is for a worker that is gone."""


@dataclass(slots=True)
class _Task:
    """A request in flight, with the points it is expected to cost."""

    request: Explain | Predict
    points: int
    future: asyncio.Future[Done]
    attempts: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker process as the front sees it."""

    index: int
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: asyncio.Future[None]
    tasks: dict[int, _Task] = field(default_factory=dict)
    loading: dict[Path, asyncio.Future[Loaded]] = field(default_factory=dict)
    models: set[ModelKey] = field(default_factory=set)
    heard: float = field(default_factory=time.monotonic)
    memory: int = 0

    @property
    def points(self) -> int:
        return sum(task.points for task in self.tasks.values())


class Pool:
    """Local workers, one a device.

    `observe` is given every chunk a worker ran, `restarted` the reason of every restart. `max_queued_points` bounds the
    points that are expected of everything in flight.
    """

    def __init__(
        self,
        workers: int,
        max_queued_points: int,
        observe: Callable[[ChunkReport], None] = lambda _: None,
        restarted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._count = workers
        self._max_queued_points = max_queued_points
        self._observe = observe
        self._restarted = restarted
        self._workers: dict[int, _Worker] = {}
        self._folders: dict[Path, Loaded] = {}
        self._numbers = itertools.count()
        self._parked: list[_Task] = []
        self._restarts: dict[int, asyncio.Task[None]] = {}
        self._closing = False
        self._watching: asyncio.Task[None] | None = None
        self.queued_points = 0
        self.environment: Mapping[str, str] = {}

    async def start(self) -> None:
        """Starts the workers; they load nothing yet. Raises WorkerLost when one does not come up."""
        spawning = (self._spawn(index) for index in range(self._count))
        _raise_first(await asyncio.gather(*spawning, return_exceptions=True))
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Ends workers that hang; what they held is then run again like a dead one's."""
        while True:
            await asyncio.sleep(SILENCE_SECONDS / 10)
            now = time.monotonic()
            for worker in self._workers.values():
                if worker.tasks and not worker.loading and now - worker.heard > SILENCE_SECONDS:
                    LOG.error("worker %d has work and has said nothing for %.0f s", worker.index, SILENCE_SECONDS)
                    worker.process.kill()

    def stop(self) -> None:
        """Fails what is in flight, and whatever is asked from now on."""
        self._closing = True
        held = [task for worker in self._workers.values() for task in worker.tasks.values()]
        for task in [*self._parked, *held]:
            _fail(task, _stopping())

    async def close(self) -> None:
        """Stops, and ends the workers."""
        self.stop()
        if self._watching is not None:
            self._watching.cancel()
        for restart in self._restarts.values():
            restart.cancel()
        await asyncio.gather(*self._restarts.values(), return_exceptions=True)
        workers = list(self._workers.values())
        for worker in workers:
            worker.connection.close()
        await asyncio.gather(*(asyncio.to_thread(reap, worker.process) for worker in workers))

    @property
    def ready_workers(self) -> int:
        """Workers that have loaded every model."""
        return sum(len(worker.models) == len(self._folders) for worker in self._workers.values())

    @property
    def is_complete(self) -> bool:
        """Whether every worker is there and has loaded every model."""
        return self.ready_workers == self._count

    @property
    def device_memory(self) -> dict[int, int]:
        """By the number of each live worker, the bytes it held when it last told."""
        return {worker.index: worker.memory for worker in self._workers.values()}

    async def load(self, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None = None) -> Loaded:
        """Loads the version in `folder` on every worker. Raises CatalogError when one cannot.

        What is not known is found by the first worker and given to the others, so that all compute at the same shapes.
        """
        while self._restarts:
            await asyncio.wait(self._restarts.values())
        if not self._workers:
            raise CatalogError("there is no worker to load the model")
        first, *others = self._workers.values()
        loaded = await self._load(first, folder, known, shapes)
        loading = (self._load(worker, folder, loaded.baseline_outputs, loaded.shapes) for worker in others)
        results = await asyncio.gather(*loading, return_exceptions=True)
        if any(isinstance(result, BaseException) for result in results):
            self.unload(folder, loaded.key)
        _raise_first(results)
        self._folders[folder] = loaded
        return loaded

    def unload(self, folder: Path, key: ModelKey) -> None:
        """Forgets a version on every worker; what is in flight of it ends normally."""
        self._folders.pop(folder, None)
        for worker in self._workers.values():
            worker.models.discard(key)
            worker.connection.send(Unload(key))

    async def explain(
        self, plan: Plan, expected_points: int, priority: Priority, deadline: float | None
    ) -> tuple[Explanation, Timings]:
        """The explanation of `plan`. Raises Overloaded, WorkerLost, or what the worker answered."""
        request = Explain(next(self._numbers), plan, priority, deadline)
        done = await self._submit(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result, done.timings

    async def repeat(self, plan: Plan, expected_points: int, conditions: Conditions) -> Explanation:
        """The explanation of `plan` under the conditions of an earlier one. Raises as `explain` does."""
        request = Explain(next(self._numbers), plan, Priority.INTERACTIVE, None, conditions)
        done = await self._submit(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result

    async def predict(self, model: ModelKey, row: tuple[float, ...], deadline: float | None) -> Prediction:
        """The deployed artefact's outputs at `row`."""
        done = await self._submit(Predict(next(self._numbers), model, row, deadline), 1)
        assert isinstance(done.result, Prediction)
        return done.result

    async def _submit(self, request: Explain | Predict, points: int) -> Done:
        if self._closing:
            raise _stopping()
        if self.queued_points + points > self._max_queued_points and self.queued_points:
            raise Overloaded("the engine holds as much work as it may; try again in a second")
        task = _Task(request, points, asyncio.get_running_loop().create_future())
        self.queued_points += points
        try:
            self._dispatch(task)
            if request.deadline is None:
                return await task.future
            left = request.deadline - time.monotonic() + DEADLINE_GRACE_SECONDS
            async with asyncio.timeout(left):
                return await task.future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before any result") from None
        finally:
            self.queued_points -= points
            self._forget(task)

    def _dispatch(self, task: _Task) -> None:
        """Gives the task to the worker with the least work, or parks it until one is back."""
        able = [worker for worker in self._workers.values() if _model(task.request) in worker.models]
        if not able:
            if self._restarts or not self._workers:
                self._parked.append(task)
            else:
                _fail(task, WorkerLost("no worker has this model version loaded"))
            return
        worker = min(able, key=lambda candidate: candidate.points)
        task.attempts += 1
        if not worker.tasks:
            worker.heard = time.monotonic()
        worker.tasks[task.request.task] = task
        worker.connection.send(task.request)

    def _forget(self, task: _Task) -> None:
        """Drops a task that nobody waits for; a worker that still computes it is told."""
        number = task.request.task
        if task in self._parked:
            self._parked.remove(task)
        for worker in self._workers.values():
            if worker.tasks.pop(number, None) is not None:
                worker.connection.send(Cancel(number))

    async def _spawn(self, index: int) -> _Worker:
        """Starts a worker and waits until it listens. Raises WorkerLost when it ends before that."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        starting = loop.run_in_executor(None, start_worker, theirs, index)
        connection = Connection(lambda reply: self._received(worker, reply), lambda: self._lost(worker))
        try:
            process = await asyncio.shield(starting)
            worker = _Worker(index, process, connection, loop.create_future())
            await loop.create_connection(lambda: connection, sock=ours)
            await worker.ready
        except BaseException:
            connection.close()
            ours.close()  # on which a process that was started ends
            await asyncio.to_thread(reap, await starting)
            raise
        return worker

    async def _load(self, worker: _Worker, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None) -> Loaded:
        if self._workers.get(worker.index) is not worker:
            raise CatalogError("the worker died before it loaded the model")
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        worker.loading[folder] = future
        worker.connection.send(Load(folder, known, shapes))
        loaded = await future
        worker.models.add(loaded.key)
        return loaded

    def _received(self, worker: _Worker, reply: Reply) -> None:
        worker.heard = time.monotonic()
        match reply:
            case Ready(environment) if not worker.ready.done():
                self.environment = environment
                self._workers[worker.index] = worker
                worker.ready.set_result(None)
            case Progress(outcomes, chunks):
                for outcome in outcomes:
                    self._ended(worker, outcome)
                for chunk in chunks:
                    self._observe(chunk)
            case Memory(held):
                worker.memory = held
            case Loaded():
                folder = next(
                    f for f in worker.loading if (f.parent.name, f.name) == (reply.key.name, reply.key.version)
                )
                _settle(worker.loading.pop(folder), reply)
            case LoadFailed(folder, detail):
                _settle(worker.loading.pop(folder), CatalogError(detail))

    def _ended(self, worker: _Worker, outcome: Outcome) -> None:
        task = worker.tasks.pop(outcome.task, None)
        if task is None or task.future.done():
            return
        if isinstance(outcome, Done):
            task.future.set_result(outcome)
        else:
            task.future.set_exception(outcome.error)

    def _lost(self, worker: _Worker) -> None:
        if self._closing:
            return
        if not worker.ready.done():
            worker.ready.set_exception(WorkerLost("a worker process ended before it was ready"))
            return
        LOG.error("worker %d is gone; starting another", worker.index)
        del self._workers[worker.index]
        self._restarted("died")
        asyncio.get_running_loop().run_in_executor(None, reap, worker.process)
        for waiting in worker.loading.values():
            _settle(waiting, CatalogError("the worker died while it loaded the model"))
        if worker.index not in self._restarts:
            restart = asyncio.get_running_loop().create_task(self._restart(worker.index))
            self._restarts[worker.index] = restart
        for task in worker.tasks.values():
            if task.attempts >= ATTEMPTS:
                _fail(task, WorkerLost("the worker died twice while it computed this"))
            elif not task.future.done():
                self._dispatch(task)

    async def _restart(self, index: int) -> None:
        """Starts workers until one stays up; a version it cannot load any more does not keep it from the others."""
        for delay in itertools.chain(RESTART_DELAYS, itertools.repeat(RESTART_DELAYS[-1])):
            await asyncio.sleep(delay)
            try:
                worker = await self._spawn(index)
            except (OSError, WorkerLost):
                LOG.exception("worker %d could not be started", index)
                continue
            for folder, loaded in list(self._folders.items()):
                try:
                    await self._load(worker, folder, loaded.baseline_outputs, loaded.shapes)
                except CatalogError as error:
                    LOG.error("worker %d came back without %s: %s", index, folder, error)  # noqa: TRY400
            if self._workers.get(index) is worker:
                break
        del self._restarts[index]
        parked, self._parked = self._parked, []
        for task in parked:
            self._dispatch(task)


def _raise_first(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _stopping() -> WorkerLost:
    return WorkerLost("the service is stopping")


def _settle(waiting: asyncio.Future[Loaded], result: Loaded | CatalogError) -> None:
    if waiting.done():  # whoever waited was cancelled
        return
    if isinstance(result, CatalogError):
        waiting.set_exception(result)
    else:
        waiting.set_result(result)


def _fail(task: _Task, error: AnswerableError) -> None:
    if not task.future.done():
        task.future.set_exception(error)


def _model(request: Explain | Predict) -> ModelKey:
    return request.plan.model if isinstance(request, Explain) else request.model
