"""The ledger's time, which never goes back: the machine's clock, or the last signed time where that is later.

A signed time cannot be taken back, even if the clock was ahead: the checkpoint proves that all it does not cover came
later. So once the clock is set right, records get the last signed time until the clock has passed it. They keep their
order, nothing is refused, and the log has an event that says by how much the clock was behind. Keys expire by the same
time, so an expired key stays expired. Nothing is deleted by age while the clock has just jumped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from socket import gethostname

import orjson
from sqlalchemy import Connection, Engine, select

from service.ledger.database import database_in_reach
from service.ledger.entries import CLOCK, Entry, Event
from service.ledger.tables import checkpoints

MAX_LAG = 10 * 1_000_000
"""Microseconds. The clocks of hosts differ by less; one that is further behind the ledger's time causes an event."""
OPERATORS = "default"
"""The tenant of these events."""

_log = logging.getLogger(__name__)


def machine_time() -> int:
    """Microseconds since the epoch, UTC, by the clock of this machine."""
    return time.time_ns() // 1000


def signed_time(connection: Connection) -> int:
    """The time of the newest checkpoint, 0 before the first."""
    newest = select(checkpoints.c.body).order_by(checkpoints.c.size.desc()).limit(1)
    return time_in_body(connection.scalar(newest))


def opened_clock(engine: Engine) -> Clock:
    """A clock that starts from the newest checkpoint. Raises LedgerUnavailable."""
    with database_in_reach(), engine.connect() as connection:
        return Clock(signed_time(connection))


def time_in_body(body: bytes | None) -> int:
    """The time in a checkpoint's body; 0 for none, and for one that was changed, so that recording goes on."""
    try:
        created = orjson.loads(body or b"")["created"]
    except (ValueError, TypeError, KeyError):
        return 0
    return created if isinstance(created, int) else 0


def ledger_time(connection: Connection) -> int:
    """The ledger's time now, in microseconds since the epoch, UTC."""
    return max(machine_time(), signed_time(connection))


class Clock:
    """The ledger's time in one process, which passes it the times of what it records and signs."""

    def __init__(self, floor: int = 0) -> None:
        self._floor = floor

    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        return max(machine_time(), self._floor)

    @property
    def behind(self) -> float:
        """Seconds until the machine's clock has passed the ledger's time; 0 where it has."""
        return max(0, self._floor - machine_time()) / 1e6

    def passed(self, moment: int) -> None:
        """Takes note that a time was recorded or signed."""
        self._floor = max(self._floor, moment)


class WrittenTimes:
    """Raises the times of what one writer records to at least the last signed time, and to its own last time where its
    clock was set back. An event precedes the first entry recorded with such a clock."""

    def __init__(self) -> None:
        self.signed_size = 0
        """The number of rows under the newest checkpoint that is known here."""
        self._floor = 0
        self._clock = 0
        self._is_event_recorded = False
        self._is_event_pending = False

    def signed(self, size: int, body: bytes) -> None:
        """Takes note of the newest checkpoint."""
        if size != self.signed_size:
            self.signed_size = size
            self._floor = max(self._floor, time_in_body(body))

    def timely(self, entries: Sequence[Entry | Event]) -> Sequence[Entry | Event]:
        """The entries with the times to record, after an event if the clock is behind."""
        now = machine_time()
        if now < self._clock:
            self._floor = max(self._floor, self._clock)
        self._clock = max(self._clock, now)
        behind = self._floor - now
        self._is_event_recorded = self._is_event_recorded and behind > 0
        self._is_event_pending = behind > MAX_LAG and not self._is_event_recorded
        floor = self._floor
        lifted = [entry if entry.created >= floor else replace(entry, created=floor) for entry in entries]
        if not self._is_event_pending:
            return lifted
        details = {"clock": now, "behind": behind, "host": gethostname()}
        return [Event(kind=CLOCK, tenant=OPERATORS, key_id=CLOCK, details=details, created=floor), *lifted]

    def written(self) -> None:
        """Takes note that the entries last returned by `timely` are in the log."""
        if self._is_event_pending:
            self._is_event_recorded, self._is_event_pending = True, False
            _log.warning(
                "the clock of this host is %.0f s behind the ledger's time: until it has passed that, records get the "
                "last signed time, and keys expire by it",
                (self._floor - machine_time()) / 1e6,
            )
