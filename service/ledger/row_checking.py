"""Compares rows of `explanations` and `events` with their records in the log, and tombstones with what they erased."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, Row, or_, select

from service.ledger.entries import REVIEW, TOMBSTONE_KINDS
from service.ledger.export_checking import MALFORMED
from service.ledger.leaves import covers, decisions_digest, read_head, read_opened
from service.ledger.sealing import CannotBeOpened, Sealed, Vault, owner_of, unpack
from service.ledger.tables import REVIEWED, events, explanations, log, subjects

_EXPLANATION_COLUMNS = (
    "id",
    "tenant",
    "created",
    "key_id",
    "model",
    "version",
    "method",
    "label",
    "converged",
    "retention",
)
_EVENT_COLUMNS = ("kind", "tenant", "created", "key_id", "about")


def explanation_faults(
    connection: Connection,
    vault: Vault,
    row: Row[Any],
    tags: Sequence[Row[Any]],
    record: bytes | None,
    *,
    is_reviewed: bool,
) -> list[str]:
    """Where a row of `explanations`, its `tags` and its personal part differ from its `record` in the log.

    `record` is None once it was erased. `is_reviewed` says whether the log has a review of the explanation, which its
    tags must say too.
    """
    name = f"row {row.seq}"
    if record is None:
        return _erasure_faults(connection, row, without_record=True)
    try:
        head = read_head(record)
    except MALFORMED:
        return [f"{name}: the log record is not an explanation"]
    faults = [
        f"{name}: column {column} differs from the log record"
        for column in _EXPLANATION_COLUMNS
        if getattr(row, column) != getattr(head, column)
    ]
    stored_tags = sorted((tag.name, tag.value) for tag in tags)
    expected_tags = sorted([*head.tags, *([REVIEWED] if is_reviewed else [])])
    if stored_tags != expected_tags or any((tag.tenant, tag.created) != (row.tenant, row.created) for tag in tags):
        faults.append(f"{name}: its tags differ from the log")
    if row.tombstone is not None or row.personal is None:
        return faults + _erasure_faults(connection, row, without_record=False)
    if head.sealed is not None and hashlib.sha256(row.personal).hexdigest() != head.sealed:
        faults.append(f"{name}: the sealed personal part does not match its hash in the log record")
    try:
        sealed = unpack(row.personal)
        plaintext = vault.open(row.personal, row.id, _subject_key(connection, vault, sealed))
        opened = read_opened(record, plaintext)
    except (CannotBeOpened, *MALFORMED) as error:
        return [*faults, f"{name}: {error}"]
    if hashlib.sha256(plaintext).hexdigest() != head.personal_commitment:
        faults.append(f"{name}: the personal part does not match its commitment in the log record")
    decision = None if opened.decision_id is None else vault.decision(row.tenant, opened.decision_id)
    if not row.decision_id == sealed.decision == decision:
        faults.append(f"{name}: column decision_id differs from the sealed personal part")
    lookups = (None,) if opened.subject is None else vault.lookups(row.tenant, opened.subject)
    if row.subject != sealed.token or _lookup_of(connection, sealed.token) not in lookups:
        faults.append(f"{name}: column subject differs from the sealed personal part")
    return faults


def event_faults(row: Row[Any], record: bytes | None) -> list[str]:
    """Where a row of `events` differs from its record in the log."""
    try:
        event = orjson.loads(record or b"")
        differing = [column for column in _EVENT_COLUMNS if getattr(row, column) != event[column]]
    except MALFORMED:
        return [f"row {row.seq}: the log record is not an event"]
    return [f"row {row.seq}: column {column} differs from the log record" for column in differing]


def reviewed_places(connection: Connection, rows: Collection[Row[Any]]) -> set[int]:
    """The places of those explanations among `rows` that a review of their own tenant is about."""
    is_about_them = events.c.about.in_([row.id for row in rows])
    reviewed = {
        (review.tenant, review.about)
        for review in connection.execute(
            select(events.c.tenant, events.c.about).where(events.c.kind == REVIEW, is_about_them)
        )
    }
    return {row.seq for row in rows if (row.tenant, row.id) in reviewed}


def tombstone_faults(connection: Connection, place: int, details: Mapping[str, Any]) -> list[str]:
    """Whether all that the tombstone at `place` names was erased by it, and it commits to their decisions."""
    faults = decision_faults(connection, place, details)
    for first, last in details["records"]:
        is_named = explanations.c.seq.between(first, last)
        is_not_erased = or_(explanations.c.tombstone.is_(None), explanations.c.tombstone != place)
        for seq in connection.scalars(select(explanations.c.seq).where(is_named, is_not_erased)):
            faults.append(f"row {seq}: the tombstone at row {place} says that it was erased, but it was not")
    return faults


def decision_faults(connection: Connection, place: int, details: Mapping[str, Any]) -> list[str]:
    """Whether the decisions of the rows that the tombstone at `place` erased are those that it commits to."""
    if "decisions" not in details:
        return []
    has_decision = select(explanations.c.seq, explanations.c.decision_id).where(explanations.c.decision_id.is_not(None))
    decisions: dict[int, str] = {}
    for first, last in details["records"]:
        is_erased_here = (explanations.c.seq.between(first, last), explanations.c.tombstone == place)
        decisions |= {row.seq: row.decision_id for row in connection.execute(has_decision.where(*is_erased_here))}
    if decisions_digest(decisions) == details["decisions"]:
        return []
    return [f"row {place}: the decisions of the rows that this tombstone erased differ from those that it commits to"]


def _erasure_faults(connection: Connection, row: Row[Any], *, without_record: bool) -> list[str]:
    """Whether a tombstone names an erased row, and nothing personal is left in it."""
    if any(value is not None for value in (row.personal, row.subject)):
        return [f"row {row.seq}: it is marked as erased, but still holds personal data"]
    record = None
    if row.tombstone is not None:
        record = connection.scalar(select(log.c.record).where(log.c.seq == row.tombstone))
    try:
        event = orjson.loads(record or b"")
        is_tombstone = event["kind"] in TOMBSTONE_KINDS
        is_named = is_tombstone and covers(event["details"], row.seq, without_record=without_record)
        is_committed = "decisions" in event["details"]
    except MALFORMED:
        is_named = is_committed = False
    if not is_named:
        return [f"row {row.seq}: its personal part is missing, and no tombstone accounts for it"]
    if row.decision_id is not None and not is_committed:
        return [f"row {row.seq}: column decision_id is set, but the tombstone commits to no decision"]
    return []


def _subject_key(connection: Connection, vault: Vault, sealed: Sealed) -> bytes | None:
    if sealed.token is None:
        return None
    row = connection.execute(select(subjects).where(subjects.c.token == sealed.token)).one_or_none()
    return None if row is None else vault.unwrap(row.key, owner_of(row.token, row.lookup))


def _lookup_of(connection: Connection, token: str | None) -> str | None:
    return None if token is None else connection.scalar(select(subjects.c.lookup).where(subjects.c.token == token))
