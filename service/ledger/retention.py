"""Retention: the personal parts of records older than their class allows are erased, unless a hold forbids it.

A subject's key is destroyed with the last record of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, and_, delete, or_, select

from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import RETENTION, STANDARD, Event
from service.ledger.events import insert_event
from service.ledger.legal_holds import holds
from service.ledger.scrubbing import scrub
from service.ledger.tables import explanations, subjects
from service.ledger.tombstones import clear, tombstone_details

RECORDS_AT_ONCE = 1000
"""Records that one transaction of a retention run erases."""


def retain(engine: Engine, periods: Mapping[str, int], key_id: str, now: datetime | None = None) -> dict[str, int]:
    """Erases what is older than its class allows; returns the number of records by class.

    `periods` are months by class; a class that is not named has the period of the standard class. Raises
    LedgerUnavailable.
    """
    with database_in_reach(), engine.connect() as connection:
        classes = connection.scalars(select(explanations.c.retention).distinct()).all()
    counts = {}
    for name in sorted(set(classes)):
        before = months_before(now or datetime.now(UTC), periods.get(name, periods[STANDARD]))
        limit = int(before.timestamp() * 1e6)
        counts[name] = 0
        while erased := _retain_some(engine, name, limit, key_id):
            counts[name] += erased
    if any(counts.values()):
        scrub(engine)
    return counts


def months_before(moment: datetime, months: int) -> datetime:
    """The same day so many months earlier, or the last day of that month where it has no such day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    for day in range(moment.day, 27, -1):
        with suppress(ValueError):
            return moment.replace(year=year, month=month + 1, day=day)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, 28))


def _retain_some(engine: Engine, name: str, limit: int, key_id: str) -> int:
    """One transaction of a retention run; returns the number of records it erased."""
    with database_in_reach(), serialised(engine).begin() as connection:
        held_tokens = [hold.token for hold in holds(connection)]
        is_free = or_(explanations.c.subject.is_(None), explanations.c.subject.not_in(held_tokens))
        is_due = and_(
            explanations.c.retention == name, explanations.c.created < limit, explanations.c.tombstone.is_(None)
        )
        rows = connection.execute(
            select(explanations.c.seq, explanations.c.tenant, explanations.c.subject)
            .where(is_due, is_free)
            .order_by(explanations.c.created, explanations.c.seq)
            .limit(RECORDS_AT_ONCE)
        ).all()
        for tenant in sorted({row.tenant for row in rows}):
            places = sorted(row.seq for row in rows if row.tenant == tenant)
            details = {**tombstone_details(connection, places), "class": name, "before": limit}
            tombstone = insert_event(connection, Event(kind=RETENTION, tenant=tenant, key_id=key_id, details=details))
            clear(connection, explanations.c.seq.in_(places), places, tombstone)
        _destroy_unused_keys(connection, {(row.tenant, row.subject) for row in rows if row.subject is not None})
    return len(rows)


def _destroy_unused_keys(connection: Connection, known: Iterable[tuple[str, str]]) -> None:
    """Destroys the keys of those subjects, known by tenant and token, who have no record left."""
    for tenant, token in known:
        left = select(explanations.c.seq).where(explanations.c.tenant == tenant, explanations.c.subject == token)
        if connection.execute(left.limit(1)).first() is None:
            connection.execute(delete(subjects).where(subjects.c.token == token))
