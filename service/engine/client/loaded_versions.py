"""What the workers have loaded: versions, and baseline sets that came later; loaded, reloaded and unloaded.

Loading takes seconds of a worker's time, in which it would answer nobody. So while requests come a version is loaded
`beside` them: a second worker of the same device loads it, and all the others, and takes the first one's place, which
ends when it has answered what it holds. A version that cannot be loaded, or kills the worker that tries, costs no
request.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.domain import VersionRef
from service.engine.client.worker_handle import WorkerHandle
from service.engine.client.worker_supervisor import WorkerSupervisor, raise_first
from service.engine.protocol import BaselineOutputs, Loaded, Source
from service.errors import CatalogError, WorkerLost

LOG = logging.getLogger("answerable.engine")
LOAD_SECONDS = 600.0
"""How long a version, with all others, may take to be loaded beside a worker that serves."""


@dataclass(frozen=True, slots=True)
class _Attached:
    """A baseline set that was attached to a version, and the outputs over it."""

    baseline: BaselineSet
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class _Version:
    """A version as a worker can load it again."""

    source: Source
    loaded: Loaded


@dataclass(slots=True)
class _Held:
    """A version that every worker has, how often it was loaded, and by digest the baseline sets attached since."""

    version: _Version
    times: int = 1
    attached: dict[str, _Attached] = field(default_factory=dict)


class LoadedVersions:
    """What the workers of a supervisor have loaded. It changes by one call at a time."""

    def __init__(self, supervisor: WorkerSupervisor) -> None:
        self._supervisor = supervisor
        self._held: dict[VersionRef, _Held] = {}
        self._arriving: dict[VersionRef, _Version] = {}
        self._changing = asyncio.Lock()

    @property
    def ready_workers(self) -> int:
        """Workers that have loaded every version."""
        return sum(self._held.keys() <= worker.versions for worker in self._supervisor.workers.values())

    @property
    def is_complete(self) -> bool:
        """Whether every worker is there and has loaded every version."""
        return self.ready_workers == len(self._supervisor.numbers)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is loaded."""
        return not self._held

    @property
    def attached(self) -> set[str]:
        """The digests of the baseline sets that are attached to versions."""
        return {digest for held in self._held.values() for digest in held.attached}

    async def load(
        self, ref: VersionRef, source: Source, known: BaselineOutputs, calibration: Calibration | None, *, beside: bool
    ) -> Loaded:
        """Loads a version on every worker; see `Engine.load`.

        The first worker computes what is not known and the others are given its results, so that all use the same
        shapes.
        """
        async with self._changing:
            held = self._held.get(ref)
            if held is not None:
                held.times += 1
                return held.version.loaded
            try:
                load = self._load_beside if beside else self._load_in_place
                version = await load(ref, source, known, calibration)
                self._held[ref] = _Held(version)
            finally:
                self._arriving.pop(ref, None)
                self._unload_what_nobody_holds()
            return version.loaded

    async def _load_in_place(
        self, ref: VersionRef, source: Source, known: BaselineOutputs, calibration: Calibration | None
    ) -> _Version:
        await self._supervisor.settled()
        if not self._supervisor.workers:
            raise CatalogError("there is no worker to load the model")
        first, *others = self._supervisor.workers.values()
        version = _Version(source, await self._load(first, ref, source, known, calibration))
        self._arriving[ref] = version
        loading = (self._load_again(worker, ref, version) for worker in others)
        raise_first(await asyncio.gather(*loading, return_exceptions=True))
        return version

    async def _load_beside(
        self, ref: VersionRef, source: Source, known: BaselineOutputs, calibration: Calibration | None
    ) -> _Version:
        """One worker after the other is replaced by one that has the version, too."""
        for number in self._supervisor.numbers:
            worker = self._supervisor.workers.get(number)
            if ref not in self._arriving:
                loaded = await self._replace(number, ref, source, known, calibration)
                self._arriving[ref] = _Version(source, loaded)
            elif worker is None or ref not in worker.versions:  # a worker that died was restarted with it
                loaded = self._arriving[ref].loaded
                await self._replace(number, ref, source, loaded.baseline_outputs, loaded.calibration)
        return self._arriving[ref]

    async def _replace(
        self, number: int, ref: VersionRef, source: Source, known: BaselineOutputs, calibration: Calibration | None
    ) -> Loaded:
        """Replaces a worker by one that has the version too. Raises CatalogError."""
        try:
            async with self._supervisor.second(number) as worker:
                try:
                    async with asyncio.timeout(LOAD_SECONDS):
                        loaded = await self._load(worker, ref, source, known, calibration)
                        await self.load_all(worker)
                except TimeoutError:
                    raise CatalogError(f"the model was not loaded within {LOAD_SECONDS:.0f} s") from None
                await self._take_place(worker)
        except (OSError, WorkerLost) as error:
            raise CatalogError("no second worker could be started beside the one that serves") from error
        return loaded

    async def _take_place(self, worker: WorkerHandle) -> None:
        """The worker takes the place of the one of its number. Raises CatalogError when it lacks what that has."""
        await self._supervisor.stop_restart(worker.number)
        before = self._supervisor.workers.get(worker.number)
        needed = self._held.keys() & (self._held.keys() if before is None else before.versions)
        if worker.is_gone or not needed <= worker.versions:
            self._supervisor.revive(worker.number)
            raise CatalogError("a second worker could not load everything that the one that serves has")
        self._supervisor.replace(worker)

    async def attach(self, ref: VersionRef, baseline: BaselineSet, known: Outputs | None) -> Outputs:
        """Gives the version a baseline set on every worker; see `Engine.attach`."""
        async with self._changing:
            await self._supervisor.settled()
            held = self._held.get(ref)
            if held is None:
                raise CatalogError("the model version is not loaded")
            outputs = known
            for worker in [*self._supervisor.workers.values()]:
                outputs = await worker.attach(ref, baseline, outputs)
                held.attached[baseline.digest] = _Attached(baseline, outputs)  # for workers that start later
            return outputs or {}

    def detach(self, digest: str) -> None:
        """Takes a baseline set from every version that it was attached to, on every worker, for good."""
        for held in self._held.values():
            held.attached.pop(digest, None)
        for worker in self._supervisor.all_workers:
            worker.detach(digest)

    def unload(self, ref: VersionRef) -> None:
        """Forgets a version on every worker; what is in flight of it ends normally."""
        held = self._held.get(ref)
        if held is None:
            return
        held.times -= 1
        if not held.times:
            del self._held[ref]
            self._unload_what_nobody_holds()

    def _unload_what_nobody_holds(self) -> None:
        for worker in self._supervisor.workers.values():
            for ref in worker.versions - {*self._held, *self._arriving}:
                worker.unload(ref)

    async def load_all(self, worker: WorkerHandle) -> None:
        """Loads everything that the others have, also what they load meanwhile; what cannot be loaded is logged.

        Raises CatalogError when the worker is gone.
        """
        tried: set[VersionRef] = set()
        while True:
            current = {ref: held.version for ref, held in self._held.items()} | self._arriving
            ref = next((ref for ref in current if ref not in tried and ref not in worker.versions), None)
            if ref is None:
                return
            tried.add(ref)
            try:
                await self._load_again(worker, ref, current[ref])
            except CatalogError as error:
                if worker.is_gone:
                    raise
                LOG.error("worker %d comes without %s: %s", worker.number, ref, error)  # noqa: TRY400

    async def _load_again(self, worker: WorkerHandle, ref: VersionRef, version: _Version) -> Loaded:
        loaded = version.loaded
        return await self._load(worker, ref, version.source, loaded.baseline_outputs, loaded.calibration)

    async def _load(
        self,
        worker: WorkerHandle,
        ref: VersionRef,
        source: Source,
        known: BaselineOutputs,
        calibration: Calibration | None,
    ) -> Loaded:
        """Loads a version on one worker, with the sets attached to it."""
        loaded = await worker.load(ref, source, known, calibration)
        attached = self._held[ref].attached if ref in self._held else {}
        for digest, one in list(attached.items()):
            try:
                await worker.attach(ref, one.baseline, one.outputs)
                if digest not in attached:  # meanwhile it was detached from all versions
                    worker.detach(digest)
            except CatalogError as error:
                if worker.is_gone:
                    raise
                LOG.error("worker %d comes without a set of %s: %s", worker.number, ref, error)  # noqa: TRY400
        worker.versions.add(ref)  # not earlier: requests may name any of its sets
        return loaded
