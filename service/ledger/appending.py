"""An append as SQL: entries behind the last one, in one transaction and one round trip.

This is the one place that speaks to the driver itself. Through SQLAlchemy the Python of a record alone took
132 us, under the interpreter's lock that the event loop waits for; here it takes 11. With the single round trip,
the append of a record alone went from 570 to 320 us on SQLite and from 1,020 to 570 on a PostgreSQL near by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from operator import attrgetter
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection, Table

from service.ledger.database import WRITE_LOCK
from service.ledger.entries import EXPLANATION, Entry, EntryRefused, Event
from service.ledger.leaves import event_record
from service.ledger.merkle import leaf_hash
from service.ledger.tables import COHORT, FLAG, events, explanation_tags, explanations, log

CHECKPOINT_EVERY = 400
"""Entries after which SQLite's write-ahead log is moved into its file."""

_NEXT = "(SELECT coalesce(max(seq), 0) + 1 FROM log)"
_BEFORE_LAST = "(SELECT max(seq) FROM log) - ?"
"""The place of a row that stands so many rows before the end of the log."""

_of_explanation = attrgetter(
    *(column.name for column in explanations.c if column.name not in {"seq", "personal", "tombstone"})
)
_of_event = attrgetter(*(column.name for column in events.c if column.name != "seq"))


class Appender:
    """Appends to the log in one database; for one thread."""

    def __init__(self, engine: Engine) -> None:
        driver = engine.dialect.loaded_dbapi
        self._engine = engine
        self._connection: PoolProxiedConnection | None = None
        self._unmoved = 0
        self._error = driver.Error
        self._refusals = (driver.IntegrityError, driver.DataError)
        self._begin = WRITE_LOCK[engine.dialect.name]
        self._insert_log = _insert(log, _NEXT, driver.paramstyle)
        self._inserts = {
            table: _insert(table, _BEFORE_LAST, driver.paramstyle) for table in (explanations, explanation_tags, events)
        }

    def append(self, entries: Sequence[Entry | Event]) -> None:
        """Appends the entries, all or none; they are on the disk when it returns.

        Raises EntryRefused when the database holds something that excludes one of them, else what the driver
        raises; the next append then makes a new connection.
        """
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        try:
            self._transact(self._connection, entries)
        except self._refusals as error:
            self._connection.rollback()
            # Without the error itself: PostgreSQL writes the whole row into it.
            raise EntryRefused(type(error).__name__) from None
        except BaseException:
            self._connection.invalidate()
            self._connection = None
            raise
        self._unmoved += len(entries)

    def checkpoint(self) -> None:
        """Moves SQLite's write-ahead log into its file, when enough has gathered there; never raises for it.

        SQLite would do so by itself, but inside a commit, and the callers of that group would wait for it:
        2 ms and more.
        """
        if self._connection is None or self._unmoved < CHECKPOINT_EVERY:
            return
        self._unmoved = 0
        if self._engine.dialect.name == "sqlite":
            with suppress(self._error):
                self._connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Gives the connection back."""
        if self._connection is not None:
            self._connection.close()

    def _transact(self, connection: PoolProxiedConnection, entries: Sequence[Entry | Event]) -> None:
        """Nobody takes a place between the first statement and the last: the write lock is held."""
        leaves: list[tuple[Any, ...]] = []
        rows: dict[Table, list[tuple[Any, ...]]] = {table: [] for table in self._inserts}
        for before_last, entry in zip(range(len(entries) - 1, -1, -1), entries, strict=True):
            if isinstance(entry, Event):
                record = event_record(entry)
                leaves.append((entry.kind, record, leaf_hash(record)))
                rows[events].append((before_last, *_of_event(entry)))
            else:
                leaves.append((EXPLANATION, entry.record, leaf_hash(entry.record)))
                rows[explanations].append((before_last, *_of_explanation(entry), entry.personal, None))
                tags = rows[explanation_tags]
                tags.extend((before_last, name, value, entry.tenant, entry.created) for name, value in _tags(entry))
        cursor = connection.cursor()
        with _one_round_trip(connection):
            cursor.execute(self._begin)
            cursor.executemany(self._insert_log, leaves)
            for table, insert in self._inserts.items():
                if rows[table]:
                    cursor.executemany(insert, rows[table])
            cursor.execute("COMMIT")
        cursor.close()


def _one_round_trip(connection: PoolProxiedConnection) -> AbstractContextManager[object]:
    """PostgreSQL gets all statements inside at once, and errors are raised at the end. SQLite has no trip."""
    pipeline = getattr(connection.driver_connection, "pipeline", nullcontext)
    return pipeline()


def _insert(table: Table, place: str, paramstyle: str) -> str:
    """Takes the parameters of `place`, then the columns behind it."""
    names = ", ".join(column.name for column in table.c)
    values = ", ".join([place, *"?" * (len(table.c) - 1)])
    sql = f"INSERT INTO {table.name} ({names}) VALUES ({values})"  # noqa: S608 - names of our own
    return sql if paramstyle == "qmark" else sql.replace("?", "%s")


def _tags(entry: Entry) -> Iterable[tuple[str, str]]:
    for flag in dict.fromkeys(entry.flags):
        yield FLAG, flag
    for name, value in entry.cohort.items():
        yield f"{COHORT}{name}", value
