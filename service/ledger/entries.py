"""What the ledger records: explanations and events, before and after they are stored."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from service.errors import AnswerableError, InvalidRequest
from service.ledger.naming import normal

MAX_TEXT_LENGTH = 200
"""Characters in any text column. Even with four-byte characters the widest index then stays under PostgreSQL's limit of
2,704 bytes for an index row; one longer value would fail the whole group of appends it shares a transaction with."""

EXPLANATION = "explanation"
"""The kind of those rows of the log that are not events."""

STANDARD = "standard"
"""The retention class of an entry that names none."""

ERASURE, RETENTION = "erasure", "retention"
TOMBSTONE_KINDS = frozenset({ERASURE, RETENTION})
"""The kinds of the events that erase personal parts: those of a person, or those kept for as long as allowed."""

HOLD, RELEASE = "hold", "release"
"""The kinds of the events that make a legal hold on a subject's data, and release it."""

SET_REMOVED = "baseline_removed"
"""The kind of the event of a baseline set's removal."""

LOOKUP = "lookup"
"""The kind of the event of a look-up: who read what."""

REVIEW = "review"
"""The kind of the event of a person's review of an explanation."""

KEY_CREATED, KEY_ROTATED, KEY_CHANGED, KEY_REVOKED = "key_created", "key_rotated", "key_changed", "key_revoked"
"""The kinds of the events of a caller's key: created, created to replace another, changed, revoked."""

CLOCK = "clock"
"""The kind of the event of a host's clock being behind the ledger's time."""

JOB_CREATED, JOB_ENDED, JOB_FORGOTTEN = "job_created", "job_ended", "job_forgotten"
"""The kinds of the events of a job: created, ended, deleted some time after its end."""

JOB_KEPT = "job_kept"
"""The kind of the event that holds an older job as it was when the log began to hold events of jobs."""

RESTORED, FILE_REPAIRED = "restored", "file_repaired"
"""The kinds of the events of a log that is not what was signed before, and of a file whose incomplete end was cut."""

KEY_KEPT = "key_kept"
"""The kind of the event that holds an older key as it was when the log began to hold whole rows of keys."""


class EntryRefused(AnswerableError):
    """The database holds something that rules out this entry, for instance an explanation of the same id."""

    status = 500
    title = "Record refused"


class LogChanged(AnswerableError):
    """The log is not what was written or signed: rows are missing or were changed."""

    status = 500
    title = "Log changed"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One explanation to be recorded.

    `created` is in microseconds since the epoch, UTC. `record` is the part that is kept for ever, in clear, `personal`
    the part that belongs to a person, both as JSON bytes. `subject` and `decision_id` are sealed with the personal part
    and found by pseudonym; all else is in clear, so tags must not name a person. `label` is the predicted label,
    `further_labels` those that were predicted beside it, `cohort` the tags of the request's context, `flags` the review
    rules that fired. `retention` names the class that says how long the personal part is kept. `job_row` is the id of
    the job and the number of the row that this explains: once either has ended, for instance by an erasure, the entry
    is refused.

    Raises InvalidRequest for a text that is too long or that a database cannot hold.
    """

    id: str
    tenant: str
    created: int
    model: str
    version: str
    method: str
    converged: bool
    key_id: str
    record: bytes
    personal: bytes
    label: str | None = None
    further_labels: tuple[str, ...] = ()
    decision_id: str | None = None
    subject: str | None = None
    cohort: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    retention: str = STANDARD
    job_row: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if self.subject is not None:
            object.__setattr__(self, "subject", normal(self.subject))
        for name, text in _texts(self):
            check_text(name, text)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything else that the log records: a look-up, an erasure, a hold, a review, a change of keys.

    `kind` is one word, `key_id` says who did it, `about` is the id of the explanation or the token of the subject it
    is about. `details` are JSON: facts and pseudonyms, never a person's data, since an event is never erased.
    `created` is in microseconds since the epoch, UTC.

    Raises InvalidRequest for a text that is too long or that a database cannot hold, TypeError for details that are
    not JSON: here, where no other append shares the transaction.
    """

    kind: str
    tenant: str
    key_id: str
    about: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: time.time_ns() // 1000)

    def __post_init__(self) -> None:
        if self.kind == EXPLANATION:
            raise ValueError("an explanation is an Entry")
        orjson.dumps(dict(self.details))
        for name in ("kind", "tenant", "key_id", "about"):
            check_text(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class StoredEvent(Event):
    """An event as it is in the log, at its place `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A pseudonym of a request's `Idempotency-Key`, and a digest of the request (`Vault.request_key`).

    Neither says anything about a person: without the client's key nobody can even test a guess of the body.
    """

    lookup: str
    digest: str

    def remembered(self, answer: Mapping[str, Any]) -> Remembered:
        """What is remembered of an answer. Raises TypeError for one that is not JSON."""
        return Remembered(self.lookup, self.digest, orjson.dumps(dict(answer)), time.time_ns() // 1000)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is remembered of the answer to a request with a key: JSON from which the reply is built again. It holds ids
    of records, counts and times, and no personal data: that is read from the records, where it can be erased.

    `created` is in microseconds since the epoch, UTC. `seq` is the place in the log of the last of its records, once
    they are stored; None where it has none in the log.
    """

    lookup: str
    digest: str
    answer: bytes
    created: int
    seq: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stored(Entry):
    """An entry as it is in the log.

    `seq` is its place: 1, 2, 3 ... without gaps, in the order of commit. `logged` are the bytes of its log record and
    `leaf` is their leaf hash, SHA-256(0x00 || logged) (RFC 9162, 2.1.1). `opened` is the plaintext of its sealed
    part, whose SHA-256 is in the log; like `personal` it is empty once erased, and where it cannot be opened. `flags`
    and `further_labels` are in alphabetical order, each once. `tombstone` is the place of the event that erased its
    personal part, None while that is there.
    """

    seq: int
    leaf: bytes
    logged: bytes
    opened: bytes
    tombstone: int | None = None


def read_subject(text: str) -> str:
    """The subject of a new record in its stored form, which every route can name to find, hold and erase it.

    Raises InvalidRequest.
    """
    name = normal(text)
    check_text("subject", name)
    if not name:
        raise InvalidRequest("the subject is empty; leave it out where there is none")
    for character in name:
        if unicodedata.category(character) == "Cc":
            raise InvalidRequest(
                f"the subject holds the control character U+{ord(character):04X}, which is not allowed"
            )
    return name


def _texts(entry: Entry) -> Iterator[tuple[str, str | None]]:
    yield "id", entry.id
    yield "tenant", entry.tenant
    yield "model", entry.model
    yield "version", entry.version
    yield "method", entry.method
    yield "key_id", entry.key_id
    yield "label", entry.label
    yield "decision_id", entry.decision_id
    yield "subject", entry.subject
    yield "retention", entry.retention
    for name, value in entry.cohort.items():
        yield "cohort", name
        yield "cohort value", value
    for flag in entry.flags:
        yield "flag", flag
    for label in entry.further_labels:
        yield "label", label


def check_text(name: str, text: str | None) -> None:
    """Raises InvalidRequest for a text that is too long for its column, or that a database cannot store."""
    if text is None or (text.isascii() and len(text) <= MAX_TEXT_LENGTH and "\0" not in text):
        return
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidRequest(f"{name} is longer than {MAX_TEXT_LENGTH} characters")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{name} holds a character that cannot be stored")
