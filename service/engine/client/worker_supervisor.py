"""The worker processes, one a device: started, watched, replaced when they die, and ended.

`service.engine.client.loaded_versions` decides what they load, `service.engine.client.dispatcher` what they compute.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.client.worker_processes import StartedWorker, start_worker
from service.engine.protocol import ChunkReport
from service.errors import CatalogError, WorkerLost
from service.processes.children import AwakeClock, reap

LOG = logging.getLogger("answerable.engine")
SILENCE_SECONDS = 30.0
"""A worker that has work and sends nothing for so long hangs; chunks take milliseconds and are reported."""
CHUNKS_OF_SILENCE = 10
"""How many chunks of the longest kind it may take in addition; some kernels take several times as long as others."""
TICKS = 10
"""How often the workers are checked in that time."""
RESTART_DELAYS = (0.0, 0.5, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Events:
    """What to do when a worker starts or is gone.

    `prepare` gives a new worker everything that the others have; it raises CatalogError when the worker is gone.
    `orphaned` takes the tasks of a worker that is gone, `returned` is called when there is a worker again.
    """

    prepare: Callable[[WorkerHandle], Awaitable[None]]
    orphaned: Callable[[Sequence[Task]], None]
    returned: Callable[[], None]


class WorkerSupervisor:
    """Local workers by number, one a device, from `first` on.

    Beside these there are replacements that are still loading, and replaced workers that finish their tasks.
    A chunk may take `longest_chunk` seconds. `observe` is given every chunk a worker computed, `restarted` the reason
    of every restart. `start` starts the process of a worker. Silence is measured on the `clock`.
    """

    def __init__(
        self,
        workers: int,
        events: Events,
        *,
        first: int = 0,
        longest_chunk: float = 0.0,
        observe: Callable[[ChunkReport], None] = lambda _: None,
        restarted: Callable[[str], None] = lambda _: None,
        start: Callable[[int], StartedWorker] = start_worker,
        clock: AwakeClock | None = None,
    ) -> None:
        self.numbers = range(first, first + workers)
        self.environment: Mapping[str, str] = {}
        self._events = events
        self._patience = CHUNKS_OF_SILENCE * longest_chunk
        self._observe = observe
        self._restarted = restarted
        self._start = start
        self._workers: dict[int, WorkerHandle] = {}
        self._coming: set[WorkerHandle] = set()
        self._retired: set[WorkerHandle] = set()
        self._restarts: dict[int, asyncio.Task[None]] = {}
        self._closing = False
        self._clock = clock or AwakeClock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def workers(self) -> Mapping[int, WorkerHandle]:
        """The workers that serve, by number."""
        return self._workers

    @property
    def all_workers(self) -> list[WorkerHandle]:
        """All workers, with replacements that are still loading and replaced workers that finish their tasks."""
        return [*self._workers.values(), *self._coming, *self._retired]

    @property
    def is_restarting(self) -> bool:
        """Whether a worker is being started, or there is none."""
        return bool(self._restarts) or not self._workers

    async def start(self) -> None:
        """Starts the workers; they load nothing yet. Raises WorkerLost when one does not come up."""
        spawning = (self._spawn(number) for number in self.numbers)
        spawned = await asyncio.gather(*spawning, return_exceptions=True)
        self._workers |= {worker.number: worker for worker in spawned if isinstance(worker, WorkerHandle)}
        raise_first(spawned)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Ends the workers."""
        self._closing = True
        if self._watching is not None:
            self._watching.cancel()
        for restart in self._restarts.values():
            restart.cancel()
        await asyncio.gather(*self._restarts.values(), return_exceptions=True)
        workers = self.all_workers
        for worker in workers:
            worker.connection.close()
        await asyncio.gather(*(asyncio.to_thread(reap, worker.process) for worker in workers))

    async def settled(self) -> None:
        """Waits until no worker is being restarted."""
        while self._restarts:
            await asyncio.wait(self._restarts.values())

    @asynccontextmanager
    async def second(self, number: int) -> AsyncIterator[WorkerHandle]:
        """A second worker beside the one of that number. It ends with the block, unless it replaced the first
        (`replace`).

        Raises WorkerLost or OSError when it does not come up.
        """
        worker = await self._spawn(number)
        self._coming.add(worker)
        try:
            yield worker
        finally:
            self._coming.discard(worker)
            if self._workers.get(number) is not worker:
                worker.connection.close()

    async def stop_restart(self, number: int) -> None:
        """Stops restarting the worker of that number, if it died: another replaces it."""
        restart = self._restarts.get(number)
        if restart is not None:
            restart.cancel()
            await asyncio.wait([restart])

    def replace(self, worker: WorkerHandle) -> None:
        """Puts the worker in the place of the one of its number, which ends when it has finished its tasks."""
        before = self._workers.get(worker.number)
        self._workers[worker.number] = worker
        if before is not None:
            self._retired.add(before)
            before.retire()
        self._events.returned()

    def revive(self, number: int) -> None:
        """Starts a worker of that number, unless there is one or one is being started."""
        if number not in self._workers and number not in self._restarts:
            self._restarts[number] = asyncio.get_running_loop().create_task(self._restart(number))

    async def _spawn(self, number: int) -> WorkerHandle:
        """Starts a worker and waits until it listens. Raises WorkerLost when it ends before that, or OSError."""
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(None, self._start, number)
        worker: WorkerHandle | None = None
        try:
            started = await asyncio.shield(starting)
            worker = WorkerHandle(number, started.process, self._clock, self._observe, self._lost)
            connection = worker.connection
            await loop.create_connection(lambda: connection, sock=started.socket)
            self.environment = await worker.ready
        except BaseException:
            if worker is not None:
                worker.connection.close()
            started = await starting
            started.socket.close()  # which ends the process
            await asyncio.to_thread(reap, started.process)
            raise
        return worker

    async def _watch(self) -> None:
        """Ends workers that hang; their tasks are then computed again, like those of a worker that died."""
        while True:
            await asyncio.sleep(SILENCE_SECONDS / TICKS)
            self._clock.tick(SILENCE_SECONDS / TICKS)
            limit = SILENCE_SECONDS + self._patience
            for worker in [*self._workers.values(), *self._retired]:
                if worker.silent_seconds > limit:
                    LOG.error("worker %d has work and has sent nothing for %.0f s", worker.number, limit)
                    worker.process.kill()

    def _lost(self, worker: WorkerHandle) -> None:
        if self._closing:
            return
        asyncio.get_running_loop().run_in_executor(None, reap, worker.process)
        self._retired.discard(worker)
        if self._workers.get(worker.number) is worker:
            LOG.error("worker %d is gone; starting another", worker.number)
            del self._workers[worker.number]
            self._restarted("died")
            self.revive(worker.number)
        self._events.orphaned([*worker.tasks.values()])

    async def _restart(self, number: int) -> None:
        """Starts workers until one stays up; a version that cannot be loaded any more does not prevent the others."""
        try:
            for delay in itertools.chain(RESTART_DELAYS, itertools.repeat(RESTART_DELAYS[-1])):
                await asyncio.sleep(delay)
                try:
                    worker = await self._spawn(number)
                    if worker.is_gone:
                        continue
                    self._workers[number] = worker
                    await self._events.prepare(worker)
                except (OSError, WorkerLost):
                    LOG.exception("worker %d could not be started", number)
                except CatalogError as error:
                    LOG.error("worker %d died again: %s", number, error)  # noqa: TRY400
                if self._workers.get(number) is not None:
                    break
        finally:
            del self._restarts[number]
        self._events.returned()


def raise_first(results: Sequence[object]) -> None:
    """Raises the first of what `asyncio.gather` returned that is an exception."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
