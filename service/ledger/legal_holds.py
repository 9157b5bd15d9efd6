"""Legal holds: while one is in force, nothing of the person is erased, neither on request nor by age.

Making and releasing a hold are events of the log; which holds are in force follows from each person's newest event.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, func, insert, select

from service.errors import HeldByLaw, NotFound
from service.ledger.clock import ledger_time
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import HOLD, RELEASE, Event, RequestKey, StoredEvent, read_subject
from service.ledger.events import insert_event, stored_event
from service.ledger.job_erasing import count_rows_of
from service.ledger.remembering import remember
from service.ledger.sealing import Vault, owner_of
from service.ledger.searching import subject_tokens
from service.ledger.tables import events, explanations, log, set_subjects, subjects

RELEASED = {"released": True}
"""The answer to the release of a hold."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold in force on a subject, known by a token; `created` in microseconds since the epoch, UTC."""

    tenant: str
    token: str
    by: str
    reason: str
    created: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a person: the numbers of explanations, of rows of jobs that wait to be explained and of rows of
    baseline sets, and the hold in force, if there is one."""

    tokens: tuple[str, ...]
    explanations: int
    job_rows: int
    set_rows: int
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Held:
    """A hold that was just made, and the numbers of explanations, rows of jobs and rows of baseline sets that it
    protects so far."""

    hold: Hold
    explanations: int
    job_rows: int
    set_rows: int

    def to_json(self) -> dict[str, Any]:
        """As it is remembered under an idempotency key; of the person there is the token only."""
        return {
            "subject": self.hold.token,
            "by": self.hold.by,
            "reason": self.hold.reason,
            "created": self.hold.created,
            "explanations": self.explanations,
            "job_rows": self.job_rows,
            "set_rows": self.set_rows,
        }


def kept_of(engine: Engine, vault: Vault, tenant: str, subject: str) -> Kept:
    """What an erasure of the subject would destroy, or a hold protects. Raises LedgerUnavailable."""
    with database_in_reach(), engine.connect() as connection:
        tokens = subject_tokens(connection, vault, tenant, subject)
        lookups = vault.lookups(tenant, subject)
        return Kept(
            tuple(tokens),
            count_of(connection, tenant, tokens),
            count_rows_of(connection, lookups),
            _count_in_sets(connection, lookups),
            _hold_on(connection, tenant, tokens),
        )


def hold(
    engine: Engine, vault: Vault, tenant: str, subject: str, key_id: str, reason: str, key: RequestKey | None = None
) -> Held:
    """Forbids the erasure of what is kept of the subject, now and later.

    With a `key` of the request, the answer is remembered under it. Raises InvalidRequest for a subject of whom nothing
    can be recorded, LedgerUnavailable.
    """
    with database_in_reach(), serialised(engine).begin() as connection:
        tokens = subject_tokens(connection, vault, tenant, subject)
        if not tokens:  # a hold may come before the first record
            lookup, new = vault.lookup(tenant, read_subject(subject)), vault.new_subject()
            tokens = [new.token]
            wrapped = vault.wrap(new.key, owner_of(new.token, lookup))
            connection.execute(insert(subjects).values(token=new.token, lookup=lookup, key=wrapped))
        now = ledger_time(connection)
        details = {"reason": reason}
        for token in tokens:
            place = insert_event(
                connection, Event(kind=HOLD, tenant=tenant, key_id=key_id, about=token, details=details, created=now)
            )
        lookups = vault.lookups(tenant, subject)
        held = Held(
            Hold(tenant, tokens[0], key_id, reason, now),
            count_of(connection, tenant, tokens),
            count_rows_of(connection, lookups),
            _count_in_sets(connection, lookups),
        )
        if key is not None:
            remember(connection, key.remembered(held.to_json()), place)
    return held


def release(
    engine: Engine,
    vault: Vault,
    tenant: str,
    subject: str,
    key_id: str,
    reason: str = "",
    key: RequestKey | None = None,
) -> None:
    """Ends the hold. With a `key` of the request, the answer is remembered under it.

    Raises NotFound where there is no hold, LedgerUnavailable.
    """
    with database_in_reach(), serialised(engine).begin() as connection:
        tokens = subject_tokens(connection, vault, tenant, subject)
        held_tokens = [token for token in tokens if _hold_on(connection, tenant, [token]) is not None]
        if not held_tokens:
            raise NotFound("there is no hold on this subject")
        for token in held_tokens:
            place = insert_event(
                connection, Event(kind=RELEASE, tenant=tenant, key_id=key_id, about=token, details={"reason": reason})
            )
        if key is not None:
            remember(connection, key.remembered(RELEASED), place)


def holds(connection: Connection) -> list[Hold]:
    """The holds in force, of all tenants."""
    rows = connection.execute(_stored_events().where(events.c.kind.in_([HOLD, RELEASE])).order_by(events.c.seq))
    newest = {(row.tenant, row.about): stored_event(row) for row in rows}
    return [_hold_of(event) for event in newest.values() if event.kind == HOLD]


def refuse_if_held(connection: Connection, tenant: str, tokens: Sequence[str]) -> None:
    """Raises HeldByLaw where a hold is in force on a subject known by one of these tokens."""
    in_force = _hold_on(connection, tenant, tokens)
    if in_force is not None:
        since = datetime.fromtimestamp(in_force.created / 1e6, UTC).isoformat(timespec="seconds")
        raise HeldByLaw(
            f"a legal hold by {in_force.by} since {since} forbids the erasure: {in_force.reason}; release the hold "
            "first, then erase"
        )


def count_of(connection: Connection, tenant: str, tokens: Sequence[str]) -> int:
    """The number of explanations kept of a subject, known by tokens."""
    is_theirs = and_(explanations.c.tenant == tenant, explanations.c.subject.in_(tokens))
    return connection.execute(select(func.count()).select_from(explanations).where(is_theirs)).scalar_one()


def _count_in_sets(connection: Connection, lookups: Collection[str]) -> int:
    query = select(func.count()).select_from(set_subjects).where(set_subjects.c.lookup.in_(lookups))
    return connection.execute(query).scalar_one()


def _hold_on(connection: Connection, tenant: str, tokens: Sequence[str]) -> Hold | None:
    """The hold in force on the first of these tokens that has one."""
    for token in tokens:
        is_about_it = (events.c.tenant == tenant, events.c.about == token, events.c.kind.in_([HOLD, RELEASE]))
        query = _stored_events().where(*is_about_it).order_by(events.c.seq.desc()).limit(1)
        row = connection.execute(query).one_or_none()
        if row is not None and row.kind == HOLD:
            return _hold_of(stored_event(row))
    return None


def _hold_of(event: StoredEvent) -> Hold:
    return Hold(event.tenant, event.about or "", event.key_id, str(event.details["reason"]), event.created)


def _stored_events() -> Select[Any]:
    return select(events, log.c.record).join_from(events, log, log.c.seq == events.c.seq)
