"""Jobs: many rows to be explained, or an export to be written, stored until they are done.

One owner at a time runs a job. Each claim has a new owner, which holds a lease and renews it; when its process dies the
lease ends, and another process claims the job. Every row has the id of its explanation from the start, and the ledger
takes no id twice: a row whose explanation is there is finished, whatever happened to the process that wrote it. So no
row is done twice, and none is forgotten.

The erasure of a person ends the rows that hold their input (`job_erasing`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    delete,
    exists,
    insert,
    null,
    or_,
    select,
    update,
)

from service.ledger.clock import machine_time
from service.ledger.database import database_in_reach, serialised, take_write_lock
from service.ledger.entries import JOB_CREATED, JOB_ENDED, JOB_FORGOTTEN, Event, Remembered
from service.ledger.events import insert_event
from service.ledger.job_history import CREATION_COLUMNS, RowsDigest, add_identity, end_details
from service.ledger.remembering import remember
from service.ledger.stored_jobs import (
    DONE,
    EMPTIED,
    FAILED,
    UNFINISHED,
    Job,
    JobRow,
    State,
    columns_of_job,
    columns_of_row,
    count_by_outcome,
    read_job,
    read_job_row,
)
from service.ledger.tables import explanations, job_rows, jobs

LEASE_SECONDS = 5.0
MAX_LEASE = 300_000_000
"""Microseconds: longer than any lease, and than any wait for a quota."""
ROWS_AT_ONCE = 500


class Jobs:
    """The stored jobs. Every call blocks on the database and raises LedgerUnavailable when it does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, job: Job, rows: Iterable[JobRow] = (), kept: Remembered | None = None) -> None:
        """Stores a job with its rows, in the order of their numbers, the event that says so, and the answer `kept` for
        the request that created it; all or nothing.

        Raises EntryRefused when a request with the same key was answered.
        """
        stored = {"leased_until": None, **columns_of_job(job)}
        remaining, digest = iter(rows), RowsDigest()
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(insert(jobs).values(stored))
            while batch := list(islice(remaining, ROWS_AT_ONCE)):
                connection.execute(insert(job_rows), [columns_of_row(job.id, row) for row in batch])
                for row in batch:
                    add_identity(digest, row)
            details = {
                "key_id": job.key_id,
                "rows": digest.count_and_digest,
                **{name: getattr(job, name) for name in CREATION_COLUMNS},
            }
            take_write_lock(connection)  # only now, so that nobody waits while the rows are inserted
            place = _append_event(connection, JOB_CREATED, job, details)
            if kept is not None:
                remember(connection, kept, place)

    def get(self, tenant: str, job_id: str, kinds: Sequence[str]) -> Job | None:
        """The tenant's job of that id; None when there is none."""
        is_it = and_(jobs.c.id == job_id, jobs.c.tenant == tenant, jobs.c.kind.in_(kinds))
        with database_in_reach(), self._engine.connect() as connection:
            stored = connection.execute(select(jobs).where(is_it)).one_or_none()
            return None if stored is None else read_job(connection, stored)

    def newest(self, tenant: str, kinds: Sequence[str], limit: int) -> list[Job]:
        """The tenant's newest jobs, at most `limit` of them, the newest first."""
        query = select(jobs).where(jobs.c.tenant == tenant, jobs.c.kind.in_(kinds))
        query = query.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(limit)
        with database_in_reach(), self._engine.connect() as connection:
            return [read_job(connection, stored) for stored in connection.execute(query).all()]

    def results(self, job_id: str, after: int, limit: int) -> list[JobRow]:
        """The finished rows after number `after`, at most `limit` of them, in their order."""
        query = select(job_rows).where(job_rows.c.job_id == job_id, job_rows.c.outcome.is_not(None))
        query = query.where(job_rows.c.number > after).order_by(job_rows.c.number).limit(limit)
        with database_in_reach(), self._engine.connect() as connection:
            return [read_job_row(row) for row in connection.execute(query)]

    def cancel(self, tenant: str, job_id: str) -> None:
        """Ends an unfinished job; finished rows stay finished, and the input that the others held is dropped."""
        self._end(job_id, jobs.c.tenant == tenant, State.CANCELLED, None)

    def claim(self, owner: str, kinds: Collection[str], but: Collection[str] = (), left_for: float = 0.0) -> Job | None:
        """Claims the oldest job of these kinds that nobody runs, other than those whose ids are in `but` and those
        younger than `left_for` seconds; None when there is none.

        `owner` must be new for every claim: what an earlier owner still writes is then ignored.
        """
        now = machine_time()
        is_impossible = jobs.c.leased_until > now + MAX_LEASE  # from before the clock was set back
        is_unleased = or_(jobs.c.leased_until.is_(None), jobs.c.leased_until < now, is_impossible)
        is_free = and_(jobs.c.state.in_(UNFINISHED), is_unleased, jobs.c.kind.in_(kinds), jobs.c.id.not_in(but))
        if left_for:
            is_free = and_(is_free, jobs.c.created < now - round(left_for * 1e6))
        with database_in_reach():
            with self._engine.connect() as connection:
                job_id = connection.scalar(select(jobs.c.id).where(is_free).order_by(jobs.c.created).limit(1))
            if job_id is None:
                return None
            leased_until = now + round(LEASE_SECONDS * 1e6)
            lease = {"state": State.RUNNING, "owner": owner, "leased_until": leased_until, "detail": None}
            with self._engine.begin() as connection:
                claimed = connection.execute(update(jobs).where(is_free, jobs.c.id == job_id).values(lease))
                if not claimed.rowcount:  # another process claimed it first
                    return None
                return read_job(connection, connection.execute(select(jobs).where(jobs.c.id == job_id)).one())

    def renew(self, job_id: str, owner: str) -> bool:
        """Renews a lease; returns whether this owner is still to run the job."""
        is_held = and_(jobs.c.id == job_id, jobs.c.owner == owner, jobs.c.state == State.RUNNING)
        with database_in_reach(), self._engine.begin() as connection:
            renewed = update(jobs).where(is_held).values(leased_until=machine_time() + round(LEASE_SECONDS * 1e6))
            return bool(connection.execute(renewed).rowcount)

    def release(self, job_id: str, owner: str, seconds: float = 0.0, detail: str | None = None) -> None:
        """Gives a job back, to be claimed again in `seconds` at the earliest, and marks as done the rows whose
        explanations are there. `detail` says what the job waits for.
        """
        with database_in_reach(), serialised(self._engine).begin() as connection:
            is_held = and_(jobs.c.id == job_id, jobs.c.owner == owner)
            released = {
                "leased_until": machine_time() + round(seconds * 1e6) if seconds else None,
                "owner": None,
                "detail": detail,
            }
            connection.execute(update(jobs).where(is_held).values(released))
            is_explained = exists().where(explanations.c.id == job_rows.c.explanation_id)
            is_unmarked = and_(job_rows.c.job_id == job_id, job_rows.c.outcome.is_(None), is_explained)
            marked = connection.execute(update(job_rows).where(is_unmarked).values(outcome=DONE, **EMPTIED)).rowcount
            if marked and connection.scalar(select(jobs.c.ended).where(jobs.c.id == job_id)) is not None:
                record_end(connection, job_id)

    def tell(self, job_id: str, owner: str, done: int, total: int | None = None) -> bool:
        """Stores the progress of a job if this owner still has it; returns whether it has."""
        progress = {"done": done} | ({} if total is None else {"total": total})
        with database_in_reach(), self._engine.begin() as connection:
            is_held = and_(jobs.c.id == job_id, jobs.c.owner == owner)
            return bool(connection.execute(update(jobs).where(is_held).values(progress)).rowcount)

    def end(self, job_id: str, owner: str, state: State, detail: str | None = None) -> None:
        """Ends a job, unless it has ended already or has another owner by now."""
        self._end(job_id, jobs.c.owner == owner, state, detail)

    def forget_ended(self, before: int) -> int:
        """Deletes the jobs that ended before a moment, with their rows; returns their number.

        `before` is in microseconds since the epoch, UTC. Each job has its own transaction, so that no other waits long.
        """
        query = select(jobs.c.id).where(jobs.c.state.not_in(UNFINISHED), jobs.c.ended < before)
        with database_in_reach(), self._engine.connect() as connection:
            job_ids = connection.scalars(query).all()
        for job_id in job_ids:
            with database_in_reach(), serialised(self._engine).begin() as connection:
                job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
                if job is not None:
                    _append_event(connection, JOB_FORGOTTEN, job, {})
                connection.execute(delete(job_rows).where(job_rows.c.job_id == job_id))
                connection.execute(delete(jobs).where(jobs.c.id == job_id))
        return len(job_ids)

    def owners(self) -> set[str]:
        """The owners of running jobs, including those whose process died and whose job nobody has claimed yet."""
        query = select(jobs.c.owner).where(jobs.c.state == State.RUNNING, jobs.c.owner.is_not(None))
        with database_in_reach(), self._engine.connect() as connection:
            return {str(owner) for owner in connection.scalars(query)}

    def unfinished_rows(self, job_id: str, after: int, limit: int) -> list[tuple[JobRow, bool]]:
        """The unfinished rows after number `after`, each with whether its explanation is in the ledger already.

        They come without payloads: `unfinished_row` reads one just before the row is explained, unless it has been
        erased by then.
        """
        columns: list[ColumnElement[Any]] = [column for column in job_rows.c if column.name != "payload"]
        columns += [null().label("payload"), explanations.c.id.is_not(None).label("is_explained")]
        query = select(*columns).join_from(
            job_rows, explanations, explanations.c.id == job_rows.c.explanation_id, isouter=True
        )
        query = query.where(job_rows.c.job_id == job_id, job_rows.c.outcome.is_(None), job_rows.c.number > after)
        with database_in_reach(), self._engine.connect() as connection:
            rows = connection.execute(query.order_by(job_rows.c.number).limit(limit)).all()
        return [(read_job_row(row), bool(row.is_explained)) for row in rows]

    def unfinished_row(self, job_id: str, number: int) -> JobRow | None:
        """A row with its payload; None once it has ended, or its job has."""
        with database_in_reach(), self._engine.connect() as connection:
            row = connection.execute(select(job_rows).where(_are_unfinished(job_id, [number]))).one_or_none()
        return None if row is None else read_job_row(row)

    def finish_rows(self, job_id: str, outcomes: Sequence[tuple[int, str, str | None]]) -> None:
        """Stores the outcomes of rows, by number: `DONE`, or `FAILED` and why. Their input is dropped.

        Rows that have ended meanwhile, or whose job has, are left as they are. Rows with the same outcome share a
        statement: SQLite's write lock is held from the first to the commit, and requests wait for it.
        """
        by_outcome: dict[tuple[str, str | None], list[int]] = {}
        for number, outcome, detail in outcomes:
            by_outcome.setdefault((outcome, detail), []).append(number)
        with database_in_reach(), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # in the order of `end_rows_of`, so that they do not deadlock
                is_among_them = job_rows.c.number.in_([number for number, _, _ in outcomes])
                in_order = select(job_rows.c.number).where(job_rows.c.job_id == job_id, is_among_them)
                connection.execute(in_order.order_by(job_rows.c.number).with_for_update())
            for (outcome, detail), numbers in by_outcome.items():
                ended = {"outcome": outcome, "detail": detail, **EMPTIED}
                connection.execute(update(job_rows).where(_are_unfinished(job_id, numbers)).values(ended))

    def _end(self, job_id: str, is_allowed: ColumnElement[bool], state: State, detail: str | None) -> None:
        ended = {"state": state, "ended": machine_time(), "detail": detail, "owner": None, "leased_until": None}
        with database_in_reach(), serialised(self._engine).begin() as connection:
            is_to_end = and_(jobs.c.id == job_id, is_allowed, jobs.c.state.in_(UNFINISHED))
            if connection.execute(update(jobs).where(is_to_end).values(ended)).rowcount:
                connection.execute(update(job_rows).where(job_rows.c.job_id == job_id).values(EMPTIED))
                record_end(connection, job_id)


def record_end(connection: Connection, job_id: str) -> None:
    """Stores the counts of a job that has ended, and appends the event of its end to the log.

    For a transaction that holds the write lock, whenever anything of an ended job has changed.
    """
    _store_counts(connection, job_id)
    job = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    _append_event(connection, JOB_ENDED, job, end_details(connection, job))


def _append_event(connection: Connection, kind: str, job: Job | Row[Any], details: Mapping[str, Any]) -> int:
    event = Event(kind=kind, tenant=job.tenant, key_id=job.key_id, about=job.id, details=details)
    return insert_event(connection, event)


def _are_unfinished(job_id: str, numbers: Sequence[int]) -> ColumnElement[bool]:
    """The condition that rows of these numbers have not ended, and their job has not."""
    is_job_unfinished = exists().where(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
    return and_(
        job_rows.c.job_id == job_id, job_rows.c.number.in_(numbers), job_rows.c.outcome.is_(None), is_job_unfinished
    )


def _store_counts(connection: Connection, job_id: str) -> None:
    """Stores the numbers of done and failed rows of an ended job, if it has rows: they need not be counted again."""
    by_outcome = count_by_outcome(connection, job_id)
    if by_outcome:
        counts = {"done": by_outcome.get(DONE, 0), "failed": by_outcome.get(FAILED, 0)}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(counts))
