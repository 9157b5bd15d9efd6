"""How many series there may be, at the worst, and what becomes of labels over a worker's life."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.catalog.review_rules import MAX_COHORTS, MAX_RULES
from service.domain import Completeness, Explanation
from service.engine.protocol import ChunkReport
from service.methods.registry import BY_NAME
from service.monitoring.labels import (
    CACHE_RESULTS,
    CACHES,
    OTHER,
    OWN_METHODS,
    PREDICT,
    REASONS,
    STATUSES,
    UNKNOWN,
    MethodLabels,
)
from service.monitoring.metrics import Metrics

MODELS = 20
MOST_SERIES = 5000
DEFAULT = "expected_gradients"


def explanation(reason: str) -> Explanation:
    return Explanation(
        outputs=(0.5, 0.5),
        target=0,
        output=0.5,
        baseline_output=0.5,
        attributions=(1.0,),
        shape=(1,),
        standard_error=None,
        completeness=Completeness.EXACT,
        completeness_error=0.1,
        attribution_error=0.1,
        converged=False,
        reason=reason,
        evaluations=7,
        rule="exact",
        small_difference=True,
        chunk_rows="32+128",
    )


@pytest.fixture
def worst() -> Metrics:
    """Everything that can happen has happened to 20 models: each method, outcome, reason and kernel."""
    metrics = Metrics()
    for number in range(MODELS):
        model = f"model-{number}"
        metrics.expect(model, DEFAULT, [f"flag-{number}" for number in range(MAX_RULES)])
        for method in (*BY_NAME, PREDICT, UNKNOWN):
            for status in (200, 418, 599, *STATUSES):
                metrics.observe_request(model, method, status, 0.1)
            for reason in REASONS:
                metrics.observe_explanation(model, method, 0.01, explanation(reason), 0.1)
        for kernel in ("gradient", "forward", "breakpoints", "hessian"):
            metrics.observe_chunk(ChunkReport(f"{model}@1", kernel, 1, 2, 1, 0.01))
        metrics.model_info.labels(model, "2", "sha256:1").set(1)  # replaced files that are still meant
        for version in ("1", "2"):
            metrics.model_info.labels(model, version, "sha256:0").set(1)
            for gauge in (metrics.ndcg, metrics.stability, metrics.near_by, metrics.baseline_age):
                gauge.labels(model, version).set(1)
            for cohort in ("all", *map(str, range(MAX_COHORTS))):
                metrics.protected_share.labels(model, version, cohort).set(0.1)
    for cache in CACHES:
        for result in CACHE_RESULTS:
            metrics.observe_cache(cache, result)
    metrics.observe_request(UNKNOWN, UNKNOWN, 404, 0.1)
    metrics.show_checkpoint(1.0)
    metrics.show_workers(8, dict.fromkeys(range(8), 1))
    return metrics


def test_twenty_models_have_at_most_5000_series_whatever_is_asked_of_them(worst: Metrics) -> None:
    families = list(text_string_to_metric_families(worst.render(8).decode()))

    assert MOST_SERIES / 2 < sum(len(family.samples) for family in families) <= MOST_SERIES


def test_every_metric_has_help_and_says_its_unit(worst: Metrics) -> None:
    families = list(text_string_to_metric_families(worst.render(8).decode()))

    assert families
    for family in families:
        assert len(family.documentation) > 10, family.name
        for unit, word in (("_seconds", "seconds"), ("_bytes", "bytes"), ("_points", "points"), ("_ratio", "share")):
            if family.name.endswith(unit):
                assert word in family.documentation.lower(), family.name


def test_a_default_method_keeps_its_label_whoever_came_before() -> None:
    labels = MethodLabels()
    for method in BY_NAME:
        labels.label("loan", method)
    labels.reserve("loan", DEFAULT)

    assert labels.label("loan", DEFAULT) == DEFAULT
    own = {labels.label("loan", method) for method in BY_NAME} - {OTHER}
    assert len(own) <= OWN_METHODS + 1


def test_a_dead_workers_memory_is_gone() -> None:
    metrics = Metrics()
    metrics.show_workers(2, {0: 100, 1: 200})
    metrics.show_workers(1, {1: 300})

    lines = metrics.render(2).decode().splitlines()

    assert [line for line in lines if line.startswith("answerable_device_memory_bytes{")] == [
        'answerable_device_memory_bytes{device="1"} 300.0'
    ]
