"""One JSON line a request, written by a thread: a reader of the log that stops must not stop the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Protocol

import orjson

from service.logs import moment
from service.monitoring.labels import UNKNOWN
from service.monitoring.timings import RequestTimings

MAX_WAITING = 10_000
"""Lines that wait for a reader that has stopped; more are dropped, and how many is logged."""
GATHER_SECONDS = 0.1
"""The lines of this time are written together: one by one, each with a wake-up of the thread and two system calls, they
took 12% of the front's time for a whole cached `:explain`."""
CLOSE_SECONDS = 1


class Stream(Protocol):
    """A stream of text."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class RequestLine(NamedTuple):
    """What the log says of a request; `seconds` is how long it took in all."""

    id: str
    verb: str
    route: str
    status: int
    model: str
    method: str
    timings: RequestTimings
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The line; times in milliseconds. What was not known when the request ended is left out."""
        timings = self.timings
        line: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "route": f"{self.verb} {self.route}",
            "status": self.status,
        }
        if self.model != UNKNOWN:
            line |= {"model": self.model, "version": timings.version, "method": self.method}
        if timings.explanations:
            line |= {"explanations": timings.explanations, "computed": len(timings.computed)}
        return {**line, "ms": {**timings.milliseconds, "total": round(self.seconds * 1e3, 3)}}


class DroppedLines(NamedTuple):
    """How many lines were not written because the reader of the log had stopped, or the log could not be written."""

    lines: int

    def to_json(self) -> dict[str, Any]:
        """The line."""
        return {"event": "dropped", "lines": self.lines}


class RequestLog:
    """Writes lines to a stream, standard error for instance, whose reader may stop. For one event loop.

    The thread formats the lines, too. Through `logging`, with its `QueueHandler` and `QueueListener`, a line cost both
    threads together 24.5 microseconds, and here 15.5; and it took more code.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: SimpleQueue[tuple[float, RequestLine | DroppedLines] | None] = SimpleQueue()
        self._dropped = 0
        self._thread = Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def add(self, line: RequestLine) -> None:
        """Adds a line; returns at once."""
        if self._waiting.qsize() >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.put((time.time(), line))
        self._report_dropped()

    async def close(self) -> None:
        """Writes the remaining lines, if the reader takes them within `CLOSE_SECONDS`."""
        self._report_dropped()
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def _report_dropped(self) -> None:
        """Says how many were dropped, if any were, behind the line that there was room for."""
        if self._dropped:
            self._waiting.put((time.time(), DroppedLines(self._dropped)))
            self._dropped = 0

    def _write_all(self) -> None:
        is_open, lost = True, 0
        while is_open:
            lines = [self._waiting.get()]
            time.sleep(GATHER_SECONDS)
            lines += [self._waiting.get() for _ in range(self._waiting.qsize())]
            is_open = None not in lines
            told = [line for line in lines if line is not None]
            if lost:
                told.append((time.time(), DroppedLines(lost)))
            try:
                self._write(told)
            except (OSError, ValueError):  # a full disk, say, or no reader any more; while it lasts nothing can be told
                lost = sum(line.lines if isinstance(line, DroppedLines) else 1 for _, line in told)
            else:
                lost = 0

    def _write(self, lines: Iterable[tuple[float, RequestLine | DroppedLines]]) -> None:
        written = (orjson.dumps({"time": moment(seconds), **line.to_json()}) for seconds, line in lines)
        self._stream.write("".join(line.decode() + "\n" for line in written))
        self._stream.flush()
