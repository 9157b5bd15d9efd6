"""What SQLite holds in each column against what the column is for: SQLite itself takes any value anywhere.

A boolean may be stored as 3, which Python reads as true and for which the index of what did not converge has no place;
a number may be stored as a text. PostgreSQL refuses such values, so nothing is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator
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
"""How SQLite calls what a column of each type holds; all others hold `text`."""

_NO_BOOLEAN = "integer that is neither 0 nor 1"


def type_faults(connection: Connection, seq: int | None = None) -> list[str]:
    """Every value that is stored as another type than its column's; with `seq`, of the rows at that place only.

    What is named here cannot be relied on to be read: a text in a column of bytes is an error to Python, and a number
    there is so many bytes of memory.
    """
    if connection.dialect.name != "sqlite":
        return []
    tables = [table for table in metadata.sorted_tables if seq is None or "seq" in table.c]
    return [fault for table in tables for fault in _of_table(connection, table, seq)]


def _of_table(connection: Connection, table: Table, seq: int | None) -> Iterator[str]:
    query, keys = _wrong_of(table), len(table.primary_key.columns)
    for row in connection.execute(query if seq is None else query.where(table.c.seq == seq)):
        where = " ".join(map(str, row[:keys]))
        for one, found in zip(table.c, row[keys:], strict=True):
            if found is not None:
                yield f"{table.name} {where}: the column {one.name} holds the type {found}"


@cache
def _wrong_of(table: Table) -> Select[Any]:
    """The rows with a value of another type: their primary key, and for each column its type if that is wrong.

    Made once, since making the queries of all tables takes longer than running them on a small ledger.
    """
    keys: list[ColumnElement[Any]] = [
        raw(one.name) for one in table.primary_key.columns
    ]  # as they are stored, whatever that is
    wrong = [_type_if_wrong(one).label(f"type_{place}") for place, one in enumerate(table.c)]
    return select(*keys, *wrong).select_from(table).where(or_(*(one.is_not(None) for one in wrong)))


def _type_if_wrong(column: Column[Any]) -> ColumnElement[str | None]:
    """The type of what the column holds; NULL where that is as it must be."""
    kind = next((name for type_, name in _CLASSES if isinstance(column.type, type_)), "text")
    stored = func.typeof(column)
    wrong: list[tuple[ColumnElement[bool], Any]] = [
        (stored.not_in([kind, "null"] if column.nullable else [kind]), stored)
    ]
    if isinstance(column.type, Boolean):
        wrong.append((raw(column.name).not_in([0, 1]), _NO_BOOLEAN))
    return case(*wrong)
