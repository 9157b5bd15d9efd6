"""Jobs: many rows to be explained, or an export to be written, kept until they are done.

A job is run once at a time, by an owner that is new each time it is claimed and holds a lease that it renews; when the
process dies the lease ends, and another takes the job over. Every row has the id of its explanation from the start, and
the ledger takes no id twice: a row whose explanation is there is finished, whatever became of the process that wrote
it. So no row is done twice, and none is forgotten.

The erasure of a person ends the rows that hold their input, in its own transaction (`end_rows_of`). The ledger takes no
explanation of a row that has ended, under the same lock: what was being computed at that moment is not recorded.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from service.ledger.database import database_in_reach, serialised, take_write_lock
from service.ledger.entries import JOB_CREATED, JOB_ENDED, JOB_FORGOTTEN, Event, Remembered
from service.ledger.events import insert_event
from service.ledger.job_history import MADE, RowsDigest, add_made, said_of_end
from service.ledger.remembering import remember
from service.ledger.sealing import CannotBeOpened, Vault
from service.ledger.tables import explanations, job_rows, jobs

LEASE_SECONDS = 5.0
LONGEST_LEASE = 300_000_000
"""Microseconds: longer than any lease, and than anybody waits for a quota."""
ROWS_AT_ONCE = 500
EXPORT = "export"
"""The kind of the jobs that are about stored explanations which a search finds, and keep the search."""
DONE, FAILED = "done", "failed"
ERASED = "the person whose input this was has been erased"
ERASED_SEARCH = "the person whose records this was to hold has been erased"


class State(StrEnum):
    """Of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (State.WAITING, State.RUNNING)
_HELD_NOTHING: Mapping[str, None] = {"payload": None, "subject": None}
"""What a row that has ended holds of a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job. `spec` is JSON: what is to be done. Times are in microseconds since the epoch, UTC.

    `total` is None until it is known; `done` and `failed` count what is finished. `detail` says why it failed, or what
    it waits for. `owner` is whoever claimed it last, None when it was given back or has ended.
    """

    id: str
    tenant: str
    key_id: str
    kind: str
    state: State
    created: int
    ended: int | None
    spec: bytes
    total: int | None
    done: int
    failed: int
    detail: str | None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row of a job, and the id that its explanation has or will have.

    Of `source`, another explanation, the input is taken; else `payload` holds it, sealed, until the row is finished.
    `subject` is the pseudonym of whose input it is, as `Vault.lookup` gives it, until then too.
    """

    number: int
    explanation_id: str
    source: str | None = None
    payload: bytes | None = None
    outcome: str | None = None
    detail: str | None = None
    subject: str | None = None


class Jobs:
    """The stored jobs. Every call blocks on the database and raises LedgerUnavailable when it does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, job: Job, rows: Iterable[JobRow] = (), kept: Remembered | None = None) -> None:
        """Stores a job with its rows, in the order of their numbers, and what is `kept` of the request that made it,
        and tells the log; all or nothing.

        Raises EntryRefused when a request with the same key was answered.
        """
        stored = {"leased_until": None, **_columns(job)}
        pending, digest = iter(rows), RowsDigest()
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(insert(jobs).values(stored))
            while batch := list(islice(pending, ROWS_AT_ONCE)):
                connection.execute(insert(job_rows), [_row_columns(job.id, row) for row in batch])
                for row in batch:
                    add_made(digest, row)
            made = {"key_id": job.key_id, "rows": digest.told, **{name: getattr(job, name) for name in MADE}}
            take_write_lock(connection)  # as late as that: nobody else waits for the rows
            place = _tell(connection, JOB_CREATED, job, made)
            if kept is not None:
                remember(connection, kept, place)

    def get(self, tenant: str, job_id: str, kinds: Sequence[str]) -> Job | None:
        """The tenant's job of that id; None when there is none."""
        wanted = and_(jobs.c.id == job_id, jobs.c.tenant == tenant, jobs.c.kind.in_(kinds))
        with database_in_reach(), self._engine.connect() as connection:
            row = connection.execute(select(jobs).where(wanted)).one_or_none()
            return None if row is None else _job(connection, row)

    def newest(self, tenant: str, kinds: Sequence[str], limit: int) -> list[Job]:
        """The tenant's last jobs, the newest first."""
        query = select(jobs).where(jobs.c.tenant == tenant, jobs.c.kind.in_(kinds))
        query = query.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(limit)
        with database_in_reach(), self._engine.connect() as connection:
            return [_job(connection, row) for row in connection.execute(query).all()]

    def results(self, job_id: str, after: int, limit: int) -> list[JobRow]:
        """The finished rows behind number `after`, in their order."""
        query = select(job_rows).where(job_rows.c.job_id == job_id, job_rows.c.outcome.is_not(None))
        query = query.where(job_rows.c.number > after).order_by(job_rows.c.number).limit(limit)
        with database_in_reach(), self._engine.connect() as connection:
            return [_job_row(row) for row in connection.execute(query)]

    def cancel(self, tenant: str, job_id: str) -> None:
        """Ends a job that is not finished; rows that are stay so, and what the others held is dropped."""
        self._end(job_id, jobs.c.tenant == tenant, State.CANCELLED, None)

    def claim(self, owner: str, kinds: Collection[str], but: Collection[str] = (), left_for: float = 0.0) -> Job | None:
        """Takes a job of these kinds that nobody runs, the oldest first; None when there is none but those ids, or all
        are younger than `left_for` seconds.

        `owner` is new for every claim: what an earlier run still says of the job is then not heard.
        """
        now = _now()
        no_lease = jobs.c.leased_until > now + LONGEST_LEASE  # from before the clock was set back
        free = or_(jobs.c.leased_until.is_(None), jobs.c.leased_until < now, no_lease)
        wanted = and_(jobs.c.state.in_(UNFINISHED), free, jobs.c.kind.in_(kinds), jobs.c.id.not_in(but))
        if left_for:
            wanted = and_(wanted, jobs.c.created < now - round(left_for * 1e6))
        with database_in_reach():
            with self._engine.connect() as connection:
                found = connection.scalar(select(jobs.c.id).where(wanted).order_by(jobs.c.created).limit(1))
            if found is None:
                return None
            leased_until = now + round(LEASE_SECONDS * 1e6)
            taken = {"state": State.RUNNING, "owner": owner, "leased_until": leased_until, "detail": None}
            with self._engine.begin() as connection:
                claimed = connection.execute(update(jobs).where(wanted, jobs.c.id == found).values(taken))
                if not claimed.rowcount:  # somebody else was faster
                    return None
                return _job(connection, connection.execute(select(jobs).where(jobs.c.id == found)).one())

    def renew(self, job_id: str, owner: str) -> bool:
        """Renews a lease; returns whether the job is still to be run by this owner."""
        held = and_(jobs.c.id == job_id, jobs.c.owner == owner, jobs.c.state == State.RUNNING)
        with database_in_reach(), self._engine.begin() as connection:
            renewed = update(jobs).where(held).values(leased_until=_now() + round(LEASE_SECONDS * 1e6))
            return bool(connection.execute(renewed).rowcount)

    def release(self, job_id: str, owner: str, seconds: float = 0.0, detail: str | None = None) -> None:
        """Gives a job back, to be gone on with in so many seconds; rows whose explanations are there are done.

        `detail` says what it waits for.
        """
        with database_in_reach(), serialised(self._engine).begin() as connection:
            held = and_(jobs.c.id == job_id, jobs.c.owner == owner)
            until = {
                "leased_until": _now() + round(seconds * 1e6) if seconds else None,
                "owner": None,
                "detail": detail,
            }
            connection.execute(update(jobs).where(held).values(until))
            is_there = exists().where(explanations.c.id == job_rows.c.explanation_id)
            unmarked = and_(job_rows.c.job_id == job_id, job_rows.c.outcome.is_(None), is_there)
            marked = connection.execute(update(job_rows).where(unmarked).values(outcome=DONE, **_HELD_NOTHING)).rowcount
            if marked and connection.scalar(select(jobs.c.ended).where(jobs.c.id == job_id)) is not None:
                tell_end(connection, job_id)

    def tell(self, job_id: str, owner: str, done: int, total: int | None = None) -> bool:
        """Says how far a job is; returns whether this owner still has it, and says nothing if not."""
        said = {"done": done} | ({} if total is None else {"total": total})
        with database_in_reach(), self._engine.begin() as connection:
            held = and_(jobs.c.id == job_id, jobs.c.owner == owner)
            return bool(connection.execute(update(jobs).where(held).values(said)).rowcount)

    def end(self, job_id: str, owner: str, state: State, detail: str | None = None) -> None:
        """Says how a job ended, unless it has already or is another owner's."""
        self._end(job_id, jobs.c.owner == owner, state, detail)

    def forget_ended(self, before: int) -> int:
        """Deletes the jobs that ended before a moment, with their rows; gives their number.

        `before` is in microseconds since the epoch. A transaction each, so that nobody waits long for the database.
        """
        over = select(jobs.c.id).where(jobs.c.state.not_in(UNFINISHED), jobs.c.ended < before)
        with database_in_reach(), self._engine.connect() as connection:
            found = connection.scalars(over).all()
        for job_id in found:
            with database_in_reach(), serialised(self._engine).begin() as connection:
                job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
                if job is not None:
                    _tell(connection, JOB_FORGOTTEN, job, {})
                connection.execute(delete(job_rows).where(job_rows.c.job_id == job_id))
                connection.execute(delete(jobs).where(jobs.c.id == job_id))
        return len(found)

    def owners(self) -> set[str]:
        """Those who have a job, or had one when their process died and nobody has taken it over."""
        query = select(jobs.c.owner).where(jobs.c.state == State.RUNNING, jobs.c.owner.is_not(None))
        with database_in_reach(), self._engine.connect() as connection:
            return {str(owner) for owner in connection.scalars(query)}

    def unfinished_rows(self, job_id: str, after: int, limit: int) -> list[tuple[JobRow, bool]]:
        """The unfinished rows behind number `after`, each with whether its explanation is in the ledger already.

        Without what they hold: whoever explains one reads that then (`unfinished_row`), and not what was erased since.
        """
        columns: list[ColumnElement[Any]] = [column for column in job_rows.c if column.name != "payload"]
        columns += [null().label("payload"), explanations.c.id.is_not(None).label("is_there")]
        query = select(*columns).join_from(
            job_rows, explanations, explanations.c.id == job_rows.c.explanation_id, isouter=True
        )
        query = query.where(job_rows.c.job_id == job_id, job_rows.c.outcome.is_(None), job_rows.c.number > after)
        with database_in_reach(), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(job_rows.c.number).limit(limit)).all()
        return [(_job_row(row), bool(row.is_there)) for row in rows]

    def unfinished_row(self, job_id: str, number: int) -> JobRow | None:
        """A row with what it holds; None once it has ended, or its job has."""
        with database_in_reach(), self._engine.connect() as connection:
            row = connection.execute(select(job_rows).where(_are_unfinished(job_id, [number]))).one_or_none()
        return None if row is None else _job_row(row)

    def finish_rows(self, job_id: str, outcomes: Sequence[tuple[int, str, str | None]]) -> None:
        """Says what became of rows, by number: `DONE`, or `FAILED` and why. What they held is dropped.

        Of rows that have ended otherwise, or whose job has, nothing is said. Rows with one outcome are one statement:
        what is answered meanwhile waits for the write lock of SQLite, which is held from the first to the commit.
        """
        alike: dict[tuple[str, str | None], list[int]] = {}
        for number, outcome, detail in outcomes:
            alike.setdefault((outcome, detail), []).append(number)
        with database_in_reach(), self._engine.begin() as connection:
            if (
                connection.dialect.name == "postgresql"
            ):  # as `end_rows_of` locks them, so that neither waits for the other
                every = job_rows.c.number.in_([number for number, _, _ in outcomes])
                in_order = select(job_rows.c.number).where(job_rows.c.job_id == job_id, every)
                connection.execute(in_order.order_by(job_rows.c.number).with_for_update())
            for (outcome, detail), numbers in alike.items():
                said = {"outcome": outcome, "detail": detail, **_HELD_NOTHING}
                connection.execute(update(job_rows).where(_are_unfinished(job_id, numbers)).values(said))

    def _end(self, job_id: str, allowed: ColumnElement[bool], state: State, detail: str | None) -> None:
        ended = {"state": state, "ended": _now(), "detail": detail, "owner": None, "leased_until": None}
        with database_in_reach(), serialised(self._engine).begin() as connection:
            wanted = and_(jobs.c.id == job_id, allowed, jobs.c.state.in_(UNFINISHED))
            if connection.execute(update(jobs).where(wanted).values(ended)).rowcount:
                connection.execute(update(job_rows).where(job_rows.c.job_id == job_id).values(_HELD_NOTHING))
                tell_end(connection, job_id)


def count_rows_of(connection: Connection, lookups: Collection[str]) -> int:
    """How many rows hold input of a person, known by pseudonyms."""
    theirs = and_(job_rows.c.subject.in_(lookups), job_rows.c.outcome.is_(None))
    return connection.execute(select(func.count()).select_from(job_rows).where(theirs)).scalar_one()


def end_rows_of(connection: Connection, lookups: Collection[str]) -> int:
    """Ends the rows that hold input of a person, known by pseudonyms, and drops it; returns their number.

    For a transaction that holds the write lock.
    """
    theirs = and_(job_rows.c.subject.in_(lookups), job_rows.c.outcome.is_(None))
    in_order = select(job_rows.c.number).where(theirs).order_by(job_rows.c.job_id, job_rows.c.number)
    connection.execute(in_order.with_for_update())  # as `finish_rows` locks them, so that neither waits for the other
    ended = {"outcome": FAILED, "detail": ERASED, **_HELD_NOTHING}
    return connection.execute(update(job_rows).where(theirs).values(ended)).rowcount


def forget_in_specs(connection: Connection, vault: Vault, tenant: str, subject: str, decisions: Collection[str]) -> int:
    """Drops the search from whatever was asked for by the person's name, or by one of these decisions of theirs, known
    by pseudonyms; what of it is not finished ends. Returns how many there were.

    For a transaction that holds the write lock.
    """
    lookups, pseudonyms = set(vault.lookups(tenant, subject)), set(decisions)
    count = 0
    searches = and_(jobs.c.tenant == tenant, jobs.c.kind == EXPORT)
    for row in connection.execute(select(jobs.c.id, jobs.c.spec).where(searches)).all():
        try:
            spec = orjson.loads(vault.open(row.spec, row.id, None))
        except CannotBeOpened:  # so it names nobody
            continue
        search = spec.get("search") or {}
        name, decision = search.get("subject"), search.get("decision_id")
        is_theirs = name is not None and not lookups.isdisjoint(vault.lookups(tenant, name))
        if not is_theirs and (decision is None or vault.decision(tenant, decision) not in pseudonyms):
            continue
        count += 1
        del spec["search"]
        this = jobs.c.id == row.id
        sealed = vault.seal(orjson.dumps(spec), row.id, None, None)
        connection.execute(update(jobs).where(this).values(spec=sealed))
        ended = {"state": State.FAILED, "ended": _now(), "detail": ERASED_SEARCH, "owner": None, "leased_until": None}
        if connection.execute(update(jobs).where(this, jobs.c.state.in_(UNFINISHED)).values(ended)).rowcount:
            tell_end(connection, row.id)
    return count


def tell_end(connection: Connection, job_id: str) -> None:
    """Writes down what became of the rows of a job that has ended, and tells the log how it ended.

    For a transaction that holds the write lock, whenever anything of such a job changed.
    """
    _keep_counts(connection, job_id)
    job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    _tell(connection, JOB_ENDED, job, said_of_end(connection, job))


def _tell(connection: Connection, kind: str, job: Job | Row[Any], details: Mapping[str, Any]) -> int:
    event = Event(kind=kind, tenant=job.tenant, key_id=job.key_id, about=job.id, details=details)
    return insert_event(connection, event)


def _are_unfinished(job_id: str, numbers: Sequence[int]) -> ColumnElement[bool]:
    """Of rows: that they have not ended, and their job has not."""
    goes_on = exists().where(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
    return and_(job_rows.c.job_id == job_id, job_rows.c.number.in_(numbers), job_rows.c.outcome.is_(None), goes_on)


def end_all_rows_of(connection: Connection, tenant: str) -> int:
    """Ends all rows of a tenant's that hold anybody's input; returns their number. As `end_rows_of`."""
    of_tenant = select(jobs.c.id).where(jobs.c.tenant == tenant)
    held = select(job_rows.c.subject).where(job_rows.c.job_id.in_(of_tenant), job_rows.c.subject.is_not(None))
    return sum(end_rows_of(connection, [subject]) for subject in connection.scalars(held.distinct()).all())


def _columns(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name) for column in jobs.c if column.name != "leased_until"}


def _row_columns(job_id: str, row: JobRow) -> dict[str, Any]:
    names = ("number", "explanation_id", "source", "payload", "outcome", "detail", "subject")
    return {"job_id": job_id, **{name: getattr(row, name) for name in names}}


def _job(connection: Connection, row: Row[Any]) -> Job:
    """The job. Rows of one that has not ended are counted, by an index: 10,000 in 2 ms on SQLite, where reading them
    took 35, and 77 with images; in 12 on PostgreSQL."""
    stored = {name: value for name, value in row._mapping.items() if name != "leased_until"} | {
        "state": State(row.state)
    }
    if row.ended is not None and row.failed is not None:
        return Job(**stored)
    by_outcome = _counted(connection, row.id)
    return Job(**stored | {"done": by_outcome.get(DONE, row.done), "failed": by_outcome.get(FAILED, 0)})


def _keep_counts(connection: Connection, job_id: str) -> None:
    """Writes down what became of the rows of a job that has ended, if it has any: they are counted no more."""
    by_outcome = _counted(connection, job_id)
    if by_outcome:
        counts = {"done": by_outcome.get(DONE, 0), "failed": by_outcome.get(FAILED, 0)}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(counts))


def _counted(connection: Connection, job_id: str) -> dict[str | None, int]:
    """How many rows of a job have each outcome."""
    counts = select(job_rows.c.outcome, func.count().label("rows")).where(job_rows.c.job_id == job_id)
    return {one.outcome: one.rows for one in connection.execute(counts.group_by(job_rows.c.outcome))}


def _job_row(row: Row[Any]) -> JobRow:
    return JobRow(row.number, row.explanation_id, row.source, row.payload, row.outcome, row.detail, row.subject)


def _now() -> int:
    return time.time_ns() // 1000
