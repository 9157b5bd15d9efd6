"""The deployed outputs over baseline sets: computed once for each artefact, then read from the data folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from service.catalog.baseline_outputs import OUTPUTS, KeptOutputs, Outputs
from service.catalog.versions import ModelVersion
from service.engine.protocol import BaselineOutputs, Engine

LOG = logging.getLogger("answerable")


class OutputsOverSets:
    """Outputs of versions over baseline sets. `observe_cache` is told of each look-up: of what, and its result."""

    def __init__(self, data: Path, engine: Engine, observe_cache: Callable[[str, str], None]) -> None:
        self._kept = KeptOutputs(data / OUTPUTS)
        self._engine = engine
        self._observe_cache = observe_cache

    async def over_own_sets(self, version: ModelVersion) -> BaselineOutputs:
        """What is kept of the outputs over the sets of the version's manifest."""
        known = {}
        for baseline_set in version.manifest.baselines:
            outputs = await self.find(version, baseline_set.sha256)
            if outputs is not None:
                known[baseline_set.digest] = outputs
        return known

    async def find(self, version: ModelVersion, sha256: str) -> Outputs | None:
        """The outputs over the set of this digest; None where they are not kept."""
        outputs = await asyncio.to_thread(self._kept.find, version.key, sha256, self._conditions_of(version))
        self._observe_cache("baselines", "miss" if outputs is None else "hit")
        return outputs

    async def keep(self, version: ModelVersion, outputs: BaselineOutputs) -> None:
        """Keeps outputs, by the digests of the sets. Where the disk refuses them they are computed again next time."""
        key, conditions = version.key, self._conditions_of(version)
        for digest, over_set in outputs.items():
            sha256 = digest.removeprefix("sha256:")
            try:
                await asyncio.to_thread(self._kept.keep, key, sha256, conditions, over_set)
            except OSError as error:
                LOG.warning("the outputs of %s over a baseline set cannot be kept: %s", key, error.strerror)

    def _conditions_of(self, version: ModelVersion) -> Mapping[str, str]:
        """What the outputs of an artefact depend on beside the artefact: the environment of the workers, and the link
        that the manifest names."""
        return {**self._engine.stats().environment, "link": version.manifest.outputs.identity}
