"""What the rows of every job must be, according to the events of the log.

The event that creates a job holds who asked for what, and a digest of its rows; the event that ends it holds its
outcome and theirs. In between only the database knows the job's progress, who runs it and what it waits for. Two things
can be checked even then: a row that is done has its explanation, and what is sealed in a job or in one of its rows can
be opened for that job or row only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select

from service.ledger.entries import JOB_CREATED, JOB_ENDED, JOB_FORGOTTEN, JOB_KEPT
from service.ledger.sealing import CannotBeOpened, Vault
from service.ledger.stored_jobs import EVALUATE
from service.ledger.tables import explanations, job_rows, jobs, subjects

JOB_KINDS = frozenset({JOB_CREATED, JOB_ENDED, JOB_KEPT, JOB_FORGOTTEN})

CREATION_COLUMNS = ("kind", "created", "total", "failed")
END_COLUMNS = ("state", "ended", "done", "failed", "detail", "total")
_UNFINISHED = ("waiting", "running")
_MALFORMED = (CannotBeOpened, ValueError, TypeError, KeyError, AttributeError)


class RowsDigest:
    """The SHA-256 over the rows of a job, a line of JSON each, in the order of their numbers."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, *values: object) -> None:
        """Adds the next row."""
        self._digest.update(orjson.dumps(values) + b"\n")
        self.count += 1

    @property
    def count_and_digest(self) -> list[object]:
        """The number of rows and the digest, as events hold them."""
        return [self.count, self._digest.hexdigest()]


def add_identity(digest: RowsDigest, row: Any) -> None:
    """Adds what never changes in a row."""
    digest.add(row.number, row.explanation_id, row.source)


def add_outcome(digest: RowsDigest, row: Any) -> None:
    """Adds the outcome of a row."""
    digest.add(row.number, row.outcome, row.detail)


def end_details(connection: Connection, job: Row[Any]) -> dict[str, Any]:
    """What the event of a job's end says about it and its rows."""
    digest = RowsDigest()
    columns = (job_rows.c.number, job_rows.c.outcome, job_rows.c.detail)
    for row in connection.execute(select(*columns).where(job_rows.c.job_id == job.id).order_by(job_rows.c.number)):
        add_outcome(digest, row)
    return {**{name: getattr(job, name) for name in END_COLUMNS}, "outcomes": digest.count_and_digest}


class JobHistory:
    """Follows the events of jobs in the order of the log."""

    def __init__(self) -> None:
        self._created: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, Mapping[str, Any]] = {}

    def follow(self, event: Mapping[str, Any]) -> list[str]:
        """Takes the next event of a job; returns what in it contradicts the events before it.

        Raises KeyError for an event that is not about a job.
        """
        kind, job_id, details = event["kind"], event["about"], event["details"]
        if kind == JOB_ENDED:
            self._ended[job_id] = details
            return []
        if kind == JOB_FORGOTTEN:
            self._created.pop(job_id, None)
            self._ended.pop(job_id, None)
            return []
        is_known = job_id in self._created
        self._created[job_id] = {"tenant": event["tenant"], "key_id": details["key_id"], "rows": details["rows"]} | {
            name: details[name] for name in CREATION_COLUMNS
        }
        if details.get("state") is not None:
            self._ended[job_id] = details
        return [f"job {job_id}: two events created it"] if is_known else []

    def faults(self, connection: Connection, vault: Vault) -> Iterator[str]:
        """Where the stored jobs and their rows differ from what the events say."""
        missing = set(self._created)
        for job in connection.execute(select(jobs).order_by(jobs.c.id)).all():
            created = self._created.get(job.id)
            if created is None:
                yield f"job {job.id}: no event in the log created it"
                continue
            missing.discard(job.id)
            yield from (f"job {job.id}: {fault}" for fault in _job_faults(connection, vault, job, created, self._ended))
        yield from (f"job {job_id} is missing" for job_id in sorted(missing))


def _job_faults(
    connection: Connection,
    vault: Vault,
    job: Row[Any],
    created: Mapping[str, Any],
    ends: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    end = ends.get(job.id)
    yield from _differing(job, created, ("tenant", "key_id", "kind", "created"))
    if end is None:  # the total of an export is only known later
        yield from _differing(job, created, ("failed",) if created["total"] is None else ("failed", "total"))
    if end is not None:
        yield from _differing(job, end, END_COLUMNS)
        if job.owner is not None or job.leased_until is not None:
            yield "it has ended, but still has an owner or a lease"
    elif job.state not in _UNFINISHED or job.ended is not None:
        yield "no event in the log ended it"
    try:
        vault.open(job.spec, job.id, None)
    except _MALFORMED:
        yield "column spec is not what was written"
    identities, outcomes = RowsDigest(), RowsDigest()
    query = select(job_rows).where(job_rows.c.job_id == job.id).order_by(job_rows.c.number)
    for row in connection.execute(query.execution_options(yield_per=100)):
        add_identity(identities, row)
        add_outcome(outcomes, row)
        yield from _row_faults(connection, vault, job, row, is_over=end is not None)
    if identities.count_and_digest != created["rows"]:
        yield "its rows are not those that it was created with"
    if end is not None and outcomes.count_and_digest != end["outcomes"]:
        yield "the outcomes of its rows differ from the event that ended it"


def _differing(job: Row[Any], details: Mapping[str, Any], columns: Iterable[str]) -> Iterator[str]:
    for name in columns:
        if getattr(job, name) != details[name]:
            yield f"column {name} differs from its events in the log"


def _row_faults(connection: Connection, vault: Vault, job: Row[Any], row: Row[Any], *, is_over: bool) -> Iterator[str]:
    name = f"row {row.number}"
    if is_over or row.outcome is not None:
        if row.payload is not None or row.subject is not None:
            yield f"{name} has ended, but still holds an input or names a person"
        if (
            job.kind != EVALUATE
            and row.outcome == "done"
            and not _is_explained(connection, job.tenant, row.explanation_id)
        ):
            yield f"{name} is done, but its explanation is missing"
        return
    try:
        is_intact = row.subject in _pseudonyms_of(connection, vault, job, row)
    except _MALFORMED:
        is_intact = False
    if not is_intact:
        yield f"{name} is not what was written: its input, or the person whose input it is, was changed"


def _is_explained(connection: Connection, tenant: str, explanation_id: str) -> bool:
    wanted = select(explanations.c.seq).where(explanations.c.id == explanation_id, explanations.c.tenant == tenant)
    return connection.execute(wanted).first() is not None


def _pseudonyms_of(
    connection: Connection, vault: Vault, job: Row[Any], row: Row[Any]
) -> tuple[str, ...] | tuple[str | None]:
    """The pseudonyms of the person whose input a row holds, one for each spelling of the name; None for nobody.

    Raises CannotBeOpened or, for a malformed payload, ValueError, TypeError, KeyError or AttributeError.
    """
    if row.payload is not None:
        subject = orjson.loads(vault.open(row.payload, row.explanation_id, None))["context"]["subject"]
        return (None,) if subject is None else vault.lookups(job.tenant, subject)
    if row.source is None:
        raise ValueError("an unfinished row has neither an input nor a source")
    query = select(subjects.c.lookup).join_from(explanations, subjects, subjects.c.token == explanations.c.subject)
    return (connection.scalar(query.where(explanations.c.id == row.source, explanations.c.tenant == job.tenant)),)
