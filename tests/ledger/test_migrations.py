"""The migrated schema is the one the code is written for, also when several processes start at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from service.ledger import Entry, Ledger, Search, open_engine, upgrade
from service.ledger.tables import metadata

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


FIRST_SCHEMA = [
    "INSERT INTO explanations VALUES (1, 'a', 'bank', 10, 'loan', '1', 'm', 'denied', true, 'd-1', 'ann', 'key',"
    " CAST('{\"id\":\"a\"}' AS BLOB), CAST('{\"input\":[1]}' AS BLOB), x'00')",
    "INSERT INTO explanations VALUES (2, 'b', 'bank', 11, 'loan', '1', 'm', NULL, false, NULL, NULL, 'key',"
    " CAST('{\"id\":\"b\"}' AS BLOB), CAST('{\"input\":[2]}' AS BLOB), x'01')",
    "INSERT INTO explanation_tags VALUES (1, 'flag', 'protected_share', 'bank', 10)",
    "INSERT INTO explanation_tags VALUES (1, 'cohort.channel', 'web', 'bank', 10)",
]
"""Two explanations as the first version of the schema held them."""


async def test_what_the_first_schema_held_is_there_after_the_upgrade(url: str, make_entry: EntryMaker) -> None:
    engine = open_engine(url)
    upgrade(engine, "0001")
    with engine.begin() as connection:
        for statement in FIRST_SCHEMA:
            if engine.dialect.name == "postgresql":
                statement = re.sub(r"CAST\(('[^']*') AS BLOB\)", r"convert_to(\1, 'UTF8')", statement)
                statement = re.sub(r"x'(..)'", r"'\\x\1'", statement)
            connection.execute(text(statement.replace(":", r"\:")))
    upgrade(engine)
    ledger = Ledger(engine)
    await ledger.append([make_entry()])
    entries = (await ledger.search("bank", Search(created_to=100))).entries
    assert [(stored.seq, stored.id, stored.record, stored.leaf) for stored in entries] == [
        (2, "b", b'{"id":"b"}', b"\x01"),
        (1, "a", b'{"id":"a"}', b"\x00"),
    ]
    assert (entries[1].flags, entries[1].cohort) == (("protected_share",), {"channel": "web"})
    (newest,) = (await ledger.search("bank", Search(created_from=100))).entries
    assert newest.seq == 3
    await ledger.close()
    engine.dispose()


def test_processes_that_start_at_once_take_turns(url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": "."},
        )
        for _ in range(4)
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
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    engine = open_engine(url)
    assert differences(engine) == []
    engine.dispose()


def test_sqlite_waits_for_the_disk(sqlite_url: str) -> None:
    engine = open_engine(sqlite_url)
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
