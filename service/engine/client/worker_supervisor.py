"""The worker processes, one a device: started, heard, watched, replaced when they die, and ended.

What they load is the business of `service.engine.client.loaded_versions`, what they compute that of
`service.engine.client.pool`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.client.worker_processes import StartedWorker, start_worker
from service.engine.messages import Attached, ChunkReport, Loaded, LoadFailed, Memory, Outcome, Progress, Ready, Reply
from service.errors import CatalogError, WorkerLost
from service.processes.children import AwakeClock, Connection, reap

LOG = logging.getLogger("answerable.engine")
SILENCE_SECONDS = 30.0
"""After so long without a word from a worker that has work, it hangs; chunks take milliseconds and are reported."""
CHUNKS_OF_SILENCE = 10
"""Chunks that are waited for in addition where they take long; some kernels take several times as long as others."""
TICKS = 10
"""In such a time the workers are looked after."""
RESTART_DELAYS = (0.0, 0.5, 2.0, 5.0)


class WorkerSupervisor(ABC):
    """Local workers, one a device, and those that come to replace them or only finish what they hold.

    `observe` is given every chunk a worker ran, `restarted` the reason of every restart. `started` are processes that
    were started beforehand, the first for the first worker, whose number is `first`. A chunk may take `longest_chunk`
    seconds.
    """

    def __init__(
        self,
        workers: int,
        observe: Callable[[ChunkReport], None],
        restarted: Callable[[str], None],
        started: Sequence[StartedWorker],
        first: int,
        longest_chunk: float,
    ) -> None:
        self._count = workers
        self.first = first
        self._indices = range(first, first + workers)
        self._patience = CHUNKS_OF_SILENCE * longest_chunk
        self._started = dict(enumerate(started))
        self._observe = observe
        self._restarted = restarted
        self._workers: dict[int, WorkerHandle] = {}
        self._retired: set[WorkerHandle] = set()
        self._coming: set[WorkerHandle] = set()
        self._restarts: dict[int, asyncio.Task[None]] = {}
        self._closing = False
        self._clock = AwakeClock()
        self._watching: asyncio.Task[None] | None = None
        self.environment: Mapping[str, str] = {}

    @abstractmethod
    async def _load_all(self, worker: WorkerHandle) -> None:
        """Gives a new worker everything that the others have. Raises CatalogError when it is gone."""

    @abstractmethod
    def _ended(self, worker: WorkerHandle, outcome: Outcome) -> None:
        """A task ended."""

    @abstractmethod
    def _orphaned(self, tasks: Sequence[Task]) -> None:
        """A worker is gone, and with it what it held."""

    @abstractmethod
    def _unpark(self) -> None:
        """There is a worker again."""

    async def start(self) -> None:
        """Starts the workers; they load nothing yet. Raises WorkerLost when one does not come up."""
        spawning = (self._spawn(index) for index in self._indices)
        spawned = await asyncio.gather(*spawning, return_exceptions=True)
        self._workers |= {one.index: one for one in spawned if isinstance(one, WorkerHandle)}
        raise_first(spawned)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Ends workers that hang; what they held is then run again like a dead one's."""
        while True:
            await asyncio.sleep(SILENCE_SECONDS / TICKS)
            self._clock.tick(SILENCE_SECONDS / TICKS)
            most = SILENCE_SECONDS + self._patience
            for worker in self._live:
                if worker.tasks and not worker.loading and self._clock.now - worker.heard > most:
                    LOG.error("worker %d has work and has said nothing for %.0f s", worker.index, most)
                    worker.process.kill()

    async def close(self) -> None:
        """Ends the workers."""
        self._closing = True
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
    def _live(self) -> list[WorkerHandle]:
        """The workers, and those that only finish what they hold."""
        return [*self._workers.values(), *self._retired]

    @property
    def device_memory(self) -> dict[int, int]:
        """By the number of each live worker, the bytes it held when it last told."""
        return {worker.index: worker.memory for worker in self._workers.values()}

    def _end_if_idle(self, worker: WorkerHandle) -> None:
        """Ends a worker that was replaced, once it has done what it held."""
        if worker in self._retired and not worker.tasks:
            worker.connection.close()

    async def _spawn(self, index: int) -> WorkerHandle:
        """Starts a worker and waits until it listens. Raises WorkerLost when it ends before that."""
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(None, self._start, index)
        connection = Connection(lambda reply: self._received(worker, reply), lambda: self._lost(worker))
        try:
            started = await asyncio.shield(starting)
            worker = WorkerHandle(index, started.process, connection, loop.create_future(), self._clock)
            await loop.create_connection(lambda: connection, sock=started.socket)
            await worker.ready
        except BaseException:
            connection.close()
            started = await starting
            started.socket.close()  # on which the process ends
            await asyncio.to_thread(reap, started.process)
            raise
        return worker

    def _start(self, index: int) -> StartedWorker:
        return self._started.pop(index, None) or start_worker(index)

    def _received(self, worker: WorkerHandle, reply: Reply) -> None:
        worker.heard = self._clock.now
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

    def _lost(self, worker: WorkerHandle) -> None:
        if not worker.ready.done():
            worker.ready.set_exception(WorkerLost("a worker process ended before it was ready"))
            return
        worker.is_gone = True
        for folder in list(worker.loading):
            worker.loaded(folder, CatalogError("the worker died while it loaded the model"))
        for folder, digest in list(worker.attaching):
            worker.attached(Attached(folder, digest, {}, "the worker died before it had the baseline set"))
        if self._closing:
            return
        asyncio.get_running_loop().run_in_executor(None, reap, worker.process)
        self._retired.discard(worker)
        if self._workers.get(worker.index) is worker:
            LOG.error("worker %d is gone; starting another", worker.index)
            del self._workers[worker.index]
            self._restarted("died")
            self._revive(worker.index)
        self._orphaned(list(worker.tasks.values()))

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


def raise_first(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result
