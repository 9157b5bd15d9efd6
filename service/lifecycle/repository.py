"""The folder of models as it is served: what is loaded at the start, and loaded, reloaded and unloaded while serving.

All of it is one piece of code. A version is copied first, loaded by every worker, then put into the catalog, where
requests find it from then on; what was planned with other files of the same version ends with those. Whether a bare
model name may mean it is for its check to say: a verdict that was kept is taken, else the check runs beside the
service.
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
from service.catalog.refusals import told
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
    """One version in the words of the model repository extension of the V2 protocol."""

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
            catalog.faults[version.parent.name, version.name] = told(error)
    if not list(catalog):
        LOG.error("there is no model in %s", folder.absolute())
    return catalog


def _described(folder: Path) -> ModelVersion:
    manifest, key, digest = read_manifest(folder)
    return ModelVersion(key, manifest, folder.absolute(), digest)


class Repository:
    """Loads and unloads versions of the models under `models`. `data` is the data folder.

    `erased` gives the tokens of all rows of baseline sets that were a person's who was erased; it blocks.
    """

    def __init__(
        self,
        models: Path,
        data: Path,
        catalog: Catalog,
        engine: Engine,
        observe_cache: Callable[[str, str], None],
        erased: Callable[[], Collection[str]] = frozenset,
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
        self._checker = Checker(data)
        self._judging: dict[tuple[ModelKey, str], asyncio.Task[None]] = {}
        self._loading: set[tuple[str, str]] = set()
        self._turn = asyncio.Lock()
        self._serves = False
        self._lost_rows = False

    async def start(self) -> None:
        """Loads every version of the catalog; one that cannot be loaded stays not ready, and the others serve."""
        try:
            await self._removed(lambda: forget_rows(self._data, self._erased()))  # also what a backup brought back
        except (Unkept, LedgerUnavailable) as error:
            LOG.error("rows of people who were erased may still be in baseline sets: %s", error)  # noqa: TRY400
        async with self._turn:
            for version in list(self._catalog):
                try:
                    await self._load(version)
                except CatalogError as error:
                    LOG.error("%s is not served: %s", version.key, error)  # noqa: TRY400
                    self._catalog.put(replace(version, problem=told(error)))
            self._serves = True
            self._catalog.is_loading = False
        if self._lost_rows:
            await self._withdraw_sets()

    async def close(self) -> None:
        """Ends what is checked."""
        self._checker.close()
        if self._judging:
            await asyncio.wait(self._judging.values())

    async def load(self, name: str, version: str | None) -> list[State]:
        """Loads a version from the folder of models as it is now, or every version of a model; all that can be loaded.

        A version whose files are as they were is not loaded again, but what its check said is read again. Raises
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
            found = await asyncio.to_thread(_described, folder)
            known = self._known(found.key.name, found.key.version)
            if known is None or not known.is_ready or not known.is_same(found):
                await self._load(found)
            else:
                await self._renew_sets(known)
                await self._assess(self._known(known.key.name, known.key.version) or known)
        except CatalogError as error:
            LOG.error("%s@%s is not loaded: %s", folder.parent.name, folder.name, error)  # noqa: TRY400
            if self._known(folder.parent.name, folder.name) is None:
                self._catalog.faults[folder.parent.name, folder.name] = told(error)
            return f"{folder.parent.name}@{folder.name}: {told(error)}"
        return None

    async def unload(self, name: str, version: str | None) -> list[State]:
        """Serves a version, or every version of a model, no more; requests under way end. Raises NotFound."""
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
        """Forgets what was wrong with the folders of a model, or of one version; which versions those are."""
        faulty = [(model, one) for model, one in self._catalog.faults if model == name and version in (None, one)]
        for fault in faulty:
            del self._catalog.faults[fault]
        return [one for _, one in faulty]

    async def index(self) -> list[State]:
        """Every version that is known, or lies in the folder of models."""
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
        """Loads a version on all workers and serves it. Raises CatalogError, and nothing has changed then."""
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
                kept_sets=await self._given_sets(version),
            )
        )
        LOG.info("%s is served: artefact %s, manifest %s", key, key.digest, version.manifest_digest)

    async def _copied(self, version: ModelVersion) -> Path:
        try:
            return await asyncio.to_thread(stage, version.folder, version.manifest_digest, self._copies)
        except OSError as error:
            if self._serves:  # what is served from that folder would be taken for it
                raise LoadRefused(f"the version cannot be copied to the data folder: {error.strerror}") from error
            LOG.warning("%s is served from the folder of models, not from a copy: %s", version.key, error.strerror)
            return version.folder

    @property
    def _environment(self) -> Mapping[str, str]:
        """What kept outputs and shapes, beside the version itself, depend on."""
        return self._engine.stats().environment

    def _lease(self, version: VersionRef) -> Lease:
        loop = asyncio.get_running_loop()

        def end() -> None:
            if not loop.is_closed():  # whatever thread let go last
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

        It is the tenant's, or for None everybody's. `subjects` are the tokens of the rows that are a person's.

        Raises InvalidRequest, ModelNotReady when the version is served no more, or Unkept.
        """
        array = np.array(rows, dtype=np.float64)

        def keep() -> KeptSet:
            key, manifest = version.key, version.manifest
            kept = self._sets.keep(key, manifest, name, array, description, tenant=tenant, subjects=subjects)
            if not subjects:
                return kept
            forget_rows(self._data, self._erased())  # somebody may have been erased since the tokens were made
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
        """The set `name@version`, also one that no version can use now. Raises NotFound, also for another tenant's."""
        self._catalog.versions(model)
        sets = [one for one in self._sets.of(model) if one.is_seen_by(tenant) and f"{one.name}@{one.version}" == name]
        if not sets:
            raise NotFound("there is no such baseline set, or it is the model's own")
        return sets[-1]

    async def remove_set(self, one: KeptSet) -> KeptSet:
        """Removes all rows of a set, here and on the workers; what is left of it. Raises Unkept."""
        left = await self._removed(lambda: remove_set(self._data, one))
        await self._withdraw_sets()
        return left

    async def forget_rows(self) -> None:
        """Removes the rows of people who were erased from all sets, here and on the workers. Raises Unkept.

        Also what another process has removed is taken from the workers.
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
        """Takes from catalog and workers what is not kept any more, at once, and then gives them what became of it."""
        for name in self._catalog.names:
            sets = await asyncio.to_thread(self._sets.of, name)
            before = {one.digest for known in self._catalog.known if known.key.name == name for one in known.kept_sets}
            self._catalog.keep_sets(name, sets)
            for digest in before - {one.digest for one in sets if one.size}:
                self._engine.detach(digest)
        if not self._serves:
            self._lost_rows = True  # the start has its turn, and comes to it at its end
            return
        async with self._turn:
            for known in list(self._catalog):
                if known.is_ready:
                    await self._renew_sets(known)

    async def _renew_sets(self, version: ModelVersion) -> None:
        sets = await self._given_sets(version)
        current = self._known(version.key.name, version.key.version)
        if current is not None and current.is_ready and current.is_same(version):
            self._catalog.put(replace(current, kept_sets=sets))

    async def _given_sets(self, version: ModelVersion) -> tuple[KeptSet, ...]:
        """Every set that is kept for the model; those that fit the version are given to the workers.

        One that cannot be is left out and logged: it keeps nothing from being served.
        """
        key, given = version.key, []
        for one in await asyncio.to_thread(self._sets.of, key.name):
            if one not in version.kept_sets and one.stale_for(key, version.manifest) is None:
                try:
                    await self._give(version, one)
                except CatalogError as error:
                    LOG.error("%s is without baseline %s@%s: %s", key, one.name, one.version, error)  # noqa: TRY400
                    continue
            given.append(one)
        return tuple(given)

    async def _give(self, version: ModelVersion, one: KeptSet) -> None:
        outputs = await self._find_outputs(version, one.sha256)
        computed = await self._engine.attach(version.ref, one.listed, outputs)
        if outputs is None:
            await self._keep_outputs(version, {one.listed.digest: computed})

    async def _known_outputs(self, version: ModelVersion) -> BaselineOutputs:
        known = {}
        for one in version.manifest.baselines:
            found = await self._find_outputs(version, one.sha256)
            if found is not None:
                known[one.digest] = found
        return known

    def _conditions_of(self, version: ModelVersion) -> dict[str, str]:
        """What the outputs of an artefact depend on besides: the environment, and the link that the manifest names."""
        return {**self._environment, "link": version.manifest.outputs.identity}

    async def _find_outputs(self, version: ModelVersion, sha256: str) -> Outputs | None:
        found = await asyncio.to_thread(self._outputs.find, version.key, sha256, self._conditions_of(version))
        self._observe_cache("baselines", "miss" if found is None else "hit")
        return found

    async def _keep_outputs(self, version: ModelVersion, outputs: BaselineOutputs) -> None:
        key, conditions = version.key, self._conditions_of(version)
        for digest, found in outputs.items():
            sha256 = digest.removeprefix("sha256:")
            try:
                await asyncio.to_thread(self._outputs.keep, key, sha256, conditions, found)
            except OSError as error:
                LOG.warning("the outputs of %s over a baseline set cannot be kept: %s", key, error.strerror)

    async def _assess(self, version: ModelVersion) -> None:
        """Serves the version with the verdict that was kept, or has it checked.

        A verdict is taken only where it compared the version with what the name means now; one of a version that has a
        verdict already, whatever it was compared with.
        """
        before = self._catalog.predecessor(version)
        found = await self._verdict(version, before if version.assessment is None else None)
        known = self._known(version.key.name, version.key.version)
        if found is None and known is not None and known.is_same(version):
            found = known.assessment  # the check ended meanwhile
        self._catalog.put(replace(version, assessment=found))
        name = version.key, version.manifest_digest
        if found is None and name not in self._judging:
            self._judging[name] = asyncio.get_running_loop().create_task(self._judge(version))
            self._judging[name].add_done_callback(lambda _: self._judging.pop(name))
        elif found is not None and not found.passed:
            _tell_failure(version, found.failed)

    async def _verdict(self, version: ModelVersion, before: ModelVersion | None) -> Assessment | None:
        against = None if before is None else before.files
        find = self._assessments.find
        return await asyncio.to_thread(find, version.folder, version.key, version.manifest_digest, against)

    async def _judge(self, version: ModelVersion) -> None:
        """Has the version checked against what the bare name means, and again where that has changed meanwhile.

        The verdict counts if the version is still served by then.
        """
        while True:
            before = self._catalog.predecessor(version)
            await self._checker.check(version.folder, None if before is None else before.folder)
            found = await self._verdict(version, before)
            known = self._known(version.key.name, version.key.version)
            if found is None or known is None or not known.is_ready or not known.is_same(version):
                return
            now = self._catalog.predecessor(version)
            if now is None or (before is not None and now.is_same(before)):
                break
        self._catalog.put(replace(known, assessment=found))
        if not found.passed:
            _tell_failure(version, found.failed)


def _tell_failure(version: ModelVersion, failed: Iterable[str]) -> None:
    LOG.error("%s answers only when it is named: its check failed: %s", version.key, ", ".join(failed))


def _distinct(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(names))
