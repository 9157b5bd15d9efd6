"""The load: closed-loop clients over raw keep-alive connections, in a process of their own.

`python tests/bench/load.py URL KEY CONNECTIONS SECONDS PARAMETERS SEED` prints one JSON line: answers, errors, seconds,
and the latencies in milliseconds. Every instance differs from every other, so that no cache can answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import yaml
from safetensors.numpy import load_file

LOAN = Path(__file__).parents[2] / "models" / "loan" / "1"


class Instances:
    """Held-out applications with a slightly different loan amount each time."""

    def __init__(self, seed: int) -> None:
        features = yaml.safe_load((LOAN / "manifest.yaml").read_text())["inputs"]["features"]
        self._names = [feature["name"] for feature in features]
        self._rows = load_file(LOAN / "heldout.safetensors")["rows"].astype(float).tolist()
        self._random = random.Random(seed)
        self._next = seed

    def take(self) -> dict[str, float]:
        """The next instance."""
        row = self._rows[self._next % len(self._rows)]
        self._next += 1
        varied = min(1000.0, max(1.0, row[0] * self._random.uniform(0.95, 1.05)))
        return dict(zip(self._names, [varied, *row[1:]], strict=True))


async def _client(
    url: str, key: str, parameters: dict[str, Any], instances: Instances, stop: float, latencies: list[float]
) -> int:
    """One connection: a request after the other until `stop`; returns the number of errors."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\n"
    )
    errors = 0
    while time.perf_counter() < stop:
        body = orjson.dumps({"instances": [instances.take()], "parameters": parameters})
        started = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        latencies.append((time.perf_counter() - started) * 1e3)
        errors += b" 200 " not in answer[:16]
    writer.close()
    return errors


async def run(url: str, key: str, connections: int, seconds: float, parameters: dict[str, Any], seed: int) -> None:
    """Runs the load and prints what came of it."""
    latencies: list[float] = []
    started = time.perf_counter()
    clients = [
        _client(url, key, parameters, Instances(seed + 1000 * number), started + seconds, latencies)
        for number in range(connections)
    ]
    errors = sum(await asyncio.gather(*clients))
    took = time.perf_counter() - started
    print(json.dumps({"answers": len(latencies), "errors": errors, "seconds": took, "latencies": latencies}))


if __name__ == "__main__":
    _, target, secret, count, duration, asked, first = sys.argv
    asyncio.run(run(target, secret, int(count), float(duration), json.loads(asked), int(first)))
