"""What the ledger keeps, how it is asked for, and what it gives back."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from service.errors import AnswerableError, InvalidRequest
from service.ledger.naming import normal

LONGEST_TEXT = 200
"""Characters in any text column. Four-byte characters in the widest index then stay under PostgreSQL's limit
of 2,704 bytes an index row; one longer value would fail the whole group of appends it shares a transaction
with."""


EXPLANATION = "explanation"
"""The kind of the log's rows that are no events."""

STANDARD = "standard"
"""The retention class of an entry that names none."""


ERASURE, RETENTION = "erasure", "retention"
TOMBSTONE_KINDS = frozenset({ERASURE, RETENTION})
"""The kinds of the events that say that personal parts were erased: for a person, or because their time was over."""

HOLD, RELEASE = "hold", "release"
"""The kinds of the events that forbid to erase a subject's data, and that allow it again."""

SET_REMOVED = "baseline_removed"
"""The kind of the event that says that a baseline set was removed."""

LOOKUP = "lookup"
"""The kind of the event that says who read what."""

REVIEW = "review"
"""The kind of the event that says what a person found of an explanation."""

KEY_CREATED, KEY_ROTATED, KEY_CHANGED, KEY_REVOKED = "key_created", "key_rotated", "key_changed", "key_revoked"
"""The kinds of the events that say what became of a key: made, made in the place of another, changed, ended."""

CLOCK = "clock"
"""The kind of the event that says that a host's clock was behind the ledger's time, and by how much."""

JOB_CREATED, JOB_ENDED, JOB_FORGOTTEN = "job_created", "job_ended", "job_forgotten"
"""The kinds of the events that say what became of a job: made, ended, deleted some time after that."""

JOB_KEPT = "job_kept"
"""The kind of the event that says how a job stood when the log began to hold what becomes of jobs."""

RESTORED, FILE_REPAIRED = "restored", "file_repaired"
"""The kinds of the events that say that the log is not what was signed before, and that a file's torn end was cut."""

KEY_KEPT = "key_kept"
"""The kind of the event that says how a key stood when the log began to hold all that its row does."""


class EntryRefused(AnswerableError):
    """The database holds something that excludes this entry, an explanation of the same id for instance."""

    status = 500
    title = "Record refused"


class LogChanged(AnswerableError):
    """The log is not what was written, or not what was signed: rows are gone, or were changed."""

    status = 500
    title = "Log changed"


class MalformedCursor(InvalidRequest):
    title = "Malformed cursor"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One explanation to be recorded.

    `created` is in microseconds since the epoch, UTC. `record` is what may be kept for ever and stands in clear, and
    `personal` the part that belongs to a person, both as JSON bytes. Sealed with the personal part, and found by
    pseudonym, are `subject` and `decision_id`; all else stands in clear, so tags must name no person. `label` is the
    predicted label, `cohort` the tags of the request's context, `flags` the review rules that fired. `retention` names
    the class that says how long the personal part is kept. `job_row` is the job, and the number of its row, that this
    explains: once either has ended, by an erasure say, the entry is refused.

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
            _check_text(name, text)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something else that the log tells of: a look-up, an erasure, a hold, a review, a change of keys.

    `kind` is one word, `key_id` says who did it, `about` is the id of the explanation or the token of the subject it
    is about. `details` hold what JSON can: facts, pseudonyms, never a person's data, for an event is never erased.
    `created` is in microseconds since the epoch, UTC.

    Raises InvalidRequest for a text that is too long or that a database cannot hold, TypeError for details that are
    no JSON: here, not in a group with others'.
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
            _check_text(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class StoredEvent(Event):
    """An event as it stands in the log, at its place `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class RequestKey:
    """The `Idempotency-Key` of a request, by a pseudonym, and what it was sent with, by a digest (`Vault.request_key`).

    Neither says anything of a person: who does not know the client's key cannot even try a guess of the body.
    """

    lookup: str
    digest: str

    def remembered(self, answer: Mapping[str, Any]) -> Remembered:
        """What is kept of the answer. Raises TypeError for what is no JSON."""
        return Remembered(self.lookup, self.digest, orjson.dumps(dict(answer)), time.time_ns() // 1000)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is kept of the answer to a request with a key: JSON from which the reply is built again. It holds ids of
    records, counts and times, and nothing of a person: that is read from the records, which an erasure reaches.

    `created` is in microseconds since the epoch, UTC. `seq` is the place in the log of the last of its records, once it
    is stored, if these stand in the log.
    """

    lookup: str
    digest: str
    answer: bytes
    created: int
    seq: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stored(Entry):
    """An entry as it stands in the log.

    `seq` is its place: 1, 2, 3 ... without gaps, in the order of commit. `logged` are the bytes that the log holds of
    it and `leaf` is their leaf hash, SHA-256(0x00 || logged) (RFC 9162, 2.1.1). `opened` is the plaintext of its
    sealed part, to which the log is committed by the SHA-256; like `personal` it is empty once erased. `flags` are in
    alphabetical order, each once. `tombstone` is the place of the event that erased its personal part, None while it
    is there.
    """

    seq: int
    leaf: bytes
    logged: bytes
    opened: bytes
    tombstone: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Conditions that all hold for what is found; None asks for nothing.

    `created_from` is included and `created_to` excluded, in microseconds since the epoch, UTC. `cohort` holds
    (name, value) pairs, `reviewed` asks whether there is an event of the kind REVIEW about it. A version is only unique
    within its model, so it is asked for together with one: InvalidRequest otherwise.
    """

    model: str | None = None
    version: str | None = None
    subject: str | None = None
    decision_id: str | None = None
    created_from: int | None = None
    created_to: int | None = None
    converged: bool | None = None
    flag: str | None = None
    label: str | None = None
    reviewed: bool | None = None
    cohort: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.version is not None and self.model is None:
            raise InvalidRequest("A version is searched for together with its model.")
        _refuse_backward(self)
        for name in ("model", "version", "decision_id", "flag", "label"):
            _check_text(name, getattr(self, name))
        _check_text("subject", None if self.subject is None else normal(self.subject))
        for name, value in self.cohort:
            _check_text("cohort", name)
            _check_text(f"cohort.{name}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSearch:
    """Conditions that all hold for the events that are found; None asks for nothing. Times as in `Search`."""

    kind: str | None = None
    about: str | None = None
    created_from: int | None = None
    created_to: int | None = None

    def __post_init__(self) -> None:
        _refuse_backward(self)
        for name in ("kind", "about"):
            _check_text(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events from the newest to the oldest, and where the next page begins; None after the last one."""

    events: tuple[StoredEvent, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """The id of an explanation that was searched for, and the pseudonym of its subject, as `Vault.lookup` gives it."""

    id: str
    subject: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries from the newest to the oldest, and where the next page begins; None after the last one.

    `asked` is the search with pseudonyms for the subject and the decision; None where nobody goes by that name.
    """

    entries: tuple[Stored, ...]
    next_cursor: str | None
    asked: Search | None


def read_subject(given: str) -> str:
    """The subject of a new record, as it is kept: one that every route can name, to find, hold and erase it.

    Raises InvalidRequest.
    """
    name = normal(given)
    _check_text("subject", name)
    if not name:
        raise InvalidRequest("a subject is not empty; leave it out where there is none")
    for character in name:
        if unicodedata.category(character) == "Cc":
            raise InvalidRequest(f"a subject holds no control character, and this one has U+{ord(character):04X}")
    return name


def _refuse_backward(search: Search | EventSearch) -> None:
    start, end = search.created_from, search.created_to
    if start is not None and end is not None and start > end:
        raise InvalidRequest("the period ends before it begins: `from` is later than `to`")


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


def _check_text(name: str, text: str | None) -> None:
    if text is None or (text.isascii() and len(text) <= LONGEST_TEXT and "\0" not in text):
        return
    if len(text) > LONGEST_TEXT:
        raise InvalidRequest(f"{name} is longer than {LONGEST_TEXT} characters.")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{name} holds a character that cannot be stored.")
