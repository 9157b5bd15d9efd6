"""The ledger's time, which never falls: the machine's clock, or the last time that was signed where that is later.

A clock that was ahead, and signed for, cannot be taken back: whoever holds the checkpoint knows that all it does not
cover came later. So once the clock is set right, records bear the last signed time until the clock has passed it; they
stand in their order, nothing is refused, and the log has an event that says by how much the clock was behind. Keys end
by the same time: one that has ended stays so. What is deleted by age is not deleted by a clock that has just jumped.
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

FALL = 10 * 1_000_000
"""Microseconds. The clocks of hosts differ by less; one that is further behind the ledger's time gets an event."""
OPERATORS = "default"
"""The tenant of such an event."""

_log = logging.getLogger(__name__)


def machine_time() -> int:
    """Microseconds since the epoch, UTC, by the clock of this machine."""
    return time.time_ns() // 1000


def signed_time(connection: Connection) -> int:
    """The last time that was signed, 0 before the first."""
    newest = select(checkpoints.c.body).order_by(checkpoints.c.size.desc()).limit(1)
    return said_time(connection.scalar(newest))


def opened_clock(engine: Engine) -> Clock:
    """A clock that knows what is signed. Raises LedgerUnavailable."""
    with database_in_reach(), engine.connect() as connection:
        return Clock(signed_time(connection))


def said_time(body: bytes | None) -> int:
    """The time in a checkpoint's body; 0 of none, and of one that was changed, which keeps nobody from recording."""
    try:
        created = orjson.loads(body or b"")["created"]
    except (ValueError, TypeError, KeyError):
        return 0
    return created if isinstance(created, int) else 0


def ledger_time(connection: Connection) -> int:
    """Now, in microseconds since the epoch, UTC."""
    return max(machine_time(), signed_time(connection))


class Clock:
    """The ledger's time in a process: what is recorded and signed there is told to it."""

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
        """Says that a moment was recorded, or signed."""
        self._floor = max(self._floor, moment)


class WrittenTimes:
    """Sees to it that what one writer writes bears no earlier time than what was signed, or than it wrote itself before
    its clock was set back. The first entry after a fall is preceded by an event."""

    def __init__(self) -> None:
        self.signed_size = 0
        """The rows under the last checkpoint that is known here."""
        self._floor = 0
        self._clock = 0
        self._is_told = False
        self._is_being_told = False

    def signed(self, size: int, body: bytes) -> None:
        """Says what the last checkpoint is."""
        if size != self.signed_size:
            self.signed_size = size
            self._floor = max(self._floor, said_time(body))

    def timely(self, entries: Sequence[Entry | Event]) -> Sequence[Entry | Event]:
        """The entries with the times that they are recorded with."""
        now = machine_time()
        if now < self._clock:
            self._floor = max(self._floor, self._clock)
        self._clock = max(self._clock, now)
        behind = self._floor - now
        self._is_told = self._is_told and behind > 0
        self._is_being_told = behind > FALL and not self._is_told
        floor = self._floor
        lifted = [one if one.created >= floor else replace(one, created=floor) for one in entries]
        if not self._is_being_told:
            return lifted
        details = {"clock": now, "behind": behind, "host": gethostname()}
        return [Event(kind=CLOCK, tenant=OPERATORS, key_id=CLOCK, details=details, created=floor), *lifted]

    def written(self) -> None:
        """Says that what was `timely` last is in the log."""
        if self._is_being_told:
            self._is_told, self._is_being_told = True, False
            _log.warning(
                "the clock of this host is %.0f s behind the ledger's time: until it has passed that, records bear the "
                "last signed time, and keys end by it",
                (self._floor - machine_time()) / 1e6,
            )
