"""The database of the ledger: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from service.errors import LedgerUnavailable

LOCK_SECONDS = 5
"""How long a SQLite connection waits for another process's write."""

MAX_WAL_BYTES = 4 * 2**20
"""Bytes to which SQLite's write-ahead log is cut back. It grows while somebody reads in one long transaction."""

_ADVISORY_LOCK = 0x416E737765726162  # any constant will do

WRITE_LOCK = {
    # A deferred transaction that reads before it writes fails at once when another wrote in between.
    "sqlite": "BEGIN IMMEDIATE",
    # Its driver has begun the transaction.
    "postgresql": f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})",
}
"""The first statement of a transaction that writes to the log: writers take turns until they commit."""

_POSTGRESQL_TIMEOUTS = {
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds until a silent peer counts as gone
}


def open_engine(url: str) -> Engine:
    """Opens the database at `url`: `sqlite:///file` or `postgresql://...` (driven by psycopg, whatever the
    URL says).

    SQLite runs in WAL mode with synchronous=FULL, so a commit is on the disk when it returns. Raises
    ValueError for another database, and for SQLite in memory, which would keep nothing.
    """
    address = make_url(url)
    backend = address.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(address)
    if backend in ("postgresql", "postgres"):
        return _open_postgresql(address.set(drivername="postgresql+psycopg"))
    raise ValueError(f"the ledger needs sqlite or postgresql, not {backend}")


def open_to_read(url: str) -> Engine:
    """Opens the existing database at `url` and writes nothing: neither a row, nor a file beside it.

    SQLite creates a file beside a database in WAL mode, and leaves it there, unless it is told that nobody writes;
    nobody does where there is no write-ahead log. After reading for long, check whether one has appeared.
    """
    file = sqlite_file(url)
    if file is None:
        engine = _open_postgresql(make_url(url).set(drivername="postgresql+psycopg"))
        return engine.execution_options(postgresql_readonly=True)
    unwritten = "" if write_ahead_log(file).exists() else "&immutable=1"
    address = f"{file.absolute().as_uri()}?mode=ro{unwritten}"
    engine = create_engine(
        make_url(url),
        hide_parameters=True,
        creator=lambda: sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None),
    )
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for another."""
    address = make_url(url)
    is_file = address.get_backend_name() == "sqlite" and address.database is not None
    return Path(str(address.database)) if is_file else None


def write_ahead_log(file: Path) -> Path:
    """The file that SQLite has beside the database while it is open, and leaves there if its process is killed."""
    return file.with_name(f"{file.name}-wal")


def bounded(engine: Engine) -> Engine:
    """The same engine, whose connections from now on wait `SILENCE_SECONDS` for an answer, and then count as broken.

    For a service, where a thread waits for each answer. The kernel of a stopped server still acknowledges what is sent,
    so TCP's timeouts never expire, nor do those that the server would enforce. A command may wait. SQLite has
    `LOCK_SECONDS`.
    """
    if engine.dialect.name == "postgresql":
        engine.dispose()
        event.listen(engine, "do_connect", _connect_bounded)
    return engine


def _connect_bounded(_dialect: object, _record: object, arguments: Any, named: Any) -> Any:
    from service.ledger.postgresql import BoundedConnection  # so that its driver is only imported for PostgreSQL

    return BoundedConnection.connect(*arguments, **named)


def serialised(engine: Engine) -> Engine:
    """The same engine, whose transactions run one after another across all processes and hosts.

    Each starts by taking the write lock of the database, so that what it reads stays true until it commits.
    """
    return engine.execution_options(serialised=True)


def take_write_lock(connection: Connection) -> None:
    """Takes the write lock in a transaction that has begun without it; from here on no other holds it."""
    if connection.dialect.name == "postgresql":  # in SQLite a transaction that has written holds it
        connection.exec_driver_sql(WRITE_LOCK["postgresql"])


@contextmanager
def database_in_reach() -> Iterator[None]:
    """Turns what the database raises inside into LedgerUnavailable, except for the refusal of a row."""
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise LedgerUnavailable(what_is_wrong(error) or "The ledger's database does not answer.") from error


_SENTENCES = {
    sqlite3.SQLITE_CORRUPT: "The ledger's database is damaged: put its last copy in its place, and leave the files "
    "beside it; people who were erased since are erased again.",
    sqlite3.SQLITE_READONLY: "The ledger's database cannot be written: make its file and its folder writable for the "
    "user of the service.",
    sqlite3.SQLITE_CANTOPEN: "The ledger's database cannot be opened: make its folder readable and writable for the "
    "user of the service.",
    sqlite3.SQLITE_FULL: "The disk of the ledger's database is full: make room; nothing that was recorded is lost.",
}
_SENTENCES[sqlite3.SQLITE_NOTADB] = _SENTENCES[sqlite3.SQLITE_CORRUPT]


def what_is_wrong(error: BaseException | None) -> str | None:
    """What is wrong with SQLite's file, and what to do; None for other errors."""
    return _SENTENCES.get(getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF)


def _open_sqlite(address: URL) -> Engine:
    if not address.database or ":memory:" in address.database:
        raise ValueError("the ledger needs a file, not SQLite in memory")
    engine = create_engine(
        address,
        hide_parameters=True,  # they are personal data, and errors are logged
        connect_args={
            "timeout": LOCK_SECONDS,
            "isolation_level": None,  # transactions begin in _begin_sqlite
            "cached_statements": 512,  # an append has one for each number of rows
        },
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    _use_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
    cursor.execute("PRAGMA temp_store = MEMORY")  # otherwise each larger transaction creates a file for its rollback
    cursor.execute("PRAGMA wal_autocheckpoint = 8000")  # pages; the writer does it before there are that many
    cursor.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")  # once a long reader, which made it grow, has ended
    cursor.close()


def _use_write_ahead_log(cursor: DBAPICursor) -> None:
    """Retries while other processes do the same: SQLite's own timeout does not cover this change of a new file."""
    deadline = monotonic() + LOCK_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(WRITE_LOCK["sqlite"] if _is_serialised(connection) else "BEGIN")


def _is_news(record: logging.LogRecord) -> bool:
    """psycopg warns of a pipeline that ended in an error, though the error itself is raised."""
    return not record.getMessage().startswith("error ignored terminating")


def _open_postgresql(address: URL) -> Engine:
    logging.getLogger("psycopg").addFilter(_is_news)
    timeouts = {name: value for name, value in _POSTGRESQL_TIMEOUTS.items() if name not in address.query}
    engine = create_engine(address, hide_parameters=True, pool_pre_ping=True, connect_args=timeouts)
    event.listen(engine, "connect", _set_up_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _record: object) -> None:
    connection.autocommit = True
    # A commit must be durable when it returns, also where the server's default says otherwise.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    # A host that stalls inside a transaction must not hold the write lock over all others.
    connection.execute("SET idle_in_transaction_session_timeout = '10s'")
    connection.autocommit = False


def _begin_postgresql(connection: Connection) -> None:
    if _is_serialised(connection):
        connection.exec_driver_sql(WRITE_LOCK["postgresql"])


def _is_serialised(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("serialised"))
