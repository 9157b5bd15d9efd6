"""Erasure, holds and retention: what is gone is gone, what must stay stays, and every proof still holds."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from service.errors import HeldByLaw, NotFound
from service.ledger import (
    CheckpointSigner,
    Entry,
    EntryRefused,
    EventSearch,
    Ledger,
    Search,
    Vault,
    WrongMasterKey,
    open_engine,
)
from service.ledger.erasing import erase
from service.ledger.export_checking import check_export
from service.ledger.exporting import all_lines, found_lines, write_export
from service.ledger.job_erasing import ERASED, ERASED_SEARCH
from service.ledger.jobs import Jobs
from service.ledger.legal_holds import hold, holds, kept_of, release
from service.ledger.merkle import is_included
from service.ledger.retention import months_before, retain
from service.ledger.sealing import NO_TOKEN, prepare_database
from service.ledger.stored_jobs import DONE, EXPORT, FAILED, Job, JobRow, State
from service.ledger.tables import explanations, log, subjects
from service.ledger.tombstones import ranges
from service.ledger.verifying import verify_explanation, verify_ledger
from tests.conftest import bytes_of

EntryMaker = Callable[..., Entry]
PERSON = "Adelheid Quendolin Xanthopoulos"
DECISION = "decision-7781-zq"
INCOME = "48213.667719"


@pytest.fixture
def vault(engine: Engine, tmp_path: Path) -> Vault:
    return prepare_database(engine, tmp_path / "secrets" / "master.key")


@pytest.fixture
def signer(engine: Engine, tmp_path: Path) -> CheckpointSigner:
    return CheckpointSigner(engine, tmp_path / "secrets" / "signing.pem", tmp_path / "checkpoints.jsonl")


@pytest.fixture
async def ledger(engine: Engine, vault: Vault) -> Ledger:
    return Ledger(engine, vault)


def of_person(make_entry: EntryMaker, **fields: object) -> Entry:
    usual = {
        "created": time.time_ns() // 1000,
        "subject": PERSON,
        "decision_id": DECISION,
        "personal": f'{{"input":{{"income":{INCOME}}}}}'.encode(),
    }
    return make_entry(**usual | fields)


def stored_bytes(engine: Engine, folder: Path) -> bytes:
    """What lies on the disk: SQLite's files; all of PostgreSQL's but other databases, the server's log and WAL too."""
    others: set[Path] = set()
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_switch_wal()")
            folder = Path(str(connection.exec_driver_sql("SHOW data_directory").scalar()))
            own = connection.exec_driver_sql("SELECT pg_relation_filepath('log')").scalar_one()
        others = {path for path in (folder / "base").iterdir() if path.name.isdecimal()} - {(folder / own).parent}
    return b"".join(
        bytes_of(path)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "secrets" and path.parent not in others
    )


async def test_nothing_of_an_erased_person_is_found(
    ledger: Ledger, engine: Engine, vault: Vault, signer: CheckpointSigner, make_entry: EntryMaker, tmp_path: Path
) -> None:
    theirs = [of_person(make_entry) for _ in range(3)]
    others = [of_person(make_entry, subject=name, decision_id=name) for name in ("Bob", None)]
    await ledger.append([*theirs[:2], *others, theirs[2]])
    before = signer.sign()
    assert before is not None
    with engine.connect() as connection:
        row = connection.execute(select(subjects).where(subjects.c.lookup == vault.lookup("bank", PERSON))).one()
        sealed = [one for one in connection.scalars(select(explanations.c.personal)) if one]

    erased = erase(engine, vault, "bank", PERSON, "key", "asked for it")

    assert (erased.records, erased.tombstone) == (3, 6)
    assert (await ledger.search("bank", Search(subject=PERSON))).entries == ()
    found = (await ledger.search("bank", Search(decision_id=DECISION))).entries  # who knows it finds the tombstone
    assert [(one.id, one.tombstone, one.opened) for one in found] == [(one.id, 6, b"") for one in reversed(theirs)]
    for entry in theirs:
        stored = await ledger.get("bank", entry.id)
        assert stored is not None
        assert (stored.tombstone, stored.personal, stored.subject, stored.decision_id) == (6, b"", None, None)
        assert stored.record == entry.record
        path, checkpoint = signer.inclusion(stored.seq)
        assert is_included(stored.leaf, stored.seq - 1, checkpoint.size, path, bytes.fromhex(checkpoint.root))
    for entry in others:
        stored = await ledger.get("bank", entry.id)
        assert stored is not None
        assert (stored.personal, stored.subject) == (entry.personal, entry.subject)
    verdict = verify_ledger(engine, vault, tmp_path / "checkpoints.jsonl")
    assert verdict.faults == []
    assert verdict.erased == 3
    (event,) = (await ledger.events("bank", EventSearch(kind="erasure"))).events
    assert event.about == row.token
    decisions = "".join(f"{seq} {vault.decision('bank', DECISION)}\n" for seq in (1, 2, 5))
    assert event.details == {
        "records": [[1, 2], [5, 5]],
        "count": 3,
        "decisions": hashlib.sha256(decisions.encode()).hexdigest(),
        "reason": "asked for it",
    }

    for whole in (True, False):
        checkpoint = signer.sign() or before
        lines = (
            all_lines(engine, vault, checkpoint.size)
            if whole
            else found_lines(engine, vault, "bank", Search(), checkpoint.size)
        )
        target = tmp_path / f"export-{whole}.zip"
        with target.open("w+b") as file:
            write_export(file, engine, signer, checkpoint, lines, {}, complete=whole)
            verdict = check_export(file, signer.open().public_key)
        with zipfile.ZipFile(target) as archive:
            unpacked = b"".join(archive.read(name) for name in archive.namelist())
        for word in (PERSON, "Quendolin"):
            assert word.encode() not in unpacked
        assert all(one.id.encode() in unpacked for one in theirs)
        assert verdict.faults == []
        assert verdict.erased == 3
    await ledger.close()
    engine.dispose()
    everything = stored_bytes(engine, tmp_path)
    for word in (PERSON, DECISION, INCOME, "Quendolin"):
        assert word.encode() not in everything
    if engine.dialect.name == "sqlite":  # which overwrites what is deleted: neither key nor ciphertext is left
        assert row.key not in everything
        assert sum(one in everything for one in sealed) == 2


async def test_who_comes_again_is_another(ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker) -> None:
    await ledger.append([of_person(make_entry)])
    erase(engine, vault, "bank", PERSON, "key")
    with pytest.raises(NotFound):
        erase(engine, vault, "bank", PERSON, "key")
    again = of_person(make_entry)
    await ledger.append([again])
    assert [one.id for one in (await ledger.search("bank", Search(subject=PERSON))).entries] == [again.id]
    assert erase(engine, vault, "bank", PERSON, "key").records == 1
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


def waiting_rows(engine: Engine, vault: Vault, names: Sequence[str | None], tenant: str = "bank") -> str:
    """A job with a row of each of these people; gives its id."""
    job_id = str(uuid.uuid4())
    job = Job(
        id=job_id, tenant=tenant, key_id="k", kind="explain", state=State.WAITING, created=1, ended=None,
        spec=vault.seal(b"{}", job_id, None, None), total=len(names), done=0, failed=0, detail=None,
    )  # fmt: skip
    rows = [
        JobRow(number, str(uuid.uuid4()), None, INCOME.encode(), subject=name and vault.lookup(tenant, name))
        for number, name in enumerate(names)
    ]
    Jobs(engine).create(job, rows)
    return job.id


async def test_what_a_job_holds_of_an_erased_person_goes_too(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker, tmp_path: Path
) -> None:
    jobs = Jobs(engine)
    job = waiting_rows(engine, vault, [PERSON, "Bob", None, PERSON, PERSON])
    other = waiting_rows(engine, vault, [PERSON], "broker")
    row = jobs.unfinished_row(job, 3)
    assert row is not None
    await ledger.append([of_person(make_entry, id=row.explanation_id, job_row=(job, 3))])
    jobs.finish_rows(job, [(3, DONE, None)])

    erased = erase(engine, vault, "bank", PERSON, "key", "asked for it")

    assert (erased.records, erased.job_rows) == (1, 2)
    (event,) = (await ledger.events("bank", EventSearch(kind="erasure"))).events
    told = {name: value for name, value in event.details.items() if name != "decisions"}
    assert told == {"records": [[3, 3]], "count": 1, "job_rows": 2, "reason": "asked for it"}
    results = [(row.number, row.outcome, row.detail) for row in jobs.results(job, -1, 10)]
    assert results == [(0, FAILED, ERASED), (3, DONE, None), (4, FAILED, ERASED)]
    assert [row.number for row, _ in jobs.unfinished_rows(job, -1, 10)] == [1, 2]
    assert jobs.unfinished_row(job, 0) is None
    kept = jobs.unfinished_row(other, 0)
    assert kept is not None
    assert kept.payload == INCOME.encode()
    with pytest.raises(EntryRefused):  # what was being computed at that moment
        await ledger.append([of_person(make_entry, job_row=(job, 4))])
    jobs.finish_rows(job, [(4, DONE, None)])
    assert jobs.results(job, 3, 1)[0].detail == ERASED
    assert (await ledger.search("bank", Search(subject=PERSON))).entries == ()
    for tenant, waiting in (("bank", job), ("broker", other)):
        jobs.cancel(tenant, waiting)  # for what their rows hold is not sealed here
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


async def test_whose_only_trace_is_a_job_is_erased(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker, tmp_path: Path
) -> None:
    nobodys = make_entry()
    await ledger.append([nobodys])
    waiting_rows(engine, vault, [PERSON])
    assert INCOME.encode() in stored_bytes(engine, tmp_path)
    with pytest.raises(NotFound):
        erase(engine, vault, "stranger", PERSON, "key")

    erased = erase(engine, vault, "bank", PERSON, "key")

    assert (erased.records, erased.job_rows) == (0, 1)
    (event,) = (await ledger.events("bank", EventSearch(kind="erasure"))).events
    assert (event.about, event.details) == (None, {"records": [], "count": 0, "job_rows": 1, "reason": ""})
    kept = await ledger.get("bank", nobodys.id)
    assert kept is not None
    assert kept.personal == nobodys.personal
    with pytest.raises(NotFound):
        erase(engine, vault, "bank", PERSON, "key")
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()
    if engine.dialect.name == "sqlite":
        engine.dispose()
        assert INCOME.encode() not in stored_bytes(engine, tmp_path)


def test_a_hold_keeps_what_waits_in_jobs(engine: Engine, vault: Vault) -> None:
    job = waiting_rows(engine, vault, [PERSON])
    hold(engine, vault, "bank", PERSON, "counsel", "case 12/2026")
    with pytest.raises(HeldByLaw):
        erase(engine, vault, "bank", PERSON, "key")
    kept = Jobs(engine).unfinished_row(job, 0)
    assert kept is not None
    assert kept.payload == INCOME.encode()


async def test_an_erasure_and_the_record_of_a_row_take_turns(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    """Whichever is first, nothing of the person is left."""
    for turn in range(12):
        name = f"{PERSON} {turn}"
        job = waiting_rows(engine, vault, [name])
        append = asyncio.create_task(ledger.append([of_person(make_entry, subject=name, job_row=(job, 0))]))
        erased, refused = await asyncio.gather(
            asyncio.to_thread(erase, engine, vault, "bank", name, "key"), append, return_exceptions=True
        )
        assert not isinstance(erased, BaseException)
        assert (erased.records == 0) == isinstance(refused, EntryRefused)
        assert (await ledger.search("bank", Search(subject=name))).entries == ()
    with engine.connect() as connection:
        assert connection.scalars(select(subjects.c.token)).all() == [NO_TOKEN]
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


async def test_another_tenants_person_of_the_same_name_stays(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    mine, theirs = of_person(make_entry), of_person(make_entry, tenant="broker")
    await ledger.append([mine, theirs])
    with pytest.raises(NotFound):
        erase(engine, vault, "stranger", PERSON, "key")
    assert erase(engine, vault, "bank", PERSON, "key").records == 1
    assert [one.subject for one in (await ledger.search("broker", Search(subject=PERSON))).entries] == [PERSON]
    await ledger.close()


async def test_a_hold_forbids_and_says_who_and_why(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    hold(engine, vault, "bank", PERSON, "counsel", "case 12/2026")  # before there is anything
    await ledger.append([of_person(make_entry), of_person(make_entry, created=1)])
    with pytest.raises(HeldByLaw, match=r"hold by counsel since 20.*: case 12/2026"):
        erase(engine, vault, "bank", PERSON, "key")
    assert retain(engine, {"standard": 25}, "key") == {"standard": 0}
    with engine.connect() as connection:
        assert [(one.by, one.reason) for one in holds(connection)] == [("counsel", "case 12/2026")]
    with pytest.raises(NotFound):
        release(engine, vault, "broker", PERSON, "counsel")
    release(engine, vault, "bank", PERSON, "counsel", "settled")
    with pytest.raises(NotFound):
        release(engine, vault, "bank", PERSON, "counsel")
    with engine.connect() as connection:
        assert holds(connection) == []
    assert erase(engine, vault, "bank", PERSON, "key").records == 2
    await ledger.close()


async def test_retention_by_class_and_age(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.ledger.retention.RECORDS_AT_ONCE", 4)
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)

    def at(year: int, month: int, day: int) -> int:
        return int(datetime(year, month, day, 12, tzinfo=UTC).timestamp() * 1e6)

    entries = [
        of_person(make_entry, created=at(2024, 10, 25), retention="standard"),  # on the day: not older
        of_person(make_entry, created=at(2024, 10, 25) - 1, retention="standard"),
        of_person(make_entry, created=at(2025, 11, 24), retention="business", subject="Bob"),
        of_person(make_entry, created=at(2025, 11, 26), retention="business"),
        *(of_person(make_entry, created=at(2020, 1, 1), retention="unknown", subject=None) for _ in range(9)),
        of_person(make_entry, created=at(2020, 1, 1), tenant="broker", subject=None),
    ]
    await ledger.append(entries)

    counts = retain(engine, {"standard": 25, "business": 12}, "schedule", now)

    assert counts == {"business": 1, "standard": 2, "unknown": 9}
    kept = {one.id for one in (await ledger.search("bank", Search())).entries if one.tombstone is None}
    assert kept == {entries[0].id, entries[3].id}
    assert retain(engine, {"standard": 25, "business": 12}, "schedule", now) == {
        "business": 0,
        "standard": 0,
        "unknown": 0,
    }
    with engine.connect() as connection:
        lookups = set(connection.scalars(select(subjects.c.lookup).where(subjects.c.token != NO_TOKEN)))
    assert lookups == {vault.lookup("bank", PERSON)}  # Bob's key went with the last of his
    assert verify_ledger(engine, vault).faults == []
    events = (await ledger.events("bank", EventSearch(kind="retention"))).events
    assert sum(event.details["count"] for event in events) == 11
    await ledger.close()


async def test_a_record_of_before_there_was_a_schema_is_erased_whole(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    """It holds in clear what is sealed since; the leaf stays, and the tombstone says that the record is gone."""
    await ledger.append([of_person(make_entry), of_person(make_entry)])
    old = f'{{"decision_id":"{DECISION}"}}'.encode()
    with engine.begin() as connection:
        connection.execute(log.update().where(log.c.seq == 1).values(record=old))
    erased = erase(engine, vault, "bank", PERSON, "key")
    with engine.connect() as connection:
        assert connection.scalar(select(log.c.record).where(log.c.seq == 1)) is None
        assert connection.scalar(select(log.c.record).where(log.c.seq == 2)) is not None
    (event,) = (await ledger.events("bank", EventSearch(kind="erasure"))).events
    assert (event.seq, event.details["without_record"]) == (erased.tombstone, [[1, 1]])
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


async def test_the_decision_that_a_tombstone_is_found_by_cannot_be_changed(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    entries = [of_person(make_entry), of_person(make_entry, decision_id=None), of_person(make_entry, decision_id="d-2")]
    await ledger.append([*entries, of_person(make_entry, subject="Bob", created=1)])
    place = erase(engine, vault, "bank", PERSON, "key").tombstone
    retain(engine, {"standard": 25}, "schedule")
    (old,) = (await ledger.search("bank", Search(decision_id=DECISION), 1)).entries
    assert (old.seq, old.tombstone) == (1, place)
    assert [one.seq for one in (await ledger.search("bank", Search(decision_id=DECISION))).entries] == [1, 4]
    assert verify_ledger(engine, vault).faults == []
    for seq, other in ((1, None), (1, vault.decision("bank", "d-9")), (2, vault.decision("bank", "d-2")), (4, None)):
        with engine.begin() as connection:
            this = explanations.c.seq == seq
            was = connection.scalar(select(explanations.c.decision_id).where(this))
            connection.execute(explanations.update().where(this).values(decision_id=other))
        told = f"row {place if seq < 4 else place + 1}: the decisions of the rows that this tombstone erased"
        assert [fault.startswith(told) for fault in verify_ledger(engine, vault).faults] == [True]
        assert [fault.startswith(told) for fault in verify_explanation(engine, vault, seq)] == [True]
        with engine.begin() as connection:
            connection.execute(explanations.update().where(this).values(decision_id=was))
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


def an_export(engine: Engine, vault: Vault, state: State = State.WAITING, **conditions: str) -> Job:
    """An export of what meets the conditions: one that waits, or the next to be claimed, which has ended so."""
    job_id, jobs = str(uuid.uuid4()), Jobs(engine)
    spec = {"format": "csv", "search": Search(**conditions), "conditions": list(conditions)}  # type: ignore[arg-type]
    job = Job(
        id=job_id, tenant="bank", key_id="k", kind=EXPORT, state=State.WAITING, created=int(state is State.WAITING),
        ended=None, total=None, done=0, failed=0, detail=None, spec=vault.seal(orjson.dumps(spec), job_id, None, None),
    )  # fmt: skip
    jobs.create(job)
    if state is not State.WAITING:
        claimed = jobs.claim("worker", [EXPORT])
        assert claimed is not None
        assert claimed.id == job_id
        jobs.end(job_id, "worker", state)
    return job


async def test_an_export_forgets_whom_it_was_asked_by(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    await ledger.append([of_person(make_entry)])
    made = [
        an_export(engine, vault, subject=PERSON),
        an_export(engine, vault, State.DONE, subject=PERSON),
        an_export(engine, vault, decision_id=DECISION),
        an_export(engine, vault, subject="Bob"),
        an_export(engine, vault, model="loan"),
    ]
    assert erase(engine, vault, "bank", PERSON, "key").exports == 3
    for number, job in enumerate(made):
        kept = Jobs(engine).get("bank", job.id, [EXPORT])
        assert kept is not None
        spec = vault.open(kept.spec, kept.id, None)
        is_theirs = number < 3
        assert is_theirs == (b"search" not in spec)
        assert PERSON.encode() not in spec
        assert DECISION.encode() not in spec
        assert kept.state == (State.DONE if number == 1 else State.FAILED if is_theirs else State.WAITING)
        assert kept.detail == (ERASED_SEARCH if number in (0, 2) else None)
    (event,) = (await ledger.events("bank", EventSearch(kind="erasure"))).events
    assert event.details["exports"] == 3
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


COMPOSED, DECOMPOSED = "Jos\u00e9 \u00c5str\u00f6m", "Jose\u0301 A\u030astro\u0308m"


async def test_one_name_is_one_person_however_it_is_spelt(
    ledger: Ledger, engine: Engine, vault: Vault, make_entry: EntryMaker
) -> None:
    job = waiting_rows(engine, vault, [DECOMPOSED, COMPOSED])
    await ledger.append([of_person(make_entry, subject=name) for name in (COMPOSED, DECOMPOSED, "Jose Astrom")])
    for name in (COMPOSED, DECOMPOSED):
        found = (await ledger.search("bank", Search(subject=name))).entries
        assert [one.subject for one in found] == [COMPOSED] * 2
        hold(engine, vault, "bank", name, "counsel", "case 12")
        kept = kept_of(engine, vault, "bank", COMPOSED)
        assert (len(kept.tokens), kept.explanations, kept.job_rows) == (1, 2, 2)
        assert kept.hold is not None
    release(engine, vault, "bank", DECOMPOSED, "counsel")
    erased = erase(engine, vault, "bank", DECOMPOSED, "key")
    assert (erased.records, erased.job_rows) == (2, 2)
    assert Jobs(engine).unfinished_row(job, 0) is None
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


@pytest.mark.parametrize("before", [(DECOMPOSED,), (COMPOSED, DECOMPOSED)])
async def test_who_was_recorded_in_another_spelling_is_found_held_and_erased(
    ledger: Ledger,
    engine: Engine,
    vault: Vault,
    make_entry: EntryMaker,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[str, ...],
) -> None:
    with monkeypatch.context() as as_it_was:
        for module in ("entries", "sealing"):
            as_it_was.setattr(f"service.ledger.{module}.normal", lambda name: name)
        as_it_was.setattr("service.ledger.sealing.spellings", lambda name: (name,))
        await ledger.append([of_person(make_entry, subject=name) for name in before])
    await ledger.append([of_person(make_entry, subject=COMPOSED)])
    total = len(before) + 1
    assert verify_ledger(engine, vault).faults == []
    for name in (COMPOSED, DECOMPOSED):
        assert len((await ledger.search("bank", Search(subject=name))).entries) == total
        kept = kept_of(engine, vault, "bank", name)
        assert (len(kept.tokens), kept.explanations) == (len(before), total)
    hold(engine, vault, "bank", COMPOSED, "counsel", "case 12")
    with engine.connect() as connection:
        assert {one.token for one in holds(connection)} == set(kept.tokens)
    assert retain(engine, {"standard": 1}, "key", datetime(2100, 1, 1, tzinfo=UTC)) == {"standard": 0}
    with pytest.raises(HeldByLaw):
        erase(engine, vault, "bank", DECOMPOSED, "key")
    release(engine, vault, "bank", COMPOSED, "counsel")
    assert erase(engine, vault, "bank", COMPOSED, "key").records == total
    with engine.connect() as connection:
        assert connection.scalars(select(subjects.c.token)).all() == [NO_TOKEN]
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


def test_another_master_key_opens_nothing(engine: Engine, vault: Vault, url: str, tmp_path: Path) -> None:
    other = open_engine(url)
    for folder in ("elsewhere", "secrets"):
        if folder == "secrets":
            (tmp_path / folder / "master.key").write_text("ab" * 32)
        with pytest.raises(WrongMasterKey, match="copy the key's file"):
            prepare_database(other, tmp_path / folder / "master.key")
    assert not (tmp_path / "elsewhere").exists()
    other.dispose()


@given(st.lists(st.integers(1, 60), unique=True).map(sorted))
def test_ranges_name_every_place_once(places: list[int]) -> None:
    found = ranges(places)
    assert [place for first, last in found for place in range(first, last + 1)] == places
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


@pytest.mark.parametrize(
    ("moment", "months", "before"),
    [
        ("2026-11-25", 25, "2024-10-25"),
        ("2026-03-31", 1, "2026-02-28"),
        ("2024-03-31", 1, "2024-02-29"),
        ("2026-01-01", 1, "2025-12-01"),
        ("2026-12-31", 12, "2025-12-31"),
    ],
)
def test_months_are_those_of_the_calendar(moment: str, months: int, before: str) -> None:
    assert months_before(datetime.fromisoformat(moment), months) == datetime.fromisoformat(before)
