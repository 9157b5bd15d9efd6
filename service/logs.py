"""The log, on standard error: a JSON object a line, or text for people.

What is logged names no input, attribution or key. Both kinds of processes of the service write to the same stream.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

import orjson

Form = Literal["json", "text"]
VARIABLE = "ANSWERABLE_LOGS"
"""Tells the workers which form the front writes."""


class _JsonLines(logging.Formatter):
    """One object a record: time, level, logger and message, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def configure(form: str) -> None:
    """Sends this process's log to standard error, in that form."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s")
    )
    logging.basicConfig(handlers=[handler])
    logging.captureWarnings(True)


def moment(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 has them, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
