"""The benchmark: this service and its peers, one after the other in rounds, on one machine. `make bench`.

Every figure is a ratio of medians over the rounds, with the smallest and largest ratio of a round beside it, because
machines are noisy. Load comes from another process; keys, the durable ledger and metrics are on; all inputs differ.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY = "ak_benchmark_key_for_the_loopback_only"
ROUNDS = 5
SECONDS = 4.0
EXPLAIN = "/v1/models/loan:explain"


@dataclass(frozen=True, slots=True)
class Run:
    """One round of one load: answers a second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Load:
    """A load: where it goes, over how many connections, with which parameters."""

    name: str
    url: str
    connections: int
    parameters: dict[str, Any]


def measure(load: Load, seed: int) -> Run:
    """One round."""
    arguments = [load.url, KEY, str(load.connections), str(SECONDS), json.dumps(load.parameters), str(seed)]
    done = subprocess.run([sys.executable, str(HERE / "load.py"), *arguments], check=True, capture_output=True)
    result = json.loads(done.stdout)
    if result["errors"]:
        raise RuntimeError(f"{load.name}: {result['errors']} of {result['answers']} answers were errors")
    latencies = sorted(result["latencies"])
    return Run(
        result["answers"] / result["seconds"], latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    )


def rounds(loads: list[Load]) -> dict[str, list[Run]]:
    """Every load in turn, `ROUNDS` times, after one round that does not count."""
    runs: dict[str, list[Run]] = {load.name: [] for load in loads}
    for number in range(ROUNDS + 1):
        for load in loads:
            run = measure(load, seed=10_000 * number)
            if number:
                runs[load.name].append(run)
            print(f"  round {number}  {load.name:<34} {run.rate:8.0f}/s  p50 {run.p50:7.1f} ms  p99 {run.p99:7.1f} ms")
    return runs


@contextmanager
def server(*arguments: str, ready: str) -> Iterator[float]:
    """A server process, from when it answers on `ready`; yields the seconds that took."""
    environment = {**os.environ, "ANSWERABLE_KEY": KEY}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], env=environment)
    try:
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() - started > 60:
                raise RuntimeError(f"{arguments} did not come up")
            time.sleep(0.05)
        yield time.monotonic() - started
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (404, 405)
    except OSError:
        return False


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ratio(name: str, ours: list[float], theirs: list[float], target: str) -> str:
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"| {name} | {ratio:.2f} | {min(each):.2f} to {max(each):.2f} | {target} |"


def main() -> None:
    """Runs everything and prints the table."""
    ports = {name: _port() for name in ("ours", "captum50", "captum300", "floor")}
    url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    peers = str(HERE / "peers.py")
    with tempfile.TemporaryDirectory() as data:
        serve = ("-m", "service", "serve", "--port", str(ports["ours"]), "--data", data)
        with (
            server(*serve, ready=f"{url['ours']}/v2/health/ready") as startup,
            server(peers, "captum", str(ports["captum50"]), "50", ready=f"{url['captum50']}/explain"),
            server(peers, "captum", str(ports["captum300"]), "300", ready=f"{url['captum300']}/explain"),
            server(peers, "floor", str(ports["floor"]), ready=f"{url['floor']}/explain"),
        ):
            asked = {"target": "denied"}
            runs = rounds(
                [
                    Load("ours, 32", url["ours"] + EXPLAIN, 32, asked),
                    Load("A: Captum 50 steps, 32", url["captum50"] + "/explain", 32, asked),
                    Load("B: Captum 300 steps, 32", url["captum300"] + "/explain", 32, asked),
                    Load("floor, 32", url["floor"] + "/explain", 32, asked),
                    Load("ours, 1", url["ours"] + EXPLAIN, 1, asked),
                    Load("A: Captum 50 steps, 1", url["captum50"] + "/explain", 1, asked),
                ]
            )

    def of(name: str, figure: str) -> list[float]:
        return [float(getattr(run, figure)) for run in runs[name]]

    ours, a, b = "ours, 32", "A: Captum 50 steps, 32", "B: Captum 300 steps, 32"
    print("\n| figure | ratio | over the rounds | aim |\n| --- | --- | --- | --- |")
    print(_ratio("exact IG, 32 connections, explanations/s against A", of(ours, "rate"), of(a, "rate"), "10"))
    print(_ratio("the same against B", of(ours, "rate"), of(b, "rate"), "20"))
    print(_ratio("the same against the floor", of(ours, "rate"), of("floor, 32", "rate"), "none"))
    print(_ratio("its p99 against A's p50", of(ours, "p99"), of(a, "p50"), "below 1"))
    one, alone = of("ours, 1", "p50"), of("A: Captum 50 steps, 1", "p50")
    print(_ratio("one connection, p50 against A's p50", one, alone, "0.5"))
    print(f"\nStart to ready: {startup:.1f} s")


if __name__ == "__main__":
    main()
