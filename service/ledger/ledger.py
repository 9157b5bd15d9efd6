"""The ledger as the rest of the service sees it: append, get, search. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter, time
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine

from service.errors import AnswerableError, InvalidRequest, LedgerFull, LedgerUnavailable, NotFound
from service.ledger.checkpoints import Checkpoint, CheckpointSigner
from service.ledger.clock import Clock
from service.ledger.database import database_in_reach
from service.ledger.entries import (
    REVIEW,
    Entry,
    EntryRefused,
    Event,
    EventPage,
    EventSearch,
    Found,
    Page,
    Remembered,
    Search,
    Stored,
    StoredEvent,
)
from service.ledger.events import read_events
from service.ledger.remembering import read_remembered
from service.ledger.reviews import open_note, review_details
from service.ledger.sealing import Vault
from service.ledger.searching import read_found, read_one, read_page
from service.ledger.secret_files import SecretFileError
from service.ledger.signing import NotTheSigner, SigningKey
from service.ledger.writer import Append, Outcome, Outcomes, Writer
from service.ledger.writer_process import WriterProcess

READERS = 4
CHECKPOINT_SECONDS = 5.0
WAITING_LIMIT = 16_384
"""Entries that wait, or whose room is taken: a second's worth or two, where the disk is as fast as most."""
APPEND_SECONDS = 5.0
"""How long an append waits for its place on the disk, which takes milliseconds: its caller, and their client, wait."""
READ_SECONDS = 10.0
"""How long a reader waits for the database."""
SILENT = "The ledger's database does not answer, so nothing is recorded just now."
PROBE_SECONDS = 2.0
"""Between two looks whether the database takes records, when nothing else tells."""

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def _observe_nothing(_seconds: float, _entries: int, _ok: bool) -> None:
    return None


@dataclass(slots=True)
class Room:
    """Room that was taken in the queue, for so many entries still."""

    entries: int


class Ledger:
    """The log of explanations in one database, for one event loop: made, used and closed on it.

    What belongs to people is sealed and opened by the `vault`.
    `observe` is called on the event loop after every append that was not cancelled, with the seconds it took,
    its number of entries and whether they were recorded. `waiting_limit` is the number of entries in wait, and of
    those whose room is taken, from which more are refused. An append that takes longer than `append_seconds` is given
    up, and so are all that come while one such is still with the writer. Where nobody appends, something is written
    every `probe_seconds`, so that `is_recording` is true of an idle ledger too. With a `signer`, what is recorded is
    signed every `checkpoint_seconds`, and once more at the end; `signed` is when the newest checkpoint was made, in
    seconds since the epoch, of whatever process: where there is none yet, or it cannot be read, when this ledger was
    opened; None without a signer. The `writer` is a thread of this process, or a process of its own, which a busy event
    loop does not hold up. The `clock` is told what was recorded and signed. The engine stays the caller's to dispose
    of, after `close`.
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
        self._waiting_limit = waiting_limit
        self._numbers = itertools.count()
        self._unsettled: dict[int, tuple[int, asyncio.Future[Outcome]]] = {}
        self._waiting = 0
        self._taken = 0
        self._append_seconds = append_seconds
        self._given_up: set[int] = set()
        self._has_failed = False
        self._appended = False
        self._doubted = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-read")
        self._writer = writer(engine, vault, self._settle)
        self._probing = self._loop.create_task(self._probe_regularly(probe_seconds))
        self._signer = signer
        self._clock = clock or Clock()
        self._unsigned = False
        self.signed = None if signer is None else time()
        self._signing = None if signer is None else self._loop.create_task(self._sign_regularly(checkpoint_seconds))

    @property
    def is_recording(self) -> bool:
        """Whether the database takes records, as far as the last attempts tell."""
        return not (self._has_failed or self._given_up)

    @contextmanager
    def room(self, entries: int) -> Iterator[Room]:
        """Takes room in the queue for entries that are still to be computed, so that none of the work is in vain; it
        is given back at the end, but for what was appended.

        More than the queue ever holds is let in when nobody else is there. Raises LedgerFull, LedgerUnavailable, both
        at once.
        """
        if self._closed:
            raise LedgerUnavailable("The ledger takes no more records just now.")
        if self._given_up:
            raise LedgerUnavailable(SILENT)
        held = self._waiting + self._taken
        if held and held + entries > self._waiting_limit:
            raise LedgerFull("as many explanations as the ledger's queue holds are under way or wait to be recorded")
        room = Room(entries)
        self._taken += entries
        try:
            yield room
        finally:
            self._taken -= room.entries

    async def append(
        self, entries: Sequence[Entry | Event], kept: Remembered | None = None, room: Room | None = None
    ) -> None:
        """Records the entries and events, all or none and in their order; returns when they are on the disk.

        Concurrent calls share a transaction, and none of them fails for another's entries. A cancelled call
        may or may not be recorded, and so may one that lost its database in the middle of the commit, or was given up
        because the database hung: it stays with the writer, and the record of what nobody was told may appear later.
        It is never the other way round: what this returned from is recorded.

        With `room` they are let in whoever else waits. `kept` is what is remembered, in the same transaction, of the
        answer to a request with a key of its own.

        Raises LedgerUnavailable when the database does not answer in time, an earlier append still waits for it, or
        too many entries wait (then at once),
        EntryRefused when an explanation of the same id is there already, or the row of a job that one explains has
        ended, or a request with the same key was answered.
        """
        if not entries:
            return
        started = perf_counter()
        try:
            await self._append(tuple(entries), kept, room)
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
        """Records what a person found of an explanation; the note is sealed as what it is about. `kept` and what is
        raised are as for `append`."""
        details = await self._read(review_details, self._vault, stored.id, stored.seq, verdict, note)
        await self.append_event(REVIEW, stored.tenant, key_id, stored.id, details, kept)

    async def reviews(self, stored: Stored, limit: int) -> list[tuple[StoredEvent, str | None]]:
        """The reviews of an explanation, the newest first, each with its note; None for a note whose key is gone.

        Raises LogChanged, LedgerUnavailable.
        """
        return await self._read(_read_reviews, self._vault, stored, limit)

    async def get(self, tenant: str, explanation_id: str, *, opened: bool = True) -> Stored | None:
        """The explanation of that id; None when there is none, and for another tenant's. Not `opened`, what is sealed
        of it stays empty.

        Raises LedgerUnavailable when the database does not answer.
        """
        return await self._read(read_one, self._vault, tenant, explanation_id, opened=opened)

    async def search(self, tenant: str, search: Search, limit: int = 50, cursor: str | None = None) -> Page:
        """A page of the tenant's explanations, from the newest to the oldest: `limit` of them, or fewer where these are
        over `MOST_BYTES`.

        `cursor` is the `next_cursor` of the page before. Following the cursors to the end gives every
        explanation that was there at the start exactly once, and one that is added meanwhile at most once.

        Raises InvalidRequest for a limit out of range, MalformedCursor, LedgerUnavailable.
        """
        return await self._read(read_page, self._vault, tenant, search, limit, cursor)

    async def find(self, tenant: str, search: Search, most: int) -> list[Found]:
        """The ids of at most so many of the tenant's explanations, from the newest to the oldest.

        Raises LedgerUnavailable.
        """
        return await self._read(read_found, self._vault, tenant, search, most)

    async def checkpoint(self) -> Checkpoint | None:
        """The state of the log, signed; the last one where nothing came since, None of an empty log.

        Raises LogChanged when the log is not what was signed before, LedgerUnavailable, NotFound without a signer.
        """
        return await self._notarise(CheckpointSigner.sign)

    async def inclusion(self, seq: int) -> tuple[list[bytes], Checkpoint]:
        """The path from the leaf at that place to the root of a checkpoint, and the checkpoint. Raises as above."""
        return await self._notarise(CheckpointSigner.inclusion, seq)

    async def consistency(self, old: int, new: int) -> tuple[list[bytes], Checkpoint, Checkpoint]:
        """That the log of one checkpoint begins with all of an earlier one: the proof, and the two.

        Raises InvalidRequest for sizes that are none, NotFound where no checkpoint was made, and as above.
        """
        if not 0 < old <= new:
            raise InvalidRequest("from and to are sizes of the log, and the first is not the larger one.")
        return await self._notarise(CheckpointSigner.consistency, old, new)

    async def signing_keys(self) -> list[SigningKey]:
        """Every key that checkpoints were signed with, the oldest first."""
        return await self._notarise(CheckpointSigner.chain)

    async def close(self) -> None:
        """Records what still waits, then ends the writer and the threads. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._probing.cancel()
        await self._writer.close()
        try:
            if self._signing is not None:
                self._signing.cancel()
                await asyncio.wait([self._signing])
                await self._sign()
        finally:
            self._readers.shutdown()

    async def _append(self, entries: tuple[Entry | Event, ...], kept: Remembered | None, room: Room | None) -> None:
        is_full = room is None and self._waiting >= self._waiting_limit
        if self._closed or is_full:
            raise LedgerUnavailable("The ledger takes no more records just now.")
        if self._given_up:
            raise LedgerUnavailable(SILENT)
        if room is not None:
            used = min(room.entries, len(entries))
            room.entries -= used
            self._taken -= used
        outcome = await self._put(entries, kept)
        if outcome is Outcome.REFUSED:
            raise EntryRefused(
                "The ledger holds this already, its row of a job has ended, or its request was answered."
            )
        if outcome is Outcome.UNAVAILABLE:
            raise LedgerUnavailable("The explanation could not be recorded, so it is not given.")
        self._clock.passed(max(entry.created for entry in entries))

    async def _put(self, entries: tuple[Entry | Event, ...], kept: Remembered | None = None) -> Outcome:
        """Gives the entries to the writer; what became of them in time."""
        number = next(self._numbers)
        settled: asyncio.Future[Outcome] = self._loop.create_future()
        self._unsettled[number] = len(entries), settled
        self._waiting += len(entries)
        self._appended = True
        self._writer.put(Append(number, entries, kept))
        patience = self._loop.call_later(self._append_seconds, self._give_up, number)
        try:
            return await settled
        finally:
            patience.cancel()

    def _give_up(self, number: int) -> None:
        """Waits no longer for an append; the writer still has it."""
        if self.is_recording:
            _log.error("the ledger's database has not answered for %.0f s; nothing is recorded", self._append_seconds)
        self._given_up.add(number)
        _, settled = self._unsettled[number]
        if not settled.done():
            settled.set_result(Outcome.UNAVAILABLE)

    async def _probe_regularly(self, seconds: float) -> None:
        """Finds out what no append does: whether an idle ledger would record, or one that has failed does again, and
        whether it was the database that an append failed of, or the append itself."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._doubted.wait()
            is_idle, self._appended = not self._appended, False
            if not self._given_up and (is_idle or self._has_failed or self._doubted.is_set()):
                await self._put(())
            self._doubted.clear()

    async def _sign_regularly(self, seconds: float) -> None:
        await self._begin()
        while True:
            await asyncio.sleep(seconds)
            if self._unsigned:
                await self._sign()

    async def _sign(self) -> None:
        """Signs what is recorded; a failure, whatever it is, is logged, for the records themselves are safe."""
        assert self._signer is not None
        self._unsigned = False
        try:
            checkpoint = await self._loop.run_in_executor(self._readers, self._signer.sign)
        except (AnswerableError, NotTheSigner, SecretFileError) as error:
            self._unsigned = True
            _log.error("no checkpoint was signed: %s", error)
        except Exception:  # noqa: BLE001 - the next attempt may go well
            self._unsigned = True
            _log.exception("no checkpoint was signed, for a reason that nobody foresaw")
        else:
            self._keep_time(checkpoint)

    async def _begin(self) -> None:
        """What cannot be signed from the start on was last signed by an earlier process, and that is told."""
        assert self._signer is not None
        try:
            self._keep_time(await self._loop.run_in_executor(self._readers, self._signer.newest))
        except Exception as error:  # noqa: BLE001 - signing begins all the same
            _log.error("the newest checkpoint cannot be read: %s", error)

    def _keep_time(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.signed = checkpoint.created / 1e6
            self._clock.passed(checkpoint.created)

    async def _notarise(
        self, ask: Callable[Concatenate[CheckpointSigner, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        signer = self._signer
        if signer is None:
            raise NotFound("This ledger signs no checkpoints.")
        if self._closed:
            raise LedgerUnavailable("The ledger is closed.")
        try:
            return await self._in_time(partial(ask, signer, *arguments, **named))
        except (NotTheSigner, SecretFileError) as error:
            _log.error("no checkpoint was signed: %s", error)
            raise LedgerUnavailable("This host cannot sign checkpoints; its log says why.") from error

    def _settle(self, outcomes: Outcomes) -> None:
        for number, outcome in outcomes:
            entries, settled = self._unsettled.pop(number)
            was_recording = self.is_recording
            self._waiting -= entries
            self._given_up.discard(number)
            if outcome is Outcome.RECORDED or not entries:
                self._has_failed = outcome is Outcome.UNAVAILABLE
            elif outcome is Outcome.UNAVAILABLE and not self._has_failed:
                self._doubted.set()
            if self.is_recording and not was_recording:
                _log.warning("the ledger's database takes records again")
            self._unsigned = self._unsigned or (outcome is Outcome.RECORDED and entries > 0)
            if not settled.done():
                settled.set_result(outcome)

    async def _read(self, read: Callable[Concatenate[Connection, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        def run() -> T:
            with database_in_reach(), self._engine.connect() as connection:
                return read(connection, *arguments, **named)

        if self._closed:
            raise LedgerUnavailable("The ledger is closed.")
        return await self._in_time(run)

    async def _in_time(self, ask: Callable[[], T]) -> T:
        """What a call of the database gives, in a thread. Raises LedgerUnavailable when that takes too long."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self._loop.run_in_executor(self._readers, ask)
        except TimeoutError:
            raise LedgerUnavailable(SILENT) from None


def _read_reviews(
    connection: Connection, vault: Vault, stored: Stored, limit: int
) -> list[tuple[StoredEvent, str | None]]:
    page = read_events(connection, stored.tenant, EventSearch(kind=REVIEW, about=stored.id), limit, None)
    return [(one, open_note(connection, vault, stored.id, stored.seq, one.details)) for one in page.events]
