"""Rounds: contenders measured in turn, again and again, so that all of them see the same weather."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.load import Job

ROOT = Path(__file__).parents[2]
LOAN = ROOT / "models" / "loan" / "1"
KEY = "ak_benchmark_key_for_the_loopback_only"
INSTANCES_PER_RUN = 1_000_000
_starts = itertools.count(INSTANCES_PER_RUN, INSTANCES_PER_RUN)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long everything takes: counted rounds, and seconds of one run."""

    rounds: int
    seconds: float
    is_quick: bool = False

    def some(self, sizes: Sequence[int], step: int) -> Sequence[int]:
        """All sizes of a growth table, or every `step`th one in a smoke run."""
        return sizes[::step] if self.is_quick else sizes


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender.

    `rate` in answers a second, `points` in gradient points a second, latencies in milliseconds, `cpu` the share of one
    core that the load used; `converged` and `cached` are shares of the answers.
    """

    rate: float
    points: float
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    converged: float = 0.0
    cached: float = 0.0
    cpu: float = 0.0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """A load: where it goes, over how many connections, with which parameters; see `tests.bench.load.Job`."""

    url: str
    connections: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = LOAN
    first: int = 0
    distinct: int = 0
    answers: int = 0


def _start(load: Load, seconds: float) -> subprocess.Popen[bytes]:
    job = Job(
        load.url,
        KEY,
        str(load.folder),
        load.connections,
        seconds,
        dict(load.parameters),
        load.first if load.distinct else next(_starts),
        load.distinct,
        load.answers,
    )
    command = [sys.executable, "-m", "tests.bench.load", json.dumps(asdict(job))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def _read(process: subprocess.Popen[bytes], load: Load) -> Run:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load on {load.url} failed")
    counts = json.loads(output)
    answers, seconds = counts["answers"], counts["seconds"]
    if counts["errors"] or not answers:
        raise RuntimeError(f"{load.url}: {counts['errors']} of {answers} answers were errors: {counts['problem']}")
    return Run(
        rate=answers / seconds,
        points=counts["points"] / seconds,
        p50=counts["p50"],
        p90=counts["p90"],
        p99=counts["p99"],
        converged=counts["converged"] / answers,
        cached=counts["cached"] / answers,
        cpu=counts["cpu"],
    )


def measure(load: Load, seconds: float) -> Run:
    """One run, in a process of its own. Raises RuntimeError when an answer is an error."""
    return _read(_start(load, seconds), load)


@contextmanager
def background(load: Load, results: list[Run]) -> Iterator[None]:
    """Keeps a load going; what it did is added to `results` when the block ends."""
    process = _start(load, 600.0)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        results.append(_read(process, load))
    finally:
        process.kill()
        process.wait()


def rounds(contenders: Mapping[str, Callable[[], Run]], count: int) -> dict[str, list[Run]]:
    """Every contender in turn, `count` times, after one round that does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(count + 1):
        for name, contender in contenders.items():
            run = contender()
            if number:
                runs[name].append(run)
            points = f"  {run.points:9.0f} points/s" if run.points else ""
            print(
                f"  round {number}  {name:<44} {run.rate:8.0f}/s  p50 {run.p50:7.1f}  p99 {run.p99:7.1f} ms{points}"
                f"  load's core {run.cpu:4.0%}",
                flush=True,
            )
    return runs


def median(runs: list[Run], figure: str) -> float:
    """The median of one figure over runs."""
    return statistics.median(float(getattr(run, figure)) for run in runs)
