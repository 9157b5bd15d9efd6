"""The migrated schema is the one the code is written for, also when several processes start at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from service.access.permissions import OPEN, Quota
from service.ledger import Entry, Event, Keys, Ledger, Search, open_engine, prepare_database, upgrade, verifying
from service.ledger.entries import KEY_CREATED, KEY_REVOKED, REVIEW
from service.ledger.events import insert_event
from service.ledger.export_checking import Verdict
from service.ledger.jobs import Jobs
from service.ledger.leaves import read_head
from service.ledger.tables import metadata
from service.ledger.verifying import verify_ledger
from tests.ledger.conftest import VAULT, Databases

EntryMaker = Callable[..., Entry]

DEFINITIONS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    " AND name NOT LIKE 'alembic%' AND name NOT LIKE 'sqlite%'",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    " AND tablename NOT LIKE 'alembic%'",
}

STARTER = """
import sys
from service.ledger import Entry, Ledger, Search, open_engine, upgrade
print("ready", flush=True)
sys.stdin.readline()
upgrade(open_engine(sys.argv[1]))
"""


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def definitions(engine: Engine) -> set[tuple[str, str]]:
    """Each table and index as the database would say it, conditions of partial indexes included."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(DEFINITIONS[engine.dialect.name].replace("%", "%%")).all()
    return {(name, " ".join(sql.split()).replace(" ,", ",")) for name, sql in rows}


def test_the_migrated_schema_is_that_of_the_tables(engine: Engine) -> None:
    assert differences(engine) == []
    migrated = definitions(engine)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    assert migrated == definitions(engine)


def test_a_second_upgrade_changes_nothing(engine: Engine) -> None:
    before = definitions(engine)
    upgrade(engine)
    assert definitions(engine) == before


def recorded_before(explanation_id: str, subject: str | None, created: int) -> dict[str, object]:
    """A row as the first version of the service wrote it."""
    personal = orjson.dumps({"salt": "5a", "subject": subject, "input": {"income": 12}})
    record = {
        "id": explanation_id,
        "tenant": "bank",
        "created": created,
        "key_id": "key",
        "model": {"name": "loan", "version": "1"},
        "method": "integrated_gradients",
        "prediction": {"label": "denied"},
        "converged": True,
        "decision_id": "d-1",
        "cohort": {"channel": "web"},
        "flags": ["protected_share"],
        "personal_commitment": hashlib.sha256(personal).hexdigest(),
    }
    written = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    columns = ("id", "tenant", "created", "key_id", "method", "converged", "decision_id")
    return {
        **{name: record[name] for name in columns},
        "model": "loan",
        "version": "1",
        "label": "denied",
        "subject": subject,
        "record": written,
        "personal": personal,
        "leaf": hashlib.sha256(b"\0" + written).digest(),
    }


async def test_what_the_first_schema_held_is_sealed_and_found(empty_url: str, make_entry: EntryMaker) -> None:
    engine = open_engine(empty_url)
    upgrade(engine, "0001")
    old = [recorded_before(str(uuid.uuid4()), (None, "Ann", "Ann", "Bob")[i % 4], 10 + i) for i in range(8)]
    with engine.begin() as connection:
        for seq, row in enumerate(old, 1):
            names = ", ".join(row)
            markers = ", ".join(f":{name}" for name in row)
            connection.execute(
                text(f"INSERT INTO explanations (seq, {names}) VALUES (:seq, {markers})"), {"seq": seq, **row}
            )
            for name, value in (("flag", "protected_share"), ("cohort.channel", "web")):
                connection.execute(
                    text("INSERT INTO explanation_tags VALUES (:seq, :name, :value, 'bank', :created)"),
                    {"seq": seq, "name": name, "value": value, "created": row["created"]},
                )
    upgrade(engine, vault=VAULT)
    with engine.connect() as connection:
        for sealed in connection.execute(text("SELECT personal, subject, decision_id FROM explanations")):
            assert b"income" not in sealed.personal
            assert sealed.subject != "Ann"
            assert sealed.decision_id != "d-1"
    ledger = Ledger(engine, VAULT)
    await ledger.append([make_entry(subject="Ann")])

    for seq, row in enumerate(old, 1):
        stored = await ledger.get("bank", str(row["id"]))
        assert stored is not None
        assert (stored.seq, stored.record, stored.leaf) == (seq, row["record"], row["leaf"])
        assert (stored.personal, stored.opened, stored.subject) == (row["personal"], row["personal"], row["subject"])
        assert (stored.decision_id, stored.flags, stored.cohort) == ("d-1", ("protected_share",), {"channel": "web"})
        head = read_head(stored.logged)
        assert (head.id, head.label, head.model) == (row["id"], "denied", "loan")
        assert head.personal_commitment == hashlib.sha256(stored.opened).hexdigest()
    assert [one.seq for one in (await ledger.search("bank", Search(subject="Ann"))).entries] == [9, 7, 6, 3, 2]
    assert [one.seq for one in (await ledger.search("bank", Search(subject="Bob"))).entries] == [8, 4]
    assert len((await ledger.search("bank", Search(decision_id="d-1"))).entries) == 8
    await ledger.close()
    engine.dispose()


async def test_reviews_of_before_are_found(empty_url: str, make_entry: EntryMaker) -> None:
    engine = open_engine(empty_url)
    upgrade(engine, "0007")
    ledger = Ledger(engine, VAULT)
    entries = [make_entry() for _ in range(3)]
    await ledger.append(
        [*entries, *(Event(kind=REVIEW, tenant="bank", key_id="key", about=entries[1].id) for _ in "ab")]
    )
    await ledger.append_event(REVIEW, "broker", "key", entries[2].id)
    with engine.begin() as connection:  # as it was
        connection.execute(text("DELETE FROM explanation_tags"))
    upgrade(engine)
    for is_reviewed, meant in ((True, entries[1:2]), (False, [entries[2], entries[0]])):
        page = await ledger.search("bank", Search(reviewed=is_reviewed))
        assert [one.id for one in page.entries] == [one.id for one in meant]
        assert {(one.flags, tuple(one.cohort)) for one in page.entries} == {((), ())}
    await ledger.close()
    engine.dispose()


KEY_BEFORE = """
    INSERT INTO keys (id, hash, tenant, scopes, name, created, expires, revoked, account, quota, policy)
    VALUES (:id, :hash, 'bank', 'explain ledger:read', 'front', 5, 3000000000000000, :revoked, :account, :quota, NULL)
"""


@pytest.fixture
def before_bound_keys(empty_url: str) -> Iterator[Engine]:
    """A database whose newest events hold all of a key's row, and whose other keys are older than that.

    `known` is told whole, `chosen` without its secret, `told` as it was told once, `old` not at all.
    """
    engine = open_engine(empty_url)
    upgrade(engine, "0005")
    whole = {"name": "front", "scopes": ["explain", "ledger:read"], "expires": 3 * 10**15, "created": 5, "policy": {}}
    with engine.begin() as connection:
        for name, quota, account, revoked in (
            ("known", None, "known", 9),
            ("chosen", None, "chosen", None),
            ("told", '{"requests":5,"period":"day"}', "told", None),
            ("old", None, None, 7),
        ):
            digest = hashlib.sha256(name.encode()).hexdigest()
            columns = {"id": name, "hash": digest, "quota": quota, "account": account, "revoked": revoked}
            connection.execute(text(KEY_BEFORE), columns)
        for kind, key, details in (
            (KEY_CREATED, "told", {"name": "front", "scopes": ["explain"], "expires": None, "quota": {}, "policy": {}}),
            (KEY_REVOKED, "told", {"name": "front"}),  # which then failed
            (
                KEY_CREATED,
                "known",
                {**whole, "account": "known", "quota": {}, "hash": hashlib.sha256(b"known").hexdigest()},
            ),
            (KEY_REVOKED, "known", {"name": "front", "revoked": 9}),
            (KEY_CREATED, "chosen", {**whole, "account": "chosen", "quota": {}}),
        ):
            insert_event(connection, Event(kind=kind, tenant="bank", key_id="operator", about=key, details=details))
    yield engine
    engine.dispose()


def test_keys_that_are_older_than_their_events_are_kept_as_they_stand(
    before_bound_keys: Engine, tmp_path: Path
) -> None:
    engine = before_bound_keys
    vault = prepare_database(engine, tmp_path / "master.key")
    verdict = verify_ledger(engine, vault)
    assert verdict.faults == []
    assert (verdict.kept_keys, verdict.size) == (2, 9)
    assert verdict.kept_at is not None

    keys = Keys(engine)
    assert keys.change("old", Quota(1, None, "hour"), OPEN)
    assert keys.rotate("told", 0) is not None
    assert keys.revoke("chosen")
    assert verify_ledger(engine, vault).faults == []
    for name in ("known", "chosen", "told", "old"):
        for column, value in (("hash", "ab" * 32), ("salt", "00" * 16), ("tenant", "broker"), ("revoked", 8)):
            with engine.begin() as connection:
                kept = connection.execute(text(f"SELECT {column} FROM keys WHERE id = :id"), {"id": name}).scalar_one()
                set_column = text(f"UPDATE keys SET {column} = :value WHERE id = :id")
                connection.execute(set_column, {"id": name, "value": value})
            assert verify_ledger(engine, vault).count >= 1, (name, column)
            with engine.begin() as connection:
                connection.execute(set_column, {"id": name, "value": kept})
    assert verify_ledger(engine, vault).faults == []


def test_a_key_that_was_changed_before_it_was_kept(before_bound_keys: Engine, tmp_path: Path) -> None:
    """Its events tell of it, although the log holds both."""
    engine = before_bound_keys
    with engine.begin() as connection:
        connection.execute(text("UPDATE keys SET revoked = NULL WHERE id = 'known'"))
        connection.execute(text("UPDATE keys SET scopes = 'explain' WHERE id = 'chosen'"))
        connection.execute(text("UPDATE keys SET hash = 'abc' WHERE id = 'known'"))
    vault = prepare_database(engine, tmp_path / "master.key")
    assert verify_ledger(engine, vault).faults == [
        "key chosen: column scopes had been changed before the event key_kept recorded it",
        "key known: column revoked had been changed before the event key_kept recorded it",
        "key known: column hash differs from its events in the log",
    ]


async def test_rows_of_jobs_that_wait_are_found_by_whose_they_are(empty_url: str, make_entry: EntryMaker) -> None:
    engine = open_engine(empty_url)
    upgrade(engine, "0006")
    ledger = Ledger(engine, VAULT)
    entries = [make_entry(subject=name) for name in ("Ann", None)]
    await ledger.append(entries)
    await ledger.close()
    ids = [str(uuid.uuid4()) for _ in range(5)]
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (id, tenant, key_id, kind, state, created, spec, done)"
                " VALUES ('a', 'bank', 'k', 'explain', 'waiting', 1, :spec, 0)"
            ),
            {"spec": b""},
        )
        payloads = {
            at: VAULT.seal(orjson.dumps({"instance": [1], "context": {"subject": name}}), ids[at], None, None)
            for at, name in enumerate(("Bob", None))
        }
        sources = {2: entries[0].id, 3: entries[1].id}
        for at, own in enumerate(ids):
            connection.execute(
                text(
                    "INSERT INTO job_rows (job_id, number, explanation_id, source, payload)"
                    " VALUES ('a', :number, :id, :source, :payload)"
                ),
                {"number": at, "id": own, "source": sources.get(at), "payload": payloads.get(at)},
            )
    with pytest.raises(ValueError, match="master key"):
        upgrade(engine)
    upgrade(engine, vault=VAULT)
    with engine.connect() as connection:
        named = connection.execute(text("SELECT subject FROM job_rows ORDER BY number")).scalars().all()
    assert named == [VAULT.lookup("bank", "Bob"), None, VAULT.lookup("bank", "Ann"), None, None]
    engine.dispose()


def test_jobs_that_are_older_than_their_events_are_kept_as_they_stand(empty_url: str, tmp_path: Path) -> None:
    engine = open_engine(empty_url)
    master_key = tmp_path / "master.key"
    master_key.write_text(bytes(range(32)).hex())
    master_key.chmod(0o600)
    upgrade(engine, "0010", vault=VAULT)
    columns = "id, tenant, key_id, kind, state, created, ended, spec, total, done, detail, failed"
    with engine.begin() as connection:
        for name, state, ended in (("over", "done", 9), ("under way", "running", None)):
            spec = VAULT.seal(b"{}", name, None, None)
            connection.execute(
                text(
                    f"INSERT INTO jobs ({columns}) VALUES"
                    " (:id, 'bank', 'k', 'explain', :state, 1, :ended, :spec, 1, 0, NULL, 1)"
                ),
                {"id": name, "state": state, "ended": ended, "spec": spec},
            )
            connection.execute(
                text(
                    "INSERT INTO job_rows (job_id, number, explanation_id, outcome, detail)"
                    " VALUES (:id, 0, :own, 'failed', 'it does not fit')"
                ),
                {"id": name, "own": f"row of {name}"},
            )
    vault = prepare_database(engine, master_key)
    assert verify_ledger(engine, vault).faults == []
    for change in (
        "UPDATE jobs SET key_id = 'another'",
        "UPDATE jobs SET detail = 'other' WHERE id = 'over'",
        "UPDATE jobs SET ended = 9, state = 'done' WHERE id = 'under way'",
        "UPDATE job_rows SET detail = 'other' WHERE job_id = 'over'",
        "UPDATE job_rows SET explanation_id = 'other' WHERE job_id = 'under way'",
    ):
        with engine.connect() as connection, connection.begin() as change_of_mind:
            connection.execute(text(change))
            verdict = Verdict()
            verifying._Verification(connection, vault, verdict).run(None)
            assert not verdict.is_valid, change
            change_of_mind.rollback()
    assert Jobs(engine).forget_ended(10) == 1
    assert verify_ledger(engine, vault).faults == []
    engine.dispose()


def test_processes_that_start_at_once_take_turns(empty_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": "."},
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    engine = open_engine(empty_url)
    assert differences(engine) == []
    engine.dispose()


def test_sqlite_waits_for_the_disk(sqlite: Databases, tmp_path: Path) -> None:
    engine = open_engine(sqlite.make(tmp_path, None))
    with engine.connect() as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}
    engine.dispose()


def test_postgresql_waits_for_the_disk(postgresql_url: str) -> None:
    asks_for_less = f"{postgresql_url}&options=-csynchronous_commit%3Doff"
    engine = open_engine(asks_for_less)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/database"])
def test_a_database_that_keeps_nothing_or_is_unknown(url: str) -> None:
    with pytest.raises(ValueError, match="the ledger needs"):
        open_engine(url)


def test_any_spelling_of_postgresql_is_driven_by_psycopg(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[[str], Engine]
) -> None:
    for spelling in ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"):
        assert opened(f"{spelling}://host/database").driver == "psycopg"


@pytest.fixture
def opened() -> Callable[[str], Engine]:
    return open_engine
