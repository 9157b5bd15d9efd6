"""The ledger as the rest of the service sees it: append, get, search. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from service.errors import AnswerableError, LedgerUnavailable
from service.ledger.database import database_in_reach
from service.ledger.entries import Entry, EntryRefused, Event, EventPage, EventSearch, Page, Search, Stored
from service.ledger.events import read_events
from service.ledger.searching import read_one, read_page
from service.ledger.writer import Append, Outcome, Writer

READERS = 4

P = ParamSpec("P")
T = TypeVar("T")


def _observe_nothing(_seconds: float, _entries: int, _ok: bool) -> None:
    return None


class Ledger:
    """The log of explanations in one database, for one event loop: made, used and closed on it.

    `observe` is called on the event loop after every append that was not cancelled, with the seconds it took,
    its number of entries and whether they were recorded. `waiting_limit` is the number of entries in wait
    from which more are refused. The engine stays the caller's to dispose of, after `close`.
    """

    def __init__(
        self,
        engine: Engine,
        observe: Callable[[float, int, bool], None] = _observe_nothing,
        waiting_limit: int = 4096,
    ) -> None:
        self._engine = engine
        self._observe = observe
        self._waiting_limit = waiting_limit
        self._waiting = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-read")
        self._writer = Writer(engine, self._wake)

    async def append(self, entries: Sequence[Entry | Event]) -> None:
        """Records the entries and events, all or none and in their order; returns when they are on the disk.

        Concurrent calls share a transaction, and none of them fails for another's entries. A cancelled call
        may or may not be recorded, and so may one that lost its database in the middle of the commit.

        Raises LedgerUnavailable when the database does not answer or too many entries wait (then at once),
        EntryRefused when an explanation of the same id is there already.
        """
        if not entries:
            return
        started = perf_counter()
        try:
            await self._append(tuple(entries))
        except AnswerableError:
            self._observe(perf_counter() - started, len(entries), False)
            raise
        self._observe(perf_counter() - started, len(entries), True)

    async def append_event(
        self, kind: str, tenant: str, key_id: str, about: str | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        """Records that something happened; see `Event` for what the arguments are, and `append` for what is raised."""
        await self.append([Event(kind=kind, tenant=tenant, key_id=key_id, about=about, details=details or {})])

    async def events(self, tenant: str, search: EventSearch, limit: int = 50, cursor: str | None = None) -> EventPage:
        """A page of the tenant's events, from the newest to the oldest. Cursors and errors as for `search`."""
        return await self._read(read_events, tenant, search, limit, cursor)

    async def get(self, tenant: str, explanation_id: str) -> Stored | None:
        """The explanation of that id; None when there is none, and for another tenant's.

        Raises LedgerUnavailable when the database does not answer.
        """
        return await self._read(read_one, tenant, explanation_id)

    async def search(self, tenant: str, search: Search, limit: int = 50, cursor: str | None = None) -> Page:
        """A page of the tenant's explanations, from the newest to the oldest.

        `cursor` is the `next_cursor` of the page before. Following the cursors to the end gives every
        explanation that was there at the start exactly once, and one that is added meanwhile at most once.

        Raises InvalidRequest for a limit out of range, MalformedCursor, LedgerUnavailable.
        """
        return await self._read(read_page, tenant, search, limit, cursor)

    async def close(self) -> None:
        """Records what still waits, then ends the threads. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        await self._loop.run_in_executor(self._readers, self._writer.stop)
        self._readers.shutdown()

    async def _append(self, entries: tuple[Entry | Event, ...]) -> None:
        if self._closed or self._waiting >= self._waiting_limit:
            raise LedgerUnavailable("The ledger takes no more records just now.")
        settled: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting += len(entries)
        self._writer.put(Append(entries, settled))
        outcome = await settled
        if outcome is Outcome.REFUSED:
            raise EntryRefused("The ledger holds an explanation of this id already.")
        if outcome is Outcome.UNAVAILABLE:
            raise LedgerUnavailable("The explanation could not be recorded, so it is not given.")

    def _wake(self, outcomes: list[tuple[Append, Outcome]]) -> None:
        """Called by the writer, on its thread."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: list[tuple[Append, Outcome]]) -> None:
        for append, outcome in outcomes:
            self._waiting -= len(append.entries)
            if not append.settled.done():
                append.settled.set_result(outcome)

    async def _read(self, read: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        def run() -> T:
            with database_in_reach(), self._engine.connect() as connection:
                return read(connection, *arguments, **named)

        if self._closed:
            raise LedgerUnavailable("The ledger is closed.")
        return await self._loop.run_in_executor(self._readers, run)
