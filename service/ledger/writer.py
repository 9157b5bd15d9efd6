"""The one writer of a host to its log, which groups appends into transactions.

There is no timer: whatever arrives while one transaction is on its way to the disk becomes the next one. With SQLite
(WAL, synchronous=FULL) a record alone costs about six times what it costs in a group of 32 (360 us and 56), because the
wait for the disk is shared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from queue import Empty, SimpleQueue
from threading import Thread

from sqlalchemy import Engine

from service.ledger.appending import Appender
from service.ledger.entries import Entry, EntryRefused, Event, Remembered
from service.ledger.sealing import Vault

MAX_GROUP = 512
"""Entries at which a group is closed, so that a transaction stays short."""

_log = logging.getLogger(__name__)


class Outcome(Enum):
    """The outcome of an append."""

    RECORDED = "recorded"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Append:
    """The entries of one call, recorded all or none, and the caller's number for them. Without entries it asks whether
    the database takes records.

    `kept` is the answer to remember with them, for a request with a key of its own.
    """

    number: int
    entries: tuple[Entry | Event, ...]
    kept: Remembered | None = None


Outcomes = list[tuple[int, Outcome]]
"""Outcomes of appends, by their numbers."""


class Recorder:
    """Writes appends in their order; reports each group to `settle`."""

    def __init__(self, engine: Engine, vault: Vault, settle: Callable[[Outcomes], None]) -> None:
        self._appender = Appender(engine, vault)
        self._settle = settle

    def record(self, appends: Sequence[Append]) -> None:
        """Writes the appends in as few groups as `MAX_GROUP` allows; returns when all are settled."""
        for group in _groups(appends):
            self._settle(self._record(group))
            self._appender.checkpoint()  # once the replies are out

    def close(self) -> None:
        """Gives the connection back."""
        self._appender.close()

    def _record(self, group: list[Append]) -> Outcomes:
        outcome = self._attempt(group)
        if outcome is Outcome.REFUSED and len(group) > 1:
            return [(append.number, self._attempt([append])) for append in group]
        return [(append.number, outcome) for append in group]

    def _attempt(self, group: Sequence[Append]) -> Outcome:
        entries: list[Entry | Event] = []
        kept: dict[int, Remembered] = {}
        for append in group:
            entries += append.entries
            if append.kept is not None:
                kept[len(entries) - 1] = append.kept
        try:
            self._appender.append(entries, kept)
        except EntryRefused as error:
            _log.warning("entries refused by the database: %s", error)
            return Outcome.REFUSED
        except Exception:  # noqa: BLE001 - whatever happens to one group, the writer goes on with the next
            _log.exception("a group of %d entries could not be recorded", len(entries))
            return Outcome.UNAVAILABLE
        return Outcome.RECORDED


class Writer:
    """A thread that records what is put; made on an event loop, where `settle` is called."""

    def __init__(self, engine: Engine, vault: Vault, settle: Callable[[Outcomes], None]) -> None:
        loop = asyncio.get_running_loop()

        def settle_on_loop(outcomes: Outcomes) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(settle, outcomes)

        self._recorder = Recorder(engine, vault, settle_on_loop)
        self._queue: SimpleQueue[Append | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def put(self, append: Append) -> None:
        """Queues an append; returns at once."""
        self._queue.put(append)

    def stop(self) -> None:
        """Writes what is queued, then ends the thread. Blocks until it has."""
        self._queue.put(None)
        self._thread.join()

    async def close(self) -> None:
        """`stop`, for an event loop."""
        await asyncio.to_thread(self.stop)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            waiting = [self._queue.get()]
            with suppress(Empty):
                while True:
                    waiting.append(self._queue.get_nowait())
            is_last = None in waiting
            self._recorder.record([append for append in waiting if append is not None])
        self._recorder.close()


def _groups(appends: Iterable[Append]) -> Iterator[list[Append]]:
    """The appends in groups, each closed by the append that brings it to `MAX_GROUP`."""
    group: list[Append] = []
    size = 0
    for append in appends:
        group.append(append)
        size += len(append.entries)
        if size >= MAX_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
