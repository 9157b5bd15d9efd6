"""What a row of the log says, as bytes: written once, hashed, and never written again.

The leaf is the hash of exactly these bytes. They hold everything that the other tables hold of the row, so that
nothing that is stored can be changed unseen: columns and tags in clear, the personal part by its digests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.ledger.entries import EXPLANATION, STANDARD, Entry, Event
from service.ledger.sealing import Subject, Vault
from service.ledger.tables import COHORT, FLAG

SCHEMA = 1
"""The version of the records written here. Explanations recorded before there was one have no `schema`."""

_CONTENT = b',"content":'


@dataclass(frozen=True, slots=True)
class Written:
    """An explanation as it goes into the log: the record, the tags, and the columns that only the ledger knows."""

    record: bytes
    tags: list[tuple[str, str]]
    sealed: bytes
    subject: str | None
    decision: str | None


def event_record(event: Event) -> bytes:
    """The record of an event, as JSON."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": event.kind,
        "tenant": event.tenant,
        "created": event.created,
        "key_id": event.key_id,
        "about": event.about,
        "details": dict(event.details),
    }
    return orjson.dumps(content)


def write_explanation(entry: Entry, vault: Vault, subject: Subject | None) -> Written:
    """The record of an explanation, with its personal part sealed for the subject."""
    decision = None if entry.decision_id is None else vault.decision(entry.tenant, entry.decision_id)
    tags = _tags_of(entry)
    salted = {"salt": os.urandom(16).hex(), "subject": entry.subject, "decision_id": entry.decision_id}
    plaintext = _with_content(salted, entry.personal)
    sealed = vault.seal(plaintext, entry.id, subject, decision)
    head = {
        "schema": SCHEMA,
        "kind": EXPLANATION,
        "id": entry.id,
        "tenant": entry.tenant,
        "created": entry.created,
        "key_id": entry.key_id,
        "model": entry.model,
        "version": entry.version,
        "method": entry.method,
        "label": entry.label,
        "converged": entry.converged,
        "retention": entry.retention,
        "tags": tags,
        "personal_commitment": hashlib.sha256(plaintext).hexdigest(),
        "sealed": hashlib.sha256(sealed).hexdigest(),
    }
    record = _with_content(head, entry.record)
    return Written(record, tags, sealed, None if subject is None else subject.token, decision)


def _tags_of(entry: Entry) -> list[tuple[str, str]]:
    """The names and values of an entry's tags, in order, each once."""
    tags = {(FLAG, flag) for flag in entry.flags} | {(f"{COHORT}{name}", value) for name, value in entry.cohort.items()}
    return sorted(tags)


@dataclass(frozen=True, slots=True)
class Head:
    """What the record of an explanation says beside its content. `sealed` is None where there was no `schema` yet."""

    id: str
    tenant: str
    created: int
    key_id: str
    model: str
    version: str
    method: str
    label: str | None
    converged: bool
    retention: str
    tags: tuple[tuple[str, str], ...]
    personal_commitment: str
    sealed: str | None


def content_of(record: bytes) -> bytes:
    """The content of an explanation's record: exactly the bytes that were given."""
    return _content(record) if has_schema(record) else record


def _with_content(head: dict[str, Any], content: bytes) -> bytes:
    """The head as JSON, with `content` as its last member: the bytes as they are, which must be JSON."""
    return b"".join((orjson.dumps(head)[:-1], _CONTENT, content, b"}"))


def _content(whole: bytes) -> bytes:
    """No string of a head can look like the member's name, for its quotes would be escaped."""
    return whole[whole.index(_CONTENT) + len(_CONTENT) : -1]


def has_schema(record: bytes) -> bool:
    """Whether the record is one of those written here."""
    return record.startswith(b'{"schema":')


def read_head(record: bytes) -> Head:
    """What the record of an explanation says. Raises ValueError, TypeError or KeyError for one that is none."""
    said = orjson.loads(record)
    if not has_schema(record):
        return _head_before_schema(said)
    if (said["schema"], said["kind"]) != (SCHEMA, EXPLANATION):
        raise ValueError("this is no explanation")
    given = {name: said[name] for name in Head.__slots__}
    return Head(**{**given, "tags": tuple((str(name), str(value)) for name, value in said["tags"])})


def _head_before_schema(said: dict[str, Any]) -> Head:
    tags = {(FLAG, flag) for flag in said["flags"]} | {(f"{COHORT}{name}", tag) for name, tag in said["cohort"].items()}
    return Head(
        said["id"],
        said["tenant"],
        said["created"],
        said["key_id"],
        said["model"]["name"],
        said["model"]["version"],
        said["method"],
        said["prediction"].get("label"),
        said["converged"],
        STANDARD,
        tuple(sorted(tags)),
        said["personal_commitment"],
        None,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """The personal part of an explanation: whom and what it concerns, and the caller's own content."""

    subject: str | None
    decision_id: str | None
    personal: bytes


def read_opened(record: bytes, plaintext: bytes) -> Opened:
    """Reads the plaintext of a sealed part."""
    said = orjson.loads(plaintext)
    if has_schema(record):
        return Opened(said["subject"], said["decision_id"], _content(plaintext))
    return Opened(said["subject"], orjson.loads(record).get("decision_id"), plaintext)


def decisions_digest(decisions: Mapping[int, str]) -> str:
    """What a tombstone says of the decisions, by place and pseudonym, whose explanations it erased: so none of them can
    be changed, and nothing can be read from it."""
    lines = (f"{seq} {decision}\n" for seq, decision in sorted(decisions.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def covers(details: Mapping[str, Any], seq: int, *, without_record: bool) -> bool:
    """Whether a tombstone with these details erased the record at that place: its personal part, or all of it."""
    spans = details.get("without_record", []) if without_record else details["records"]
    return any(first <= seq <= last for first, last in spans)
