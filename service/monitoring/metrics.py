"""The figures of `/metrics`: traffic, batching, quality, drift, cache, workers, ledger.

The front publishes everything. Workers send their figures with their results, as increments, so that a counter goes on
where a dead worker left it. A scrape only sets the gauges of what comes and goes (drift, workers) and changes nothing
that is measured, so several Prometheus servers may scrape.

No label names a user, tenant, subject, feature or id. Histograms tell models apart, not methods: 24 methods of 20
models would be 30,000 series. Counters tell apart the methods that `MethodLabels` admits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache

from service.catalog.versions import ModelVersion
from service.domain import Explanation
from service.engine.protocol import ChunkReport
from service.monitoring.busy import BusySeconds
from service.monitoring.instruments import Counter, Registry
from service.monitoring.labels import CACHE_RESULTS, CACHES, REASONS, RESTARTS, VERDICTS, MethodLabels, outcome
from service.monitoring.review import Segment

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WAITING_SECONDS = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60)
CHUNK_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.025, 0.1, 1, 10)
ERRORS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1)
SEGMENT_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
POINTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """One registry with every metric of this process. Everything is counted on one thread, the event loop's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = Registry("answerable")
        self._busy_seconds = BusySeconds(clock)
        self._methods = MethodLabels()
        self._expected: set[tuple[str, str]] = set()
        model, version = ["model"], ["model", "version"]

        counter, gauge, histogram = self._registry.counter, self._registry.gauge, self._registry.histogram

        self.requests = counter("requests", "Requests by outcome: ok, or the status.", ["model", "method", "outcome"])
        self.duration = histogram(
            "request_duration_seconds", "Seconds from a request to its answer, of those that were ok.", SECONDS, model
        )
        self.queue_duration = histogram(
            "queue_duration_seconds", "Seconds until the first chunk took points.", WAITING_SECONDS, model
        )
        self.queue_points = gauge("queue_points", "Gradient points expected of everything in flight.").labels()
        self.queue_limit = gauge("queue_limit_points", "Gradient points from which on requests are refused.").labels()

        self.fill = histogram("chunk_fill_ratio", "Filled share of a chunk, from 0 to 1.", SHARES, model)
        self.sharing = histogram("explanations_per_chunk", "Explanations that shared a chunk.", COUNTS, model)
        self.chunk_duration = histogram("chunk_duration_seconds", "Seconds of a chunk.", CHUNK_SECONDS, model)
        self.busy = gauge(
            "device_busy_ratio", "Share of the devices' time, 0 to 1, spent on chunks in the last minute."
        ).labels()
        self.points = counter("gradient_points", "Gradient points evaluated.", model)
        self.points_each = histogram("points_per_explanation", "Gradient points of an explanation.", POINTS, model)

        self.completeness = histogram("completeness_error", "Relative completeness error.", ERRORS, model)
        self.attribution = histogram("attribution_error", "Estimated relative attribution error.", ERRORS, model)
        self.over_tolerance = counter(
            "over_tolerance", "Explanations whose completeness error is over the tolerance asked for.", model
        )
        self.not_converged = counter(
            "not_converged", "Explanations that did not converge, by reason.", ["model", "method", "reason"]
        )
        self.non_finite = counter("non_finite", "Explanations whose model answered no finite number.", model)
        self.small_difference = counter(
            "small_difference", "Explanations whose output about equals the baseline's.", model
        )

        self.segment_share = histogram(
            "segment_share",
            "The share of a segment, of those that the manifest lists, in the absolute attributions of a text.",
            SEGMENT_SHARES,
            ["model", "segment"],
        )
        self.flags = counter("flags", "Review rules that fired, by the flag they raise.", ["model", "flag"])
        self.reviews = counter("reviews", "Explanations that a person reviewed, by verdict.", ["verdict"])

        self.ndcg = gauge(
            "attribution_ndcg",
            "nDCG of the features' mean absolute attributions against the reference profile; below 0.9 is drift.",
            version,
        )
        self.stability = gauge(
            "attribution_stability", "Mean rank correlation under another sample of the baseline set.", version
        )
        self.near_by = gauge(
            "attribution_stability_near_by",
            "Mean of the lowest rank correlation with attributions near the input, where the prediction is the same.",
            version,
        )
        self.protected_share = gauge(
            "protected_share",
            "Mean share of the protected features, from 0 to 1, by declared cohort.",
            [*version, "cohort"],
        )
        self.baseline_age = gauge(
            "baseline_age_seconds", "Seconds since the default baseline set was written.", version
        )

        self.cache = counter("cache_requests", "Cache requests by result.", ["cache", "result"])
        self.restarts = counter("worker_restarts", "Workers that were replaced.", ["reason"])
        self.workers = gauge("workers_ready", "Workers that have loaded every model.").labels()
        self.device_memory = gauge(
            "device_memory_bytes", "Bytes that a worker holds: of its GPU, or of main memory on a CPU.", ["device"]
        )
        self.model_info = gauge("model_info", "1 for every version that is ready, else 0.", [*version, "digest"])

        self.appends = counter("ledger_appends", "Records appended to the ledger.", ["result"])
        self.without_subject = counter(
            "records_without_subject",
            "Explanations recorded of nobody: without a subject, no erasure or hold of a person reaches them.",
            model,
        )
        self.append_duration = histogram(
            "ledger_append_duration_seconds", "Seconds until a record is durable.", SECONDS
        ).labels()
        self.checkpoint = gauge(
            "checkpoint_timestamp_seconds",
            "When the ledger was last signed, or opened while it never was, in seconds since the epoch.",
        )
        self.clock_behind = gauge(
            "clock_behind_seconds",
            "Seconds by which this host's clock is behind the last signed time, which records bear until then.",
        )
        self._requests = cache(self._requests_of)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Rare events have series from the start: no rate can be taken of one that appears with its first event."""
        for name in CACHES:
            for result in CACHE_RESULTS:
                self.cache.labels(name, result)
        for verdict in VERDICTS:
            self.reviews.labels(verdict)
        for reason in RESTARTS:
            self.restarts.labels(reason)
        for result in ("ok", "failed"):
            self.appends.labels(result)

    def expect(self, model: str, default_method: str, flags: Iterable[str] = (), segments: Iterable[str] = ()) -> None:
        """Reserves the labels of a model and its default method, and starts their counters at zero."""
        for segment in segments:
            self.segment_share.labels(model, segment)
        for flag in flags:
            self.flags.labels(model, flag)
        if (model, default_method) in self._expected:
            return
        self._expected.add((model, default_method))
        self._methods.reserve(model, default_method)
        for result in ("ok", "429"):
            self.requests.labels(model, default_method, result)
        for reason in REASONS:
            self.not_converged.labels(model, default_method, reason)
        for metric in (self.points, self.over_tolerance, self.non_finite, self.small_difference):
            metric.labels(model)

    def observe_request(self, model: str, method: str, status: int, seconds: float) -> None:
        """Counts one call by its outcome."""
        self._requests(model, method, status).inc()
        if status == 200:
            self.duration.labels(model).observe(seconds)

    def _requests_of(self, model: str, method: str, status: int) -> Counter:
        return self.requests.labels(model, self._methods.label(model, method), outcome(status))

    def observe_chunk(self, chunk: ChunkReport) -> None:
        """Counts one chunk that a worker ran."""
        name = chunk.model.partition("@")[0]
        self.fill.labels(name).observe(chunk.slots / chunk.capacity)
        self.sharing.labels(name).observe(chunk.explanations)
        self._busy_seconds.add(chunk.seconds)
        self.chunk_duration.labels(name).observe(chunk.seconds)
        if chunk.kernel == "gradient":
            self.points.labels(name).inc(chunk.slots)

    def observe_explanation(
        self, model: str, method: str, tolerance: float, explanation: Explanation, queue: float
    ) -> None:
        """Counts one explanation that was computed; those from the cache were counted when they were computed.

        `queue` is in seconds.
        """
        self.queue_duration.labels(model).observe(queue)
        self.points_each.labels(model).observe(explanation.evaluations)
        error = explanation.completeness_error
        if error is not None:
            self.completeness.labels(model).observe(error)
            if error > tolerance:
                self.over_tolerance.labels(model).inc()
        if explanation.attribution_error is not None:
            self.attribution.labels(model).observe(explanation.attribution_error)
        if not explanation.converged:
            self.not_converged.labels(model, self._methods.label(model, method), str(explanation.reason)).inc()
        if explanation.reason == "non_finite":
            self.non_finite.labels(model).inc()
        if explanation.small_difference:
            self.small_difference.labels(model).inc()

    def observe_flags(self, model: str, flags: Iterable[str]) -> None:
        """Counts the flags of one explanation that was recorded, cached or not."""
        for flag in flags:
            self.flags.labels(model, flag).inc()

    def observe_segments(self, model: str, watched: Collection[str], segments: Iterable[Segment]) -> None:
        """The shares of one explanation's segments, of those that the model's manifest lists."""
        for segment in segments:
            if segment.name in watched and segment.share is not None:
                self.segment_share.labels(model, segment.name).observe(segment.share)

    def observe_cache(self, name: str, result: str) -> None:
        """Counts one cache request."""
        self.cache.labels(name, result).inc()

    def observe_append(self, seconds: float, entries: int, ok: bool) -> None:
        """Counts one append to the ledger."""
        self.appends.labels("ok" if ok else "failed").inc(entries)
        self.append_duration.observe(seconds)

    def show_versions(self, versions: Iterable[ModelVersion]) -> None:
        """Sets the series of the versions, and removes those of versions not listed. Of equals the later one counts."""
        self.model_info.clear()
        for version in versions:
            key = version.key
            manifest = version.manifest
            flags, segments = manifest.review.all_rules, manifest.inputs.segment_names
            self.expect(key.name, manifest.defaults.method, flags, segments)
            self.model_info.labels(key.name, key.version, key.digest).set(version.is_ready)

    def show_workers(self, ready: int, memory: Mapping[int, int]) -> None:
        """Sets how many workers are ready, and the bytes that each live one holds; a dead one's series is removed."""
        self.workers.set(ready)
        self.device_memory.clear()
        for device, held in memory.items():
            self.device_memory.labels(str(device)).set(held)

    def show_checkpoint(self, signed: float | None) -> None:
        """When the ledger was last signed, in seconds since the epoch; None where nothing is signed."""
        if signed is not None:
            self.checkpoint.labels().set(signed)

    def show_clock(self, behind: float) -> None:
        """By how many seconds the machine's clock is behind the ledger's time."""
        self.clock_behind.labels().set(behind)

    def render(self, workers: int) -> bytes:
        """The text exposition format. `workers` is the number of devices, for the share of their time."""
        self.busy.set(min(1.0, self._busy_seconds.share / workers))
        return self._registry.render()
