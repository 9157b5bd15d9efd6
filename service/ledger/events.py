"""A search for events as SQL, and events as they stand in the log."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import Connection, Row, func, literal, select, tuple_

from service.errors import InvalidRequest
from service.ledger.entries import TOMBSTONE_KINDS, EventPage, EventSearch, StoredEvent
from service.ledger.searching import LARGEST_PAGE, cursor_after, place_of
from service.ledger.tables import events, log


def read_events(connection: Connection, tenant: str, search: EventSearch, limit: int, cursor: str | None) -> EventPage:
    """The first `limit` events behind `cursor`.

    Raises InvalidRequest for a limit outside 1 to LARGEST_PAGE, MalformedCursor for a cursor that no page
    ended in.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidRequest(f"limit is a number from 1 to {LARGEST_PAGE}.")
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


def erasures_since(connection: Connection, created: int) -> dict[str, int]:
    """When each tenant that erased something since then did so last; both in microseconds since the epoch, UTC."""
    last = func.max(events.c.created)
    query = select(events.c.tenant, last.label("last")).group_by(events.c.tenant)
    query = query.where(events.c.kind.in_(TOMBSTONE_KINDS), events.c.created >= created)
    return {row.tenant: row.last for row in connection.execute(query)}


def stored_event(row: Row[Any]) -> StoredEvent:
    """The event of a row of `events` with the `record` of the log."""
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
