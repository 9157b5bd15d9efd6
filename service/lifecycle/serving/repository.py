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
from service.catalog.manifest import read_manifest
from service.catalog.refusals import message_for_clients
from service.catalog.staging import drop, stage
from service.catalog.versions import Catalog, Lease, ModelVersion
from service.domain import VersionRef
from service.engine.protocol import Engine, Source
from service.errors import CatalogError, LoadRefused, NotFound, RegistryUnavailable
from service.lifecycle.checking.background import Checker
from service.lifecycle.serving.outputs_over_sets import OutputsOverSets
from service.lifecycle.serving.registries.files import RegistryUnreachable
from service.lifecycle.serving.registries.registry import Registry, Unfetched
from service.lifecycle.serving.served_sets import ServedSets
from service.lifecycle.serving.verdicts import Verdicts

LOG = logging.getLogger("answerable")
READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"


@dataclass(frozen=True, slots=True)
class State:
    """A version's state, as the model repository extension of the V2 protocol names it."""

    name: str
    version: str
    state: str
    reason: str = ""


def read_catalog(registry: Registry) -> Catalog:
    """Every version that is there without being fetched, to be loaded; one whose manifest is wrong is left out."""
    catalog = Catalog(is_loading=True)
    _describe(registry.at_hand(), catalog)
    return catalog


def _describe(found: Iterable[Path | Unfetched], catalog: Catalog) -> None:
    """Puts versions into the catalog; what is wrong with one is logged and becomes its fault."""
    for version in found:
        if isinstance(version, Unfetched):
            catalog.faults[version.names] = message_for_clients(version.error)
            continue
        try:
            catalog.put(_described(version))
        except CatalogError as error:
            LOG.error("%s", error)  # noqa: TRY400 - the operator needs the sentence, not the trace
            catalog.faults[version.parent.name, version.name] = message_for_clients(error)


def _described(folder: Path) -> ModelVersion:
    manifest, key, digest = read_manifest(folder)
    return ModelVersion(key, manifest, folder.absolute(), digest)


class Repository:
    """Loads and unloads versions of the models in `registry`. `data` is the data folder.

    One version is loaded or unloaded at a time, by whoever has the turn. `sets` are the baseline sets that are kept for
    the versions; see there for `erased`. `checker` is for versions
    without a verdict; by default each is checked in a process of its own.
    """

    def __init__(
        self,
        registry: Registry,
        data: Path,
        catalog: Catalog,
        engine: Engine,
        observe_cache: Callable[[str, str], None],
        erased: Callable[[], Collection[str]] = frozenset,
        checker: Checker | None = None,
    ) -> None:
        self._registry = registry
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
        """Loads every version of the catalog; one that cannot be loaded stays not ready, and the others serve.

        Where the catalog holds none yet, the registry is looked up first.
        """
        if not self._catalog.known and not self._catalog.faults:
            _describe(await asyncio.to_thread(self._registry.start), self._catalog)
        if not self._catalog.known:
            LOG.error("there is no model in %s", self._registry.shown)
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
        """Ends a running check, and what is being fetched."""
        self._registry.close()
        await self._verdicts.close()

    @property
    def shown(self) -> str:
        """The folder or address of the models, without credentials."""
        return self._registry.shown

    @property
    def problems(self) -> list[str]:
        """What could not be looked up or fetched, in sentences for the operator."""
        return self._registry.problems

    async def load(self, name: str, version: str | None) -> list[State]:
        """Loads a version from the registry as it is now, or every version of a model; all that can be loaded.

        A version whose files have not changed is not loaded again, but the verdict of its check is read again. Raises
        NotFound, LoadRefused with the reasons, or RegistryUnavailable; what was served before then goes on.
        """
        try:
            found = await asyncio.to_thread(
                self._registry.fetch, name, version
            )  # before the turn, for it may take long
        except RegistryUnreachable as error:
            raise RegistryUnavailable(str(error)) from error
        async with self._turn:
            self._forget_faults(name, version)
            if not found:
                raise NotFound("there is no such version in the folder of models")
            unfetched = [one for one in found if isinstance(one, Unfetched)]
            folders = [one for one in found if isinstance(one, Path)]
            refused = [self._refused(*one.names, one.error) for one in unfetched]
            refused += [reason for folder in folders if (reason := await self._loaded(folder)) is not None]
        if refused:
            is_cut = any(isinstance(one.error, RegistryUnreachable) for one in unfetched)
            raise (RegistryUnavailable if is_cut else LoadRefused)("; ".join(refused))
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
            return self._refused(folder.parent.name, folder.name, error)
        return None

    def _refused(self, name: str, version: str, error: CatalogError) -> str:
        """The reason for whoever asked; of a version that is not known, the index has it too."""
        if self._catalog.get(name, version) is None:
            self._catalog.faults[name, version] = message_for_clients(error)
        return f"{name}@{version}: {message_for_clients(error)}"

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
        """Every version that is known or in the registry; those that are known, where it cannot be reached."""
        known = [(one.key.name, one.key.version) for one in self._catalog]
        try:
            there = await asyncio.to_thread(self._registry.names)
        except RegistryUnreachable as error:
            LOG.warning("%s", error)
            there = [*self._catalog.faults]
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
            calibration = await asyncio.to_thread(self._calibrations.find, key, self._environment)
            source = Source(copy, self.sets.place(key.name))
            loaded = await self._engine.load(
                version.ref, source, outputs, calibration, beside=not self._catalog.is_loading
            )
            lease = self._lease(version.ref)
        except CatalogError:
            if copy != version.folder:
                await asyncio.to_thread(drop, copy)
            raise
        finally:
            self._loading.discard((key.name, key.version))
        new = {digest: loaded.baseline_outputs[digest] for digest in loaded.baseline_outputs.keys() - outputs.keys()}
        await self._outputs.keep(version, new)
        if loaded.calibration != calibration:
            try:
                await asyncio.to_thread(self._calibrations.keep, key, self._environment, loaded.calibration)
            except OSError as error:
                LOG.warning("the chunk shapes of %s cannot be kept: %s", key, error.strerror)
        await self._verdicts.serve(
            replace(
                version,
                folder=copy,
                environment={**self._environment, **loaded.environment},
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
