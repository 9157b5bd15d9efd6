"""The folder of models as it is served: what is loaded at the start, and loaded, reloaded and unloaded while serving.

All loading takes the same path. A version is copied first, loaded by every worker, then put into the catalog, where
later requests find it; requests that were planned with other files of the same version are answered from those. Its
check decides whether a bare model name may mean it (`verdicts.py`). Baseline sets that were kept for it are given to
the workers (`served_sets.py`), with the outputs over them where these are known (`outputs_over_sets.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from service.catalog.calibrations import Calibrations
from service.catalog.manifest import find_versions, read_manifest
from service.catalog.refusals import message_for_clients
from service.catalog.staging import drop, stage
from service.catalog.versions import Catalog, Lease, ModelVersion
from service.domain import VersionRef
from service.engine.protocol import Engine, Source
from service.errors import CatalogError, LoadRefused, NotFound
from service.lifecycle.checking.background import Checker
from service.lifecycle.outputs_over_sets import OutputsOverSets
from service.lifecycle.served_sets import ServedSets
from service.lifecycle.verdicts import Verdicts

LOG = logging.getLogger("answerable")
READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"


@dataclass(frozen=True, slots=True)
class State:
    """A version's state, as the model repository extension of the V2 protocol names it."""

    name: str
    version: str
    state: str
    reason: str = ""


def read_catalog(folder: Path) -> Catalog:
    """Every version under the folder of models, to be loaded; one whose manifest is wrong is logged and left out."""
    catalog = Catalog(is_loading=True)
    for version in find_versions(folder):
        try:
            catalog.put(_described(version))
        except CatalogError as error:
            LOG.error("%s", error)  # noqa: TRY400 - the operator needs the sentence, not the trace
            catalog.faults[version.parent.name, version.name] = message_for_clients(error)
    if not list(catalog):
        LOG.error("there is no model in %s", folder.absolute())
    return catalog


def _described(folder: Path) -> ModelVersion:
    manifest, key, digest = read_manifest(folder)
    return ModelVersion(key, manifest, folder.absolute(), digest)


class Repository:
    """Loads and unloads versions of the models under `models`. `data` is the data folder.

    One version is loaded or unloaded at a time, by whoever has the turn. `sets` are the baseline sets that are kept for
    the versions; see there for `erased`. `checker` is for versions
    without a verdict; by default each is checked in a process of its own.
    """

    def __init__(
        self,
        models: Path,
        data: Path,
        catalog: Catalog,
        engine: Engine,
        observe_cache: Callable[[str, str], None],
        erased: Callable[[], Collection[str]] = frozenset,
        checker: Checker | None = None,
    ) -> None:
        self.folder = models
        self._copies = data / "versions"
        self._catalog = catalog
        self._engine = engine
        self._calibrations = Calibrations(data / "calibrations")
        self._outputs = OutputsOverSets(data, engine, observe_cache)
        self._verdicts = Verdicts(data, catalog, checker or Checker(data))
        self._turn = asyncio.Lock()
        self._loading: set[tuple[str, str]] = set()
        self.sets = ServedSets(data, catalog, engine, self._outputs, erased, self._turn)

    async def start(self) -> None:
        """Loads every version of the catalog; one that cannot be loaded stays not ready, and the others serve."""
        await self.sets.before_loading()
        async with self._turn:
            for version in list(self._catalog):
                try:
                    await self._load(version)
                except CatalogError as error:
                    LOG.error("%s is not served: %s", version.key, error)  # noqa: TRY400
                    self._catalog.put(replace(version, problem=message_for_clients(error)))
            self._catalog.is_loading = False
        await self.sets.after_loading()

    async def close(self) -> None:
        """Ends a running check."""
        await self._verdicts.close()

    async def load(self, name: str, version: str | None) -> list[State]:
        """Loads a version from the folder of models as it is now, or every version of a model; all that can be loaded.

        A version whose files have not changed is not loaded again, but the verdict of its check is read again. Raises
        NotFound, or LoadRefused with the reasons; what was served before then goes on being served.
        """
        async with self._turn:
            folders = [
                folder
                for folder in await asyncio.to_thread(find_versions, self.folder)
                if folder.parent.name == name and version in (None, folder.name)
            ]
            self._forget_faults(name, version)
            if not folders:
                raise NotFound("there is no such version in the folder of models")
            refused = [reason for folder in folders if (reason := await self._loaded(folder)) is not None]
        if refused:
            raise LoadRefused("; ".join(refused))
        return [self._state(name, folder.name) for folder in folders]

    async def _loaded(self, folder: Path) -> str | None:
        """Loads the version in `folder`, or says why it could not."""
        try:
            version = await asyncio.to_thread(_described, folder)
            known = self._catalog.get(version.key.name, version.key.version)
            if known is None or not known.is_ready or not known.is_same(version):
                await self._load(version)
            else:
                await self.sets.renew(known)
                await self._verdicts.serve(self._catalog.get(known.key.name, known.key.version) or known)
        except CatalogError as error:
            LOG.error("%s@%s is not loaded: %s", folder.parent.name, folder.name, error)  # noqa: TRY400
            if self._catalog.get(folder.parent.name, folder.name) is None:
                self._catalog.faults[folder.parent.name, folder.name] = message_for_clients(error)
            return f"{folder.parent.name}@{folder.name}: {message_for_clients(error)}"
        return None

    async def unload(self, name: str, version: str | None) -> list[State]:
        """Stops serving a version, or every version of a model; requests under way are finished. Raises NotFound."""
        async with self._turn:
            faulty = self._forget_faults(name, version)
            known_ones = self._catalog.versions(name) if name in self._catalog.names or not faulty else []
            versions = [known for known in known_ones if version in (None, known.key.version)]
            if not versions and not faulty:
                raise NotFound("the model has no such version")
            for known in reversed(versions):
                nothing = {"environment": None, "traits": None, "lease": None, "problem": None, "kept_sets": ()}
                self._catalog.put(replace(known, is_unloaded=True, **nothing))  # type: ignore[arg-type]
                LOG.info("%s is unloaded: artefact %s, manifest %s", known.key, known.key.digest, known.manifest_digest)
            return [self._state(name, one) for one in [*(known.key.version for known in versions), *faulty]]

    def _forget_faults(self, name: str, version: str | None) -> list[str]:
        """Forgets the faults of the folders of a model, or of one version; returns the versions that had some."""
        faulty = [(model, one) for model, one in self._catalog.faults if model == name and version in (None, one)]
        for fault in faulty:
            del self._catalog.faults[fault]
        return [one for _, one in faulty]

    async def index(self) -> list[State]:
        """Every version that is known or in the folder of models."""
        known = [(one.key.name, one.key.version) for one in self._catalog]
        there = [(one.parent.name, one.name) for one in await asyncio.to_thread(find_versions, self.folder)]
        return [self._state(*names) for names in _distinct([*known, *there])]

    def _state(self, name: str, version: str) -> State:
        known = self._catalog.get(name, version)
        if known is not None and known.is_ready:
            return State(name, version, READY)
        if (name, version) in self._loading:
            return State(name, version, LOADING)
        if known is None:
            return State(name, version, UNAVAILABLE, self._catalog.faults.get((name, version), "not loaded"))
        return State(name, version, UNAVAILABLE, "unloaded" if known.is_unloaded else known.problem or "not loaded yet")

    async def _load(self, version: ModelVersion) -> None:
        """Loads a version on all workers and serves it. Raises CatalogError, which changes nothing."""
        key, copy = version.key, version.folder
        self._loading.add((key.name, key.version))
        try:
            copy = await self._copied(version)
            outputs = await self._outputs.over_own_sets(version)
            shapes = await asyncio.to_thread(self._calibrations.find, key, self._environment)
            source = Source(copy, self.sets.place(key.name))
            loaded = await self._engine.load(version.ref, source, outputs, shapes, beside=not self._catalog.is_loading)
            lease = self._lease(version.ref)
        except CatalogError:
            if copy != version.folder:
                await asyncio.to_thread(drop, copy)
            raise
        finally:
            self._loading.discard((key.name, key.version))
        new = {digest: loaded.baseline_outputs[digest] for digest in loaded.baseline_outputs.keys() - outputs.keys()}
        await self._outputs.keep(version, new)
        if loaded.shapes != shapes:
            try:
                await asyncio.to_thread(self._calibrations.keep, key, self._environment, loaded.shapes)
            except OSError as error:
                LOG.warning("the chunk shapes of %s cannot be kept: %s", key, error.strerror)
        await self._verdicts.serve(
            replace(
                version,
                folder=copy,
                environment={**self._environment, "dtype": loaded.dtype, **loaded.libraries},
                traits=loaded.traits,
                parity=loaded.parity,
                lease=lease,
                kept_sets=await self.sets.attach_all(version),
            )
        )
        LOG.info("%s is served: artefact %s, manifest %s", key, key.digest, version.manifest_digest)

    async def _copied(self, version: ModelVersion) -> Path:
        try:
            return await asyncio.to_thread(stage, version.folder, version.manifest_digest, self._copies)
        except OSError as error:
            if not self._catalog.is_loading:  # another version that is served from that folder would be mistaken for it
                raise LoadRefused(f"the version cannot be copied to the data folder: {error.strerror}") from error
            LOG.warning("%s is served from the folder of models, not from a copy: %s", version.key, error.strerror)
            return version.folder

    @property
    def _environment(self) -> Mapping[str, str]:
        """The environment of the workers, on which kept outputs and shapes depend beside the version."""
        return self._engine.stats().environment

    def _lease(self, version: VersionRef) -> Lease:
        loop = asyncio.get_running_loop()

        def end() -> None:
            if not loop.is_closed():  # from whichever thread released it last
                loop.call_soon_threadsafe(self._engine.unload, version)

        return Lease(end)


def _distinct(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(names))
