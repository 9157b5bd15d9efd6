"""The engine: workers that share all models, and a worker of its own for each version whose chunks take long.

A worker computes one chunk at a time, and whoever asks meanwhile waits for its end. That is a moment for most models.
Where it is not, only those wait who asked for that very version.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from service.catalog.manifest import BaselineSet
from service.domain import ChunkShapes, Floats, OutputSpace
from service.engine.client.pool import Pool
from service.engine.client.worker_processes import StartedWorker
from service.engine.messages import BaselineOutputs, ChunkReport, Done, Explain, Loaded, Predict
from service.errors import CatalogError, WorkerLost

LOG = logging.getLogger("answerable.engine")
MOST_SHARED_SECONDS = 0.1
"""A version whose smallest chunk takes longer is served by a worker of its own. An explanation asks several questions,
each of which may wait for a chunk: beside chunks of 0.15 s the loan model's took up to 0.93 s on a shared worker, and
0.12 s with the other on its own. A process with torch holds some 300 MB, which is a high price for less."""


class SeparatingPool(Pool):
    """A pool, and beside it pools of one worker each. `max_queued_points` bounds what is in flight in each of them."""

    def __init__(
        self,
        workers: int,
        max_queued_points: int,
        observe: Callable[[ChunkReport], None] = lambda _: None,
        restarted: Callable[[str], None] = lambda _: None,
        started: Sequence[StartedWorker] = (),
    ) -> None:
        super().__init__(workers, max_queued_points, observe, restarted, started)
        self._own: dict[Path, Pool] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def load(
        self, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None = None, *, beside: bool = False
    ) -> Loaded:
        """As every pool, then moves the version to a worker of its own where its chunks take long."""
        if folder in self._own:
            return await self._own[folder].load(folder, known, shapes)
        loaded = await super().load(folder, known, shapes, beside=beside)
        if loaded.chunk_seconds <= MOST_SHARED_SECONDS:
            return loaded
        try:
            self._own[folder] = await self._separated(folder, loaded)
        finally:
            super().unload(folder)
        LOG.info("%s has a worker of its own: a chunk takes %.2f s", loaded.key, loaded.chunk_seconds)
        return loaded

    async def _separated(self, folder: Path, loaded: Loaded) -> Pool:
        """A pool of one worker that has the version, with the same shapes. Raises CatalogError."""
        taken = {own.first for own in self._own.values()}
        first = next(number for number in itertools.count(self._count) if number not in taken)
        pool = Pool(
            1,
            self._max_queued_points,
            self._observe,
            self._restarted,
            first=first,
            longest_chunk=loaded.chunk_seconds,
        )
        try:
            await pool.start()
            await pool.load(folder, loaded.baseline_outputs, loaded.shapes)
        except (OSError, WorkerLost) as error:
            await pool.close()
            raise CatalogError("no worker of its own could be started for a model whose chunks take long") from error
        except BaseException:
            await pool.close()
            raise
        return pool

    async def attach(
        self, folder: Path, place: Path, baseline: BaselineSet, known: Mapping[OutputSpace, Floats] | None
    ) -> Mapping[OutputSpace, Floats]:
        """As every pool."""
        if folder in self._own:
            return await self._own[folder].attach(folder, place, baseline, known)
        return await super().attach(folder, place, baseline, known)

    def detach(self, digest: str) -> None:
        """As every pool."""
        super().detach(digest)
        for own in self._own.values():
            own.detach(digest)

    def unload(self, folder: Path) -> None:
        """As every pool; a worker of its own ends with its version."""
        own = self._own.get(folder)
        if own is None:
            super().unload(folder)
            return
        own.unload(folder)
        if own.is_empty:
            del self._own[folder]
            ending = asyncio.get_running_loop().create_task(own.close())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def submit(self, request: Explain | Predict, points: int) -> Done:
        """As every pool."""
        own = self._own.get(request.folder)
        return await (super().submit(request, points) if own is None else own.submit(request, points))

    def stop(self) -> None:
        """As every pool."""
        super().stop()
        for own in self._own.values():
            own.stop()

    async def close(self) -> None:
        """As every pool."""
        await asyncio.gather(super().close(), *(own.close() for own in self._own.values()), *self._ending)

    @property
    def ready_workers(self) -> int:
        """Workers that have loaded every model that is theirs."""
        return super().ready_workers + sum(own.ready_workers for own in self._own.values())

    @property
    def is_complete(self) -> bool:
        """Whether every worker is there and has loaded every model that is theirs."""
        return super().is_complete and all(own.is_complete for own in self._own.values())

    @property
    def device_memory(self) -> dict[int, int]:
        """By the number of each live worker, the bytes it held when it last told."""
        memory = [super().device_memory, *(own.device_memory for own in self._own.values())]
        return {number: held for one in memory for number, held in one.items()}

    @property
    def most_queued_points(self) -> int:
        """Points expected of what is in flight, where there are most: from a limit on more are refused there."""
        return max(self.queued_points, *(own.queued_points for own in self._own.values()), 0)
