"""What the workers have loaded: versions, and baseline sets that came later; loaded, reloaded and unloaded.

Loading takes seconds of a worker's time, in which it would answer nobody. So while requests come a version is loaded
`beside` them: a second worker of the same device loads it, and all the others, and takes the first one's place, which
ends when it has answered what it holds. A version that cannot be loaded, or kills whoever tries, costs no request.

A version is what was loaded from one folder. Its key would not tell two apart that differ in their manifests only.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from service.catalog.manifest import BaselineSet
from service.domain import ChunkShapes, Floats, OutputSpace
from service.engine.client.worker_handle import WorkerHandle
from service.engine.client.worker_processes import StartedWorker
from service.engine.client.worker_supervisor import WorkerSupervisor, raise_first
from service.engine.messages import Attach, Attached, BaselineOutputs, ChunkReport, Detach, Load, Loaded, Unload
from service.errors import CatalogError, WorkerLost

LOG = logging.getLogger("answerable.engine")
LOAD_SECONDS = 600.0
"""How long a version, with all others, may take to be loaded beside a worker that serves."""


@dataclass(slots=True)
class _Held:
    """A version that every worker has, how often it was loaded, and the baseline sets it was given since."""

    loaded: Loaded
    times: int = 1
    attached: dict[str, Attach] = field(default_factory=dict)


class LoadedVersions(WorkerSupervisor, ABC):
    """The crew with what it has loaded, by folder."""

    def __init__(
        self,
        workers: int,
        observe: Callable[[ChunkReport], None],
        restarted: Callable[[str], None],
        started: Sequence[StartedWorker],
        first: int,
        longest_chunk: float,
    ) -> None:
        super().__init__(workers, observe, restarted, started, first, longest_chunk)
        self._folders: dict[Path, _Held] = {}
        self._arriving: dict[Path, Loaded] = {}
        self._changing = asyncio.Lock()

    @property
    def ready_workers(self) -> int:
        """Workers that have loaded every model."""
        return sum(self._folders.keys() <= worker.folders for worker in self._workers.values())

    @property
    def is_complete(self) -> bool:
        """Whether every worker is there and has loaded every model."""
        return sum(self._folders.keys() <= worker.folders for worker in self._workers.values()) == self._count

    @property
    def is_empty(self) -> bool:
        """Whether nothing is loaded."""
        return not self._folders

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
        raise_first(await asyncio.gather(*loading, return_exceptions=True))
        return loaded

    async def _load_beside(self, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None) -> Loaded:
        """One worker after the other is replaced by one that has the version, too."""
        for index in self._indices:
            found, worker = self._arriving.get(folder), self._workers.get(index)
            has_it = worker is not None and folder in worker.folders  # one that died has come back with it
            if found is None or not has_it:
                self._arriving[folder] = await self._replace(
                    index,
                    folder,
                    known if found is None else found.baseline_outputs,
                    shapes if found is None else found.shapes,
                )
        return self._arriving[folder]

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

    async def _take_place(self, worker: WorkerHandle) -> None:
        """The worker does from now on what the one of its number did. Raises CatalogError when it cannot."""
        restart = self._restarts.get(worker.index)
        if restart is not None:  # the other one died meanwhile, and this one is ready before its successor
            restart.cancel()
            await asyncio.wait([restart])
        before = self._workers.get(worker.index)
        needed = self._folders.keys() & (self._folders.keys() if before is None else before.folders)
        if worker.is_gone or not needed <= worker.folders:
            if before is None:
                self._revive(worker.index)
            raise CatalogError("a second worker could not load everything that the one that serves has")
        self._workers[worker.index] = worker
        if before is not None:
            self._retired.add(before)
            self._end_if_idle(before)
        self._unpark()

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
            request = Attach(folder, place, baseline, known)
            for worker in list(self._workers.values()):
                reply = await self._attach(worker, request)
                request = replace(request, known=reply.outputs)
                held.attached[request.digest] = request  # for workers that come from now on
            return request.known or {}

    async def _attach(self, worker: WorkerHandle, request: Attach) -> Attached:
        if worker.is_gone:
            raise CatalogError("the worker died before it had the baseline set")
        future: asyncio.Future[Attached] = asyncio.get_running_loop().create_future()
        worker.attaching[request.folder, request.digest] = future
        worker.connection.send(request)
        reply = await future
        if reply.problem is not None:
            raise CatalogError(reply.problem)
        return reply

    def detach(self, digest: str) -> None:
        """Takes a baseline set from every version that was given it, on every worker, for good."""
        for held in self._folders.values():
            held.attached.pop(digest, None)
        for worker in {*self._workers.values(), *self._coming, *self._retired}:
            worker.connection.send(Detach(digest))

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
        for worker in self._workers.values():
            for folder in worker.folders - {*self._folders, *self._arriving}:
                worker.folders.discard(folder)
                worker.connection.send(Unload(folder))

    async def _load(
        self, worker: WorkerHandle, folder: Path, known: BaselineOutputs, shapes: ChunkShapes | None
    ) -> Loaded:
        if worker.is_gone:
            raise CatalogError("the worker died before it loaded the model")
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        worker.loading[folder] = future
        worker.connection.send(Load(folder, known, shapes))
        loaded = await future
        attached = self._folders[folder].attached if folder in self._folders else {}
        for request in list(attached.values()):
            try:
                await self._attach(worker, request)
                if request.digest not in attached:  # it was taken from all meanwhile
                    worker.connection.send(Detach(request.digest))
            except CatalogError as error:
                if worker.is_gone:
                    raise
                LOG.error("worker %d comes without a set of %s: %s", worker.index, loaded.key, error)  # noqa: TRY400
        worker.folders.add(folder)  # now, since whoever asks may ask for any of its sets
        return loaded

    async def _load_all(self, worker: WorkerHandle) -> None:
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
            except CatalogError as error:
                if worker.is_gone:
                    raise
                LOG.error("worker %d comes without %s: %s", worker.index, current[folder].key, error)  # noqa: TRY400
