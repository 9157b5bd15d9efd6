"""The answers to requests with an `Idempotency-Key`, remembered for a day.

A row says from which records an answer was made, and is written in the same transaction as they are. So a process that
dies, a database that goes away or a host that is switched off leaves both or neither. The row's key allows no second
row: of equal requests that two hosts compute at once, one transaction commits first and the other is refused as a
whole; its host finds the first one's row and answers from it. Neither a lease nor a clock decides who may record.

The clock only decides when a row expires: then the next request with its key replaces it, or `sweep` deletes it.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError

from service.ledger.database import database_in_reach
from service.ledger.entries import EntryRefused, Remembered
from service.ledger.tables import remembered

REMEMBERED_SECONDS = 86_400


def expired_before() -> int:
    """The time, in microseconds since the epoch, before which rows were made that have expired."""
    return time.time_ns() // 1000 - REMEMBERED_SECONDS * 1_000_000


def remember(connection: Connection, answer: Remembered, place: int | None = None) -> None:
    """Stores an answer in the transaction of its records, the last of which is at that place of the log.

    Raises EntryRefused when the key is there already; the transaction then cannot go on.
    """
    c = remembered.c
    connection.execute(delete(remembered).where(c.lookup == answer.lookup, c.created < expired_before()))
    row = {"seq": place, **{name: getattr(answer, name) for name in ("lookup", "digest", "created", "answer")}}
    try:
        connection.execute(insert(remembered).values(row))
    except IntegrityError:
        raise EntryRefused("an equal request was answered just now") from None


def read_remembered(connection: Connection, lookup: str) -> Remembered | None:
    """The remembered answer to the request with that key; None where there is none, or it has expired."""
    c = remembered.c
    query = select(c.lookup, c.digest, c.answer, c.created, c.seq)
    row = connection.execute(query.where(c.lookup == lookup, c.created >= expired_before())).one_or_none()
    return None if row is None else Remembered(*row)


def sweep(engine: Engine) -> int:
    """Deletes what has expired; returns the number of rows."""
    with database_in_reach(), engine.begin() as connection:
        return connection.execute(delete(remembered).where(remembered.c.created < expired_before())).rowcount
