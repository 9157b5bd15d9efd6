"""Traces of requests, by OpenTelemetry (the extra `traces`): a span a request, and inside it queue, chunks and ledger.

Spans are made when the request is over, from the times that were noted meanwhile. So a service without traces does
nothing for them. Spans are named by the templates of routes, never by what a client sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.errors import SetupError
from service.extras import install
from service.monitoring.timings import RequestTimings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

MISSING = (
    "ANSWERABLE_TRACES_ENDPOINT: traces need the packages of the extra `traces`; run "
    f"{install('traces')} in the project's folder"
)


class Tracing:
    """Hands finished spans to a processor of OpenTelemetry's."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": "answerable"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("answerable")
        self._propagator = TraceContextTextMapPropagator()

    def trace(
        self,
        name: str,
        traceparent: str | None,
        times: tuple[float, float],
        attributes: Mapping[str, str | int],
        timings: RequestTimings,
    ) -> None:
        """Makes the spans of one request. `times` are its beginning and end, on the monotonic clock, in seconds."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        parent = None if traceparent is None else self._propagator.extract({"traceparent": traceparent})
        began, ended = times
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=_nanoseconds(began))
        if int(attributes["http.response.status_code"]) >= 500:
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for explanation, evaluations in timings.computed:
            started = timings.submitted + explanation.queue
            self._child(inside, "queue", timings.submitted, started)
            self._child(
                inside, "chunks", started, started + explanation.compute, {"answerable.evaluations": evaluations}
            )
        if timings.recorded is not None:
            self._child(inside, "ledger", *timings.recorded)
        span.end(_nanoseconds(ended))

    def close(self) -> None:
        """Sends the spans that were not sent yet. Blocks."""
        self._provider.shutdown()

    def _child(
        self, inside: Context, name: str, began: float, ended: float, attributes: Mapping[str, int] | None = None
    ) -> None:
        span = self._tracer.start_span(name, inside, attributes=attributes, start_time=_nanoseconds(began))
        span.end(_nanoseconds(ended))


def open_tracing(endpoint: str | None) -> Tracing | None:
    """Traces that go to `endpoint` by OTLP over HTTP; None without one. Raises SetupError without the packages."""
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SetupError(MISSING) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint)))


def _nanoseconds(moment: float) -> int:
    """A moment of the monotonic clock, in nanoseconds since the epoch."""
    return time.time_ns() - round((time.monotonic() - moment) * 1e9)
