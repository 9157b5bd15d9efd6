"""Tombstones: the events that say which records were erased, and the clearing of the rows that they name.

A tombstone holds the places of the records as ranges, and a digest of the pseudonyms of their decisions, which stay.
Records from before there was a schema lose their record in the log too, since it holds in clear what is sealed today.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, update

from service.ledger.entries import StoredEvent
from service.ledger.events import stored_event
from service.ledger.leaves import decisions_digest
from service.ledger.tables import events, explanations, log

_WITH_SCHEMA = b'{"schema":'


def tombstone_details(connection: Connection, places: Sequence[int]) -> dict[str, Any]:
    """What a tombstone says of the records at these places."""
    details: dict[str, Any] = {"records": ranges(places), "count": len(places)}
    if old := _places_without_schema(connection, places):
        details["without_record"] = ranges(old)
    if decisions := decisions_at(connection, places):
        details["decisions"] = decisions_digest(decisions)
    return details


def clear(connection: Connection, which: ColumnElement[bool], places: Sequence[int], tombstone: int) -> None:
    """Empties the explanations for which `which` holds, those at `places`, and has them name their tombstone."""
    if old := _places_without_schema(connection, places):
        connection.execute(update(log).where(log.c.seq.in_(old)).values(record=None))
    cleared = {"personal": None, "subject": None, "tombstone": tombstone}
    connection.execute(update(explanations).where(which).values(cleared))


def tombstone_of(connection: Connection, place: int) -> StoredEvent | None:
    """The event at that place of the log; None where there is none."""
    query = select(events, log.c.record).join_from(events, log, log.c.seq == events.c.seq)
    row = connection.execute(query.where(events.c.seq == place)).one_or_none()
    return None if row is None else stored_event(row)


def ranges(places: Iterable[int]) -> list[list[int]]:
    """Ascending places as ranges, both ends included."""
    merged: list[list[int]] = []
    for place in places:
        if merged and merged[-1][1] == place - 1:
            merged[-1][1] = place
        else:
            merged.append([place, place])
    return merged


def decisions_at(connection: Connection, places: Sequence[int]) -> dict[int, str]:
    """The pseudonyms of the decisions of the explanations at these places, for those that have one."""
    decisions: dict[int, str] = {}
    has_decision = select(explanations.c.seq, explanations.c.decision_id).where(explanations.c.decision_id.is_not(None))
    for first, last in ranges(places):
        for row in connection.execute(has_decision.where(explanations.c.seq.between(first, last))):
            decisions[row.seq] = row.decision_id
    return decisions


def _places_without_schema(connection: Connection, places: Sequence[int]) -> list[int]:
    has_none = func.substr(log.c.record, 1, len(_WITH_SCHEMA)) != _WITH_SCHEMA
    old: list[int] = []
    for first, last in ranges(places):
        old += connection.scalars(select(log.c.seq).where(log.c.seq.between(first, last), has_none))
    return sorted(set(old) & set(places))
