"""Drift, stability and flags of real explanations: what a service tells of rows that the model was never trained on."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load_file

from service.access.callers import Caller
from service.answers.explanation import ExplanationItem
from service.catalog.inputs.kind import Row
from service.catalog.review_rules import Review
from service.catalog.versions import ModelVersion
from service.domain import Context, Explanation, Plan, Priority, Timings, VersionRef
from service.engine.protocol import Engine
from service.monitoring.drift import MIN_EXPLANATIONS
from service.monitoring.health import Health
from service.monitoring.metrics import Metrics
from service.usecases.explaining import Explaining, Request
from service.usecases.planning import Parameters
from tests.conftest import MODELS, PATIENCE_SECONDS
from tests.engine.stand_in import StandIn

if TYPE_CHECKING:
    from tests.conftest import Service

ROWS = 60
COHORTS = ({"channel": "web"}, {"channel": "branch"})


@dataclass(slots=True)
class Watched(StandIn):
    """The service's engine, and at which priority it was asked for which baseline."""

    engine: Engine
    asked: list[tuple[str, Priority]] = field(default_factory=list)

    async def explain(
        self,
        version: VersionRef,
        plan: Plan,
        expected_points: int,
        priority: Priority = Priority.INTERACTIVE,
        seconds_left: float | None = None,
    ) -> tuple[Explanation, Timings]:
        self.asked.append((plan.baseline.name, priority))
        return await self.engine.explain(version, plan, expected_points, priority, seconds_left)


def requests(version: ModelVersion) -> list[Request]:
    """One a held-out row, in two cohorts."""
    rows = load_file(MODELS / "loan" / "1" / "heldout.safetensors")["rows"][:ROWS].astype(np.float64)
    caller = Caller(f"health-{uuid.uuid4()}", "key")
    return [
        Request(
            version,
            [Row(tuple(row.tolist()))],
            Parameters(),
            [Context(cohort=COHORTS[at % 2])],
            caller,
            True,
            time.monotonic(),
        )
        for at, row in enumerate(rows)
    ]


def shown(health: Health, version: ModelVersion) -> bytes:
    """What the metrics show of the version."""
    metrics = Metrics()
    health.follow([version])
    health.show(metrics)
    return metrics.render(1)


async def test_held_out_rows_do_not_drift_and_are_stable_under_other_baselines(service: Service) -> None:
    review = Review.model_validate(
        {
            "protected_share": 0.2,
            "rules": {"changes": "change >= 0", "never": "completeness_error > tolerance"},
            "cohorts": {"channel": ["web", "branch", "phone"]},
        }
    )
    found = service.services.catalog.find("loan", "1")
    version = replace(found, manifest=found.manifest.model_copy(update={"review": review}))
    engine, metrics = Watched(service.services.engine), Metrics()
    state = service.services

    async def explained() -> list[ExplanationItem]:
        health = Health(engine, 1.0)
        explaining = Explaining(engine, state.cache, state.ledger, "required", metrics, health, max_points=200_000)
        explanations = []
        for request in requests(version):
            for _ in range(2):  # the second time from the cache
                (answer,) = await explaining.explain(request)
                explanations.append(answer.explanation)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b"answerable_attribution_stability{" not in shown(health, version):
                request = replace(requests(version)[0], use_cache=False)
                await explaining.explain(request)
        metrics.show_versions([version])
        health.follow([version])
        health.show(metrics)
        await health.close()
        return explanations

    explanations = await asyncio.to_thread(service.call, explained())
    figures = {
        (sample.name.removeprefix("answerable_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render(1).decode())
        for sample in family.samples
    }

    assert 0.95 < figures["attribution_ndcg", "loan", "1"] <= 1
    assert 0.5 < figures["attribution_stability", "loan", "1"] <= 1
    assert figures["baseline_age_seconds", "loan", "1"] > 0
    shares = {name[-1]: value for name, value in figures.items() if name[0] == "protected_share"}
    assert set(shares) == {"all", "channel=web", "channel=branch"}
    assert all(0 < share < 0.5 for share in shares.values())
    assert {priority for name, priority in engine.asked if name == "resampled"} == {Priority.BULK}
    assert {priority for name, priority in engine.asked if name != "resampled"} == {Priority.INTERACTIVE}
    assert [explanation.cached for explanation in explanations] == [False, True] * ROWS
    flagged = sum("protected_share" in explanation.flags for explanation in explanations)
    assert all("changes" in one.flags and "never" not in one.flags for one in explanations)
    assert figures["flags_total", "loan", "protected_share"] == flagged
    assert figures["flags_total", "loan", "changes"] >= 2 * ROWS
    assert figures["flags_total", "loan", "never"] == 0


async def test_a_version_that_is_gone_is_forgotten(service: Service) -> None:
    version = service.services.catalog.find("loan", "1")
    metrics = Metrics()

    async def show() -> tuple[bytes, bytes]:
        health = Health(service.services.engine, 0)
        health.follow([version])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b"answerable_baseline_age_seconds{" not in shown(health, version):  # noqa: ASYNC110 - a thread reads it
                await asyncio.sleep(0.005)
        health.show(metrics)
        before = metrics.render(1)
        health.follow([])
        health.show(metrics)
        return before, metrics.render(1)

    before, after = await asyncio.to_thread(service.call, show())

    assert b"answerable_baseline_age_seconds{" in before
    assert b"answerable_baseline_age_seconds{" not in after


async def test_a_scrape_leaves_what_is_watched_as_it_is(service: Service) -> None:
    version = service.services.catalog.find("loan", "1")
    watched = {key: one for key, one in watched_by(service).items() if key[0] == "loan"}
    assert watched
    profiles = {key: one.drift.profile for key, one in watched.items()}
    one = watched[version.key.name, version.key.version, version.manifest_digest]
    one.drift.profile = None
    try:
        for _ in range(2):
            await asyncio.to_thread(service.call, rendered(service))
        assert one.drift.profile is None
        assert watched_by(service).items() >= watched.items()
    finally:
        for key, profile in profiles.items():
            watched[key].drift.profile = profile


def watched_by(service: Service) -> dict[tuple[str, str, str], Any]:
    """What the service's own watch holds, by version."""
    watched: dict[tuple[str, str, str], Any] = service.services.explaining._health._states
    return watched


async def rendered(service: Service) -> bytes:
    text: bytes = service.services.render_metrics()
    return text


async def test_files_that_are_still_meant_after_a_reload_are_watched_and_told(service: Service) -> None:
    state = service.services
    old = state.catalog.find("loan")
    new = replace(old, key=replace(old.key, digest="sha256:1"), manifest_digest="sha256:1", assessment=None)

    async def show() -> list[str]:
        health = Health(state.engine, 0)
        metrics = Metrics()
        told = []
        try:
            for catalog in ([old], [new, old], [new, old]):
                for _ in range(MIN_EXPLANATIONS // 2):
                    health.observe_stability(old, 0.75)
                    health.observe_stability(new, 0.25)
                health.follow(catalog)
                health.show(metrics)
                told.append(metrics.render(1).decode())
        finally:
            await health.close()
        state.catalog.put(new)
        try:
            told.append(state.render_metrics().decode())
        finally:
            state.catalog.put(old)
        assert state.catalog.find("loan") is old
        return told

    first, second, third, served = await asyncio.to_thread(service.call, show())

    assert stabilities(first) == []
    assert stabilities(second) == stabilities(third) == [pytest.approx(0.75)]
    for digest in (old.key.digest, "sha256:1"):
        assert f'answerable_model_info{{model="loan",version="{old.key.version}",digest="{digest}"}} 1.0' in served


def stabilities(rendered: str) -> list[float]:
    return [
        sample.value
        for family in text_string_to_metric_families(rendered)
        for sample in family.samples
        if sample.name == "answerable_attribution_stability"
    ]
