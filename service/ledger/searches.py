"""How the ledger is asked, and the pages that it answers with."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import InvalidRequest
from service.ledger.entries import Stored, StoredEvent, check_text
from service.ledger.naming import normal


class MalformedCursor(InvalidRequest):
    title = "Malformed cursor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Conditions that every result meets; None is no condition.

    `created_from` is included and `created_to` excluded, in microseconds since the epoch, UTC. `cohort` holds
    (name, value) pairs; `reviewed` is whether there is an event of the kind REVIEW about the explanation.

    Raises InvalidRequest for a version without its model, since a version is only unique within one, for a period that
    ends before it begins, and for a text that cannot be stored.
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
            raise InvalidRequest("a version can only be searched for together with its model")
        _refuse_reversed_period(self)
        for name in ("model", "version", "decision_id", "flag", "label"):
            check_text(name, getattr(self, name))
        check_text("subject", None if self.subject is None else normal(self.subject))
        for name, value in self.cohort:
            check_text("cohort", name)
            check_text(f"cohort.{name}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSearch:
    """Conditions that every event found meets; None is no condition. Times and errors are as in `Search`."""

    kind: str | None = None
    about: str | None = None
    created_from: int | None = None
    created_to: int | None = None

    def __post_init__(self) -> None:
        _refuse_reversed_period(self)
        for name in ("kind", "about"):
            check_text(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events from the newest to the oldest, and the cursor of the next page; None on the last page."""

    events: tuple[StoredEvent, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """The id of an explanation that a search found, and the pseudonym of its subject, as `Vault.lookup` returns it."""

    id: str
    subject: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries from the newest to the oldest, and the cursor of the next page; None on the last page.

    `asked` is the search with pseudonyms in place of the subject and the decision; None where the subject is unknown.
    """

    entries: tuple[Stored, ...]
    next_cursor: str | None
    asked: Search | None


def _refuse_reversed_period(search: Search | EventSearch) -> None:
    start, end = search.created_from, search.created_to
    if start is not None and end is not None and start > end:
        raise InvalidRequest("the period ends before it begins: `from` is later than `to`")
