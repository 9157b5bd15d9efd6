"""The drift of every version that is served, and the age of the baselines that it is explained from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.catalog.versions import ModelVersion
from service.domain import Explanation, Plan
from service.engine.protocol import Engine
from service.monitoring.drift import Drift
from service.monitoring.metrics import Metrics
from service.monitoring.stability import StabilityProbe


@dataclass(slots=True)
class _Watched:
    drift: Drift
    baseline_made: float | None = None


class Health:
    """What is watched of each version, by name, version and manifest. Used on the event loop, which it never blocks."""

    def __init__(self, engine: Engine, stability_share: float) -> None:
        self._probe = StabilityProbe(engine, stability_share, self._observe_stability)
        self._watched: dict[tuple[str, str, str], _Watched] = {}
        self._shown: dict[tuple[str, str], _Watched] = {}
        self._looking: set[asyncio.Task[None]] = set()

    def observe(self, version: ModelVersion, plan: Plan, explanation: Explanation, cohort: Mapping[str, str]) -> None:
        """Takes in an explanation that was computed, with the tags of its request."""
        self._of(version).drift.observe(plan, explanation, cohort)

    def consider(self, version: ModelVersion, plan: Plan, explanation: Explanation, expected_points: int) -> None:
        """Has a small share of what was computed computed once more, from another sample of the baseline."""
        self._probe.consider(version, plan, explanation, expected_points)

    def _observe_stability(self, version: ModelVersion, correlation: float) -> None:
        self._of(version).drift.observe_stability(correlation)

    def follow(self, versions: Iterable[ModelVersion]) -> None:
        """Watches from now on the versions that are ready, each against its own profile, and forgets all others.

        Of two with the same name and version the later one is shown: the default version, whose files were replaced.
        """
        watched = {_key(version): (version, self._of(version)) for version in versions if version.is_ready}
        for version, one in watched.values():
            one.drift.profile = None if version.assessment is None else version.assessment.profile
        self._watched = {key: one for key, (_, one) in watched.items()}
        self._shown = {(version.key.name, version.key.version): one for version, one in watched.values()}

    def show(self, metrics: Metrics) -> None:
        """Sets the gauges of the versions that are watched."""
        for gauge in (metrics.ndcg, metrics.stability, metrics.protected_share, metrics.baseline_age):
            gauge.clear()
        for labels, one in self._shown.items():
            figures = (
                (metrics.ndcg, one.drift.ndcg),
                (metrics.stability, one.drift.stability),
                (metrics.baseline_age, None if one.baseline_made is None else time.time() - one.baseline_made),
            )
            for gauge, figure in figures:
                if figure is not None:
                    gauge.labels(*labels).set(figure)
            for cohort, share in one.drift.protected_shares.items():
                metrics.protected_share.labels(*labels, cohort).set(share)

    async def close(self) -> None:
        """Ends what is under way."""
        await self._probe.close()
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

    def _of(self, version: ModelVersion) -> _Watched:
        key = _key(version)
        one = self._watched.get(key)
        if one is None:
            one = self._watched[key] = _Watched(Drift(version.manifest))
            task = asyncio.get_running_loop().create_task(self._look(version, one))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)
        return one

    async def _look(self, version: ModelVersion, one: _Watched) -> None:
        one.baseline_made = await asyncio.to_thread(_baseline_made, version)


def _key(version: ModelVersion) -> tuple[str, str, str]:
    return version.key.name, version.key.version, version.manifest_digest


def _baseline_made(version: ModelVersion) -> float | None:
    """When the file of the default baseline set was written, in seconds since the epoch; None where it is no set."""
    default = version.manifest.defaults.baseline
    files = [baseline.file for baseline in version.manifest.baselines if baseline.name == default]
    try:
        return (version.folder / files[-1]).stat().st_mtime if files else None
    except OSError:
        return None
