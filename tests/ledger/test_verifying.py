"""Whatever is changed in the database is found: any bit of any column of any row, and rows that go, come or move."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Boolean, Connection, Engine, Integer, LargeBinary, Table, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.access.permissions import OPEN, Policy, Quota
from service.ledger import (
    SCOPES,
    CheckpointSigner,
    Entry,
    Event,
    Keys,
    Ledger,
    merkle,
    open_engine,
    prepare_database,
    stored_tree,
    verifying,
)
from service.ledger.clock import WrittenTimes
from service.ledger.entries import REVIEW
from service.ledger.erasing import erase
from service.ledger.erasure_list import ErasureList
from service.ledger.export_checking import Verdict
from service.ledger.jobs import Jobs
from service.ledger.legal_holds import hold, release
from service.ledger.sealing import NO_TOKEN, Vault
from service.ledger.stored_jobs import DONE, FAILED, Job, JobRow, State
from service.ledger.stored_tree import log_size
from service.ledger.tables import (
    checkpoints,
    events,
    explanation_tags,
    explanations,
    job_rows,
    jobs,
    keys,
    log,
    nodes,
    signing_keys,
    subjects,
)
from service.ledger.verifying import verify_explanation, verify_ledger
from tests.ledger.conftest import Databases

EntryMaker = Callable[..., Entry]
FLIPS = int(os.environ.get("LEDGER_FLIPS", "1"))
"""For each of the two databases; every column has at least one. `make flips` runs a thousand in all."""


def in_each_database(names: Sequence[str], *in_postgresql: str) -> pytest.MarkDecorator:
    """Each of them in SQLite; in PostgreSQL these, and the others with `make slow`: what compares is the same code."""
    cases = [
        pytest.param(database, name, marks=pytest.mark.slow)
        if database == "postgresql" and name not in in_postgresql
        else (database, name)
        for database in ("sqlite", "postgresql")
        for name in names
    ]
    return pytest.mark.parametrize(("databases", "name"), cases, indirect=["databases"])


LEDGER = (log, explanations, explanation_tags, events, nodes, checkpoints, signing_keys, subjects, keys)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of several heights are stored over a few rows."""
    for module in (stored_tree, merkle, verifying):
        monkeypatch.setattr(module, "STORED_HEIGHTS", 2)
    for module in (stored_tree, merkle):
        monkeypatch.setattr(module, "BLOCK", 4)


async def fill(engine: Engine, vault: Vault, folder: Path, make_entry: EntryMaker) -> None:
    """A ledger with everything in it: people, holds, erasures, look-ups, rotated keys, checkpoints, callers' keys."""
    signer = CheckpointSigner(engine, folder / "signing.pem", folder / "checkpoints.jsonl")
    ledger = Ledger(engine, vault)
    for i in range(8):
        await ledger.append(
            [
                make_entry(
                    created=time.time_ns() // 1000,
                    subject=(None, "Ann", "Bob", "Cid")[(i + j) % 4],
                    decision_id=None if j == 1 else f"d-{i}",
                    label=("denied", None)[j % 2],
                    further_labels=("delayed",) if j == 2 else (),
                    flags=("seen",) if i % 2 else (),
                    cohort={"channel": "web"} if j else {},
                )
                for j in range(3)
            ]
            + [Event(kind="lookup", tenant="bank", key_id="key", about=None if i % 2 else "x", details={"seen": [i]})]
        )
        if i % 3 == 0:
            signer.sign()
        if i == 4:
            erase(engine, vault, "bank", "Bob", "key", "asked for")
            signer.rotate()
        if i == 6:
            hold(engine, vault, "bank", "Cid", "key", "a trial")
            release(engine, vault, "bank", "Cid", "key")
    with engine.connect() as connection:
        reviewed = connection.scalar(select(explanations.c.id).where(explanations.c.seq == 2))
    for verdict in ("escalated", "accepted"):
        await ledger.append_event(REVIEW, "bank", "key", reviewed, {"verdict": verdict, "note": ""})
    make_keys(Keys(engine))
    make_jobs(engine, vault)
    signer.sign()
    await ledger.close()


@pytest.fixture
def filled(
    small_blocks: None, databases: Databases, tmp_path: Path, make_entry: EntryMaker
) -> Iterator[tuple[Engine, Vault]]:
    """A copy of what `fill` makes once for each kind of database, with the files that belong to it."""
    files = databases.folder / "files"

    def fill_first(url: str) -> None:
        files.mkdir()
        first = open_engine(url)
        asyncio.run(fill(first, prepare_database(first, files / "master.key"), files, make_entry))
        first.dispose()

    engine = open_engine(databases.like("filled", fill_first, tmp_path))
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    yield engine, prepare_database(engine, tmp_path / "master.key")
    engine.dispose()


def make_keys(keys: Keys) -> None:
    """A key of every fate: 8 events. No column of any table is empty in all of the rows."""
    first, _ = keys.create("front", "bank", ["explain"], 3 * 10**15, Quota(10, 99, "day"), Policy(top=3))
    keys.rotate(first.id, 10**6)
    keys.create("batch", "broker", SCOPES)
    changed, _ = keys.create("metrics", "bank", ["metrics"])
    keys.change(changed.id, Quota(1, None, "hour"), Policy(digits=2))
    keys.change(changed.id, None, OPEN)
    chosen = keys.add("chosen by the operator", "bootstrap", "default", SCOPES)
    keys.revoke(chosen.id)


def make_jobs(engine: Engine, vault: Vault) -> None:
    """A job that is done, one that was cancelled, one under way, an export, and one that was forgotten: 11 events."""
    stored = Jobs(engine)
    with engine.connect() as connection:
        explained = connection.execute(select(explanations.c.id).order_by(explanations.c.seq).limit(4)).scalars().all()

    def waiting(number: int, subject: str | None, explanation_id: str) -> JobRow:
        belongs: dict[str, Any] = {"decision_id": None, "subject": subject, "cohort": {}}
        content = orjson.dumps({"instance": [1], "context": belongs})
        payload = vault.seal(content, explanation_id, None, None)
        lookup = None if subject is None else vault.lookup("bank", subject)
        return JobRow(number, explanation_id, payload=payload, subject=lookup)

    def make(name: str, kind: str, created: int, rows: list[JobRow]) -> None:
        spec = vault.seal(b"{}", name, None, None)
        total = len(rows) or None
        usual: dict[str, Any] = {"ended": None, "spec": spec, "total": total, "done": 0, "failed": 0, "detail": None}
        stored.create(
            Job(id=name, tenant="bank", key_id="key", kind=kind, state=State.WAITING, created=created, **usual), rows
        )

    make("forgotten", "explain", 1, [])
    stored.cancel("bank", "forgotten")
    assert stored.forget_ended(2**60) == 1
    make("done", "explain", 2, [waiting(0, "Ann", explained[0]), waiting(1, None, "never")])
    stored.claim("first", ("explain",))
    stored.finish_rows("done", [(0, DONE, None), (1, FAILED, "the model failed on this input")])
    stored.end("done", "first", State.DONE)
    make("exported", "export", 3, [])
    stored.claim("second", ("export",))
    stored.tell("exported", "second", 7, 9)
    stored.end("exported", "second", State.FAILED, "the disk is full")
    make("cancelled", "explain", 4, [waiting(0, "Cid", "no-1"), JobRow(1, explained[1], source=explained[0])])
    stored.claim("third", ("explain",))
    stored.cancel("bank", "cancelled")
    stored.release("cancelled", "third")
    with engine.connect() as connection:
        known = (
            connection.execute(
                select(subjects.c.lookup).join_from(explanations, subjects, subjects.c.token == explanations.c.subject)
            )
            .scalars()
            .first()
        )
        of_known = select(explanations.c.id).join_from(
            explanations, subjects, subjects.c.token == explanations.c.subject
        )
        source = connection.scalar(of_known.where(subjects.c.lookup == known))
    rows = [waiting(0, "Ann", "u-0"), waiting(1, None, "u-1"), JobRow(2, "u-2", source=source, subject=known)]
    make("under way", "explain", 5, rows)
    stored.claim("fourth", ("explain",))
    stored.finish_rows("under way", [(1, FAILED, "the model failed on this input")])


def verified(filled: tuple[Engine, Vault], tmp_path: Path) -> Verdict:
    return verify_ledger(*filled, shipped=tmp_path / "checkpoints.jsonl")


def test_an_untouched_ledger_is_valid(filled: tuple[Engine, Vault], tmp_path: Path) -> None:
    verdict = verified(filled, tmp_path)
    assert verdict.faults == []
    assert verdict.is_valid
    assert (verdict.records, verdict.size) == (56, 56)
    assert verdict.erased == 4
    assert verdict.signed is not None


def test_what_a_service_records_signs_and_erases_meanwhile_is_no_fault(
    filled: tuple[Engine, Vault], tmp_path: Path, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, vault = filled
    signer = CheckpointSigner(engine, tmp_path / "signing.pem", tmp_path / "checkpoints.jsonl")
    erasures = ErasureList(tmp_path / "erasures.jsonl", vault)

    async def go_on() -> None:
        ledger = Ledger(engine, vault)
        await ledger.append([make_entry(created=time.time_ns() // 1000, subject="Ann")])
        await ledger.close()
        signer.sign()
        erase(engine, vault, "bank", "Ann", "key", "asked for")
        erasures.add_from(engine, 0)

    def read_meanwhile(connection: Connection) -> int:
        size = log_size(connection)  # the snapshot is that of now
        asyncio.run(go_on())
        return size

    with monkeypatch.context() as patch:
        patch.setattr(verifying, "log_size", read_meanwhile)
        during = verified(filled, tmp_path)
    after = verified(filled, tmp_path)
    assert during.faults == after.faults == []
    assert (during.size, after.size) == (56, 58)
    assert len(erasures.read()[0]) == 2


def flipped(value: object, draw: random.Random) -> object:
    """The value with one bit of its stored bytes flipped; an integer's or a text's stays one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value ^ (1 << draw.randrange(31))
    data = value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[call-overload]
    while True:
        at = draw.randrange(8 * len(data))
        changed = bytes(byte ^ (1 << at % 8 if i == at // 8 else 0) for i, byte in enumerate(data))
        if not isinstance(value, str):
            return changed
        try:
            text = changed.decode()
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text


@pytest.mark.parametrize("databases", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_every_flipped_bit_is_found(filled: tuple[Engine, Vault], tmp_path: Path) -> None:
    engine, _ = filled
    draw = random.Random(11)
    with engine.connect() as connection:
        cells = [
            (table, row, column.name)
            for table in LEDGER
            for row in connection.execute(select(table)).all()
            for column in table.c
            if getattr(row, column.name) not in (None, b"")
        ]
    by_column: dict[tuple[str, str], list[Any]] = {}
    for cell in cells:
        by_column.setdefault((cell[0].name, cell[2]), []).append(cell)
    assert len(by_column) == sum(len(table.c) for table in LEDGER)
    done = 0
    while done < FLIPS:
        for cells in by_column.values():  # every column of every table, and random rows
            table, row, name = draw.choice(cells)
            if name == "seq" and table in (explanations, explanation_tags):
                continue  # the one refers to the other, so the database itself refuses that
            done += 1
            original = getattr(row, name)
            changed = flipped(original, draw)
            key = [column == getattr(row, column.name) for column in table.primary_key.columns]
            try:
                with engine.begin() as connection:
                    connection.execute(update(table).where(*key).values({name: changed}))
            except IntegrityError:
                continue  # another row of that key is there
            assert not verified(filled, tmp_path).is_valid, (table.name, name, row, changed)
            key = [
                column == (changed if column.name == name else getattr(row, column.name))
                for column in table.primary_key.columns
            ]
            with engine.begin() as connection:
                connection.execute(update(table).where(*key).values({name: original}))
    assert verified(filled, tmp_path).is_valid


OTHER_TYPES = {
    "integer": ("'x'", "x'01'", "1.5"),
    "boolean": ("3", "-1", "'true'", "x'01'", "0.5"),
    "text": ("x'41'", "CAST(x'ff' AS TEXT)"),
    "blob": ("'x'", "7", "1.5"),
}
"""What SQLite takes for a column of each kind, though it is of another type, or no text that can be read."""


def kind_of(column: Any) -> str:
    kinds = ((Boolean, "boolean"), (Integer, "integer"), (LargeBinary, "blob"))
    return next((name for type_, name in kinds if isinstance(column.type, type_)), "text")


@contextmanager
def raw(engine: Engine) -> Iterator[sqlite3.Connection]:
    """The file, without what the service asks of a connection."""
    with closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as connection:
        yield connection


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", [*LEDGER, jobs, job_rows], ids=lambda table: str(table.name))
def test_a_value_of_another_type_is_found(filled: tuple[Engine, Vault], tmp_path: Path, table: Table) -> None:
    """SQLite takes it: a boolean that is 3 is true to Python, and in the index of neither search."""
    engine, _ = filled
    with raw(engine) as file, closing(sqlite3.connect(":memory:")) as untouched:
        file.backup(untouched)
        key = table.primary_key.columns[0].name
        ((first,),) = file.execute(f"SELECT min({key}) FROM {table.name}").fetchall()
        for column in table.c:
            for value in OTHER_TYPES[kind_of(column)]:
                try:
                    file.execute(f"UPDATE {table.name} SET {column.name} = {value} WHERE {key} = ?", (first,))
                except sqlite3.DatabaseError:
                    continue  # a place in a table is an integer, whoever asks
                assert verified(filled, tmp_path).faults, (column, value)
                untouched.backup(file)
    assert verified(filled, tmp_path).faults == []


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_a_boolean_that_no_search_finds(filled: tuple[Engine, Vault], tmp_path: Path) -> None:
    engine, vault = filled
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE explanations SET converged = 3 WHERE seq = 1")
    assert "neither 0 nor 1" in verified(filled, tmp_path).faults[0]
    assert "converged" in verify_explanation(engine, vault, 1)[0]
    assert verify_explanation(engine, vault, 2) == []


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_an_index_that_lacks_a_row(filled: tuple[Engine, Vault], tmp_path: Path) -> None:
    """The row is as it was recorded, and no search by label finds it."""
    engine, _ = filled
    name, update_label = "explanations_label", "UPDATE explanations SET label = ? WHERE seq = 1"
    with raw(engine) as file:
        file.execute(update_label, ("another",))
        file.execute("PRAGMA writable_schema = ON")
        index = file.execute("SELECT * FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        file.execute("DELETE FROM sqlite_master WHERE name = ?", (name,))
    with raw(engine) as file:  # which does not know of the index
        file.execute(update_label, ("denied",))
        file.execute("PRAGMA writable_schema = ON")
        file.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", index)
    assert any(name in fault for fault in verified(filled, tmp_path).faults)


ROWS: dict[str, tuple[Table, Any]] = {
    "an explanation": (explanations, explanations.c.seq == 10),
    "an erased explanation": (explanations, explanations.c.tombstone.is_not(None)),
    "a row of the log": (log, log.c.seq == 10),
    "the first row": (log, log.c.seq == 1),
    "an event": (events, events.c.kind == "lookup"),
    "a tombstone": (events, events.c.kind == "erasure"),
    "a tombstone in the log": (log, log.c.kind == "erasure"),
    "tags": (explanation_tags, explanation_tags.c.name == "flag"),
    "labels beside another": (explanation_tags, explanation_tags.c.name == "label"),
    "the mark of a review": (explanation_tags, explanation_tags.c.name == "reviewed"),
    "a review": (events, events.c.kind == "review"),
    "nodes": (nodes, nodes.c.height == 4),
    "a checkpoint": (checkpoints, checkpoints.c.size == 4),
    "a key": (signing_keys, signing_keys.c.place == 1),
    "a subject's key": (subjects, subjects.c.token != NO_TOKEN),
    "the mark of the master key": (subjects, subjects.c.token == NO_TOKEN),
    "a caller's key": (keys, keys.c.name == "batch"),
    "a caller's key that was revoked": (keys, keys.c.name == "bootstrap"),
}


@in_each_database(list(ROWS), "an explanation", "a caller's key")
def test_rows_that_are_deleted(filled: tuple[Engine, Vault], tmp_path: Path, name: str) -> None:
    table, which = ROWS[name]
    with filled[0].begin() as connection:
        if table is explanations:
            gone = select(explanations.c.seq).where(which)
            connection.execute(delete(explanation_tags).where(explanation_tags.c.seq.in_(gone)))
        assert connection.execute(delete(table).where(which)).rowcount
    assert not verified(filled, tmp_path).is_valid


def swap_rows(connection: Any) -> None:
    """Two neighbours change places, with all that belongs to them; the tree cannot."""
    rows = connection.execute(select(log).where(log.c.seq.in_([2, 3])).order_by(log.c.seq)).all()
    connection.execute(delete(log).where(log.c.seq.in_([2, 3])))
    for seq, row in zip((3, 2), rows, strict=True):
        connection.execute(insert(log).values(seq=seq, kind=row.kind, record=row.record, leaf=row.leaf))


def cut_off(connection: Any) -> None:
    """The end is gone, and the checkpoints over it; only what was kept elsewhere can tell."""
    connection.execute(delete(checkpoints).where(checkpoints.c.size > 20))
    connection.execute(delete(nodes).where((nodes.c.place + 1) * 4 > 20))
    for table in (explanation_tags, explanations, events, log):
        connection.execute(delete(table).where(table.c.seq > 20))
    connection.execute(delete(signing_keys).where(signing_keys.c.place == 2))
    connection.execute(delete(keys))


def erase_in_silence(connection: Any) -> None:
    """A personal part is gone, and nobody says why."""
    connection.execute(
        update(explanations).where(explanations.c.seq == 1).values(personal=None, subject=None, decision_id=None)
    )


def hide_behind_another_tombstone(connection: Any) -> None:
    place = connection.scalar(select(events.c.seq).where(events.c.kind == "erasure"))
    erase_in_silence(connection)
    connection.execute(update(explanations).where(explanations.c.seq == 1).values(tombstone=place))


def empty_a_record(connection: Any) -> None:
    """Of an erased row, whose columns could then say anything."""
    seq = connection.scalar(select(explanations.c.seq).where(explanations.c.tombstone.is_not(None)))
    connection.execute(update(log).where(log.c.seq == seq).values(record=None))


def add_a_tag(connection: Any) -> None:
    connection.execute(insert(explanation_tags).values(seq=1, name="flag", value="x", tenant="bank", created=1))


def mark_as_reviewed(connection: Any) -> None:
    """What nobody reviewed leaves the queue."""
    row = connection.execute(select(explanations).where(explanations.c.seq == 1)).one()
    mark = {"seq": 1, "name": "reviewed", "value": "true", "tenant": row.tenant, "created": row.created}
    connection.execute(insert(explanation_tags).values(mark))


def add_a_row(connection: Any) -> None:
    connection.execute(insert(events).values(seq=99, kind="lookup", tenant="bank", created=1, key_id="key"))


CHANGES: dict[str, Callable[[Any], None]] = {
    change.__name__: change
    for change in (
        swap_rows,
        cut_off,
        erase_in_silence,
        hide_behind_another_tombstone,
        empty_a_record,
        add_a_tag,
        mark_as_reviewed,
        add_a_row,
    )
}


@in_each_database(list(CHANGES), "swap_rows", "cut_off")
def test_rows_that_are_moved_cut_off_emptied_or_added(filled: tuple[Engine, Vault], tmp_path: Path, name: str) -> None:
    with filled[0].begin() as connection:
        CHANGES[name](connection)
    assert not verified(filled, tmp_path).is_valid


KEY_CHANGES: dict[str, Any] = {
    "id": "another",
    "hash": hashlib.sha256(b"another secret").hexdigest(),
    "tenant": "another",
    "scopes": "explain ledger:read ledger:write",
    "name": "another",
    "created": 1,
    "expires": 4 * 10**15,
    "revoked": 4 * 10**15,
    "account": "another",
    "quota": '{"requests":1000000,"period":"day"}',
    "policy": '{"top":9}',
    "salt": "00" * 16,
}
"""For each column of a key's row, what somebody might write there."""


def of_key(name: str) -> Any:
    """The newest of the keys of that name."""
    return keys.c.created == select(func.max(keys.c.created)).where(keys.c.name == name).scalar_subquery()


@in_each_database(["front", "batch", "metrics", "bootstrap"], "batch")
def test_a_callers_key_that_is_changed_behind_the_log(filled: tuple[Engine, Vault], tmp_path: Path, name: str) -> None:
    assert set(KEY_CHANGES) == {column.name for column in keys.c}
    engine, _ = filled
    with engine.connect() as connection:
        row = connection.execute(select(keys).where(of_key(name))).one()
    for column, changed in KEY_CHANGES.items():
        values = [changed] if column in ("id", "hash", "tenant", "scopes", "name", "created") else [changed, None]
        for value in values:
            original = getattr(row, column)
            if value == original:
                continue
            with engine.begin() as connection:
                connection.execute(update(keys).where(keys.c.id == row.id).values({column: value}))
            faults = verified(filled, tmp_path).faults
            told = {"id": "is missing", "hash": "hash", "salt": "salt"}.get(column, f": column {column} differs")
            assert any(fault.startswith(f"key {row.id}") and told in fault for fault in faults), (column, value, faults)
            with engine.begin() as connection:
                changed_id = value if column == "id" else row.id
                connection.execute(update(keys).where(keys.c.id == changed_id).values({column: original}))
    assert verified(filled, tmp_path).faults == []


@pytest.mark.parametrize("name", ["front", "bootstrap"])
def test_a_callers_key_with_another_secret(filled: tuple[Engine, Vault], tmp_path: Path, name: str) -> None:
    """One that was chosen is bound by a commitment, and a new salt does not help."""
    with filled[0].begin() as connection:
        values = {"hash": KEY_CHANGES["hash"], "salt": KEY_CHANGES["salt"] if name == "bootstrap" else None}
        connection.execute(update(keys).where(of_key(name)).values(values))
    (fault,) = verified(filled, tmp_path).faults
    assert ": column hash" in fault


def test_a_callers_key_that_no_event_tells_of(filled: tuple[Engine, Vault], tmp_path: Path) -> None:
    with filled[0].begin() as connection:
        row = connection.execute(select(keys).where(keys.c.name == "batch")).one()
        connection.execute(insert(keys).values({**row._mapping, "id": "new", "hash": KEY_CHANGES["hash"]}))
    assert verified(filled, tmp_path).faults == ["key new: no event in the log created it"]


OTHERS: dict[str, Any] = {
    "state": "running",
    "ended": 3 * 10**15,
    "total": 5,
    "done": 5,
    "failed": 5,
    "detail": "something else",
    "owner": "somebody",
    "leased_until": 3 * 10**15,
    "created": 3 * 10**15,
    "spec": b"another",
    "payload": b"another",
    "outcome": "done",
    "number": 9,
    "subject": "0" * 64,
    "source": "another",
}
"""What somebody might write into a column of a job, or of its rows; into the other columns, `another`."""
PASSING = {
    "jobs": {"state", "done", "detail", "owner", "leased_until"},
    "job_rows": {"detail"},
}
"""What of a job that has not ended the database alone knows."""


@in_each_database(["done", "exported", "cancelled", "under way"], "under way")
def test_a_job_that_is_changed(filled: tuple[Engine, Vault], tmp_path: Path, name: str) -> None:
    engine, _ = filled
    for table, key in ((jobs, jobs.c.id), (job_rows, job_rows.c.job_id)):
        with engine.connect() as connection:
            rows = connection.execute(select(table).where(key == name)).all()
        for row, column in product(rows, table.c):
            before = getattr(row, column.name)
            others = [OTHERS.get(column.name, "another"), *([None] if column.nullable else [])]
            for other in others:
                is_passing = name == "under way" and column.name in PASSING[table.name]
                if other == before or is_passing or column is jobs.c.id or column is job_rows.c.job_id:
                    continue
                this = [one == getattr(row, one.name) for one in table.primary_key.columns]
                with engine.begin() as connection:
                    connection.execute(update(table).where(*this).values({column.name: other}))
                told = verified(filled, tmp_path).faults
                assert any(fault.startswith(f"job {name}: ") for fault in told), (table.name, row, column.name, other)
                this = [
                    one == (other if one is column else getattr(row, one.name)) for one in table.primary_key.columns
                ]
                with engine.begin() as connection:
                    connection.execute(update(table).where(*this).values({column.name: before}))
    assert verified(filled, tmp_path).faults == []


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_a_job_that_never_ended(filled: tuple[Engine, Vault], tmp_path: Path, state: str) -> None:
    with filled[0].begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == "under way").values(state=state))
    assert verified(filled, tmp_path).faults == ["job under way: no event in the log ended it"]


def test_jobs_that_come_and_go(filled: tuple[Engine, Vault], tmp_path: Path) -> None:
    engine, _ = filled
    with engine.begin() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == "exported")).one()
        connection.execute(insert(jobs).values({**row._mapping, "id": "new"}))
        connection.execute(delete(jobs).where(jobs.c.id == "exported"))
        connection.execute(delete(job_rows).where(job_rows.c.job_id == "done", job_rows.c.number == 1))
    faults = verified(filled, tmp_path).faults
    assert {"job new: no event in the log created it", "job exported is missing"} <= set(faults)
    assert "job done: its rows are not those that it was created with" in faults


async def test_rows_that_are_back_dated(
    filled: tuple[Engine, Vault], tmp_path: Path, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are well made and signed, but of a time when the log had been signed without them."""
    monkeypatch.setattr(WrittenTimes, "timely", lambda _, entries: entries)  # who writes them keeps to no rule
    engine, vault = filled
    ledger = Ledger(engine, vault)
    await ledger.append([make_entry()])
    await ledger.close()
    CheckpointSigner(engine, tmp_path / "signing.pem", tmp_path / "checkpoints.jsonl").sign()
    (fault,) = verified(filled, tmp_path).faults
    assert "earlier time" in fault


def test_one_explanation_on_its_own(filled: tuple[Engine, Vault]) -> None:
    engine, vault = filled
    assert verify_explanation(engine, vault, 1) == verify_explanation(engine, vault, 2) == []
    with engine.begin() as connection:
        connection.execute(update(explanations).where(explanations.c.seq == 1).values(label="approved"))
        connection.execute(update(log).where(log.c.seq == 2).values(record=b"{}"))
    assert "label" in verify_explanation(engine, vault, 1)[0]
    assert verify_explanation(engine, vault, 2)
    assert verify_explanation(engine, vault, 4)  # an event
    assert verify_explanation(engine, vault, 999)
