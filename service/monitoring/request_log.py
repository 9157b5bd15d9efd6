"""One JSON line a request, written by a thread: a reader of the log that stops must not stop the service.

Lines are gathered for `EVERY_SECONDS`, spelled and written together, which leaves the event loop an append a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from service.logs import moment
from service.monitoring.labels import UNKNOWN
from service.monitoring.timings import Spent

EVERY_SECONDS = 0.1
MOST_WAITING = 10_000
"""Lines that wait for a writer that does not come back; more are dropped, and how many is logged."""


class RequestLine(NamedTuple):
    """What there is to say of a request; `seconds` is how long it took in all."""

    id: str
    verb: str
    route: str
    status: int
    model: str
    method: str
    spent: Spent
    seconds: float

    def spelled(self) -> dict[str, Any]:
        """The line; times in milliseconds. What was not known when the request ended is left out."""
        spent = self.spent
        line: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "route": f"{self.verb} {self.route}",
            "status": self.status,
        }
        if self.model != UNKNOWN:
            line |= {"model": self.model, "version": spent.version, "method": self.method}
        if spent.explanations:
            line |= {"explanations": spent.explanations, "computed": len(spent.computed)}
        return {**line, "ms": {**spent.milliseconds, "total": round(self.seconds * 1e3, 3)}}


class RequestLog:
    """Writes lines with `write`, which may block. Used on one event loop; close it there."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: list[tuple[float, RequestLine]] = []
        self._dropped = 0
        self._writing: asyncio.Task[None] | None = None

    def add(self, line: RequestLine) -> None:
        """Adds a line; returns at once."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append((time.time(), line))
        self._start()

    async def close(self) -> None:
        """Writes what is left, if the reader takes it within a second."""
        if self._waiting:
            self._start()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=1)

    def _start(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(EVERY_SECONDS)
                lines, self._waiting = self._waiting, []
                dropped, self._dropped = self._dropped, 0
                await asyncio.to_thread(self._write_lines, lines, dropped)
        finally:
            self._writing = None  # here: what came before a callback of the task would wait for the next line

    def _write_lines(self, lines: list[tuple[float, RequestLine]], dropped: int) -> None:
        spelled = [{"time": moment(at), **line.spelled()} for at, line in lines]
        if dropped:
            spelled.append({"time": moment(time.time()), "event": "dropped", "lines": dropped})
        self._write(b"".join(orjson.dumps(line) + b"\n" for line in spelled))
