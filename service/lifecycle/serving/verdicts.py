"""Verdicts of checks on versions that are served: a bare model name never means a version whose check has failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from service.catalog.assessments import ASSESSMENTS, Assessment, Assessments
from service.catalog.versions import Catalog, ModelVersion
from service.domain import ModelKey
from service.lifecycle.checking.background import Checker

LOG = logging.getLogger("answerable")


class Verdicts:
    """Puts versions into the catalog with the verdicts that are kept in the data folder, or checks them."""

    def __init__(self, data: Path, catalog: Catalog, checker: Checker) -> None:
        self._catalog = catalog
        self._assessments = Assessments(data / ASSESSMENTS)
        self._checker = checker
        self._checking: dict[tuple[ModelKey, str], asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Ends a running check."""
        self._checker.close()
        if self._checking:
            await asyncio.wait(self._checking.values())

    async def serve(self, version: ModelVersion) -> None:
        """Serves the version with its kept verdict, or starts its check.

        A verdict counts only where it compared the version with the one that the name means now; for a version that has
        a verdict already, it counts whatever the version was compared with.
        """
        before = self._catalog.predecessor(version)
        assessment = await self._kept(version, before if version.assessment is None else None)
        known = self._catalog.get(version.key.name, version.key.version)
        if assessment is None and known is not None and known.is_same(version):
            assessment = known.assessment  # the check ended meanwhile
        self._catalog.put(replace(version, assessment=assessment))
        name = version.key, version.manifest_digest
        if assessment is None and name not in self._checking:
            self._checking[name] = asyncio.get_running_loop().create_task(self._check(version))
            self._checking[name].add_done_callback(lambda _: self._checking.pop(name))
        elif assessment is not None and not assessment.passed:
            _log_failure(version, assessment.failed)

    async def _kept(self, version: ModelVersion, before: ModelVersion | None) -> Assessment | None:
        against = None if before is None else before.files
        find = self._assessments.find
        return await asyncio.to_thread(find, version.folder, version.key, version.manifest_digest, against)

    async def _check(self, version: ModelVersion) -> None:
        """Checks the version against the one that the bare name means, again if that has changed meanwhile.

        The verdict counts if the version is still served then.
        """
        while True:
            before = self._catalog.predecessor(version)
            await self._checker.check(version.folder, None if before is None else before.folder)
            assessment = await self._kept(version, before)
            known = self._catalog.get(version.key.name, version.key.version)
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
