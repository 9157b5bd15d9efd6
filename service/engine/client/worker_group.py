"""Workers that have loaded the same versions and share their work: a supervisor, loaded versions and a dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.engine.client.dispatcher import Dispatcher
from service.engine.client.loaded_versions import LoadedVersions
from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.client.worker_processes import StartedWorker, start_worker
from service.engine.client.worker_supervisor import Events, WorkerSupervisor
from service.engine.protocol import ChunkReport


class WorkerGroup:
    """`workers` workers, numbered from `first`; see the parts for the other arguments."""

    def __init__(
        self,
        workers: int,
        max_queued_points: int,
        *,
        first: int = 0,
        longest_chunk: float = 0.0,
        observe: Callable[[ChunkReport], None] = lambda _: None,
        restarted: Callable[[str], None] = lambda _: None,
        start: Callable[[int], StartedWorker] = start_worker,
    ) -> None:
        events = Events(self._prepare, self._orphaned, self._returned)
        self.supervisor = WorkerSupervisor(
            workers,
            events,
            first=first,
            longest_chunk=longest_chunk,
            observe=observe,
            restarted=restarted,
            start=start,
        )
        self.versions = LoadedVersions(self.supervisor)
        self.dispatcher = Dispatcher(self.supervisor, max_queued_points)

    async def start(self) -> None:
        """Starts the workers. Raises WorkerLost when one does not come up."""
        await self.supervisor.start()

    async def close(self) -> None:
        """Fails what is in flight, and ends the workers."""
        self.dispatcher.stop()
        await self.supervisor.close()

    async def _prepare(self, worker: WorkerHandle) -> None:
        await self.versions.load_all(worker)

    def _orphaned(self, tasks: Sequence[Task]) -> None:
        self.dispatcher.rerun(tasks)

    def _returned(self) -> None:
        self.dispatcher.resume()
