"""The load: closed-loop clients over keep-alive connections, in a process of their own.

`python -m tests.bench.load JOB` takes the fields of `Job` as a JSON object and prints those of `Counts` as one. It must
not be what limits the figures: requests are encoded before the clock starts, but for one number that makes each of them
different, replies are searched and not parsed, and the process tells how much of a core it used.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import orjson
import uvloop
from safetensors import safe_open

GOLDEN = 0.6180339887498949
PLACEHOLDER = 7654321.5
VARIED = b"%-14.9f"
"""How the one varied number is written: always 14 characters, the spaces behind it are white space to JSON."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to send where.

    Instances are the held-out rows of the model version in `folder`, the first feature lowered by up to 5% in another
    way each time; `first` is the number of the first one. With `distinct` over 0 only so many different ones are sent.
    Ends after `seconds`, or `answers` if given, or on SIGTERM.
    """

    url: str
    key: str
    folder: str
    connections: int
    seconds: float
    parameters: dict[str, Any]
    first: int = 0
    distinct: int = 0
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What came back. Latencies in milliseconds; `points` is the sum of the replies' `evaluations`; `cpu` is the share
    of one core that this process used; `problem` is the first answer that was none."""

    answers: int
    errors: int
    seconds: float
    p50: float
    p90: float
    p99: float
    points: int
    converged: int
    cached: int
    cpu: float
    problem: str


def _requests(job: Job) -> Iterator[bytes]:
    """Complete HTTP requests, without end."""
    with safe_open(Path(job.folder) / "heldout.safetensors", "numpy") as file:
        names = file.metadata()["features"].split(",")
        rows = file.get_tensor("rows").astype(float).tolist()
    address = urlsplit(job.url)
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {job.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
    templates = []
    for row in rows:
        instance = dict(zip(names, [PLACEHOLDER, *row[1:]], strict=True))
        body = orjson.dumps({"instances": [instance], "parameters": job.parameters})
        before, after = body.split(orjson.dumps(PLACEHOLDER))
        length = len(before) + len(VARIED % 0) + len(after)
        templates.append((head + b"%d\r\n\r\n" % length + before, after, row[0]))
    numbers: Iterator[int] = itertools.count(job.first)
    if job.distinct:
        numbers = itertools.cycle(range(job.first, job.first + job.distinct))
    return (
        before + VARIED % (value * (0.95 + 0.05 * (number * GOLDEN % 1.0))) + after
        for number in numbers
        for before, after, value in (templates[number % len(templates)],)
    )


class _Load:
    """The state that all connections share."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.requests = _requests(job)
        self.latencies: list[float] = []
        self.errors = self.points = self.converged = self.cached = self.sent = 0
        self.problem = ""
        self.stop = 0.0
        self.open = job.connections
        self.ended = asyncio.get_running_loop().create_future()

    def wants_more(self) -> bool:
        """Whether another request is to be sent now."""
        return time.perf_counter() < self.stop and (not self.job.answers or self.sent < self.job.answers)

    def took(self, reply: bytes, end_of_head: int, seconds: float) -> None:
        """Counts one reply."""
        self.latencies.append(seconds)
        if b" 200 " not in reply[:16]:
            self.errors += 1
            self.problem = self.problem or reply[:600].decode(errors="replace")
            return
        at = reply.find(b'"evaluations":', end_of_head)
        if at >= 0:
            self.points += int(reply[at + 14 : reply.find(b",", at)])
        self.converged += reply.find(b'"converged":true', end_of_head) >= 0
        self.cached += reply.find(b'"cached":true', end_of_head) >= 0

    def close_one(self) -> None:
        """One connection less."""
        self.open -= 1
        if not self.open and not self.ended.done():
            self.ended.set_result(None)


class _Client(asyncio.Protocol):
    """One connection: a request after the other."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self) -> None:
        """Sends the next request, or closes the connection when enough were sent."""
        assert self._transport is not None
        if not self._load.wants_more():
            self._transport.close()
            return
        request = next(self._load.requests)
        self._load.sent += 1
        self._started = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received = reply = self._received + data if self._received else data
        end = reply.find(b"\r\n\r\n")
        if end < 0:
            return
        head = reply[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            raise ValueError(f"a reply without a length: {head!r}")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(reply) < end + 4 + length:
            return
        self._load.took(reply, end, time.perf_counter() - self._started)
        self._received, self._started = b"", 0.0
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._started:
            self._load.errors += 1
            self._load.problem = self._load.problem or f"the server closed the connection: {exc}"
        self._load.close_one()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def run(job: Job) -> Counts:
    """Opens all connections, then starts the clock, and counts until it stops and the last reply is in."""
    loop = asyncio.get_running_loop()
    load = _Load(job)
    address = urlsplit(job.url)
    clients = []
    for _ in range(job.connections):
        _, client = await loop.create_connection(lambda: _Client(load), str(address.hostname), address.port or 80)
        clients.append(client)
    gc.freeze()
    gc.disable()
    used, started = _cpu_seconds(), time.perf_counter()
    load.stop = started + job.seconds
    loop.add_signal_handler(signal.SIGTERM, lambda: setattr(load, "stop", 0.0))
    for client in clients:
        client.send()
    await load.ended
    seconds = time.perf_counter() - started
    cpu = (_cpu_seconds() - used) / seconds
    latencies = sorted(load.latencies) or [float("nan")]
    p50, p90, p99 = (1e3 * latencies[int(len(latencies) * share)] for share in (0.5, 0.9, 0.99))
    counted = (load.points, load.converged, load.cached)
    return Counts(len(load.latencies), load.errors, seconds, p50, p90, p99, *counted, cpu, load.problem)


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Job(**json.loads(sys.argv[1])))))))
