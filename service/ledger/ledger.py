"""The ledger as the rest of the service sees it: append, get, search, prove. Nothing here blocks the event loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from service.errors import AnswerableError, InvalidRequest, LedgerUnavailable, NotFound
from service.ledger.append_queue import APPEND_SECONDS, PROBE_SECONDS, WAITING_LIMIT, AppendQueue, Room
from service.ledger.checkpoint_schedule import CHECKPOINT_SECONDS, CheckpointSchedule
from service.ledger.checkpoints import Checkpoint, CheckpointSigner
from service.ledger.clock import Clock
from service.ledger.database import database_in_reach
from service.ledger.entries import REVIEW, Entry, Event, Remembered, Stored, StoredEvent
from service.ledger.events import read_events
from service.ledger.reader_threads import ReaderThreads
from service.ledger.remembering import read_remembered
from service.ledger.reviews import open_note, review_details
from service.ledger.sealing import Vault
from service.ledger.searches import EventPage, EventSearch, Found, Page, Search
from service.ledger.searching import read_found, read_one, read_page
from service.ledger.secret_files import SecretFileError
from service.ledger.signing import NotTheSigner, SigningKey
from service.ledger.writer import Writer
from service.ledger.writer_process import WriterProcess

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def _observe_nothing(_seconds: float, _entries: int, _ok: bool) -> None:
    return None


class Ledger:
    """The log of explanations in one database, for one event loop: made, used and closed on it.

    The `vault` seals and opens what belongs to people. `observe` is called on the event loop after every append that
    was not cancelled, with the seconds it took, its number of entries and whether they were recorded. With a `signer`,
    what is recorded is signed every `checkpoint_seconds`, and once more at the end. The `clock` learns the times of
    what was recorded and signed. The other arguments are those of `AppendQueue`. The caller disposes of the engine,
    after `close`.
    """

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        observe: Callable[[float, int, bool], None] = _observe_nothing,
        waiting_limit: int = WAITING_LIMIT,
        signer: CheckpointSigner | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        writer: type[Writer | WriterProcess] = Writer,
        clock: Clock | None = None,
        append_seconds: float = APPEND_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._observe = observe
        self._clock = clock or Clock()
        self._is_closed = False
        self._signer = signer
        self.threads = ReaderThreads()
        self.queue = AppendQueue(
            engine, vault, writer, self._has_recorded, waiting_limit, append_seconds, probe_seconds
        )
        self._schedule = (
            None if signer is None else CheckpointSchedule(signer, self.threads, self._clock, checkpoint_seconds)
        )

    @property
    def is_recording(self) -> bool:
        """Whether the database takes records, according to the last attempts."""
        return self.queue.is_recording

    @property
    def signed(self) -> float | None:
        """When the newest checkpoint was signed, in seconds since the epoch (see `CheckpointSchedule`); None without a
        signer."""
        return None if self._schedule is None else self._schedule.signed

    def room(self, entries: int) -> AbstractContextManager[Room]:
        """Reserves room in the queue for entries that are still to be computed; see `AppendQueue.room`.

        Raises LedgerFull, LedgerUnavailable, both at once.
        """
        return self.queue.room(entries)

    async def append(
        self, entries: Sequence[Entry | Event], kept: Remembered | None = None, room: Room | None = None
    ) -> None:
        """Records the entries and events, all or none and in their order; returns when they are on the disk.

        Concurrent calls share a transaction, and none of them fails for another's entries. Whatever this returned from
        is recorded. The reverse does not hold: a call that was cancelled, that lost its database in the middle of the
        commit, or that was given up because the database hung stays with the writer, and its record may appear later.

        With `room` the entries are let in whoever else waits. `kept` is the answer to remember, in the same
        transaction, for a request with a key of its own.

        Raises LedgerUnavailable when the database does not answer in time, and at once when an earlier append still
        waits for it or too many entries wait; EntryRefused when an explanation of the same id is there already, or the
        row of a job that one explains has ended, or a request with the same key was answered.
        """
        if not entries:
            return
        started = perf_counter()
        try:
            await self.queue.append(tuple(entries), kept, room)
            self._clock.passed(max(entry.created for entry in entries))
        except AnswerableError:
            self._observe(perf_counter() - started, len(entries), False)
            raise
        self._observe(perf_counter() - started, len(entries), True)

    async def append_event(
        self,
        kind: str,
        tenant: str,
        key_id: str,
        about: str | None = None,
        details: Mapping[str, Any] | None = None,
        kept: Remembered | None = None,
    ) -> None:
        """Records that something happened; see `Event` for what the arguments are, and `append` for what is raised."""
        await self.append([Event(kind=kind, tenant=tenant, key_id=key_id, about=about, details=details or {})], kept)

    async def remembered(self, lookup: str) -> Remembered | None:
        """What was answered to the request with that key within a day. Raises LedgerUnavailable."""
        return await self._read(read_remembered, lookup)

    async def events(self, tenant: str, search: EventSearch, limit: int = 50, cursor: str | None = None) -> EventPage:
        """A page of the tenant's events, from the newest to the oldest. Cursors and errors as for `search`."""
        return await self._read(read_events, tenant, search, limit, cursor)

    async def review(
        self, stored: Stored, key_id: str, verdict: str, note: str, kept: Remembered | None = None
    ) -> None:
        """Records a person's review of an explanation; the note is sealed as the explanation is. `kept` and what is
        raised are as for `append`."""
        details = await self._read(review_details, self._vault, stored.id, stored.seq, verdict, note)
        await self.append_event(REVIEW, stored.tenant, key_id, stored.id, details, kept)

    async def reviews(self, stored: Stored, limit: int) -> list[tuple[StoredEvent, str | None]]:
        """The reviews of an explanation, the newest first, each with its note; None for a note whose key is gone.

        Raises LogChanged, LedgerUnavailable.
        """
        return await self._read(_read_reviews, self._vault, stored, limit)

    async def get(self, tenant: str, explanation_id: str, *, opened: bool = True) -> Stored | None:
        """The tenant's explanation of that id; None when there is none. With `opened` False, what is sealed of it stays
        empty.

        Raises LedgerUnavailable when the database does not answer.
        """
        return await self._read(read_one, self._vault, tenant, explanation_id, opened=opened)

    async def search(self, tenant: str, search: Search, limit: int = 50, cursor: str | None = None) -> Page:
        """A page of the tenant's explanations, from the newest to the oldest: `limit` of them, or fewer where these are
        larger than `MAX_BYTES` together.

        `cursor` is the `next_cursor` of the page before. Following the cursors to the end gives every explanation that
        was there at the start exactly once, and one that is added meanwhile at most once.

        Raises InvalidRequest for a limit out of range, MalformedCursor, LedgerUnavailable.
        """
        return await self._read(read_page, self._vault, tenant, search, limit, cursor)

    async def find(self, tenant: str, search: Search, most: int) -> list[Found]:
        """The ids of at most so many of the tenant's explanations, from the newest to the oldest.

        Raises LedgerUnavailable.
        """
        return await self._read(read_found, self._vault, tenant, search, most)

    async def checkpoint(self) -> Checkpoint | None:
        """The state of the log, signed; the newest checkpoint where nothing was recorded since, None for an empty log.

        Raises LogChanged when the log is not what was signed before, LedgerUnavailable, NotFound without a signer.
        """
        return await self._prove(CheckpointSigner.sign)

    async def inclusion(self, seq: int) -> tuple[list[bytes], Checkpoint]:
        """The path from the leaf at that place to the root of a checkpoint, and the checkpoint. Raises as above."""
        return await self._prove(CheckpointSigner.inclusion, seq)

    async def consistency(self, old: int, new: int) -> tuple[list[bytes], Checkpoint, Checkpoint]:
        """The proof that the log of one checkpoint begins with all of an earlier one's, and the two checkpoints.

        Raises InvalidRequest for sizes that cannot be, NotFound where no checkpoint was signed, and as above.
        """
        if not 0 < old <= new:
            raise InvalidRequest("`from` and `to` are sizes of the log: `from` is at least 1, and at most `to`")
        return await self._prove(CheckpointSigner.consistency, old, new)

    async def signing_keys(self) -> list[SigningKey]:
        """Every key that checkpoints were signed with, the oldest first."""
        return await self._prove(CheckpointSigner.chain)

    async def close(self) -> None:
        """Records what still waits, signs it, then ends the writer and the threads. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.threads.refuse()
        await self.queue.close()
        try:
            if self._schedule is not None:
                await self._schedule.close()
        finally:
            self.threads.close()

    def _has_recorded(self) -> None:
        if self._schedule is not None:
            self._schedule.has_recorded()

    async def _prove(
        self, method: Callable[Concatenate[CheckpointSigner, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """The result of a method of the signer, called in a thread."""
        if self._signer is None:
            raise NotFound("this ledger does not sign checkpoints")
        try:
            return await self.threads.call(partial(method, self._signer, *arguments, **named))
        except (NotTheSigner, SecretFileError) as error:
            _log.error("no checkpoint was signed: %s", error)
            raise LedgerUnavailable("This host cannot sign checkpoints; its log says why.") from error

    async def _read(self, read: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """The result of a function that reads from the database, called in a thread."""

        def read_connected() -> T:
            with database_in_reach(), self._engine.connect() as connection:
                return read(connection, *arguments, **named)

        return await self.threads.call(read_connected)


def _read_reviews(
    connection: Connection, vault: Vault, stored: Stored, limit: int
) -> list[tuple[StoredEvent, str | None]]:
    page = read_events(connection, stored.tenant, EventSearch(kind=REVIEW, about=stored.id), limit, None)
    return [(event, open_note(connection, vault, stored.id, stored.seq, event.details)) for event in page.events]
