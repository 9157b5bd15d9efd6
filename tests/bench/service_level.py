"""What users of a busy service feel: a big job beside small requests, start-up, and memory."""

from __future__ import annotations

import statistics

from tests.bench.report import Figure, Section, Table, loads_table, of, raw_runs
from tests.bench.rounds import Load, Pace, Run, background, measure
from tests.bench.servers import get_text, memory_of, metric, service

SMALL = {"target": "denied"}
BIG = {"target": "denied", "method": "expected_gradients", "tolerance": 1e-6, "max_evaluations": 10_000}
SMALL_ANSWERS = 100
STARTS = 3
CHUNK = "answerable_chunk_duration_seconds"


def big_job(pace: Pace) -> Section:
    """100 small requests, one after the other, alone and while jobs of 10,000 points are computed without a pause."""
    alone: list[Run] = []
    beside: list[Run] = []
    jobs: list[Run] = []
    figures, chunks = [], []
    with service() as server:
        small = Load(server.explain(), 1, SMALL, answers=SMALL_ANSWERS)
        big = Load(server.explain(), 1, BIG)
        measure(small, 60.0)
        for _ in range(2 * pace.rounds):
            alone.append(measure(small, 60.0))
            before = get_text(f"{server.base}/metrics")
            with background(big, jobs):
                beside.append(measure(small, 60.0))
            after = get_text(f"{server.base}/metrics")
            seconds, count = (
                metric(after, f"{CHUNK}_{part}", model="loan") - metric(before, f"{CHUNK}_{part}", model="loan")
                for part in ("sum", "count")
            )
            chunks.append(1e3 * seconds / count)
    chunk = statistics.median(chunks)
    allowed = 2 * statistics.median(of(alone, "p99")) + chunk
    p99 = of(beside, "p99")
    figures.append(
        Figure(
            f"small p99 beside a 10,000-point job, against twice its idle p99 plus one chunk ({allowed:.1f} ms)",
            statistics.median(p99) / allowed,
            min(p99) / allowed,
            max(p99) / allowed,
            at_most=1,
        )
    )
    runs = {"100 small, alone": alone, "100 small, beside the job": beside, "the job": jobs}
    points = statistics.median(run.points / run.rate for run in jobs)
    caption = f"A job of {points:,.0f} points and small requests, one connection each; one chunk took {chunk:.2f} ms:"
    return Section(figures, [loads_table(caption, runs)], {"runs": raw_runs(runs), "chunk_ms": chunks})


def footprint(pace: Pace) -> Section:
    """From spawn to ready, and the memory of all processes after loads of both methods."""
    seconds, sizes = [], {}
    for number in range(STARTS):
        with service() as server:
            seconds.append(server.seconds_to_ready)
            if number < STARTS - 1:
                continue
            idle = memory_of(server.pid)
            for parameters in (SMALL, {**BIG, "max_evaluations": 4096}):
                measure(Load(server.explain(), 32, parameters), pace.seconds)
            sizes = memory_of(server.pid)
    figures = [
        Figure("start to ready", statistics.median(seconds), min(seconds), max(seconds), at_most=10, unit=" s"),
        Figure("memory of the whole service after load", sum(sizes.values()), at_most=1000, unit=" MB"),
    ]
    rows = [[name, f"{idle.get(name, 0):.0f}", f"{size:.0f}"] for name, size in sizes.items()]
    rows.append(["together", f"{sum(idle.values()):.0f}", f"{sum(sizes.values()):.0f}"])
    table = Table("Resident memory (proportional set size):", ["process", "MB when ready", "MB after load"], rows)
    return Section(figures, [table], {"seconds_to_ready": seconds, "idle_mb": idle, "loaded_mb": sizes})
