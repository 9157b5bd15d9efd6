"""An append as SQL: entries after the last one, in one transaction and one round trip; where entries name subjects,
these are looked up first, in a second round trip.

This is the only module that uses the driver itself. Through SQLAlchemy the Python code for a single record took
132 us, under the interpreter's lock that the event loop waits for; here it takes 11. With the single round trip,
the append of a record alone went from 570 to 320 us on SQLite and from 1,020 to 570 us on a PostgreSQL nearby.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection, Table
from sqlalchemy.engine.interfaces import DBAPICursor

from service.ledger.clock import WrittenTimes
from service.ledger.database import WRITE_LOCK
from service.ledger.entries import EXPLANATION, REVIEW, Entry, EntryRefused, Event, Remembered
from service.ledger.leaves import event_record, write_explanation
from service.ledger.merkle import leaf_hash
from service.ledger.remembering import expired_before
from service.ledger.sealing import Subject, Vault, owner_of
from service.ledger.stored_jobs import UNFINISHED
from service.ledger.tables import REVIEWED, events, explanation_tags, explanations, log, remembered, subjects

_TOUCH = "UPDATE alembic_version SET version_num = version_num"
"""A write that changes nothing."""

CHECKPOINT_EVERY = 400
"""Entries after which SQLite's write-ahead log is moved into the database's file."""

MAX_STATEMENTS = 512
"""Cached statements, by table and number of rows."""
MAX_VALUES = 30_000
"""Parameters in one statement: PostgreSQL takes 65,535 at most, SQLite 32,766."""

_LAST = "SELECT coalesce(max(seq), 0) FROM log"
_SIGNED = "SELECT size, body FROM checkpoints ORDER BY size DESC LIMIT 1"
_NOTHING_SIGNED_SINCE = "SELECT 1 / CASE WHEN coalesce((SELECT max(size) FROM checkpoints), 0) = %s THEN 1 ELSE 0 END"
"""For PostgreSQL: divides by zero where something was signed, which saves a round trip, since it rarely was."""
_PLACE = {"sqlite": "?", "postgresql": f"({_LAST}) + ?"}
"""The place of a row in the log: a number, or relative to the last place, which saves the round trip to read that."""

_WAITING_ROWS = (
    "SELECT count(*) FROM job_rows JOIN jobs ON jobs.id = job_rows.job_id"  # noqa: S608 - words of our own
    f" WHERE outcome IS NULL AND state IN {tuple(map(str, UNFINISHED))}"
)

_MARK = (
    f"INSERT INTO explanation_tags (seq, name, value, tenant, created)"  # noqa: S608 - words of our own
    f" SELECT seq, '{REVIEWED[0]}', '{REVIEWED[1]}', tenant, created FROM explanations WHERE id = ? AND tenant = ?"
    " ON CONFLICT DO NOTHING"
)
"""Tags what was reviewed; a second review changes nothing."""

_SEALED = ("subject", "decision_id", "personal")
_PLAIN = tuple(column.name for column in explanations.c if column.name not in {"seq", "tombstone", *_SEALED})

_of_explanation = attrgetter(*_PLAIN)
_EVENT = ("kind", "tenant", "created", "key_id", "about")
_of_event = attrgetter(*_EVENT)
_REMEMBERED = ("lookup", "digest", "created", "answer")
_of_remembered = attrgetter(*_REMEMBERED)
_FORGET_OVER = "DELETE FROM remembered_requests WHERE lookup = ? AND created < ?"


_COLUMNS: Mapping[Table, Sequence[str]] = {
    explanations: ("seq", *_PLAIN, *_SEALED),
    explanation_tags: ("seq", "name", "value", "tenant", "created"),
    events: ("seq", *_EVENT),
    remembered: ("seq", *_REMEMBERED),
    log: ("seq", "kind", "record", "leaf"),
}
"""In the order in which they are written: places are relative to the end of the log, so the log is written last."""


NOTHING_KEPT: Mapping[int, Remembered] = {}


class Appender:
    """Appends to the log in one database; for one thread. Without a vault it takes events only.

    All rows of a table go in one statement: after each statement the thread waits for the interpreter, which the event
    loop keeps busy. With a statement for each row, a group of 15 took 17 ms; this way it takes 13, of which 3.5 are
    work.
    """

    def __init__(self, engine: Engine, vault: Vault | None = None) -> None:
        driver = engine.dialect.loaded_dbapi
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._connection: PoolProxiedConnection | None = None
        self._unmoved = 0
        self._times = WrittenTimes()
        self._error = driver.Error
        self._signed_since: type[Exception] | tuple[()] = () if self._is_sqlite else driver.errors.DivisionByZero
        self._refusals = (driver.IntegrityError, driver.DataError)
        self._begin = WRITE_LOCK[engine.dialect.name]
        self._vault = vault
        self._marker = "?" if driver.paramstyle == "qmark" else "%s"
        self._place = _PLACE[engine.dialect.name].replace("?", self._marker)
        self._insert_subject = self._inserting(subjects, ("token", "lookup", "key"), self._marker, 1)
        self._inserting_rows = lru_cache(MAX_STATEMENTS)(self._inserting)

    def append(self, entries: Sequence[Entry | Event], kept: Mapping[int, Remembered] = NOTHING_KEPT) -> None:
        """Appends the entries, all or none; they are on the disk when this returns. With them it stores the answers
        `kept` for requests with a key of their own, each under the index of the last of its entries. Without any
        entries something is written all the same, to show that it can be.

        Raises EntryRefused when the database holds something that rules out one of them, else what the driver
        raises; the next append then makes a new connection.
        """
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        try:
            try:
                self._transact(self._connection, entries, kept, reads_signed=self._is_sqlite)
            except self._signed_since:
                self._connection.rollback()
                self._transact(self._connection, entries, kept, reads_signed=True)
            self._times.written()
        except EntryRefused:
            self._connection.rollback()
            raise
        except self._refusals as error:
            self._connection.rollback()
            # Without the error itself: PostgreSQL writes the whole row into it.
            raise EntryRefused(type(error).__name__) from None
        except BaseException:
            self._connection.invalidate()
            self._connection = None
            raise
        self._unmoved += max(1, len(entries))

    def checkpoint(self) -> None:
        """Moves SQLite's write-ahead log into its file, when enough has gathered there; never raises for it.

        SQLite would do so by itself, but inside a commit, and the callers of that group would wait for it:
        2 ms and more.
        """
        if self._connection is None or self._unmoved < CHECKPOINT_EVERY:
            return
        self._unmoved = 0
        if self._is_sqlite:
            with suppress(self._error):
                self._connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Gives the connection back."""
        if self._connection is not None:
            self._connection.close()

    def _transact(
        self,
        connection: PoolProxiedConnection,
        entries: Sequence[Entry | Event],
        kept: Mapping[int, Remembered],
        *,
        reads_signed: bool,
    ) -> None:
        """One transaction; it holds the write lock, so that nobody else appends meanwhile."""
        # Closed whatever happens: the traceback of an error, kept by whoever logs it, would hold the transaction open.
        with closing(connection.cursor()) as cursor, _one_round_trip(connection):
            cursor.execute(self._begin)
            self._know_signed(cursor, reads=reads_signed)
            if not entries:
                cursor.execute(_TOUCH)
            self._refuse_rows_that_ended(cursor, entries)
            entries = self._times.timely(entries)
            known = self._subjects(cursor, entries)
            rows: dict[Table, list[tuple[Any, ...]]] = {table: [] for table in _COLUMNS}
            first_place = self._last_place(cursor) + 1
            for place, entry in enumerate(entries, first_place):
                if isinstance(entry, Event):
                    record = event_record(entry)
                    rows[events].append((place, *_of_event(entry)))
                else:
                    assert self._vault is not None
                    named = None if entry.subject is None else known[entry.tenant, entry.subject]
                    written = write_explanation(entry, self._vault, named)
                    record = written.record
                    sealed = written.subject, written.decision, written.sealed
                    rows[explanations].append((place, *_of_explanation(entry), *sealed))
                    rows[explanation_tags].extend(
                        (place, name, value, entry.tenant, entry.created) for name, value in written.tags
                    )
                kind = entry.kind if isinstance(entry, Event) else EXPLANATION
                rows[log].append((place, kind, record, leaf_hash(record)))
            for number, answer in kept.items():
                cursor.execute(_FORGET_OVER.replace("?", self._marker), (answer.lookup, expired_before()))
                rows[remembered].append((first_place + number, *_of_remembered(answer)))
            for table, columns in _COLUMNS.items():
                together = MAX_VALUES // len(columns)
                for first in range(0, len(rows[table]), together):
                    some = rows[table][first : first + together]
                    cursor.execute(self._inserting_rows(table, columns, self._place, len(some)), [*chain(*some)])
            for entry in entries:
                if isinstance(entry, Event) and entry.kind == REVIEW:
                    cursor.execute(_MARK.replace("?", self._marker), (entry.about, entry.tenant))
            cursor.execute("COMMIT")

    def _subjects(self, cursor: DBAPICursor, entries: Sequence[Entry | Event]) -> dict[tuple[str, str], Subject]:
        """The subjects that the entries name, by tenant and name; new ones are stored.

        They are read under the write lock, every time, since another host may have just erased one.
        """
        named = {(e.tenant, e.subject) for e in entries if isinstance(e, Entry) and e.subject is not None}
        if not named:
            return {}
        vault = self._vault
        assert vault is not None
        lookups = {who: vault.lookups(*who) for who in named}
        markers = ", ".join([self._marker] * sum(map(len, lookups.values())))
        query = f"SELECT token, lookup, key FROM subjects WHERE lookup IN ({markers})"  # noqa: S608 - markers only
        cursor.execute(query, [*chain(*lookups.values())])
        rows = {lookup: (token, bytes(key)) for token, lookup, key in cursor.fetchall()}
        known: dict[tuple[str, str], Subject] = {}
        added = []
        for who, spelled in lookups.items():
            if (lookup := next((lookup for lookup in spelled if lookup in rows), None)) is not None:
                token, key = rows[lookup]
                known[who] = Subject(token, vault.unwrap(key, owner_of(token, lookup)))
            else:
                known[who] = new = vault.new_subject()
                added.append((new.token, spelled[0], vault.wrap(new.key, owner_of(new.token, spelled[0]))))
        if added:
            cursor.executemany(self._insert_subject, added)
        return known

    def _refuse_rows_that_ended(self, cursor: DBAPICursor, entries: Sequence[Entry | Event]) -> None:
        """Raises EntryRefused when the row of a job that one of them explains has ended, or its job has.

        An erasure ends rows under the write lock, which is held here: what was computed meanwhile is never recorded.
        """
        explained = {e.job_row for e in entries if isinstance(e, Entry) and e.job_row is not None}
        if not explained:
            return
        each = " OR ".join([f"(job_id = {self._marker} AND number = {self._marker})"] * len(explained))
        cursor.execute(f"{_WAITING_ROWS} AND ({each})", [*chain(*explained)])
        ((waiting,),) = cursor.fetchall()
        if waiting != len(explained):
            raise EntryRefused("the row of a job that it explains has ended")

    def _know_signed(self, cursor: DBAPICursor, *, reads: bool) -> None:
        """Learns the last signed time of any host, so that nothing is recorded with an earlier one."""
        if not reads:
            cursor.execute(_NOTHING_SIGNED_SINCE, (self._times.signed_size,))
            return
        cursor.execute(_SIGNED)
        rows = cursor.fetchall()
        self._times.signed(*(rows[0] if rows else (0, b"")))

    def _last_place(self, cursor: DBAPICursor) -> int:
        """The place that those of new rows are relative to."""
        if not self._is_sqlite:
            return 0
        cursor.execute(_LAST)
        (last,) = cursor.fetchall()
        return int(last[0])

    def _inserting(self, table: Table, columns: Sequence[str], first: str, rows: int) -> str:
        """The statement that inserts so many rows; `first` is the expression for their first column."""
        values = ", ".join([first, *[self._marker] * (len(columns) - 1)])
        every = ", ".join([f"({values})"] * rows)
        return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {every}"  # noqa: S608 - names of our own


def _one_round_trip(connection: PoolProxiedConnection) -> AbstractContextManager[object]:
    """Sends all statements inside to PostgreSQL at once, and raises errors at the end. SQLite has no round trips."""
    pipeline = getattr(connection.driver_connection, "pipeline", nullcontext)
    return pipeline()
