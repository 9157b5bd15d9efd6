"""The drift of every version that is served, and the age of its default baseline set."""

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
class _VersionState:
    drift: Drift
    baseline_made: float | None = None


class Health:
    """The drift of each version, by name, version and manifest. Used on the event loop, which it never blocks."""

    def __init__(self, engine: Engine, stability_share: float) -> None:
        self._probe = StabilityProbe(engine, stability_share, self.observe_stability, self.observe_near_by)
        self._states: dict[tuple[str, str, str], _VersionState] = {}
        self._published: dict[tuple[str, str], _VersionState] = {}
        self._reading: set[asyncio.Task[None]] = set()

    def observe(self, version: ModelVersion, plan: Plan, explanation: Explanation, cohort: Mapping[str, str]) -> None:
        """Adds an explanation that was computed, with the tags of its request."""
        self._of(version).drift.observe(plan, explanation, cohort)

    def consider(self, version: ModelVersion, plan: Plan, explanation: Explanation, expected_points: int) -> None:
        """Probes the stability of a small share of the explanations by the manifest's defaults."""
        if self._of(version).drift.is_usual(plan):
            self._probe.consider(version, plan, explanation, expected_points)

    def observe_stability(self, version: ModelVersion, correlation: float) -> None:
        """Adds the rank correlation of an explanation and of one from another sample of the baseline."""
        self._of(version).drift.observe_stability(correlation)

    def observe_near_by(self, version: ModelVersion, correlation: float) -> None:
        """Adds the lowest rank correlation of an explanation and of those at inputs near by."""
        self._of(version).drift.observe_near_by(correlation)

    def follow(self, versions: Iterable[ModelVersion]) -> None:
        """From now on watches the versions that are ready, each against its own profile, and forgets all others.

        Of two with the same name and version the later one is shown: the default version, whose files were replaced.
        """
        watched = {_key(version): (version, self._of(version)) for version in versions if version.is_ready}
        for version, state in watched.values():
            state.drift.profile = None if version.assessment is None else version.assessment.profile
        self._states = {key: state for key, (_, state) in watched.items()}
        self._published = {(version.key.name, version.key.version): state for version, state in watched.values()}

    def show(self, metrics: Metrics) -> None:
        """Sets the gauges of the versions that are watched."""
        for gauge in (metrics.ndcg, metrics.stability, metrics.near_by, metrics.protected_share, metrics.baseline_age):
            gauge.clear()
        for labels, state in self._published.items():
            figures = (
                (metrics.ndcg, state.drift.ndcg),
                (metrics.stability, state.drift.stability),
                (metrics.near_by, state.drift.near_by),
                (metrics.baseline_age, None if state.baseline_made is None else time.time() - state.baseline_made),
            )
            for gauge, figure in figures:
                if figure is not None:
                    gauge.labels(*labels).set(figure)
            for cohort, share in state.drift.protected_shares.items():
                metrics.protected_share.labels(*labels, cohort).set(share)

    async def close(self) -> None:
        """Cancels what is under way."""
        await self._probe.close()
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def _of(self, version: ModelVersion) -> _VersionState:
        key = _key(version)
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _VersionState(Drift(version.manifest))
            task = asyncio.get_running_loop().create_task(self._read_baseline_age(version, state))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        return state

    async def _read_baseline_age(self, version: ModelVersion, state: _VersionState) -> None:
        state.baseline_made = await asyncio.to_thread(_baseline_made, version)


def _key(version: ModelVersion) -> tuple[str, str, str]:
    return version.key.name, version.key.version, version.manifest_digest


def _baseline_made(version: ModelVersion) -> float | None:
    """When the default baseline set's file was written, in seconds since the epoch; None if the default is no set."""
    default = version.manifest.defaults.baseline
    files = [baseline.file for baseline in version.manifest.baselines if baseline.name == default]
    try:
        return (version.folder / files[-1]).stat().st_mtime if files else None
    except OSError:
        return None
