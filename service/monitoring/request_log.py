"""One JSON line a request, written by a thread: a reader of the log that stops must not stop the service."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from typing import Any, NamedTuple, Protocol, cast

import orjson

from service.logs import moment
from service.monitoring.labels import UNKNOWN
from service.monitoring.timings import RequestTimings

NAME = "answerable.requests"
MAX_WAITING = 10_000
"""Lines that wait for a reader that has stopped; more are dropped, and how many is logged."""
GATHER_SECONDS = 0.1
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
    """How many lines were not written because the reader of the log had stopped."""

    lines: int

    def to_json(self) -> dict[str, Any]:
        """The line."""
        return {"event": "dropped", "lines": self.lines}


class _Formatter(logging.Formatter):
    """A JSON object for each record, whose message is a `RequestLine` or `DroppedLines`."""

    def format(self, record: logging.LogRecord) -> str:
        line = cast(RequestLine | DroppedLines, record.msg)
        return orjson.dumps({"time": moment(record.created), **line.to_json()}).decode()


class _Handler(QueueHandler):
    """Puts records on the queue as they are; drops those that it has no room for."""

    queue: queue.Queue[logging.LogRecord]

    def __init__(self) -> None:
        super().__init__(queue.Queue(MAX_WAITING))
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1
        else:
            self.report_dropped()

    def report_dropped(self) -> None:
        """Says how many were dropped, if any were, once there is room for it."""
        if self._dropped:
            with suppress(queue.Full):
                self.queue.put_nowait(_record(DroppedLines(self._dropped)))
                self._dropped = 0


class _Listener(QueueListener):
    """Writes the lines of `GATHER_SECONDS` together.

    Written one by one, each with a wake-up of the thread and two system calls, they took 12% of the front's time for a
    whole cached `:explain`.
    """

    queue: queue.Queue[logging.LogRecord]

    def __init__(self, handler: _Handler, stream: Stream) -> None:
        super().__init__(handler.queue)
        self._formatter = _Formatter()
        self._stream = stream
        self._lines: list[str] = []

    def dequeue(self, block: bool) -> logging.LogRecord:
        try:
            return self.queue.get_nowait()
        except queue.Empty:
            self.flush()
            record = self.queue.get(block)
            time.sleep(GATHER_SECONDS)
            return record

    def handle(self, record: logging.LogRecord) -> None:
        self._lines.append(self._formatter.format(record) + "\n")

    def flush(self) -> None:
        """Writes what was gathered."""
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("".join(lines))
            self._stream.flush()


class RequestLog:
    """Writes lines to a stream, standard error for instance, whose reader may stop. Close it on the event loop."""

    def __init__(self, stream: Stream) -> None:
        self._handler = _Handler()
        self._listener = _Listener(self._handler, stream)
        self._listener.start()

    def add(self, line: RequestLine) -> None:
        """Adds a line; returns at once."""
        self._handler.enqueue(_record(line))

    async def close(self) -> None:
        """Writes the remaining lines, if the reader takes them within `CLOSE_SECONDS`."""
        stopping = threading.Thread(target=self._stop, daemon=True)  # it blocks while the reader is stopped
        stopping.start()
        await asyncio.to_thread(stopping.join, CLOSE_SECONDS)

    def _stop(self) -> None:
        self._handler.queue.join()
        self._handler.report_dropped()
        self._listener.stop()
        self._listener.flush()


def _record(line: RequestLine | DroppedLines) -> logging.LogRecord:
    return logging.LogRecord(NAME, logging.INFO, "", 0, line, None, None)
