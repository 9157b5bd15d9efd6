"""Which group of workers has a version: the one that all share, or a worker of its own where its chunks take long.

A worker computes one chunk at a time, and other requests wait until it ends. For most models that is short. Where it is
not, only requests for that version shall wait.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from weakref import WeakValueDictionary

from service.catalog.calibrations import Calibration
from service.domain import VersionRef
from service.engine.client.worker_group import WorkerGroup
from service.engine.protocol import BaselineOutputs, Loaded, Source
from service.errors import CatalogError, WorkerLost

LOG = logging.getLogger("answerable.engine")
MAX_SHARED_SECONDS = 0.1
"""A version whose smallest chunk takes longer is served by a worker of its own. An explanation asks several questions,
each of which may wait for a chunk: beside chunks of 0.15 s the loan model's took up to 0.93 s on a shared worker, and
0.12 s with the other on its own. A process with torch holds some 300 MB, which is a high price for less."""


class Separation:
    """A shared group of workers, and beside it groups of one worker and one version each.

    `make` makes the group for a version: of one worker, with that number, whose chunks take so many seconds.
    """

    def __init__(self, shared: WorkerGroup, make: Callable[[int, float], WorkerGroup]) -> None:
        self.shared = shared
        self._make = make
        self._own: dict[VersionRef, WorkerGroup] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[VersionRef, asyncio.Lock] = WeakValueDictionary()

    @property
    def groups(self) -> list[WorkerGroup]:
        """The shared group, and then those of one version each."""
        return [self.shared, *self._own.values()]

    def group_of(self, version: VersionRef) -> WorkerGroup:
        """The group that has the version, if any has."""
        return self._own.get(version, self.shared)

    async def load(
        self,
        version: VersionRef,
        source: Source,
        known: BaselineOutputs,
        calibration: Calibration | None,
        *,
        beside: bool,
    ) -> Loaded:
        """Loads a version, and moves it to a worker of its own where its chunks take long; see `Engine.load`.

        Two loads of one version take turns, so that the second finds the worker that the first has started.
        """
        async with self._turns.setdefault(version, asyncio.Lock()):
            return await self._load(version, source, known, calibration, beside=beside)

    async def _load(
        self,
        version: VersionRef,
        source: Source,
        known: BaselineOutputs,
        calibration: Calibration | None,
        *,
        beside: bool,
    ) -> Loaded:
        group = self.group_of(version)
        loaded = await group.versions.load(version, source, known, calibration, beside=beside and group is self.shared)
        if group is not self.shared or loaded.chunk_seconds <= MAX_SHARED_SECONDS:
            return loaded
        try:
            self._own[version] = await self._separated(version, source, loaded)
        finally:
            self.shared.versions.unload(version)
        LOG.info("%s has a worker of its own: a chunk takes %.2f s", version, loaded.chunk_seconds)
        return loaded

    async def _separated(self, version: VersionRef, source: Source, loaded: Loaded) -> WorkerGroup:
        """Makes a group of one worker with the version, at the same shapes. Raises CatalogError."""
        taken = {number for group in self.groups for number in group.supervisor.numbers}
        number = next(number for number in itertools.count() if number not in taken)
        group = self._make(number, loaded.chunk_seconds)
        try:
            await group.start()
            await group.versions.load(version, source, loaded.baseline_outputs, loaded.calibration, beside=False)
        except (OSError, WorkerLost) as error:
            await group.close()
            raise CatalogError("no worker of its own could be started for a model whose chunks take long") from error
        except BaseException:
            await group.close()
            raise
        return group

    def unload(self, version: VersionRef) -> None:
        """Forgets a version; a worker of its own ends with it. See `Engine.unload`."""
        group = self.group_of(version)
        group.versions.unload(version)
        if group is not self.shared and group.versions.is_empty:
            del self._own[version]
            ending = asyncio.get_running_loop().create_task(group.close())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Ends all workers."""
        await asyncio.gather(*(group.close() for group in self.groups), *self._ending)
