"""How cost grows: with connections, features, baselines, model size and workers.

Each table has, beside what was measured, figures freed of the work: points a second against the bare loop on the same
model, and latency against the work in flight, which is what the bare loop would take for the points of one answer on
every connection: the latency must grow no faster.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.ceiling import ceilings
from tests.bench.models import BASELINES, FEATURES, USUAL_WIDTH, WIDTHS, make
from tests.bench.plot import draw
from tests.bench.report import Figure, Section, Table, raw_runs
from tests.bench.rounds import LOAN, Load, Pace, Run, measure, median, rounds
from tests.bench.servers import Server, get_text, metric, service

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ADMITTED = 2_000_000
"""Points in flight that the service admits here: 256 connections with 2,048 each are over the default."""
CHUNK_SECONDS = "answerable_chunk_duration_seconds_sum"
FLAT, NOISE = 0.8, 1.2
"""Points a second stay flat, and latency in step with the work, within 20%."""
EXACT: dict[str, Any] = {"target": 1}
EXPECTED: dict[str, Any] = {"target": 1, "method": "expected_gradients", "tolerance": 1e-6, "max_evaluations": 2048}
"""Expected Gradients with a tolerance that it cannot meet: each answer costs its whole budget."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of a table: the size that grows, the connections, and the medians over the rounds."""

    size: int
    connections: int
    run: Run
    ceiling: float = 1.0

    @property
    def work(self) -> float:
        """The seconds that the bare loop takes for the points in flight."""
        return self.connections * self.run.points / self.run.rate / self.ceiling


def growth(pace: Pace, picture: Path) -> Section:
    """All tables, and the plot of them into `picture`."""
    short = Pace(min(pace.rounds, 3), min(pace.seconds, 2.0), pace.is_quick)
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as folder:
        models = Path(folder)
        make("growth", models)
        folders = {
            "features": {n: models / f"features-{n}" / "1" for n in short.some(FEATURES, 2)},
            "width": {n: models / f"width-{n}" / "1" for n in short.some(WIDTHS, 2)},
        }
        every = [LOAN, *folders["features"].values(), *folders["width"].values()]
        before = ceilings(every, 0.5 * short.seconds)
        found, raw = _measure(models, folders, short)
        after = ceilings(every, 0.5 * short.seconds)
    loan, *others = (max(one.points, two.points) for one, two in zip(before, after, strict=True))
    peaks = iter(others)
    bare = {what: dict(zip(sizes, peaks, strict=False)) for what, sizes in folders.items()}
    bare["baselines"] = dict.fromkeys(BASELINES, bare["width"][USUAL_WIDTH])
    for name, rows in found.items():
        known = bare.get(name.split()[0], {})
        found[name] = [replace(row, ceiling=known.get(row.size, loan)) for row in rows]
    draw(found, picture)
    tables = [_table(name, rows) for name, rows in found.items()]
    return Section(_figures(found), tables, {"runs": raw, "bare_loop": bare, "bare_loop_loan": loan})


def _measure(
    models: Path, folders: Mapping[str, Mapping[int, Path]], pace: Pace
) -> tuple[dict[str, list[Measured]], dict[str, Any]]:
    found: dict[str, list[Measured]] = {}
    raw: dict[str, Any] = {}

    def table(name: str, loads: Mapping[int, tuple[Server, Load]]) -> None:
        print(f" {name}", flush=True)
        contenders = {f"{name} {size}": partial(_watched, *load, pace.seconds) for size, load in loads.items()}
        runs = rounds(contenders, pace.rounds)
        raw[name] = raw_runs(runs)
        found[name] = [
            Measured(size, load.connections, _medians(each))
            for (size, (_, load)), each in zip(loads.items(), runs.values(), strict=True)
        ]

    with service(queued_points=ADMITTED) as server:
        for method, parameters in (("IG", EXACT), ("EG", EXPECTED)):
            loads = {n: (server, Load(server.explain(), n, parameters)) for n in pace.some(CONNECTIONS, 4)}
            table(f"connections {method}", loads)
    with service(models) as server:
        for what, sizes in folders.items():
            for method, parameters in (("IG", EXACT), ("EG", EXPECTED)):
                url = {n: server.explain(folder.parent.name) for n, folder in sizes.items()}
                loads = {n: (server, Load(url[n], 32, parameters, folder)) for n, folder in sizes.items()}
                table(f"{what} {method}", loads)
        # The first pass alone: four points a baseline, since the tolerance holds at once.
        first_pass = {**EXPECTED, "tolerance": 1.0, "max_evaluations": 4096}
        folder = models / "baselines" / "1"
        table(
            "baselines EG",
            {
                n: (server, Load(server.explain("baselines"), 32, {**first_pass, "baseline": f"baselines-{n}"}, folder))
                for n in pace.some(BASELINES, 2)
            },
        )
    with ExitStack() as stack:
        by_workers = {n: stack.enter_context(service(workers=n)) for n in (1, 2)}
        for method, parameters in (("IG", EXACT), ("EG", EXPECTED)):
            loads = {n: (one, Load(one.explain(), 32, parameters)) for n, one in by_workers.items()}
            table(f"workers {method}", loads)
    return found, raw


def _watched(server: Server, load: Load, seconds: float) -> Run:
    """One run, with the share of its time that the devices were busy."""
    before, began = get_text(f"{server.base}/metrics"), time.monotonic()
    run = measure(load, seconds)
    after, elapsed = get_text(f"{server.base}/metrics"), time.monotonic() - began
    spent = metric(after, CHUNK_SECONDS) - metric(before, CHUNK_SECONDS)
    return replace(run, busy=min(1.0, spent / (elapsed * metric(after, "answerable_workers_ready"))))


def _medians(runs: list[Run]) -> Run:
    return Run(*(median(runs, figure) for figure in Run.__dataclass_fields__))


def _table(name: str, rows: Sequence[Measured]) -> Table:
    what, method = name.split()
    first, best = rows[0], max(row.run.points for row in rows)
    head = [what, "answers/s", "points/s", "p50 ms", "p99 ms", "device busy", "points/answer"]
    head += ["points/s of the highest", "points/s of the bare loop", "p50 growth / work growth"]
    cells = [
        [
            f"{row.size:,}",
            f"{row.run.rate:,.0f}",
            f"{row.run.points:,.0f}",
            f"{row.run.p50:.1f}",
            f"{row.run.p99:.1f}",
            f"{row.run.busy:.0%}",
            f"{row.run.points / row.run.rate:,.0f}",
            f"{row.run.points / best:.2f}",
            f"{row.run.points / row.ceiling:.2f}",
            f"{_latency_against_work(first, row):.2f}",
        ]
        for row in rows
    ]
    where = "" if what == "connections" else ", 32 connections"
    title = {"IG": "exact Integrated Gradients", "EG": "Expected Gradients"}[method]
    return Table(f"Growth with {what}, {title}{where}:", head, cells)


def _latency_against_work(first: Measured, row: Measured) -> float:
    return (row.run.p50 / first.run.p50) / (row.work / first.work)


def _figures(found: Mapping[str, Sequence[Measured]]) -> list[Figure]:
    figures = [
        _flatness(f"{name}: points/s", [row.run.points for row in found[name]])
        for name in ("connections EG", "baselines EG")
    ]
    for name in ("features EG", "width EG"):
        over_bare = [row.run.points / row.ceiling for row in found[name]]
        figures.append(_flatness(f"{name}: points/s over the bare loop's", over_bare))
    for name in ("connections IG", "connections EG", "baselines EG", "features EG", "width EG"):
        growths = [_latency_against_work(found[name][0], row) for row in found[name][1:]]
        what = f"{name}: growth of p50 against growth of the work, largest"
        figures.append(Figure(what, max(growths), min(growths), max(growths), at_most=NOISE))
    for method in ("IG", "EG"):
        one, two = found[f"workers {method}"]
        figures.append(Figure(f"two workers against one, {method}, answers/s", two.run.rate / one.run.rate))
    return figures


def _flatness(name: str, values: Sequence[float]) -> Figure:
    """The lowest against the highest, from the first value on that is within 20% of the highest: there it is the device
    that limits, and no longer what is asked of it."""
    first = next(at for at, value in enumerate(values) if value >= FLAT * max(values))
    return Figure(
        f"{name}, lowest against highest once the device is the limit", min(values[first:]) / max(values), at_least=FLAT
    )
