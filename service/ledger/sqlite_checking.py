"""Checks that only SQLite needs: it stores any value in any column, and may lack an index entry.

A boolean may be stored as 3, which Python reads as true but no index entry of either value covers; a number may be
stored as text. PostgreSQL refuses such values, so it is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    Select,
    Table,
    case,
    func,
    or_,
    select,
)
from sqlalchemy.sql.expression import column as raw

from service.ledger.tables import metadata

_CLASSES = ((Boolean, "integer"), (Integer, "integer"), (LargeBinary, "blob"))
"""SQLite's name for the type that each kind of column holds; all other columns hold `text`."""

_NO_BOOLEAN = "integer that is neither 0 nor 1"


@contextmanager
def texts_as_stored(connection: Connection) -> Iterator[None]:
    """Lets any text of SQLite be read, even one whose bytes are not UTF-8."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    usual, driver.text_factory = driver.text_factory, _decoded
    try:
        yield
    finally:
        driver.text_factory = usual


def _decoded(stored: bytes) -> str:
    """The text; for bytes that are not UTF-8 one with a NUL, which is never recorded and so equals no other."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return f"\0{stored.hex()}"


def index_faults(connection: Connection) -> list[str]:
    """What SQLite finds wrong with its own file, for instance a row that an index lacks, so that no search finds it."""
    if connection.dialect.name != "sqlite":
        return []
    answers = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    return [f"SQLite's integrity check: {answer}" for answer in answers if answer != "ok"]


def type_faults(connection: Connection, seq: int | None = None) -> list[str]:
    """Every value that is stored with another type than its column's; with `seq`, only in the rows at that place.

    Such a value cannot be read safely: text in a column of bytes is an error in Python, and a number there is taken
    for a size and allocates that many bytes.
    """
    if connection.dialect.name != "sqlite":
        return []
    tables = [table for table in metadata.sorted_tables if seq is None or "seq" in table.c]
    return [fault for table in tables for fault in _faults_of_table(connection, table, seq)]


def _faults_of_table(connection: Connection, table: Table, seq: int | None) -> Iterator[str]:
    query, key_columns = _rows_with_wrong_types(table), len(table.primary_key.columns)
    for row in connection.execute(query if seq is None else query.where(table.c.seq == seq)):
        key = " ".join(map(str, row[:key_columns]))
        for column, wrong_type in zip(table.c, row[key_columns:], strict=True):
            if wrong_type is not None:
                yield f"table {table.name}, row {key}: column {column.name} holds a value of the type {wrong_type}"


@cache
def _rows_with_wrong_types(table: Table) -> Select[Any]:
    """The rows with a value of another type: their primary key, and for each column its type if that is wrong.

    Cached, since building the queries of all tables takes longer than running them on a small ledger.
    """
    keys: list[ColumnElement[Any]] = [
        raw(column.name) for column in table.primary_key.columns
    ]  # read as stored, whatever the type
    wrong = [_type_if_wrong(column).label(f"type_{place}") for place, column in enumerate(table.c)]
    return select(*keys, *wrong).select_from(table).where(or_(*(column.is_not(None) for column in wrong)))


def _type_if_wrong(column: Column[Any]) -> ColumnElement[str | None]:
    """The type of the stored value; NULL where it is the column's own."""
    kind = next((name for type_, name in _CLASSES if isinstance(column.type, type_)), "text")
    stored = func.typeof(column)
    wrong: list[tuple[ColumnElement[bool], Any]] = [
        (stored.not_in([kind, "null"] if column.nullable else [kind]), stored)
    ]
    if isinstance(column.type, Boolean):
        wrong.append((raw(column.name).not_in([0, 1]), _NO_BOOLEAN))
    return case(*wrong)
