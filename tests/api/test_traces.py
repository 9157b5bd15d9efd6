"""Traces: a span a request, and in it where its time went."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.errors import SetupError
from service.monitoring.timings import RequestTimings
from service.monitoring.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from tests.conftest import Service

EXPLAIN = "/v1/models/loan/versions/1:explain"


@pytest.fixture
def exporter(service: Service) -> Iterator[InMemorySpanExporter]:
    """What the service traces during the test."""
    exporter = InMemorySpanExporter()
    with service.changed(tracing=Tracing(SimpleSpanProcessor(exporter))):
        yield exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_requests_spans_show_queue_chunks_and_ledger(
    client: httpx.AsyncClient, fresh: dict[str, Any], exporter: InMemorySpanExporter
) -> None:
    trace, parent = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    before = time.time_ns()
    reply = await client.post(EXPLAIN, json={"instances": [fresh]}, headers={"traceparent": f"00-{trace}-{parent}-01"})
    after = time.time_ns()

    spans = by_name(exporter)
    request = spans.pop("POST /v1/models/{model}/versions/{version}:explain")
    assert set(spans) == {"queue", "chunks", "ledger"}
    assert request.kind is SpanKind.SERVER
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == trace
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == parent
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}/versions/{version}:explain",
        "http.response.status_code": 200,
        "answerable.model": "loan",
        "answerable.method": "integrated_gradients",
    }
    slack = 5_000_000
    assert before - slack <= (request.start_time or 0) < (request.end_time or 0) <= after + slack
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert (request.start_time or 0) - slack <= (span.start_time or 0) <= (span.end_time or 0)
        assert (span.end_time or 0) <= (request.end_time or 0) + slack
    evaluations = reply.json()["explanations"][0]["evaluations"]
    assert dict(spans["chunks"].attributes or {}) == {"answerable.evaluations": evaluations}
    took = ((spans["chunks"].end_time or 0) - (spans["chunks"].start_time or 0)) / 1e6
    assert took == pytest.approx(reply.json()["explanations"][0]["timings_ms"]["compute"], abs=0.01)


async def test_a_cached_answer_has_no_chunks(
    client: httpx.AsyncClient, fresh: dict[str, Any], exporter: InMemorySpanExporter
) -> None:
    await client.post(EXPLAIN, json={"instances": [fresh]})
    exporter.clear()
    await client.post(EXPLAIN, json={"instances": [fresh]})

    assert set(by_name(exporter)) == {"POST /v1/models/{model}/versions/{version}:explain", "ledger"}


async def test_health_and_metrics_are_not_traced_and_paths_are_templates(
    client: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    secret = uuid.uuid4().hex
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/docs", f"/{secret}"):
        await client.get(path)
    assert exporter.get_finished_spans() == ()

    await client.get(f"/v1/explanations/{secret}", headers={"traceparent": f"not-one-{secret}"})
    await client.get("/v1/explanations", params={"subject": secret})
    await client.post(f"/v1/{secret}:explain")

    assert set(by_name(exporter)) == {
        "GET /v1/explanations/{explanation}",
        "GET /v1/explanations",
        "POST unknown",
    }
    assert not any(secret in span.to_json() for span in exporter.get_finished_spans())


def test_an_error_of_the_services_own_is_one_in_the_trace() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracing(SimpleSpanProcessor(exporter))
    now = time.monotonic()
    for status in (200, 404, 503):
        tracer.trace(str(status), None, (now, now), {"http.response.status_code": status}, RequestTimings())

    codes = {name: span.status.status_code for name, span in by_name(exporter).items()}
    assert codes == {"200": StatusCode.UNSET, "404": StatusCode.UNSET, "503": StatusCode.ERROR}


def test_no_endpoint_no_traces_and_without_the_packages_a_plain_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(None) is None

    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(SetupError, match=r"pip install .* --editable '\.\[traces\]' in the project's folder"):
        open_tracing("http://127.0.0.1:4318/v1/traces")
