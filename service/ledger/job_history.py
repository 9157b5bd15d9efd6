"""What the rows of every job must be, by the events of the log.

An event that makes a job holds who asked for what, and a digest of its rows; the one that ends it what became of it and
of them. Between the two the database alone knows how far a job is, who runs it and what it waits for; but a row that is
done has its explanation, and what a row still holds opens under its own name only. What a job is to do is sealed, and
opens for that job only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select

from service.ledger.entries import JOB_CREATED, JOB_ENDED, JOB_FORGOTTEN, JOB_KEPT
from service.ledger.sealing import CannotBeOpened, Vault
from service.ledger.tables import explanations, job_rows, jobs, subjects

JOB_KINDS = frozenset({JOB_CREATED, JOB_ENDED, JOB_KEPT, JOB_FORGOTTEN})

MADE = ("kind", "created", "total", "failed")
ENDED = ("state", "ended", "done", "failed", "detail", "total")
_UNFINISHED = ("waiting", "running")
_MALFORMED = (CannotBeOpened, ValueError, TypeError, KeyError, AttributeError)


class RowsDigest:
    """The SHA-256 of lines of JSON, one a row, in the order of the rows' numbers."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, *values: object) -> None:
        """The next row."""
        self._digest.update(orjson.dumps(values) + b"\n")
        self.count += 1

    @property
    def told(self) -> list[object]:
        """The number of rows and the digest, as an event has them."""
        return [self.count, self._digest.hexdigest()]


def add_made(digest: RowsDigest, row: Any) -> None:
    """What of a row never changes."""
    digest.add(row.number, row.explanation_id, row.source)


def add_outcome(digest: RowsDigest, row: Any) -> None:
    """What became of a row."""
    digest.add(row.number, row.outcome, row.detail)


def said_of_end(connection: Connection, job: Row[Any]) -> dict[str, Any]:
    """What the event of a job's end says of it and of its rows."""
    digest = RowsDigest()
    columns = (job_rows.c.number, job_rows.c.outcome, job_rows.c.detail)
    for row in connection.execute(select(*columns).where(job_rows.c.job_id == job.id).order_by(job_rows.c.number)):
        add_outcome(digest, row)
    return {**{name: getattr(job, name) for name in ENDED}, "outcomes": digest.told}


class JobHistory:
    """Follows the events of jobs in the order of the log."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, Mapping[str, Any]] = {}

    def follow(self, event: Mapping[str, Any]) -> list[str]:
        """Takes the next event of a job; returns what it says that cannot be. Raises KeyError for one of no job."""
        kind, job_id, details = event["kind"], event["about"], event["details"]
        if kind == JOB_ENDED:
            self._ended[job_id] = details
            return []
        if kind == JOB_FORGOTTEN:
            self._made.pop(job_id, None)
            self._ended.pop(job_id, None)
            return []
        is_known = job_id in self._made
        self._made[job_id] = {"tenant": event["tenant"], "key_id": details["key_id"], "rows": details["rows"]} | {
            name: details[name] for name in MADE
        }
        if details.get("state") is not None:
            self._ended[job_id] = details
        return [f"job {job_id}: it was made twice"] if is_known else []

    def faults(self, connection: Connection, vault: Vault) -> Iterator[str]:
        """What of all that is stored of jobs is not what the events say."""
        awaited = set(self._made)
        for job in connection.execute(select(jobs).order_by(jobs.c.id)).all():
            made = self._made.get(job.id)
            if made is None:
                yield f"job {job.id}: no event of the log tells of it"
                continue
            awaited.discard(job.id)
            yield from (f"job {job.id}: {fault}" for fault in _of_job(connection, vault, job, made, self._ended))
        yield from (f"job {job_id} is missing" for job_id in sorted(awaited))


def _of_job(
    connection: Connection, vault: Vault, job: Row[Any], made: Mapping[str, Any], ends: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    end = ends.get(job.id)
    yield from _differing(job, made, ("tenant", "key_id", "kind", "created"))
    if end is None:  # how many there are of an export is known later
        yield from _differing(job, made, ("failed",) if made["total"] is None else ("failed", "total"))
    if end is not None:
        yield from _differing(job, end, ENDED)
        if job.owner is not None or job.leased_until is not None:
            yield "it has ended, and somebody runs it"
    elif job.state not in _UNFINISHED or job.ended is not None:
        yield "no event of the log tells of its end"
    try:
        vault.open(job.spec, job.id, None)
    except _MALFORMED:
        yield "the column spec is not what was written"
    made_of, became = RowsDigest(), RowsDigest()
    query = select(job_rows).where(job_rows.c.job_id == job.id).order_by(job_rows.c.number)
    for row in connection.execute(query.execution_options(yield_per=100)):
        add_made(made_of, row)
        add_outcome(became, row)
        yield from _of_row(connection, vault, job, row, is_over=end is not None)
    if made_of.told != made["rows"]:
        yield "its rows are not those that it was made with"
    if end is not None and became.told != end["outcomes"]:
        yield "what became of its rows is not what was recorded"


def _differing(job: Row[Any], said: Mapping[str, Any], columns: Iterable[str]) -> Iterator[str]:
    for name in columns:
        if getattr(job, name) != said[name]:
            yield f"the column {name} is not what its events say"


def _of_row(connection: Connection, vault: Vault, job: Row[Any], row: Row[Any], *, is_over: bool) -> Iterator[str]:
    name = f"row {row.number}"
    if is_over or row.outcome is not None:
        if row.payload is not None or row.subject is not None:
            yield f"{name} has ended, and holds something still"
        if row.outcome == "done" and not _is_explained(connection, job.tenant, row.explanation_id):
            yield f"{name} is done, and there is no explanation of it"
        return
    try:
        is_right = row.subject in _subjects_of(connection, vault, job, row)
    except _MALFORMED:
        is_right = False
    if not is_right:
        yield f"{name} does not hold what was written"


def _is_explained(connection: Connection, tenant: str, explanation_id: str) -> bool:
    wanted = select(explanations.c.seq).where(explanations.c.id == explanation_id, explanations.c.tenant == tenant)
    return connection.execute(wanted).first() is not None


def _subjects_of(
    connection: Connection, vault: Vault, job: Row[Any], row: Row[Any]
) -> tuple[str, ...] | tuple[str | None]:
    """The pseudonyms of whom a row waits for, one for each way in which the name may have been spelt, or None of
    nobody. Raises CannotBeOpened or what a malformed content raises."""
    if row.payload is not None:
        named = orjson.loads(vault.open(row.payload, row.explanation_id, None))["context"]["subject"]
        return (None,) if named is None else vault.lookups(job.tenant, named)
    if row.source is None:
        raise ValueError("a row waits for nothing")
    found = select(subjects.c.lookup).join_from(explanations, subjects, subjects.c.token == explanations.c.subject)
    return (connection.scalar(found.where(explanations.c.id == row.source, explanations.c.tenant == job.tenant)),)
