"""The records of the log as bytes, which are written once, hashed, and never serialised again.

The leaf is the hash of exactly these bytes. They hold everything that the other tables hold of the row, so that no
stored value can be changed unnoticed: columns and tags in clear, digests of the personal part.
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
from service.ledger.tables import COHORT, FLAG, LABEL

SCHEMA = 1
"""The version of the records written here. The oldest explanations have no `schema`."""

_CONTENT = b',"content":'


@dataclass(frozen=True, slots=True)
class Written:
    """An explanation as it is stored: its record in the log, its tags, and the columns that the ledger itself fills."""

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
    tags = {(FLAG, flag) for flag in entry.flags} | {(LABEL, label) for label in entry.further_labels}
    return sorted(tags | {(f"{COHORT}{name}", value) for name, value in entry.cohort.items()})


@dataclass(frozen=True, slots=True)
class Head:
    """What the record of an explanation holds beside its content. `sealed` is None in records without a `schema`."""

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
    """The content of an explanation's record: exactly the bytes of `Entry.record`."""
    return _content(record) if has_schema(record) else record


def _with_content(head: dict[str, Any], content: bytes) -> bytes:
    """The head as JSON, with `content`, which must be JSON, as its last member, byte for byte."""
    return b"".join((orjson.dumps(head)[:-1], _CONTENT, content, b"}"))


def _content(whole: bytes) -> bytes:
    """The content of what `_with_content` wrote. No string in a head can look like the member's name, since its quotes
    would be escaped."""
    return whole[whole.index(_CONTENT) + len(_CONTENT) : -1]


def has_schema(record: bytes) -> bool:
    """Whether the record has a schema, or is one of the oldest."""
    return record.startswith(b'{"schema":')


def read_head(record: bytes) -> Head:
    """Reads the record of an explanation. Raises ValueError, TypeError or KeyError for any other record."""
    content = orjson.loads(record)
    if not has_schema(record):
        return _head_before_schema(content)
    if (content["schema"], content["kind"]) != (SCHEMA, EXPLANATION):
        raise ValueError("not an explanation")
    members = {name: content[name] for name in Head.__slots__}
    return Head(**{**members, "tags": tuple((str(name), str(value)) for name, value in content["tags"])})


def _head_before_schema(content: dict[str, Any]) -> Head:
    tags = {(FLAG, flag) for flag in content["flags"]} | {
        (f"{COHORT}{name}", tag) for name, tag in content["cohort"].items()
    }
    return Head(
        content["id"],
        content["tenant"],
        content["created"],
        content["key_id"],
        content["model"]["name"],
        content["model"]["version"],
        content["method"],
        content["prediction"].get("label"),
        content["converged"],
        STANDARD,
        tuple(sorted(tags)),
        content["personal_commitment"],
        None,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """The personal part of an explanation: its subject, its decision, and the bytes of `Entry.personal`."""

    subject: str | None
    decision_id: str | None
    personal: bytes


def read_opened(record: bytes, plaintext: bytes) -> Opened:
    """Reads the plaintext of a sealed part."""
    content = orjson.loads(plaintext)
    if has_schema(record):
        return Opened(content["subject"], content["decision_id"], _content(plaintext))
    return Opened(content["subject"], orjson.loads(record).get("decision_id"), plaintext)


def decisions_digest(decisions: Mapping[int, str]) -> str:
    """A tombstone's digest of the decisions, by place and pseudonym, whose explanations it erased: none of them can be
    changed unnoticed, and the digest reveals nothing."""
    lines = (f"{seq} {decision}\n" for seq, decision in sorted(decisions.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def covers(details: Mapping[str, Any], seq: int, *, without_record: bool) -> bool:
    """Whether a tombstone with these details erased the record at that place: its personal part, or all of it."""
    spans = details.get("without_record", []) if without_record else details["records"]
    return any(first <= seq <= last for first, last in spans)
