"""The engine's client side: a pool of local worker processes behind one small interface.

The front imports neither torch nor onnxruntime; it sends plans and receives explanations. A worker that dies is
replaced, and what it held is run once more. Whatever ends a worker, be it a file of the operator's, the front lives on.

Loading takes seconds of a worker's time, in which it would answer nobody. So while requests come a version is loaded
`beside` them: a second worker of the same device loads it, and all the others, and takes the first one's place, which
ends when it has answered what it holds. A version that cannot be loaded, or kills whoever tries, costs no request.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from service.catalog.manifest import BaselineSet
from service.domain import (
    ChunkShapes,
    Conditions,
    Explanation,
    Floats,
    ModelKey,
    OutputSpace,
    Plan,
    Prediction,
    Priority,
    Timings,
)
from service.engine.attendant import Attendant, Task
from service.engine.connection import Connection
from service.engine.messages import (
    Attach,
    Attached,
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
from service.errors import CatalogError, DeadlineExceeded, Overloaded, WorkerLost

LOG = logging.getLogger("answerable.engine")
ATTEMPTS = 2
SILENCE_SECONDS = 30.0
"""After so long without a word from a worker that has work, it hangs; chunks take milliseconds and are reported."""
RESTART_DELAYS = (0.0, 0.5, 2.0, 5.0)
LOAD_SECONDS = 600.0
"""How long a version, with all others, may take to be loaded beside a worker that serves."""
DEADLINE_GRACE_SECONDS = 0.5
"""How long after a deadline a worker may still answer; the scheduler keeps it, this is for a worker that is gone."""


@dataclass(slots=True)
class _Held:
    """A version that every worker has, how often it was loaded, and the baseline sets it was given since."""

    loaded: Loaded
    times: int = 1
    attached: dict[str, Attach] = field(default_factory=dict)


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
        self._workers: dict[int, Attendant] = {}
        self._retired: set[Attendant] = set()
        self._folders: dict[Path, _Held] = {}
        self._coming: set[Attendant] = set()
        self._arriving: dict[Path, Loaded] = {}
        self._changing = asyncio.Lock()
        self._numbers = itertools.count()
        self._parked: list[Task] = []
        self._restarts: dict[int, asyncio.Task[None]] = {}
        self._closing = False
        self._watching: asyncio.Task[None] | None = None
        self.queued_points = 0
        self.environment: Mapping[str, str] = {}

    async def start(self) -> None:
        """Starts the workers; they load nothing yet. Raises WorkerLost when one does not come up."""
        spawning = (self._spawn(index) for index in range(self._count))
        spawned = await asyncio.gather(*spawning, return_exceptions=True)
        self._workers |= {one.index: one for one in spawned if isinstance(one, Attendant)}
        _raise_first(spawned)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Ends workers that hang; what they held is then run again like a dead one's."""
        while True:
            await asyncio.sleep(SILENCE_SECONDS / 10)
            now = time.monotonic()
            for worker in self._live:
                if worker.tasks and not worker.loading and now - worker.heard > SILENCE_SECONDS:
                    LOG.error("worker %d has work and has said nothing for %.0f s", worker.index, SILENCE_SECONDS)
                    worker.process.kill()

    def stop(self) -> None:
        """Fails what is in flight, and whatever is asked from now on."""
        self._closing = True
        held = [task for worker in self._live for task in worker.tasks.values()]
        for task in [*self._parked, *held]:
            task.fail(_stopping())

    async def close(self) -> None:
        """Stops, and ends the workers."""
        self.stop()
        if self._watching is not None:
            self._watching.cancel()
        for restart in self._restarts.values():
            restart.cancel()
        await asyncio.gather(*self._restarts.values(), return_exceptions=True)
        workers = [*self._live, *self._coming]
        for worker in workers:
            worker.connection.close()
        await asyncio.gather(*(asyncio.to_thread(reap, worker.process) for worker in workers))

    @property
    def _live(self) -> list[Attendant]:
        """The workers, and those that only finish what they hold."""
        return [*self._workers.values(), *self._retired]

    @property
    def ready_workers(self) -> int:
        """Workers that have loaded every model."""
        keys = {held.loaded.key for held in self._folders.values()}
        return sum(keys <= worker.models for worker in self._workers.values())

    @property
    def is_complete(self) -> bool:
        """Whether every worker is there and has loaded every model."""
        return self.ready_workers == self._count

    @property
    def device_memory(self) -> dict[int, int]:
        """By the number of each live worker, the bytes it held when it last told."""
        return {worker.index: worker.memory for worker in self._workers.values()}

    async def load(
        self, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None = None, *, beside: bool = False
    ) -> Loaded:
        """Loads the version in `folder` on every worker, `beside` them where they serve. Raises CatalogError.

        What is not known is found by the first worker and given to the others, so that all compute at the same shapes.
        A folder that is loaded already is not loaded again, but must be unloaded as often.
        """
        async with self._changing:
            held = self._folders.get(folder)
            if held is not None:
                held.times += 1
                return held.loaded
            try:
                load = self._load_beside if beside else self._load_in_place
                loaded = await load(folder, known, shapes)
                self._folders[folder] = _Held(loaded)
            finally:
                self._arriving.pop(folder, None)
                self._unload_what_nobody_holds()
            return loaded

    async def _load_in_place(self, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None) -> Loaded:
        while self._restarts:
            await asyncio.wait(self._restarts.values())
        if not self._workers:
            raise CatalogError("there is no worker to load the model")
        first, *others = self._workers.values()
        loaded = self._arriving[folder] = await self._load(first, folder, known, shapes)
        loading = (self._load(worker, folder, loaded.baseline_outputs, loaded.shapes) for worker in others)
        _raise_first(await asyncio.gather(*loading, return_exceptions=True))
        return loaded

    async def _load_beside(self, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None) -> Loaded:
        """One worker after the other is replaced by one that has the version, too."""
        for index in range(self._count):
            found = self._arriving.get(folder)
            if found is None or not self._has(index, found.key):  # a worker that died has come back with it
                self._arriving[folder] = await self._replace(
                    index,
                    folder,
                    known if found is None else found.baseline_outputs,
                    shapes if found is None else found.shapes,
                )
        return self._arriving[folder]

    def _has(self, index: int, key: ModelKey) -> bool:
        worker = self._workers.get(index)
        return worker is not None and key in worker.models

    async def _replace(self, index: int, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None) -> Loaded:
        """Puts a worker that has the version in the place of one that has not. Raises CatalogError."""
        try:
            worker = await self._spawn(index)
        except (OSError, WorkerLost) as error:
            raise CatalogError("no second worker could be started beside the one that serves") from error
        self._coming.add(worker)
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                loaded = await self._load(worker, folder, known, shapes)
                await self._load_all(worker)
            await self._take_place(worker)
        except TimeoutError:
            raise CatalogError(f"the model was not loaded within {LOAD_SECONDS:.0f} s") from None
        finally:
            self._coming.discard(worker)
            if self._workers.get(index) is not worker:
                worker.connection.close()
        return loaded

    async def _take_place(self, worker: Attendant) -> None:
        """The worker does from now on what the one of its number did. Raises CatalogError when it cannot."""
        restart = self._restarts.get(worker.index)
        if restart is not None:  # the other one died meanwhile, and this one is ready before its successor
            restart.cancel()
            await asyncio.wait([restart])
        before = self._workers.get(worker.index)
        keys = {held.loaded.key for held in self._folders.values()}
        if worker.is_gone or not keys & (keys if before is None else before.models) <= worker.models:
            if before is None:
                self._revive(worker.index)
            raise CatalogError("a second worker could not load everything that the one that serves has")
        self._workers[worker.index] = worker
        if before is not None:
            self._retired.add(before)
            self._end_if_idle(before)
        self._unpark()

    def _end_if_idle(self, worker: Attendant) -> None:
        """Ends a worker that was replaced, once it has done what it held."""
        if worker in self._retired and not worker.tasks:
            worker.connection.close()

    async def attach(
        self, folder: Path, place: Path, baseline: BaselineSet, known: Mapping[OutputSpace, Floats] | None
    ) -> Mapping[OutputSpace, Floats]:
        """Gives the version in `folder` a baseline set, whose file is in `place`, on every worker; its outputs.

        Raises CatalogError.
        """
        async with self._changing:
            while self._restarts:
                await asyncio.wait(self._restarts.values())
            held = self._folders.get(folder)
            if held is None:
                raise CatalogError("the model version is not loaded")
            request = Attach(held.loaded.key, place, baseline, known)
            for worker in list(self._workers.values()):
                reply = await self._attach(worker, request)
                request = replace(request, known=reply.outputs)
                held.attached[request.digest] = request  # for workers that come from now on
            return request.known or {}

    async def _attach(self, worker: Attendant, request: Attach) -> Attached:
        if worker.is_gone:
            raise CatalogError("the worker died before it had the baseline set")
        future: asyncio.Future[Attached] = asyncio.get_running_loop().create_future()
        worker.attaching[request.key, request.digest] = future
        worker.connection.send(request)
        reply = await future
        if reply.problem is not None:
            raise CatalogError(reply.problem)
        return reply

    def unload(self, folder: Path) -> None:
        """Forgets a version on every worker; what is in flight of it ends normally."""
        held = self._folders.get(folder)
        if held is None:
            return
        held.times -= 1
        if not held.times:
            del self._folders[folder]
            self._unload_what_nobody_holds()

    def _unload_what_nobody_holds(self) -> None:
        loaded = [*(held.loaded for held in self._folders.values()), *self._arriving.values()]
        kept = {one.key for one in loaded}
        for worker in self._workers.values():
            worker.folders &= {*self._folders, *self._arriving}
            for key in worker.models - kept:
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
        task = Task(request, points, asyncio.get_running_loop().create_future())
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

    def _dispatch(self, task: Task) -> None:
        """Gives the task to the worker with the least work, or parks it until one is back."""
        able = [worker for worker in self._workers.values() if task.model in worker.models]
        if not able:
            if self._restarts or not self._workers:
                self._parked.append(task)
            else:
                task.fail(WorkerLost("no worker has this model version loaded"))
            return
        min(able, key=lambda candidate: candidate.points).give(task)

    def _forget(self, task: Task) -> None:
        """Drops a task that nobody waits for; a worker that still computes it is told."""
        number = task.request.task
        if task in self._parked:
            self._parked.remove(task)
        for worker in self._live:
            if worker.tasks.pop(number, None) is not None:
                worker.connection.send(Cancel(number))
                self._end_if_idle(worker)

    async def _spawn(self, index: int) -> Attendant:
        """Starts a worker and waits until it listens. Raises WorkerLost when it ends before that."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        starting = loop.run_in_executor(None, start_worker, theirs, index)
        connection = Connection(lambda reply: self._received(worker, reply), lambda: self._lost(worker))
        try:
            process = await asyncio.shield(starting)
            worker = Attendant(index, process, connection, loop.create_future())
            await loop.create_connection(lambda: connection, sock=ours)
            await worker.ready
        except BaseException:
            connection.close()
            ours.close()  # on which a process that was started ends
            await asyncio.to_thread(reap, await starting)
            raise
        return worker

    async def _load(
        self, worker: Attendant, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None
    ) -> Loaded:
        if worker.is_gone:
            raise CatalogError("the worker died before it loaded the model")
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        worker.loading[folder] = future
        worker.connection.send(Load(folder, known, shapes))
        loaded = await future
        worker.folders.add(folder)
        worker.models.add(loaded.key)
        return loaded

    async def _load_all(self, worker: Attendant) -> None:
        """Loads everything that the others have, also what they are given meanwhile; what cannot be loaded is logged.

        Raises CatalogError when the worker is gone.
        """
        tried: set[Path] = set()
        while True:
            current = {folder: held.loaded for folder, held in self._folders.items()} | self._arriving
            folder = next((f for f in current if f not in tried and f not in worker.folders), None)
            if folder is None:
                return
            tried.add(folder)
            try:
                await self._load(worker, folder, current[folder].baseline_outputs, current[folder].shapes)
                for request in self._folders[folder].attached.values() if folder in self._folders else ():
                    await self._attach(worker, request)
            except CatalogError as error:
                if worker.is_gone:
                    raise
                LOG.error("worker %d comes without %s: %s", worker.index, current[folder].key, error)  # noqa: TRY400

    def _received(self, worker: Attendant, reply: Reply) -> None:
        worker.heard = time.monotonic()
        match reply:
            case Ready(environment) if not worker.ready.done():
                self.environment = environment
                worker.ready.set_result(None)
            case Progress(outcomes, chunks):
                for outcome in outcomes:
                    self._ended(worker, outcome)
                for chunk in chunks:
                    self._observe(chunk)
            case Memory(held):
                worker.memory = held
            case Loaded():
                worker.loaded(reply.folder, reply)
            case Attached():
                worker.attached(reply)
            case LoadFailed(folder, detail):
                worker.loaded(folder, CatalogError(detail))

    def _ended(self, worker: Attendant, outcome: Outcome) -> None:
        task = worker.tasks.pop(outcome.task, None)
        self._end_if_idle(worker)
        if task is None or task.future.done():
            return
        if isinstance(outcome, Done):
            task.future.set_result(outcome)
        else:
            task.future.set_exception(outcome.error)

    def _lost(self, worker: Attendant) -> None:
        if not worker.ready.done():
            worker.ready.set_exception(WorkerLost("a worker process ended before it was ready"))
            return
        worker.is_gone = True
        for folder in list(worker.loading):
            worker.loaded(folder, CatalogError("the worker died while it loaded the model"))
        for key, digest in list(worker.attaching):
            worker.attached(Attached(key, digest, {}, "the worker died before it had the baseline set"))
        if self._closing:
            return
        asyncio.get_running_loop().run_in_executor(None, reap, worker.process)
        self._retired.discard(worker)
        if self._workers.get(worker.index) is worker:
            LOG.error("worker %d is gone; starting another", worker.index)
            del self._workers[worker.index]
            self._restarted("died")
            self._revive(worker.index)
        for task in worker.tasks.values():
            if task.attempts >= ATTEMPTS:
                task.fail(WorkerLost("the worker died twice while it computed this"))
            elif not task.future.done():
                self._dispatch(task)

    def _revive(self, index: int) -> None:
        if index not in self._restarts:
            self._restarts[index] = asyncio.get_running_loop().create_task(self._restart(index))

    async def _restart(self, index: int) -> None:
        """Starts workers until one stays up; a version it cannot load any more does not keep it from the others."""
        try:
            for delay in itertools.chain(RESTART_DELAYS, itertools.repeat(RESTART_DELAYS[-1])):
                await asyncio.sleep(delay)
                try:
                    worker = await self._spawn(index)
                    if worker.is_gone:
                        continue
                    self._workers[index] = worker
                    await self._load_all(worker)
                except (OSError, WorkerLost):
                    LOG.exception("worker %d could not be started", index)
                except CatalogError as error:
                    LOG.error("worker %d died again: %s", index, error)  # noqa: TRY400
                if self._workers.get(index) is not None:
                    break
        finally:
            del self._restarts[index]
        self._unpark()

    def _unpark(self) -> None:
        parked, self._parked = self._parked, []
        for task in parked:
            self._dispatch(task)


def _raise_first(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _stopping() -> WorkerLost:
    return WorkerLost("the service is stopping")
