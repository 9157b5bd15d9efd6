"""The one thread that writes to the log.

There is no waiting timer: whatever came in while the last transaction was on its way to the disk makes up the
next one. With SQLite (WAL, synchronous=FULL) a record alone costs about eight times what it costs in a group
of 32 (520 us and 65), because the wait for the disk is shared.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select
from sqlalchemy.exc import DataError, IntegrityError

from service.ledger.database import serialised
from service.ledger.entries import Entry
from service.ledger.tables import COHORT, FLAG, explanation_tags, explanations

LARGEST_GROUP = 512
"""Entries after which a group is closed, so that a transaction stays short."""

_log = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of an append."""

    RECORDED = "recorded"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """The entries of one call, recorded all or none, and the future on which the caller waits."""

    entries: tuple[Entry, ...]
    settled: asyncio.Future[Outcome]


class Writer:
    """Writes appends in the order they are put; reports each group to `settle`, on the writer's thread."""

    def __init__(self, engine: Engine, settle: Callable[[list[tuple[Append, Outcome]]], None]) -> None:
        self._engine = serialised(engine)
        self._settle = settle
        self._connection: Connection | None = None
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

    def _run(self) -> None:
        while group := self._next_group():
            self._settle(self._record(group))
        if self._connection is not None:
            self._connection.close()

    def _next_group(self) -> list[Append]:
        """The appends that wait, at least one; none when the writer is to stop."""
        group: list[Append] = []
        size = 0
        append = self._queue.get()
        with suppress(Empty):
            while append is not None:
                group.append(append)
                size += len(append.entries)
                if size >= LARGEST_GROUP:
                    return group
                append = self._queue.get_nowait()
            if group:
                self._queue.put(None)  # to be met again, once this group is written
        return group

    def _record(self, group: list[Append]) -> list[tuple[Append, Outcome]]:
        outcome = self._attempt([entry for append in group for entry in append.entries])
        if outcome is Outcome.REFUSED and len(group) > 1:
            return [(append, self._attempt(append.entries)) for append in group]
        return [(append, outcome) for append in group]

    def _attempt(self, entries: Sequence[Entry]) -> Outcome:
        try:
            self._commit(entries)
        except (IntegrityError, DataError) as error:
            # Not the message: PostgreSQL writes the whole row into it.
            _log.warning("entries refused by the database: %s", type(error.orig).__name__)
            return Outcome.REFUSED
        except Exception:  # noqa: BLE001 - whatever one group meets, the writer lives on for the next
            _log.exception("a group of %d entries could not be recorded", len(entries))
            self._disconnect()
            return Outcome.UNAVAILABLE
        return Outcome.RECORDED

    def _commit(self, entries: Sequence[Entry]) -> None:
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            _append_to_log(self._connection, entries)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _append_to_log(connection: Connection, entries: Sequence[Entry]) -> None:
    """Inserts the entries behind the last one, whose place nobody else can take: the write lock is held."""
    last: int = connection.scalar(select(func.max(explanations.c.seq))) or 0
    placed = list(enumerate(entries, start=last + 1))
    connection.execute(insert(explanations), [_row(seq, entry) for seq, entry in placed])
    if tags := [tag for seq, entry in placed for tag in _tag_rows(seq, entry)]:
        connection.execute(insert(explanation_tags), tags)


def _row(seq: int, entry: Entry) -> dict[str, Any]:
    return {
        "seq": seq,
        "id": entry.id,
        "tenant": entry.tenant,
        "created": entry.created,
        "model": entry.model,
        "version": entry.version,
        "method": entry.method,
        "label": entry.label,
        "converged": entry.converged,
        "decision_id": entry.decision_id,
        "subject": entry.subject,
        "key_id": entry.key_id,
        "record": entry.record,
        "personal": entry.personal,
        "leaf": leaf_hash(entry.record),
    }


def _tag_rows(seq: int, entry: Entry) -> Iterable[dict[str, Any]]:
    for name, value in _tags(entry):
        yield {"seq": seq, "name": name, "value": value, "tenant": entry.tenant, "created": entry.created}


def _tags(entry: Entry) -> Iterable[tuple[str, str]]:
    for flag in dict.fromkeys(entry.flags):
        yield FLAG, flag
    for name, value in entry.cohort.items():
        yield f"{COHORT}{name}", value


def leaf_hash(record: bytes) -> bytes:
    """The hash of a leaf: SHA-256(0x00 || record), 32 bytes (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\0" + record).digest()
