"""The folder of models as it is served: what is loaded at the start, and loaded, reloaded and unloaded while serving.

All loading takes the same path. A version is copied first, loaded by every worker, then put into the catalog, where
later requests find it; requests that were planned with other files of the same version are answered from those. Its
check decides whether a bare model name may mean it: a kept verdict is used, else the check runs beside the service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from service.catalog.assessments import ASSESSMENTS, Assessment, Assessments
from service.catalog.baseline_outputs import OUTPUTS, KeptOutputs, Outputs
from service.catalog.baselines import BASELINES, KeptSet, KeptSets
from service.catalog.calibrations import Calibrations
from service.catalog.manifest import find_versions, read_manifest
from service.catalog.refusals import message_for_clients
from service.catalog.set_erasure import forget_rows, remove_set
from service.catalog.staging import drop, stage
from service.catalog.versions import Catalog, Lease, ModelVersion
from service.domain import ModelKey, VersionRef
from service.engine.protocol import BaselineOutputs, Engine, Source
from service.errors import CatalogError, LedgerUnavailable, LoadRefused, ModelNotReady, NotFound, Unkept
from service.lifecycle.checking.background import Checker

LOG = logging.getLogger("answerable")
Rows = Sequence[tuple[float, ...]]
T = TypeVar("T")
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

    `erased` returns the tokens of all rows of baseline sets that belonged to erased persons; it blocks. `checker` is
    for versions without a verdict; by default each is checked in a process of its own.
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
        self._data = data
        self._erased = erased
        self._copies = data / "versions"
        self._catalog = catalog
        self._engine = engine
        self._observe_cache = observe_cache
        self._outputs = KeptOutputs(data / OUTPUTS)
        self._calibrations = Calibrations(data / "calibrations")
        self._assessments = Assessments(data / ASSESSMENTS)
        self._sets = KeptSets(data / BASELINES)
        self._checker = checker or Checker(data)
        self._judging: dict[tuple[ModelKey, str], asyncio.Task[None]] = {}
        self._loading: set[tuple[str, str]] = set()
        self._turn = asyncio.Lock()
        self._serves = False
        self._lost_rows = False

    async def start(self) -> None:
        """Loads every version of the catalog; one that cannot be loaded stays not ready, and the others serve."""
        try:
            await self._removed(
                lambda: forget_rows(self._data, self._erased())
            )  # also rows that a restored backup brought back
        except (Unkept, LedgerUnavailable) as error:
            LOG.error("rows of people who were erased may still be in baseline sets: %s", error)  # noqa: TRY400
        async with self._turn:
            for version in list(self._catalog):
                try:
                    await self._load(version)
                except CatalogError as error:
                    LOG.error("%s is not served: %s", version.key, error)  # noqa: TRY400
                    self._catalog.put(replace(version, problem=message_for_clients(error)))
            self._serves = True
            self._catalog.is_loading = False
        if self._lost_rows:
            await self._withdraw_sets()

    async def close(self) -> None:
        """Ends a running check."""
        self._checker.close()
        if self._judging:
            await asyncio.wait(self._judging.values())

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
            known = self._known(version.key.name, version.key.version)
            if known is None or not known.is_ready or not known.is_same(version):
                await self._load(version)
            else:
                await self._renew_sets(known)
                await self._assess(self._known(known.key.name, known.key.version) or known)
        except CatalogError as error:
            LOG.error("%s@%s is not loaded: %s", folder.parent.name, folder.name, error)  # noqa: TRY400
            if self._known(folder.parent.name, folder.name) is None:
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

    def _known(self, name: str, version: str) -> ModelVersion | None:
        return next((one for one in self._catalog if (one.key.name, one.key.version) == (name, version)), None)

    def _state(self, name: str, version: str) -> State:
        known = self._known(name, version)
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
            outputs = await self._known_outputs(version)
            shapes = await asyncio.to_thread(self._calibrations.find, key, self._environment)
            source = Source(copy, self._sets.place(key.name))
            loaded = await self._engine.load(version.ref, source, outputs, shapes, beside=self._serves)
            lease = self._lease(version.ref)
        except CatalogError:
            if copy != version.folder:
                await asyncio.to_thread(drop, copy)
            raise
        finally:
            self._loading.discard((key.name, key.version))
        new = {digest: loaded.baseline_outputs[digest] for digest in loaded.baseline_outputs.keys() - outputs.keys()}
        await self._keep_outputs(version, new)
        if loaded.shapes != shapes:
            try:
                await asyncio.to_thread(self._calibrations.keep, key, self._environment, loaded.shapes)
            except OSError as error:
                LOG.warning("the chunk shapes of %s cannot be kept: %s", key, error.strerror)
        await self._assess(
            replace(
                version,
                folder=copy,
                environment={**self._environment, "dtype": loaded.dtype},
                traits=loaded.traits,
                parity=loaded.parity,
                lease=lease,
                kept_sets=await self._attach_sets(version),
            )
        )
        LOG.info("%s is served: artefact %s, manifest %s", key, key.digest, version.manifest_digest)

    async def _copied(self, version: ModelVersion) -> Path:
        try:
            return await asyncio.to_thread(stage, version.folder, version.manifest_digest, self._copies)
        except OSError as error:
            if self._serves:  # another version that is served from that folder would be mistaken for it
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

    async def keep_set(
        self,
        version: ModelVersion,
        name: str,
        rows: Rows,
        description: str,
        *,
        tenant: str | None,
        subjects: Sequence[str | None] = (),
    ) -> KeptSet:
        """Keeps rows as the next version of a baseline set of the model, and gives it to all workers.

        It belongs to the tenant, or for None is shared by all. `subjects` has the token of the person of each row that
        is a person's.

        Raises InvalidRequest, ModelNotReady when the version is no longer served, or Unkept.
        """
        array = np.array(rows, dtype=np.float64)

        def keep() -> KeptSet:
            key, manifest = version.key, version.manifest
            kept = self._sets.keep(key, manifest, name, array, description, tenant=tenant, subjects=subjects)
            if not subjects:
                return kept
            forget_rows(self._data, self._erased())  # a person may have been erased since the tokens were made
            return next(one for one in self._sets.of(key.name) if one.is_same(kept))

        async with self._turn:
            try:
                kept = await asyncio.to_thread(keep)
            except OSError as error:
                LOG.exception("a baseline set cannot be kept")
                raise Unkept(f"the set cannot be kept: {error.strerror}") from error
            for known in self._catalog.versions(version.key.name):
                if known.is_ready:
                    await self._renew_sets(known)
        current = self._known(version.key.name, version.key.version)
        if current is None or kept not in current.fitting_sets(tenant):
            raise ModelNotReady("the set is kept, but the version that it is for is served no more")
        return kept

    def find_set(self, model: str, tenant: str, name: str) -> KeptSet:
        """The set `name@version`, even one that no version can use now. Raises NotFound, also for another tenant's
        set."""
        self._catalog.versions(model)
        sets = [one for one in self._sets.of(model) if one.is_seen_by(tenant) and f"{one.name}@{one.version}" == name]
        if not sets:
            raise NotFound("there is no such baseline set, or it is the model's own")
        return sets[-1]

    async def remove_set(self, kept_set: KeptSet) -> KeptSet:
        """Removes all rows of a set, here and on the workers; returns the emptied set. Raises Unkept."""
        reduced = await self._removed(lambda: remove_set(self._data, kept_set))
        await self._withdraw_sets()
        return reduced

    async def forget_rows(self) -> None:
        """Removes the rows of people who were erased from all sets, here and on the workers. Raises Unkept.

        Rows that another process removed are taken from the workers too.
        """
        await self._removed(lambda: forget_rows(self._data, self._erased()))
        await self._withdraw_sets()

    async def _removed(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            LOG.exception("rows cannot be removed from baseline sets")
            raise Unkept(f"rows of baseline sets cannot be removed: {error.strerror}") from error

    async def _withdraw_sets(self) -> None:
        """Removes sets that are no longer kept from catalog and workers at once, then gives them the reduced sets."""
        for name in self._catalog.names:
            sets = await asyncio.to_thread(self._sets.of, name)
            before = {one.digest for known in self._catalog.known if known.key.name == name for one in known.kept_sets}
            self._catalog.keep_sets(name, sets)
            for digest in before - {one.digest for one in sets if one.size}:
                self._engine.detach(digest)
        if not self._serves:
            self._lost_rows = True  # the start holds the lock, and does this at its end
            return
        async with self._turn:
            for known in list(self._catalog):
                if known.is_ready:
                    await self._renew_sets(known)

    async def _renew_sets(self, version: ModelVersion) -> None:
        sets = await self._attach_sets(version)
        current = self._known(version.key.name, version.key.version)
        if current is not None and current.is_ready and current.is_same(version):
            self._catalog.put(replace(current, kept_sets=sets))

    async def _attach_sets(self, version: ModelVersion) -> tuple[KeptSet, ...]:
        """Every set that is kept for the model; those that fit the version are given to the workers.

        A set that cannot be attached is left out and logged: it does not keep the version from being served.
        """
        key, usable = version.key, []
        for kept_set in await asyncio.to_thread(self._sets.of, key.name):
            if kept_set not in version.kept_sets and kept_set.stale_for(key, version.manifest) is None:
                try:
                    await self._attach(version, kept_set)
                except CatalogError as error:
                    LOG.error("%s is without baseline %s@%s: %s", key, kept_set.name, kept_set.version, error)  # noqa: TRY400
                    continue
            usable.append(kept_set)
        return tuple(usable)

    async def _attach(self, version: ModelVersion, kept_set: KeptSet) -> None:
        outputs = await self._find_outputs(version, kept_set.sha256)
        computed = await self._engine.attach(version.ref, kept_set.listed, outputs)
        if outputs is None:
            await self._keep_outputs(version, {kept_set.listed.digest: computed})

    async def _known_outputs(self, version: ModelVersion) -> BaselineOutputs:
        known = {}
        for baseline_set in version.manifest.baselines:
            outputs = await self._find_outputs(version, baseline_set.sha256)
            if outputs is not None:
                known[baseline_set.digest] = outputs
        return known

    def _conditions_of(self, version: ModelVersion) -> dict[str, str]:
        """What the outputs of an artefact depend on beside the artefact: the environment, and the link that the
        manifest names."""
        return {**self._environment, "link": version.manifest.outputs.identity}

    async def _find_outputs(self, version: ModelVersion, sha256: str) -> Outputs | None:
        outputs = await asyncio.to_thread(self._outputs.find, version.key, sha256, self._conditions_of(version))
        self._observe_cache("baselines", "miss" if outputs is None else "hit")
        return outputs

    async def _keep_outputs(self, version: ModelVersion, outputs: BaselineOutputs) -> None:
        key, conditions = version.key, self._conditions_of(version)
        for digest, over_set in outputs.items():
            sha256 = digest.removeprefix("sha256:")
            try:
                await asyncio.to_thread(self._outputs.keep, key, sha256, conditions, over_set)
            except OSError as error:
                LOG.warning("the outputs of %s over a baseline set cannot be kept: %s", key, error.strerror)

    async def _assess(self, version: ModelVersion) -> None:
        """Serves the version with its kept verdict, or starts its check.

        A verdict counts only where it compared the version with the one that the name means now; for a version that has
        a verdict already, it counts whatever the version was compared with.
        """
        before = self._catalog.predecessor(version)
        assessment = await self._verdict(version, before if version.assessment is None else None)
        known = self._known(version.key.name, version.key.version)
        if assessment is None and known is not None and known.is_same(version):
            assessment = known.assessment  # the check ended meanwhile
        self._catalog.put(replace(version, assessment=assessment))
        name = version.key, version.manifest_digest
        if assessment is None and name not in self._judging:
            self._judging[name] = asyncio.get_running_loop().create_task(self._judge(version))
            self._judging[name].add_done_callback(lambda _: self._judging.pop(name))
        elif assessment is not None and not assessment.passed:
            _log_failure(version, assessment.failed)

    async def _verdict(self, version: ModelVersion, before: ModelVersion | None) -> Assessment | None:
        against = None if before is None else before.files
        find = self._assessments.find
        return await asyncio.to_thread(find, version.folder, version.key, version.manifest_digest, against)

    async def _judge(self, version: ModelVersion) -> None:
        """Checks the version against the one that the bare name means, again if that has changed meanwhile.

        The verdict counts if the version is still served then.
        """
        while True:
            before = self._catalog.predecessor(version)
            await self._checker.check(version.folder, None if before is None else before.folder)
            assessment = await self._verdict(version, before)
            known = self._known(version.key.name, version.key.version)
            if assessment is None or known is None or not known.is_ready or not known.is_same(version):
                return
            now = self._catalog.predecessor(version)
            if now is None or (before is not None and now.is_same(before)):
                break
        self._catalog.put(replace(known, assessment=assessment))
        if not assessment.passed:
            _log_failure(version, assessment.failed)


def _log_failure(version: ModelVersion, failed: Iterable[str]) -> None:
    LOG.error("%s answers only when it is named: its check failed: %s", version.key, ", ".join(failed))


def _distinct(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(names))
