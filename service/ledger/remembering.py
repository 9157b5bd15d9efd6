"""Requests with an `Idempotency-Key`: what was answered, for a day.

A row says which records an answer was made of, and it is written in the transaction that writes them. So there is
nothing between a record and its being remembered: a process that dies, a database that goes away or a host that is
switched off leaves both or neither. The row's key excludes a second one: of equal requests that are computed on two
hosts at once, the transaction of one ends first, and that of the other is refused with all it holds; its host finds
the row of the first and answers from it. No lease and no clock decides who may record.

The clock decides only when a row is over: then the next request with its key replaces it, and the others are swept.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError

from service.ledger.database import database_in_reach
from service.ledger.entries import EntryRefused, Remembered
from service.ledger.tables import remembered

REMEMBERED_SECONDS = 86_400


def over_before() -> int:
    """Rows made before this, in microseconds since the epoch, are over."""
    return time.time_ns() // 1000 - REMEMBERED_SECONDS * 1_000_000


def remember(connection: Connection, one: Remembered, place: int | None = None) -> None:
    """Enters it in the transaction of the records that it is of, the last of them at that place of the log.

    Raises EntryRefused when the key is there already; the transaction is then over.
    """
    c = remembered.c
    connection.execute(delete(remembered).where(c.lookup == one.lookup, c.created < over_before()))
    row = {"seq": place, **{name: getattr(one, name) for name in ("lookup", "digest", "created", "answer")}}
    try:
        connection.execute(insert(remembered).values(row))
    except IntegrityError:
        raise EntryRefused("an equal request was answered just now") from None


def read_remembered(connection: Connection, lookup: str) -> Remembered | None:
    """What is remembered of the request with that key; None where nothing is, or no longer."""
    c = remembered.c
    query = select(c.lookup, c.digest, c.answer, c.created, c.seq)
    row = connection.execute(query.where(c.lookup == lookup, c.created >= over_before())).one_or_none()
    return None if row is None else Remembered(*row)


def sweep(engine: Engine) -> int:
    """Deletes what is over; gives the number of rows."""
    with database_in_reach(), engine.begin() as connection:
        return connection.execute(delete(remembered).where(remembered.c.created < over_before())).rowcount
