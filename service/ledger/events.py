"""Events: a search for them as SQL, reading them from the log, appending one in the transaction of what it records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from sqlalchemy import Connection, Row, func, insert, literal, select, tuple_

from service.errors import InvalidRequest
from service.ledger.clock import signed_time
from service.ledger.entries import TOMBSTONE_KINDS, Event, StoredEvent
from service.ledger.leaves import event_record
from service.ledger.merkle import leaf_hash
from service.ledger.searches import EventPage, EventSearch
from service.ledger.searching import MAX_PAGE, cursor_after, place_of
from service.ledger.stored_tree import log_size
from service.ledger.tables import events, log


def read_events(connection: Connection, tenant: str, search: EventSearch, limit: int, cursor: str | None) -> EventPage:
    """The first `limit` events after `cursor`.

    Raises InvalidRequest for a limit outside 1 to MAX_PAGE, MalformedCursor for a cursor that no page
    returned.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"limit is a number from 1 to {MAX_PAGE}")
    order = (events.c.created, events.c.seq)
    query = select(events, log.c.record).join_from(events, log, log.c.seq == events.c.seq)
    query = query.where(events.c.tenant == tenant).order_by(*(column.desc() for column in order)).limit(limit + 1)
    for column in ("kind", "about"):
        if (value := getattr(search, column)) is not None:
            query = query.where(events.c[column] == value)
    if search.created_from is not None:
        query = query.where(events.c.created >= search.created_from)
    if search.created_to is not None:
        query = query.where(events.c.created < search.created_to)
    if cursor is not None:
        created, seq = place_of(cursor)
        query = query.where(tuple_(*order) < tuple_(literal(created), literal(seq)))
    rows = connection.execute(query).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return EventPage(
        tuple(map(stored_event, rows[:limit])),
        None if last is None else cursor_after(last.created, last.seq),
    )


def insert_event(connection: Connection, event: Event) -> int:
    """Appends the event in a transaction that holds the write lock; returns its place. Its time is at least
    the last signed time."""
    event = replace(event, created=max(event.created, signed_time(connection)))
    seq = log_size(connection) + 1
    record = event_record(event)
    connection.execute(insert(log).values(seq=seq, kind=event.kind, record=record, leaf=leaf_hash(record)))
    columns = {column.name: getattr(event, column.name) for column in events.c if column.name != "seq"}
    connection.execute(insert(events).values(seq=seq, **columns))
    return seq


def last_erasures(connection: Connection, after: int, tenant: str | None = None) -> dict[str, int]:
    """The place of the last tombstone after place `after`, for each tenant that has one, or only for `tenant`."""
    query = select(events.c.tenant, func.max(events.c.seq).label("last")).group_by(events.c.tenant)
    query = query.where(events.c.kind.in_(TOMBSTONE_KINDS), events.c.seq > after)
    if tenant is not None:
        query = query.where(events.c.tenant == tenant)
    return {row.tenant: row.last for row in connection.execute(query)}


def stored_event(row: Row[Any]) -> StoredEvent:
    """The event of a row of `events` joined with the `record` of the log."""
    details = orjson.loads(row.record)["details"]
    return StoredEvent(
        seq=row.seq,
        kind=row.kind,
        tenant=row.tenant,
        created=row.created,
        key_id=row.key_id,
        about=row.about,
        details=details,
    )
