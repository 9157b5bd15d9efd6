"""Jobs as they are stored, on both databases: one owner at a time, and no row forgotten or done twice."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, event, func, select, update

from service.ledger import EntryRefused, Ledger, Search
from service.ledger import jobs as module
from service.ledger.jobs import Jobs
from service.ledger.maintenance import LedgerMaintenance
from service.ledger.stored_jobs import DONE, FAILED, Job, JobRow, State
from service.ledger.tables import job_rows
from service.ledger.tables import jobs as jobs_table
from tests.ledger.conftest import VAULT

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.ledger.conftest import EntryMaker

KIND = "explain"


@pytest.fixture
def jobs(engine: Engine) -> Jobs:
    return Jobs(engine)


def job(tenant: str = "bank", created: int = 1) -> Job:
    return Job(
        id=str(uuid.uuid4()), tenant=tenant, key_id="k", kind=KIND, state=State.WAITING, created=created, ended=None,
        spec=b"sealed", total=3, done=0, failed=0, detail=None,
    )  # fmt: skip


def rows(count: int) -> list[JobRow]:
    return [JobRow(number, str(uuid.uuid4()), payload=b"sealed", subject="pseudonym") for number in range(count)]


def held(jobs: Jobs, one: Job) -> dict[int, bytes | None]:
    """What the rows hold that are still to be explained, by number."""
    found = (jobs.unfinished_row(one.id, row.number) for row, _ in jobs.unfinished_rows(one.id, -1, 100))
    return {row.number: row.payload for row in found if row is not None}


def test_a_job_is_found_by_its_tenant_and_kind(jobs: Jobs) -> None:
    older, newer, other = job(created=1), job(created=2), job(tenant="broker")
    for one in (older, newer, other):
        jobs.create(one, rows(3))

    assert jobs.get("bank", older.id, (KIND,)) == older
    assert jobs.get("broker", older.id, (KIND,)) is None
    assert jobs.get("bank", older.id, ("export",)) is None
    assert jobs.newest("bank", (KIND,), 10) == [newer, older]
    assert jobs.newest("bank", (KIND,), 1) == [newer]


def test_a_job_has_one_owner_until_its_lease_ends(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job()
    jobs.create(one, rows(1))
    clock = [time.time_ns() // 1000]
    monkeypatch.setattr(module, "machine_time", lambda: clock[0])

    claimed = jobs.claim("first", (KIND,))
    assert claimed is not None
    assert (claimed.id, claimed.state) == (one.id, State.RUNNING)
    assert jobs.claim("second", (KIND,)) is None
    clock[0] += 4_000_000
    assert jobs.renew(one.id, "first")
    clock[0] += 4_000_000
    assert jobs.claim("second", (KIND,)) is None  # it was renewed
    assert not jobs.renew(one.id, "second")
    clock[0] += 2_000_000
    taken = jobs.claim("second", (KIND,))  # the first has said nothing for too long
    assert taken is not None
    assert not jobs.renew(one.id, "first")
    jobs.release(one.id, "first")  # which does not concern the second
    assert jobs.claim("third", (KIND,)) is None
    jobs.release(one.id, "second")
    assert jobs.claim("third", (KIND,)) is not None
    jobs.end(one.id, "third", State.DONE)
    assert not jobs.renew(one.id, "third")
    clock[0] += 60_000_000
    assert jobs.claim("fourth", (KIND,)) is None


def test_the_oldest_comes_first(jobs: Jobs) -> None:
    made = [job(created=number) for number in (3, 1, 2)]
    for one in made:
        jobs.create(one)
    claimed = [jobs.claim("owner", (KIND,)) for _ in made]
    assert [one.created for one in claimed if one is not None] == [1, 2, 3]


async def test_no_explanation_is_recorded_of_a_row_that_has_ended(
    jobs: Jobs, ledger: Ledger, make_entry: EntryMaker
) -> None:
    one, other, own = job(), job(), rows(4)
    jobs.create(one, own)
    jobs.create(other, rows(1))
    jobs.finish_rows(one.id, [(1, FAILED, "erased, say")])
    jobs.cancel("bank", other.id)
    ended = [(one.id, 1), (other.id, 0), (one.id, 9), (str(uuid.uuid4()), 0)]
    append = ledger.append
    calls = [append([make_entry(id=own[n].explanation_id, job_row=(one.id, n)), make_entry()]) for n in (0, 2)]
    calls += [append([make_entry(), make_entry(job_row=row)]) for row in ended]  # all in one transaction at first

    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(result) for result in results] == [type(None)] * 2 + [EntryRefused] * 4
    found = await ledger.search("bank", Search())
    assert {stored.id for stored in found.entries} >= {own[0].explanation_id, own[2].explanation_id}
    assert len(found.entries) == 4
    await append([make_entry(id=own[3].explanation_id, job_row=(one.id, 3))])


async def test_a_row_whose_explanation_is_recorded_is_told_apart(
    jobs: Jobs, ledger: Ledger, make_entry: EntryMaker
) -> None:
    one, own = job(), rows(3)
    jobs.create(one, own)
    await ledger.append([make_entry(id=own[1].explanation_id)])

    unfinished = jobs.unfinished_rows(one.id, -1, 10)

    assert [(row.number, is_there) for row, is_there in unfinished] == [(0, False), (1, True), (2, False)]
    assert [row.number for row, _ in jobs.unfinished_rows(one.id, 0, 1)] == [1]


def test_what_finished_rows_held_is_dropped(jobs: Jobs, engine: Engine) -> None:
    one, own = job(), rows(4)
    jobs.create(one, own)

    jobs.finish_rows(one.id, [(0, DONE, None), (2, FAILED, "it does not fit")])

    found = jobs.get("bank", one.id, (KIND,))
    assert found is not None
    assert (found.done, found.failed) == (1, 1)
    finished = jobs.results(one.id, -1, 10)
    assert [(row.number, row.outcome, row.detail, row.payload) for row in finished] == [
        (0, DONE, None, None),
        (2, FAILED, "it does not fit", None),
    ]
    assert [row.number for row in jobs.results(one.id, 0, 10)] == [2]
    assert held(jobs, one) == {1: b"sealed", 3: b"sealed"}
    jobs.finish_rows(one.id, [(0, FAILED, "too late")])
    assert jobs.results(one.id, -1, 1)[0].outcome == DONE
    jobs.cancel("bank", one.id)
    assert held(jobs, one) == {}
    with engine.connect() as connection:
        assert set(connection.execute(select(job_rows.c.payload, job_rows.c.subject))) == {(None, None)}
    jobs.finish_rows(one.id, [(1, DONE, None)])  # by a run that has not heard of it
    assert [row.number for row in jobs.results(one.id, -1, 10)] == [0, 2]


def test_a_job_ends_once(jobs: Jobs) -> None:
    one = job()
    jobs.create(one)
    jobs.cancel("broker", one.id)  # whose it is not
    assert jobs.claim("owner", (KIND,)) is not None
    jobs.cancel("bank", one.id)
    jobs.end(one.id, "owner", State.DONE)
    jobs.end(one.id, "owner", State.FAILED, "too late")

    found = jobs.get("bank", one.id, (KIND,))

    assert found is not None
    assert (found.state, found.detail) == (State.CANCELLED, None)
    assert found.ended is not None


def test_a_run_that_was_overtaken_is_not_heard(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job()
    jobs.create(one, rows(1))
    clock = [time.time_ns() // 1000]
    monkeypatch.setattr(module, "machine_time", lambda: clock[0])

    first = jobs.claim("first", (KIND,))
    clock[0] += 6_000_000
    assert jobs.claim("again", (KIND,), but=[one.id]) is None
    second = jobs.claim("second", (KIND,))
    assert first is not None
    assert second is not None
    assert (first.owner, second.owner) == ("first", "second")
    assert jobs.owners() == {"second"}
    assert not jobs.tell(one.id, "first", 7, 9)
    jobs.end(one.id, "first", State.DONE)

    found = jobs.get("bank", one.id, (KIND,))
    assert found is not None
    assert (found.state, found.total, found.done) == (State.RUNNING, 3, 0)
    assert held(jobs, one) == {0: b"sealed"}
    assert jobs.tell(one.id, "second", 0, 9)
    jobs.end(one.id, "second", State.DONE)
    found = jobs.get("bank", one.id, (KIND,))
    assert found is not None
    assert (found.state, found.total, found.owner) == (State.DONE, 9, None)
    assert jobs.owners() == set()


def test_a_job_that_was_put_off_is_claimed_later(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = job(created=1), job(created=2)
    jobs.create(one)
    jobs.create(other)
    clock = [time.time_ns() // 1000]
    monkeypatch.setattr(module, "machine_time", lambda: clock[0])

    assert jobs.claim("first", (KIND,)) is not None
    jobs.release(one.id, "first", 30.0, "its quota is spent")
    waiting = jobs.get("bank", one.id, (KIND,))
    assert waiting is not None
    assert (waiting.owner, waiting.detail) == (None, "its quota is spent")
    assert not jobs.renew(one.id, "first")
    following = jobs.claim("second", (KIND,))
    assert following is not None
    assert following.id == other.id
    assert jobs.claim("third", (KIND,), but=[other.id]) is None
    clock[0] += 31_000_000
    taken = jobs.claim("third", (KIND,), but=[other.id])
    assert taken is not None
    assert (taken.id, taken.detail) == (one.id, None)


async def test_rows_of_a_job_that_has_ended_are_counted_no_more(
    jobs: Jobs, engine: Engine, ledger: Ledger, make_entry: EntryMaker
) -> None:
    one, own = job(), rows(5)
    jobs.create(one, own)
    assert jobs.claim("owner", (KIND,)) is not None
    jobs.finish_rows(one.id, [(0, DONE, None), (1, DONE, None), (2, FAILED, "it does not fit")])
    await ledger.append([make_entry(id=own[3].explanation_id, job_row=(one.id, 3))])

    jobs.cancel("bank", one.id)
    assert counts(jobs, one) == (2, 1)
    jobs.release(one.id, "owner")  # which marks what was recorded and not yet told of
    assert counts(jobs, one) == (3, 1)

    with engine.begin() as connection:
        connection.execute(update(job_rows).where(job_rows.c.number == 1).values(outcome=FAILED))
    assert counts(jobs, one) == (3, 1)
    with engine.begin() as connection:
        connection.execute(update(jobs_table).values(failed=None))  # as it was before that was kept
    assert counts(jobs, one) == (2, 2)


def counts(jobs: Jobs, one: Job) -> tuple[int, int]:
    """How many rows are done, and how many failed, as the job says."""
    found = jobs.get("bank", one.id, (KIND,))
    assert found is not None
    assert jobs.newest("bank", (KIND,), 1) == [found]
    return found.done, found.failed


def test_jobs_that_ended_long_ago_are_deleted(jobs: Jobs, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, going = job(created=1), job(created=2), job(created=3)
    for one in (old, new, going):
        jobs.create(one, rows(3))
    for moment, one in ((1_000, old), (2_000, new)):
        monkeypatch.setattr(module, "machine_time", lambda moment=moment: moment)
        jobs.cancel("bank", one.id)

    assert jobs.forget_ended(1_000) == 0
    assert jobs.forget_ended(2_000) == 1

    assert [one.id for one in jobs.newest("bank", (KIND,), 10)] == [going.id, new.id]
    with engine.connect() as connection:
        assert set(connection.scalars(select(job_rows.c.job_id))) == {new.id, going.id}


async def test_the_steward_deletes_jobs_after_their_days(
    jobs: Jobs, engine: Engine, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [job(), job()]
    day = 86_400_000_000
    now = time.time_ns() // 1000
    for one, ago in zip(ended, (31, 29), strict=True):
        jobs.create(one, rows(2))
        monkeypatch.setattr(module, "machine_time", lambda ago=ago: now - ago * day)
        jobs.cancel("bank", one.id)

    async def forget() -> None:
        return None

    maintenance = LedgerMaintenance(engine, VAULT, {"standard": 25}, 30, forget)
    await until(lambda: [one.id for one in jobs.newest("bank", (KIND,), 10)] == [ended[1].id])
    await maintenance.close()


def test_a_lease_of_a_clock_that_was_set_back(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever claimed it died, and the lease would last for two days more."""
    one, now = job(), time.time_ns() // 1000
    jobs.create(one)
    monkeypatch.setattr(module, "machine_time", lambda: now + 2 * 86_400_000_000)
    assert jobs.claim("first", (KIND,)) is not None
    monkeypatch.setattr(module, "machine_time", lambda: now)
    taken = jobs.claim("second", (KIND,))
    assert taken is not None
    assert taken.owner == "second"
    assert jobs.claim("third", (KIND,)) is None


def test_rows_are_counted_by_an_index(jobs: Jobs, engine: Engine) -> None:
    """Of 10,000 rows nobody reads what they hold, to say how far a job is."""
    one = job()
    jobs.create(one, rows(3))
    counts = select(job_rows.c.outcome, func.count()).where(job_rows.c.job_id == one.id).group_by(job_rows.c.outcome)
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
            words = "EXPLAIN"
        else:
            words = "EXPLAIN QUERY PLAN"
        query = str(counts.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = str(connection.exec_driver_sql(f"{words} {query}").all())
    assert "job_rows_outcome" in plan


def test_a_process_claims_only_what_it_can_do(jobs: Jobs) -> None:
    one = job()
    jobs.create(one)
    assert jobs.claim("owner", ("export",)) is None
    claimed = jobs.claim("owner", ("export", KIND))
    assert claimed is not None
    assert claimed.id == one.id


def test_rows_that_are_done_hold_the_write_lock_for_one_statement(engine: Engine, jobs: Jobs) -> None:
    one = job()
    jobs.create(one, rows(64))
    updates: list[str] = []

    def watch(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        updates.append(statement.split()[0])

    event.listen(engine, "before_cursor_execute", watch)
    jobs.finish_rows(one.id, [(number, DONE, None) for number in range(64)])
    assert updates.count("UPDATE") == 1
    updates.clear()
    jobs.finish_rows(one.id, [(number, FAILED, "too late") for number in range(64)])
    event.remove(engine, "before_cursor_execute", watch)
    assert jobs.unfinished_rows(one.id, -1, 100) == []
    assert {found.outcome for found in jobs.results(one.id, -1, 100)} == {DONE}
