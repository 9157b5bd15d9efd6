"""The queue of appends on the event loop, in front of the one writer of a host.

It bounds how much waits, gives up an append that takes too long, and knows whether the database takes records.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Engine

from service.errors import LedgerFull, LedgerUnavailable
from service.ledger.entries import Entry, EntryRefused, Event, Remembered
from service.ledger.sealing import Vault
from service.ledger.writer import Append, Outcome, Outcomes, Writer
from service.ledger.writer_process import WriterProcess

WAITING_LIMIT = 16_384
"""Entries that wait or have room reserved: what one or two seconds can record on a disk of usual speed."""
APPEND_SECONDS = 5.0
"""How long an append waits until it is on the disk, which takes milliseconds: its caller, and their client, wait."""
PROBE_SECONDS = 2.0
"""Seconds between two attempts to write where no append shows whether the database takes records."""
CLOSED = "The ledger is closed: the service is stopping."
SILENT = "The ledger's database does not answer, so nothing can be recorded at the moment."

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Room:
    """Room in the queue that is reserved for so many more entries."""

    entries: int


class AppendQueue:
    """The appends of one event loop: made, used and closed on it.

    `waiting_limit` is the number of entries, waiting or with room reserved, from which more are refused. An append that
    takes longer than `append_seconds` is given up, and while the writer still has one such, all new ones are refused.
    While nobody appends, something is written every `probe_seconds`, so that `is_recording` is true of an idle ledger
    too. `writer` is a thread of this process, or a process of its own, which a busy event loop does not slow down.
    `on_recorded` is called after entries were recorded.
    """

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        writer: type[Writer | WriterProcess],
        on_recorded: Callable[[], None],
        waiting_limit: int = WAITING_LIMIT,
        append_seconds: float = APPEND_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self.append_seconds = append_seconds
        self.waiting = 0
        """Entries that are with the writer."""
        self.reserved = 0
        """Entries that have room reserved and are still to be appended."""
        self._waiting_limit = waiting_limit
        self._on_recorded = on_recorded
        self._numbers = itertools.count()
        self._unsettled: dict[int, tuple[int, asyncio.Future[Outcome]]] = {}
        self._given_up: set[int] = set()
        self._has_failed = False
        self._has_appended = False
        self._is_in_doubt = asyncio.Event()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._writer = writer(engine, vault, self._settle)
        self._probing = self._loop.create_task(self._probe_regularly(probe_seconds))

    @property
    def is_recording(self) -> bool:
        """Whether the database takes records, according to the last attempts."""
        return not (self._has_failed or self._given_up)

    @contextmanager
    def room(self, entries: int) -> Iterator[Room]:
        """Reserves room for entries that are still to be computed, so that they are not computed in vain; what was not
        used by an append is released at the end.

        Raises LedgerFull, unless the queue is empty, and LedgerUnavailable, both at once.
        """
        self._refuse_if_unavailable()
        held = self.waiting + self.reserved
        if held and held + entries > self._waiting_limit:
            raise LedgerFull("the ledger's queue is full of explanations that are computed or wait to be recorded")
        room = Room(entries)
        self.reserved += entries
        try:
            yield room
        finally:
            self.reserved -= room.entries

    async def append(self, entries: tuple[Entry | Event, ...], kept: Remembered | None, room: Room | None) -> None:
        """Records the entries, all or none; see `Ledger.append`. Raises LedgerUnavailable, EntryRefused."""
        self._refuse_if_unavailable()
        if room is None and self.waiting >= self._waiting_limit:
            raise LedgerUnavailable("Too many records wait to be written to the ledger.")
        if room is not None:
            used = min(room.entries, len(entries))
            room.entries -= used
            self.reserved -= used
        outcome = await self._put(entries, kept)
        if outcome is Outcome.REFUSED:
            raise EntryRefused(
                "The ledger has this explanation already, the job's row that it explains has ended, or the request was "
                "answered already."
            )
        if outcome is Outcome.UNAVAILABLE:
            raise LedgerUnavailable("The explanation could not be recorded, so it is not returned.")

    async def close(self) -> None:
        """Refuses new appends, records what still waits, then ends the writer."""
        self._is_closed = True
        self._probing.cancel()
        await self._writer.close()

    def _refuse_if_unavailable(self) -> None:
        if self._is_closed:
            raise LedgerUnavailable(CLOSED)
        if self._given_up:
            raise LedgerUnavailable(SILENT)

    async def _put(self, entries: tuple[Entry | Event, ...], kept: Remembered | None = None) -> Outcome:
        """Passes the entries to the writer; returns their outcome, UNAVAILABLE where it does not come in time."""
        number = next(self._numbers)
        settled: asyncio.Future[Outcome] = self._loop.create_future()
        self._unsettled[number] = len(entries), settled
        self.waiting += len(entries)
        self._has_appended = True
        self._writer.put(Append(number, entries, kept))
        timer = self._loop.call_later(self.append_seconds, self._give_up, number)
        try:
            return await settled
        finally:
            timer.cancel()

    def _give_up(self, number: int) -> None:
        """Stops waiting for an append that the writer still has; one that was settled a moment ago stays settled."""
        unsettled = self._unsettled.get(number)
        if unsettled is None:  # its waiter, who cancels the timer, has not had its turn since
            return
        if self.is_recording:
            _log.error("the ledger's database has not answered for %.0f s; nothing is recorded", self.append_seconds)
        self._given_up.add(number)
        _, settled = unsettled
        if not settled.done():
            settled.set_result(Outcome.UNAVAILABLE)

    async def _probe_regularly(self, seconds: float) -> None:
        """Tries to write where no append does: while the ledger is idle, after a failure, and where it is in doubt
        whether an append failed because of the database or because of the append."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._is_in_doubt.wait()
            is_idle, self._has_appended = not self._has_appended, False
            if not self._given_up and (is_idle or self._has_failed or self._is_in_doubt.is_set()):
                await self._put(())
            self._is_in_doubt.clear()

    def _settle(self, outcomes: Outcomes) -> None:
        for number, outcome in outcomes:
            entries, settled = self._unsettled.pop(number)
            was_recording = self.is_recording
            self.waiting -= entries
            self._given_up.discard(number)
            if outcome is Outcome.RECORDED or not entries:
                self._has_failed = outcome is Outcome.UNAVAILABLE
            elif outcome is Outcome.UNAVAILABLE and not self._has_failed:
                self._is_in_doubt.set()
            if self.is_recording and not was_recording:
                _log.warning("the ledger's database takes records again")
            if outcome is Outcome.RECORDED and entries:
                self._on_recorded()
            if not settled.done():
                settled.set_result(outcome)
