"""Converts days and times as people write them to microseconds since the epoch, as the ledger stores them, and back.

A day means the whole day, in UTC, both as the beginning and as the end of a period. A time that ends a period is not in
the period itself.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, tzinfo

ZONE = "UTC"
"""The zone of a day, and of a time without one in a command."""
EXAMPLE_DAY, EXAMPLE_TIME = "2026-11-30", "2026-11-30T12:00:00Z"
A_MOMENT = f"a day as {EXAMPLE_DAY}, which is a whole day in {ZONE}, or a time with its zone as {EXAMPLE_TIME}"
"""What a client or an operator may write."""

_DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WITH_DOTS = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_LOST_PLUS = re.compile(r".*\d{2}:?\d{2}(:?\d{2}([.,]\d+)?)? \d{2}:?\d{2}")


def read_moment(text: str, *, is_end: bool, zone: tzinfo | None = None) -> int:
    """The moment at which a period begins or, as `is_end`, before which it ends.

    `zone` is the zone of a time without one. Raises ValueError, whose message says what to write instead.
    """
    with suppress(ValueError):
        return (date.fromisoformat(text).toordinal() - _EPOCH.toordinal() + is_end) * _DAY
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        raise ValueError(_advice(text)) from None
    if moment.tzinfo is None:
        if zone is None:
            raise ValueError(f"needs a time zone, for instance {EXAMPLE_TIME}; a day, {EXAMPLE_DAY}, needs none")
        moment = moment.replace(tzinfo=zone)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def written_moment(microseconds: int | None) -> str | None:
    """A moment in UTC (ISO 8601); one outside the years 1 to 9999 becomes the nearest moment inside."""
    if microseconds is None:
        return None
    before = _EPOCH.toordinal()
    first, last = (date.min.toordinal() - before) * _DAY, (date.max.toordinal() + 1 - before) * _DAY - 1
    moment = _EPOCH + timedelta(microseconds=min(max(microseconds, first), last))
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds")


def written_period(start: int | None, end: int | None) -> dict[str, str]:
    """The beginning and the end of a period, and their zone; empty where neither is limited."""
    ends = {"from": written_moment(start), "before": written_moment(end)}
    limits = {name: moment for name, moment in ends.items() if moment is not None}
    return {**limits, "zone": ZONE} if limits else {}


def _advice(text: str) -> str:
    quoted = repr(text[:64])
    if _LOST_PLUS.fullmatch(text):
        return f"{quoted} has lost the plus sign of its zone: in an address write it as %2B, as in 12:00:00%2B01:00"
    meant = ""
    if dotted := _WITH_DOTS.fullmatch(text):
        day, month, year = map(int, dotted.groups())
        with suppress(ValueError):
            meant = f"; did you mean {date(year, month, day).isoformat()}?"
    return f"{quoted} is not a day or a time; write {A_MOMENT}{meant}"
