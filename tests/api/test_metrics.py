"""The figures: there after traffic, right, and without a word about anybody."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.methods.registry import BY_NAME
from service.monitoring.labels import OWN_METHODS

if TYPE_CHECKING:
    from tests.api.conftest import Explain, Figures
    from tests.conftest import MakeKey, Service

EXPLAIN = "/v1/models/loan/versions/1:explain"
NO_CACHE = {"Cache-Control": "no-cache"}
LABELS = {
    *("model", "method", "outcome", "reason", "cache", "result", "version", "digest", "device", "flag", "cohort"),
    *("verdict", "segment", "le"),
}
KINDS = {
    "answerable_requests": "counter",
    "answerable_request_duration_seconds": "histogram",
    "answerable_queue_duration_seconds": "histogram",
    "answerable_queue_points": "gauge",
    "answerable_chunk_fill_ratio": "histogram",
    "answerable_explanations_per_chunk": "histogram",
    "answerable_gradient_points": "counter",
    "answerable_points_per_explanation": "histogram",
    "answerable_device_busy_ratio": "gauge",
    "answerable_completeness_error": "histogram",
    "answerable_attribution_error": "histogram",
    "answerable_not_converged": "counter",
    "answerable_non_finite": "counter",
    "answerable_small_difference": "counter",
    "answerable_over_tolerance": "counter",
    "answerable_device_memory_bytes": "gauge",
}

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def value(figures: Found, name: str, **labels: str) -> float:
    return figures.get((f"answerable_{name}", frozenset(labels.items())), 0.0)


async def test_traffic_batching_and_quality_are_measured(client: httpx.AsyncClient, explain: Explain) -> None:
    families = {f.name: f.type for f in text_string_to_metric_families((await client.get("/metrics")).text)}

    assert {name: families.get(name) for name in KINDS} == KINDS


async def test_an_explanation_counts(explain: Explain, figures: Figures, fresh: dict[str, Any]) -> None:
    pair = {"model": "loan", "method": "integrated_gradients"}
    before = await figures()
    (explanation,) = (await explain([fresh], headers=NO_CACHE))["explanations"]
    after = await figures()

    def added(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert added("requests_total", **pair, outcome="ok") == 1
    for name in ("request_duration_seconds", "queue_duration_seconds", "points_per_explanation"):
        assert added(f"{name}_count", model="loan") == 1, name
    for name in ("completeness_error", "attribution_error"):
        assert added(f"{name}_count", model="loan") == 1, name
    assert added("points_per_explanation_sum", model="loan") == explanation["evaluations"]
    assert added("gradient_points_total", model="loan") >= explanation["evaluations"]
    assert added("completeness_error_bucket", model="loan", le="1.0") == 1
    assert added("request_duration_seconds_sum", model="loan") > added("queue_duration_seconds_sum", model="loan") >= 0
    chunks = {"model": "loan"}
    assert added("chunk_fill_ratio_count", **chunks) == added("explanations_per_chunk_count", **chunks) > 0
    assert 0 < added("chunk_fill_ratio_sum", **chunks) <= added("chunk_fill_ratio_count", **chunks)
    assert added("explanations_per_chunk_sum", **chunks) == added("explanations_per_chunk_count", **chunks)
    assert added("not_converged_total", **pair, reason="budget") == 0
    assert value(after, "queue_points") == 0
    assert 0 < value(after, "device_busy_ratio") <= 1


async def test_what_does_not_converge_is_counted(explain: Explain, figures: Figures, fresh: dict[str, Any]) -> None:
    labels = {"model": "loan", "method": "integrated_gradients", "reason": "budget"}
    before = await figures()
    await explain([fresh], options={"rule": "midpoint"}, tolerance=1e-9, max_evaluations=2)
    after = await figures()

    assert value(after, "not_converged_total", **labels) == value(before, "not_converged_total", **labels) + 1
    over = "over_tolerance_total"
    assert value(after, over, model="loan") == value(before, over, model="loan") + 1


async def test_an_output_like_the_baselines_is_counted(
    explain: Explain, figures: Figures, fresh: dict[str, Any]
) -> None:
    before = await figures()
    await explain([fresh], baseline=fresh)
    after = await figures()

    assert value(after, "small_difference_total", model="loan") == 1 + value(
        before, "small_difference_total", model="loan"
    )


async def test_refusals_are_counted_by_status(
    client: httpx.AsyncClient, figures: Figures, instance: dict[str, Any]
) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("integrated_gradients", {"instances": [instance], "parameters": {"tolerance": 2}}),
        ("integrated_gradients", {"instances": [{**instance, "loan_amount": -1}]}),
        ("integrated_gradients", {"instances": [instance], "context": []}),
        ("unknown", {"instances": [instance], "parameters": {"method": f"saliency-{uuid.uuid4()}"}}),
    ]
    for method, body in bodies:
        before = await figures()
        response = await client.post(EXPLAIN, json=body)
        after = await figures()
        labels = {"model": "loan", "method": method, "outcome": str(response.status_code)}
        assert response.status_code in (400, 422)
        assert value(after, "requests_total", **labels) == value(before, "requests_total", **labels) + 1, body


async def test_a_prediction_counts(client: httpx.AsyncClient, figures: Figures, instance: dict[str, Any]) -> None:
    labels = {"model": "loan", "method": "predict", "outcome": "ok"}
    before = await figures()
    assert (await client.post("/v1/models/loan/versions/1:predict", json={"instances": [instance]})).status_code == 200
    after = await figures()

    assert value(after, "requests_total", **labels) == value(before, "requests_total", **labels) + 1


async def test_no_label_says_anything_of_anybody(
    explain: Explain, service: Service, make_key: MakeKey, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    marks = {name: f"{name}-{uuid.uuid4()}" for name in ("tenant", "subject", "decision", "cohort", "method", "model")}
    context = {"subject": marks["subject"], "decision_id": marks["decision"], "cohort": {"channel": marks["cohort"]}}
    key = make_key(tenant=marks["tenant"])
    async with service.client(key) as theirs:
        (explanation,) = (await explain([fresh], by=theirs, context=context))["explanations"]
        parameters = {"method": marks["method"]}
        await theirs.post(EXPLAIN, json={"instances": [fresh], "parameters": parameters})
        await theirs.post(f"/v1/models/{marks['model']}:explain", json={"instances": [fresh]})

    response = await client.get("/metrics")

    families = list(text_string_to_metric_families(response.text))
    labels = {name: set[str]() for family in families for sample in family.samples for name in sample.labels}
    for family in families:
        for sample in family.samples:
            for name, found in sample.labels.items():
                labels[name].add(found)
    assert set(labels) <= LABELS
    assert labels["method"] <= {*BY_NAME, "predict", "unknown", "other"}
    assert labels["model"] <= {"loan", "digits", "house-price", "unknown"}
    secrets = {*marks.values(), key.id, key.secret, explanation["id"], *fresh}
    for values in labels.values():
        assert not values & secrets
    for secret in (*marks.values(), key.id, key.secret, explanation["id"]):
        assert secret not in response.text


async def test_methods_of_whoever_asks_for_all_of_them_share_a_label(
    client: httpx.AsyncClient, figures: Figures, fresh: dict[str, Any]
) -> None:
    for method in BY_NAME:
        await client.post(EXPLAIN, json={"instances": [fresh], "parameters": {"method": method, "max_evaluations": 1}})

    found = await figures()

    requests = [dict(labels) for name, labels in found if name == "answerable_requests_total"]
    methods = {labels["method"] for labels in requests if labels["model"] == "loan"}
    assert "integrated_gradients" in methods
    assert len(methods - {"predict", "unknown", "other"}) <= OWN_METHODS
    assert "other" in methods
