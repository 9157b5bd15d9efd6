"""Erasure, legal holds and retention. Each is an event of the log, in the same transaction as what it does.

Erasing a subject destroys the key that everything of theirs is sealed under, and the sealed parts with it; the rows of
the log stay, so that every proof does. What jobs hold of theirs goes too, and is not explained any more, and so do
their rows of baseline sets, which are removed from the files once that is committed (`set_subjects`). Retention removes
the sealed parts that are older than their class allows, and the subject's key with the last of them. A hold forbids
both. Of an erased explanation the pseudonym of its decision stays, so that who knows the decision finds the tombstone;
the tombstone is committed to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, false, func, insert, or_, select, update

from service.errors import HeldByLaw, NotFound
from service.ledger.clock import ledger_time
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import (
    ERASURE,
    HOLD,
    RELEASE,
    RETENTION,
    STANDARD,
    Event,
    LogChanged,
    RequestKey,
    StoredEvent,
    read_subject,
)
from service.ledger.events import insert_event, stored_event
from service.ledger.jobs import count_rows_of, end_all_rows_of, end_rows_of, forget_in_specs
from service.ledger.leaves import decisions_digest
from service.ledger.remembering import remember
from service.ledger.sealing import Vault, owner_of
from service.ledger.searching import read_places, subject_tokens
from service.ledger.tables import events, explanations, job_rows, log, set_subjects, subjects

TOGETHER = 1000
"""Records that one event of a retention run names, and one transaction clears."""

TRIES = 50
RELEASED = {"released": True}
"""What is said of a hold that has ended."""

if TYPE_CHECKING:
    from service.ledger.erasure_list import ListedErasure

_log = logging.getLogger(__name__)

_WITH_SCHEMA = b'{"schema":'


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased: so many records, so many rows that jobs had still to explain, and so many of baseline sets, by
    the event at place `tombstone`. So many `exports` had been asked for by the person's name, which is gone from them.
    """

    records: int
    tombstone: int
    job_rows: int = 0
    exports: int = 0
    set_rows: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold in force on a subject, known by a token; `created` in microseconds since the epoch, UTC."""

    tenant: str
    token: str
    by: str
    reason: str
    created: int

    @property
    def told(self) -> dict[str, Any]:
        """What is said of it to whoever may know."""
        return {"subject": self.token, "by": self.by, "reason": self.reason, "created": self.created}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a person: so many explanations, rows of jobs that wait to be explained and rows of baseline sets,
    and the hold, if one is in force."""

    tokens: tuple[str, ...]
    explanations: int
    job_rows: int
    set_rows: int
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Held:
    """A hold that was just made, and so many explanations, rows of jobs and of baseline sets that it is on so far."""

    hold: Hold
    explanations: int
    job_rows: int
    set_rows: int

    @property
    def told(self) -> dict[str, Any]:
        """What is said of it to whoever asked for it."""
        counts = {"explanations": self.explanations, "job_rows": self.job_rows, "set_rows": self.set_rows}
        return {**self.hold.told, **counts}


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


def _count_in_sets(connection: Connection, lookups: Collection[str]) -> int:
    theirs = select(func.count()).select_from(set_subjects).where(set_subjects.c.lookup.in_(lookups))
    return connection.execute(theirs).scalar_one()


def erase(
    engine: Engine,
    vault: Vault,
    tenant: str,
    subject: str,
    key_id: str,
    reason: str = "",
    key: RequestKey | None = None,
) -> Erased:
    """Destroys everything of the subject's that was sealed, for good; what jobs hold of theirs is never explained.

    With a `key` of the request, what is answered is remembered under it, here and below.

    Raises HeldByLaw, NotFound where nothing of the subject's is there, LedgerUnavailable.
    """
    with database_in_reach(), serialised(engine).begin() as connection:
        tokens = subject_tokens(connection, vault, tenant, subject)
        refuse_if_held(connection, tenant, tokens)
        lookups = vault.lookups(tenant, subject)
        waiting = end_rows_of(connection, lookups)
        in_sets = _take_rows_of_sets(connection, set_subjects.c.lookup.in_(lookups))
        is_theirs = explanations.c.subject.in_(tokens) if tokens else false()  # and never IS NULL: nobody's
        theirs = and_(explanations.c.tenant == tenant, is_theirs)
        places = connection.scalars(select(explanations.c.seq).where(theirs).order_by(explanations.c.seq)).all()
        exports = forget_in_specs(connection, vault, tenant, subject, _decisions(connection, places).values())
        if not tokens and not waiting and not exports and not in_sets:
            raise NotFound("nothing of this subject is kept here")
        several = {"tokens": tokens} if len(tokens) > 1 else {}  # `about` names the only one
        counts = _counts(waiting, exports, in_sets)
        details = {**_named(connection, places), **several, **counts, "reason": reason}
        about = tokens[0] if tokens else None
        tombstone = insert_event(
            connection, Event(kind=ERASURE, tenant=tenant, key_id=key_id, about=about, details=details)
        )
        _clear(connection, theirs, places, tombstone)
        connection.execute(delete(subjects).where(subjects.c.token.in_(tokens)))
        erased = Erased(len(places), tombstone, waiting, exports, len(in_sets))
        if key is not None:
            remember(connection, key.remembered(asdict(erased)), tombstone)
    _scrub(engine)
    return erased


def hold(
    engine: Engine, vault: Vault, tenant: str, subject: str, key_id: str, reason: str, key: RequestKey | None = None
) -> Held:
    """Forbids to erase what is kept of the subject, and what will be.

    Raises InvalidRequest for a subject that nothing can be recorded of, LedgerUnavailable.
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
            remember(connection, key.remembered(held.told), place)
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
    """Ends the hold. Raises NotFound where there is none, LedgerUnavailable."""
    with database_in_reach(), serialised(engine).begin() as connection:
        tokens = subject_tokens(connection, vault, tenant, subject)
        held = [token for token in tokens if _hold_on(connection, tenant, [token]) is not None]
        if not held:
            raise NotFound("there is no hold on this subject")
        for token in held:
            place = insert_event(
                connection, Event(kind=RELEASE, tenant=tenant, key_id=key_id, about=token, details={"reason": reason})
            )
        if key is not None:
            remember(connection, key.remembered(RELEASED), place)


def holds(connection: Connection) -> list[Hold]:
    """The holds in force, of all tenants."""
    rows = connection.execute(_events().where(events.c.kind.in_([HOLD, RELEASE])).order_by(events.c.seq))
    newest = {(row.tenant, row.about): stored_event(row) for row in rows}
    return [_hold(event) for event in newest.values() if event.kind == HOLD]


def retain(engine: Engine, periods: Mapping[str, int], key_id: str, now: datetime | None = None) -> dict[str, int]:
    """Erases what is older than its class allows; returns the number of records by class.

    `periods` are months by class; a class that is not named has the period of the standard class. Raises
    LedgerUnavailable.
    """
    with database_in_reach(), engine.connect() as connection:
        known = connection.scalars(select(explanations.c.retention).distinct()).all()
    counts = {}
    for name in sorted(set(known)):
        before = months_before(now or datetime.now(UTC), periods.get(name, periods[STANDARD]))
        limit = int(before.timestamp() * 1e6)
        counts[name] = 0
        while erased := _retain_some(engine, name, limit, key_id):
            counts[name] += erased
    if any(counts.values()):
        _scrub(engine)
    return counts


def tombstone_of(connection: Connection, place: int) -> StoredEvent | None:
    """The event at that place of the log."""
    row = connection.execute(_events().where(events.c.seq == place)).one_or_none()
    return None if row is None else stored_event(row)


def erase_again(engine: Engine, vault: Vault, made: ListedErasure, key_id: str) -> Erased | None:
    """Destroys what an older copy of the database brought back of a person who had been erased; None if it did not.

    A hold in that copy had been released before the erasure, or there had been none. Of somebody who was known by rows
    of jobs alone nobody can tell which those are, so all of the tenant's that wait and name somebody end. Raises
    LedgerUnavailable.
    """
    with database_in_reach(), serialised(engine).begin() as connection:
        rows = connection.execute(select(subjects).where(subjects.c.token.in_(made.tokens))).all()
        tokens = [row.token for row in rows]
        names = _names_of(connection, vault, tokens)
        spelled = {lookup for name in names for lookup in vault.lookups(made.tenant, name)}
        lookups = spelled | {row.lookup for row in rows}
        waiting = end_rows_of(connection, lookups)
        if made.job_rows and not made.tokens:
            waiting += end_all_rows_of(connection, made.tenant)
        in_sets = _take_rows_of_sets(connection, set_subjects.c.lookup.in_(lookups))
        for start in range(0, len(made.set_tokens), TOGETHER):
            some = made.set_tokens[start : start + TOGETHER]
            is_back = and_(set_subjects.c.token.in_(some), set_subjects.c.lookup.is_not(None))
            in_sets += _take_rows_of_sets(connection, is_back)
        if not rows and not waiting and not in_sets:
            return None
        theirs = and_(explanations.c.tenant == made.tenant, explanations.c.subject.in_(tokens))
        places = connection.scalars(select(explanations.c.seq).where(theirs).order_by(explanations.c.seq)).all()
        decisions = _decisions(connection, places).values()
        exports = sum(forget_in_specs(connection, vault, made.tenant, name, decisions) for name in names)
        counts = {"job_rows": waiting} | _counts(waiting, exports, in_sets)
        again = {"place": made.place, "leaf": made.leaf, "created": made.created}
        details = {**_named(connection, places), "tokens": tokens, **counts, "again": again}
        about = tokens[0] if tokens else None
        event = Event(kind=ERASURE, tenant=made.tenant, key_id=key_id, about=about, details=details)
        tombstone = insert_event(connection, event)
        _clear(connection, theirs, places, tombstone)
        connection.execute(delete(subjects).where(subjects.c.token.in_(tokens)))
    _scrub(engine)
    return Erased(len(places), tombstone, waiting, exports, len(in_sets))


def ranges(places: Iterable[int]) -> list[list[int]]:
    """Ascending places as ranges, both ends included."""
    found: list[list[int]] = []
    for place in places:
        if found and found[-1][1] == place - 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return found


def months_before(moment: datetime, months: int) -> datetime:
    """The same day of the month so many months earlier, or the last one before it."""
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    for day in range(moment.day, 27, -1):
        with suppress(ValueError):
            return moment.replace(year=year, month=month + 1, day=day)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, 28))


def _retain_some(engine: Engine, name: str, limit: int, key_id: str) -> int:
    """One transaction of a retention run; returns the number of records it cleared."""
    with database_in_reach(), serialised(engine).begin() as connection:
        held = {(each.tenant, each.token) for each in holds(connection)}
        is_free = or_(explanations.c.subject.is_(None), explanations.c.subject.not_in([token for _, token in held]))
        due = and_(explanations.c.retention == name, explanations.c.created < limit, explanations.c.tombstone.is_(None))
        found = connection.execute(
            select(explanations.c.seq, explanations.c.tenant, explanations.c.subject)
            .where(due, is_free)
            .order_by(explanations.c.created, explanations.c.seq)
            .limit(TOGETHER)
        ).all()
        for tenant in sorted({row.tenant for row in found}):
            places = sorted(row.seq for row in found if row.tenant == tenant)
            details = {**_named(connection, places), "class": name, "before": limit}
            tombstone = insert_event(connection, Event(kind=RETENTION, tenant=tenant, key_id=key_id, details=details))
            _clear(connection, explanations.c.seq.in_(places), places, tombstone)
        _forget_unused(connection, {(row.tenant, row.subject) for row in found if row.subject is not None})
    return len(found)


def _take_rows_of_sets(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    """Makes rows of baseline sets nobody's, so that they are removed from the files; their tokens."""
    found = connection.scalars(select(set_subjects.c.token).where(which).order_by(set_subjects.c.token)).all()
    connection.execute(update(set_subjects).where(which).values(lookup=None))
    return list(found)


def _counts(job_rows: int, exports: int, set_tokens: Sequence[str]) -> dict[str, Any]:
    """What a tombstone says of what was kept beside records, where there was any."""
    counts = {"job_rows": job_rows, "exports": exports, "set_rows": len(set_tokens), "set_tokens": [*set_tokens]}
    return {name: count for name, count in counts.items() if count}


def _names_of(connection: Connection, vault: Vault, tokens: Sequence[str]) -> set[str]:
    """What the people of these tokens are called, by the newest explanation of each."""
    theirs = explanations.c.subject.in_(tokens)
    newest = select(func.max(explanations.c.seq)).where(theirs).group_by(explanations.c.subject)
    names: set[str] = set()
    for place in connection.scalars(newest).all():
        with suppress(LogChanged):  # what is damaged names nobody; a verification tells
            names |= {one.subject for one in read_places(connection, vault, [place]) if one.subject is not None}
    return names


def _named(connection: Connection, places: Sequence[int]) -> dict[str, Any]:
    """What a tombstone says of the records it erases. Those of before there was a schema lose their record too, which
    holds in clear what has been sealed since."""
    named: dict[str, Any] = {"records": ranges(places), "count": len(places)}
    if old := _without_schema(connection, places):
        named["without_record"] = ranges(old)
    if decisions := _decisions(connection, places):
        named["decisions"] = decisions_digest(decisions)
    return named


def _decisions(connection: Connection, places: Sequence[int]) -> dict[int, str]:
    """The pseudonyms of the decisions at these places, where there are any."""
    found: dict[int, str] = {}
    columns = select(explanations.c.seq, explanations.c.decision_id).where(explanations.c.decision_id.is_not(None))
    for first, last in ranges(places):
        for row in connection.execute(columns.where(explanations.c.seq.between(first, last))):
            found[row.seq] = row.decision_id
    return found


def _without_schema(connection: Connection, places: Sequence[int]) -> list[int]:
    has_none = func.substr(log.c.record, 1, len(_WITH_SCHEMA)) != _WITH_SCHEMA
    found: list[int] = []
    for first, last in ranges(places):
        found += connection.scalars(select(log.c.seq).where(log.c.seq.between(first, last), has_none))
    return sorted(set(found) & set(places))


def _clear(connection: Connection, which: Any, places: Sequence[int], tombstone: int) -> None:
    old = _without_schema(connection, places)
    if old:
        connection.execute(update(log).where(log.c.seq.in_(old)).values(record=None))
    cleared = {"personal": None, "subject": None, "tombstone": tombstone}
    connection.execute(update(explanations).where(which).values(cleared))


def _forget_unused(connection: Connection, found: Iterable[tuple[str, str]]) -> None:
    """Destroys the keys of those of these subjects, by tenant and token, of whom nothing is left."""
    for tenant, token in found:
        left = select(explanations.c.seq).where(explanations.c.tenant == tenant, explanations.c.subject == token)
        if connection.execute(left.limit(1)).first() is None:
            connection.execute(delete(subjects).where(subjects.c.token == token))


def count_of(connection: Connection, tenant: str, tokens: Sequence[str]) -> int:
    """How many explanations are kept of a subject, known by tokens."""
    theirs = and_(explanations.c.tenant == tenant, explanations.c.subject.in_(tokens))
    return connection.execute(select(func.count()).select_from(explanations).where(theirs)).scalar_one()


def refuse_if_held(connection: Connection, tenant: str, tokens: Sequence[str]) -> None:
    """Raises HeldByLaw where there is a hold on a subject of one of these tokens."""
    found = _hold_on(connection, tenant, tokens)
    if found is not None:
        since = datetime.fromtimestamp(found.created / 1e6, UTC).isoformat(timespec="seconds")
        raise HeldByLaw(f"held by {found.by} since {since}: {found.reason}; the data is erased once that is released")


def _hold_on(connection: Connection, tenant: str, tokens: Sequence[str]) -> Hold | None:
    """The hold in force on any of these."""
    for token in tokens:
        of_subject = (events.c.tenant == tenant, events.c.about == token, events.c.kind.in_([HOLD, RELEASE]))
        row = connection.execute(_events().where(*of_subject).order_by(events.c.seq.desc()).limit(1)).one_or_none()
        if row is not None and row.kind == HOLD:
            return _hold(stored_event(row))
    return None


def _hold(event: StoredEvent) -> Hold:
    return Hold(event.tenant, event.about or "", event.key_id, str(event.details["reason"]), event.created)


def _events() -> Any:
    return select(events, log.c.record).join_from(events, log, log.c.seq == events.c.seq)


def _scrub(engine: Engine) -> None:
    """Has the database let go of the bytes that were deleted, as far as it can be told to.

    SQLite overwrites them (`secure_delete`), and its write-ahead log is emptied here. PostgreSQL keeps dead rows until
    they are vacuumed; they hold ciphertext, and wrapped keys that only the master key opens.
    """
    is_sqlite = engine.dialect.name == "sqlite"
    vacuums = [f"VACUUM {table.name}" for table in (subjects, explanations, job_rows, set_subjects)]
    statements = ["PRAGMA wal_checkpoint(TRUNCATE)"] if is_sqlite else vacuums
    connection = engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        if not is_sqlite:
            driver.autocommit = True
        for statement in statements:
            for _ in range(TRIES):
                row = driver.execute(statement)
                if not is_sqlite or row.fetchone()[0] == 0:
                    break
                time.sleep(0.02)  # somebody reads what is to be moved
    except engine.dialect.loaded_dbapi.Error as error:
        _log.warning("the database keeps deleted bytes a while longer: %s", type(error).__name__)
    finally:
        connection.invalidate()
