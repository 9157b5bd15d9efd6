"""The figures of `/metrics`: traffic, batching, quality, cache, workers, ledger.

The front publishes everything; workers send their figures with their results. No label names a user, tenant, subject,
feature or id.
"""

from __future__ import annotations

import time
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from service.domain import Explanation, ModelKey
from service.engine.messages import ChunkReport

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ERRORS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
POINTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """One registry with every metric of this process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._busy_seconds = 0.0
        self._scraped = time.monotonic()
        model, pair = ["model"], ["model", "method"]

        def counter(name: str, help_text: str, labels: list[str]) -> Counter:
            return Counter(name, help_text, labels, namespace="answerable", registry=self.registry)

        def gauge(name: str, help_text: str, labels: list[str]) -> Gauge:
            return Gauge(name, help_text, labels, namespace="answerable", registry=self.registry)

        def histogram(name: str, help_text: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_text, labels, namespace="answerable", registry=self.registry, buckets=buckets)

        self.requests = counter("requests", "Requests by outcome: ok, or the status.", ["model", "method", "outcome"])
        self.duration = histogram("request_duration_seconds", "Time from the request to its answer.", pair, SECONDS)
        self.queue_duration = histogram(
            "queue_duration_seconds", "Time until the first chunk took points.", pair, SECONDS
        )
        self.queue_points = gauge("queue_points", "Gradient points expected of everything in flight.", [])
        self.fill = histogram("chunk_fill_ratio", "Filled share of a chunk.", ["model", "kernel"], SHARES)
        self.sharing = histogram(
            "explanations_per_chunk", "Explanations that shared a chunk.", ["model", "kernel"], COUNTS
        )
        self.chunk_duration = histogram(
            "chunk_duration_seconds", "Device time of a chunk.", ["model", "kernel"], SECONDS
        )
        self.busy = gauge("device_busy_ratio", "Share of the devices' time spent on chunks since the last scrape.", [])
        self.points = counter("gradient_points", "Gradient points evaluated.", model)
        self.points_each = histogram("points_per_explanation", "Gradient points of an explanation.", pair, POINTS)
        self.completeness = histogram("completeness_error", "Relative completeness error.", pair, ERRORS)
        self.attribution = histogram("attribution_error", "Estimated relative attribution error.", pair, ERRORS)
        self.not_converged = counter(
            "not_converged", "Explanations over their tolerance.", ["model", "method", "reason"]
        )
        self.non_finite = counter("non_finite", "Explanations whose model answered no finite number.", model)
        self.small_difference = counter(
            "small_difference", "Explanations whose output about equals the baseline's.", model
        )
        self.cache = counter("cache_requests", "Cache requests by result.", ["cache", "result"])
        self.restarts = counter("worker_restarts", "Workers that were replaced.", ["reason"])
        self.workers = gauge("workers_ready", "Workers that have loaded every model.", [])
        self.model_info = gauge("model_info", "1 for every version that is ready.", ["model", "version", "digest"])
        self.appends = counter("ledger_appends", "Records appended to the ledger.", ["result"])
        self.append_duration = histogram(
            "ledger_append_duration_seconds", "Time until a record is durable.", [], SECONDS
        )
        # Finding a metric's child costs more than counting with it; every request needs these.
        self._requests = cache(self.requests.labels)
        self._duration = cache(self.duration.labels)
        self._cache = cache(self.cache.labels)
        self._appends = cache(self.appends.labels)

    def observe_request(self, model: str, method: str, status: int, seconds: float) -> None:
        """Counts one call by what came of it."""
        self._requests(model, method, "ok" if status == 200 else str(status)).inc()
        if status == 200:
            self._duration(model, method).observe(seconds)

    def observe_chunk(self, chunk: ChunkReport) -> None:
        """Counts one chunk that a worker ran."""
        name = chunk.model.partition("@")[0]
        self.fill.labels(name, chunk.kernel).observe(chunk.units / chunk.capacity)
        self.sharing.labels(name, chunk.kernel).observe(chunk.explanations)
        self._busy_seconds += chunk.seconds
        self.chunk_duration.labels(name, chunk.kernel).observe(chunk.seconds)
        if chunk.kernel == "gradient":
            self.points.labels(name).inc(chunk.units)

    def observe_explanation(self, model: ModelKey, method: str, explanation: Explanation, queue: float) -> None:
        """Counts one explanation that was computed; cached ones were counted when they were."""
        labels = (model.name, method)
        self.queue_duration.labels(*labels).observe(queue)
        self.points_each.labels(*labels).observe(explanation.evaluations)
        if explanation.completeness_error is not None:
            self.completeness.labels(*labels).observe(explanation.completeness_error)
        if explanation.attribution_error is not None:
            self.attribution.labels(*labels).observe(explanation.attribution_error)
        if not explanation.converged:
            self.not_converged.labels(*labels, explanation.reason).inc()
        if explanation.reason == "non_finite":
            self.non_finite.labels(model.name).inc()
        if explanation.small_difference:
            self.small_difference.labels(model.name).inc()

    def observe_cache(self, name: str, result: str) -> None:
        """Counts one cache request."""
        self._cache(name, result).inc()

    def observe_append(self, seconds: float, entries: int, ok: bool) -> None:
        """Counts one append to the ledger."""
        self._appends("ok" if ok else "failed").inc(entries)
        self.append_duration.observe(seconds)

    def render(self, workers: int) -> bytes:
        """The text exposition format. `workers` is the number of devices, for the share of their time."""
        now = time.monotonic()
        elapsed, self._scraped = now - self._scraped, now
        self.busy.set(min(1.0, self._busy_seconds / (elapsed * workers)) if elapsed > 0 else 0.0)
        self._busy_seconds = 0.0
        return generate_latest(self.registry)
