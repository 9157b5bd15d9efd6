"""Baseline sets that are kept beside those of the manifests: in the data folder, in the catalog and on the workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from service.catalog.baselines import BASELINES, KeptSet, KeptSets
from service.catalog.set_erasure import forget_rows, remove_set
from service.catalog.versions import Catalog, ModelVersion
from service.engine.protocol import Engine
from service.errors import CatalogError, LedgerUnavailable, ModelNotReady, NotFound, Unkept
from service.lifecycle.serving.outputs_over_sets import OutputsOverSets

LOG = logging.getLogger("answerable")
Rows = Sequence[tuple[float, ...]]
T = TypeVar("T")


class ServedSets:
    """Keeps, finds and removes baseline sets, and gives them to the workers that have a version they fit.

    `data` is the data folder. `erased` returns the tokens of all rows of sets that belonged to erased persons; it
    blocks. `turn` is held by whoever loads or unloads versions: their sets do not change meanwhile, except that rows
    are always taken away at once.
    """

    def __init__(
        self,
        data: Path,
        catalog: Catalog,
        engine: Engine,
        outputs: OutputsOverSets,
        erased: Callable[[], Collection[str]],
        turn: asyncio.Lock,
    ) -> None:
        self._data = data
        self._catalog = catalog
        self._engine = engine
        self._outputs = outputs
        self._erased = erased
        self._turn = turn
        self._kept = KeptSets(data / BASELINES)
        self._lost_rows_while_loading = False

    def place(self, model: str) -> Path:
        """The folder of a model's sets."""
        return self._kept.place(model)

    async def before_loading(self) -> None:
        """Removes rows of erased people that a restored backup brought back, or that were there when the service
        ended."""
        try:
            await self._removed(lambda: forget_rows(self._data, self._erased()))
        except (Unkept, LedgerUnavailable) as error:
            LOG.error("rows of people who were erased may still be in baseline sets: %s", error)  # noqa: TRY400

    async def after_loading(self) -> None:
        """Takes from the workers what was removed while they loaded the versions of the catalog."""
        if self._lost_rows_while_loading:
            await self._withdraw()

    async def keep(
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
            kept = self._kept.keep(key, manifest, name, array, description, tenant=tenant, subjects=subjects)
            if not subjects:
                return kept
            forget_rows(self._data, self._erased())  # a person may have been erased since the tokens were made
            return next(one for one in self._kept.of(key.name) if one.is_same(kept))

        async with self._turn:
            try:
                kept = await asyncio.to_thread(keep)
            except OSError as error:
                LOG.exception("a baseline set cannot be kept")
                raise Unkept(f"the set cannot be kept: {error.strerror}") from error
            for known in self._catalog.versions(version.key.name):
                await self.renew(known)
        current = self._catalog.get(version.key.name, version.key.version)
        if current is None or kept not in current.fitting_sets(tenant):
            raise ModelNotReady("the set is kept, but the version that it is for is served no more")
        return kept

    def find(self, model: str, tenant: str, name: str) -> KeptSet:
        """The set `name@version`, even one that no version can use now. Raises NotFound, also for another tenant's
        set."""
        self._catalog.versions(model)
        sets = [one for one in self._kept.of(model) if one.is_seen_by(tenant) and f"{one.name}@{one.version}" == name]
        if not sets:
            raise NotFound("there is no such baseline set, or it is the model's own")
        return sets[-1]

    async def remove(self, kept_set: KeptSet) -> KeptSet:
        """Removes all rows of a set, here and on the workers; returns the emptied set. Raises Unkept."""
        reduced = await self._removed(lambda: remove_set(self._data, kept_set))
        await self._withdraw()
        return reduced

    async def forget_rows(self) -> None:
        """Removes the rows of people who were erased from all sets, here and on the workers. Raises Unkept.

        Rows that another process removed are taken from the workers too.
        """
        await self._removed(lambda: forget_rows(self._data, self._erased()))
        await self._withdraw()

    async def _removed(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            LOG.exception("rows cannot be removed from baseline sets")
            raise Unkept(f"rows of baseline sets cannot be removed: {error.strerror}") from error

    async def _withdraw(self) -> None:
        """Removes sets that are no longer kept from catalog and workers at once, then gives them the reduced sets."""
        for name in self._catalog.names:
            sets = await asyncio.to_thread(self._kept.of, name)
            before = {one.digest for known in self._catalog.known if known.key.name == name for one in known.kept_sets}
            self._catalog.keep_sets(name, sets)
            for digest in before - {one.digest for one in sets if one.size}:
                self._engine.detach(digest)
        if self._catalog.is_loading:
            self._lost_rows_while_loading = True  # whoever loads has the turn, for minutes perhaps
            return
        async with self._turn:
            for known in list(self._catalog):
                await self.renew(known)

    async def renew(self, version: ModelVersion) -> None:
        """Gives a served version the sets that are kept now."""
        if not version.is_ready:
            return
        sets = await self.attach_all(version)
        current = self._catalog.get(version.key.name, version.key.version)
        if current is not None and current.is_ready and current.is_same(version):
            self._catalog.put(replace(current, kept_sets=sets))

    async def attach_all(self, version: ModelVersion) -> tuple[KeptSet, ...]:
        """Every set that is kept for the model; those that fit the version are given to the workers.

        A set that cannot be attached is left out and logged: it does not keep the version from being served.
        """
        key, usable = version.key, []
        for kept_set in await asyncio.to_thread(self._kept.of, key.name):
            if kept_set not in version.kept_sets and kept_set.stale_for(key, version.manifest) is None:
                try:
                    await self._attach(version, kept_set)
                except CatalogError as error:
                    LOG.error("%s is without baseline %s@%s: %s", key, kept_set.name, kept_set.version, error)  # noqa: TRY400
                    continue
            usable.append(kept_set)
        return tuple(usable)

    async def _attach(self, version: ModelVersion, kept_set: KeptSet) -> None:
        outputs = await self._outputs.find(version, kept_set.sha256)
        computed = await self._engine.attach(version.ref, kept_set.listed, outputs)
        if outputs is None:
            await self._outputs.keep(version, {kept_set.listed.digest: computed})
