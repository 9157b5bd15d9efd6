"""Days and times as people write them, as the ledger has them: microseconds since the epoch.

A day is a whole day, in UTC, wherever it is asked for: from its first moment, and to its last. A time as the end of a
period is itself outside of it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, tzinfo

ZONE = "UTC"
"""Of a day, and where a command is given a time without one."""
EXAMPLE_DAY, EXAMPLE_TIME = "2026-11-30", "2026-11-30T12:00:00Z"
A_MOMENT = f"a day as {EXAMPLE_DAY}, which is a whole day in {ZONE}, or a time with its zone as {EXAMPLE_TIME}"
"""What can be given."""

_DAY = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WITH_DOTS = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_LOST_PLUS = re.compile(r".*\d{2}:?\d{2}(:?\d{2}([.,]\d+)?)? \d{2}:?\d{2}")


def read_moment(given: str, *, is_end: bool, zone: tzinfo | None = None) -> int:
    """The moment at which a period begins or, as `is_end`, before which it ends.

    `zone` is that of a time that names none. Raises ValueError, whose message tells a person what to write.
    """
    with suppress(ValueError):
        return (date.fromisoformat(given).toordinal() - _EPOCH.toordinal() + is_end) * _DAY
    try:
        moment = datetime.fromisoformat(given.upper())
    except ValueError:
        raise ValueError(_advice(given)) from None
    if moment.tzinfo is None:
        if zone is None:
            raise ValueError(f"needs a time zone, for instance {EXAMPLE_TIME}; a day, {EXAMPLE_DAY}, needs none")
        moment = moment.replace(tzinfo=zone)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def written_moment(microseconds: int | None) -> str | None:
    """A moment in UTC (ISO 8601); years that a calendar does not have are their nearest."""
    if microseconds is None:
        return None
    before = _EPOCH.toordinal()
    first, last = (date.min.toordinal() - before) * _DAY, (date.max.toordinal() + 1 - before) * _DAY - 1
    moment = _EPOCH + timedelta(microseconds=min(max(microseconds, first), last))
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds")


def written_period(start: int | None, end: int | None) -> dict[str, str]:
    """From when to before when, and in which zone that is said; nothing where all times are meant."""
    ends = {"from": written_moment(start), "before": written_moment(end)}
    told = {name: moment for name, moment in ends.items() if moment is not None}
    return {**told, "zone": ZONE} if told else {}


def _advice(given: str) -> str:
    shown = repr(given[:64])
    if _LOST_PLUS.fullmatch(given):
        return f"{shown} has lost the plus sign of its zone: in an address it is written %2B, as 12:00:00%2B01:00"
    meant = ""
    if dotted := _WITH_DOTS.fullmatch(given):
        day, month, year = map(int, dotted.groups())
        with suppress(ValueError):
            meant = f"; did you mean {date(year, month, day).isoformat()}?"
    return f"{shown} is no day or time; write {A_MOMENT}{meant}"
