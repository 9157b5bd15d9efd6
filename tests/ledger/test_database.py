"""A database that cannot be used: what is wrong is said, and what to do. And how much SQLite keeps beside it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from service.errors import LedgerUnavailable, SetupError
from service.ledger import Ledger, Search, open_engine, prepare_database
from service.ledger import appending as writing
from service.ledger.database import MAX_WAL_BYTES
from service.ledger.verifying import verify_ledger
from tests.ledger.conftest import VAULT, Databases, EntryMaker

only_sqlite = pytest.mark.parametrize("databases", ["sqlite"], indirect=True)


def closed(url: str, master_key: Path) -> Path:
    engine = open_engine(url)
    prepare_database(engine, master_key)
    engine.dispose()
    return Path(str(engine.url.database))


def test_a_database_of_a_later_version(empty_url: str, tmp_path: Path) -> None:
    engine = open_engine(empty_url)
    prepare_database(engine, tmp_path / "master.key")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match=r"later version .* schema is 9999"):
        prepare_database(engine, tmp_path / "master.key")
    engine.dispose()


@only_sqlite
@pytest.mark.parametrize("damage", [b"no database at all", b"\0" * 64])
def test_a_damaged_file(empty_url: str, tmp_path: Path, damage: bytes) -> None:
    path = closed(empty_url, tmp_path / "master.key")
    path.write_bytes(damage + path.read_bytes()[len(damage) :])
    engine = open_engine(empty_url)
    with pytest.raises(SetupError, match=r"ledger.db: The ledger's database is damaged: put its last copy"):
        prepare_database(engine, tmp_path / "master.key")
    engine.dispose()


@only_sqlite
async def test_pages_that_are_damaged(empty_url: str, tmp_path: Path, make_entry: EntryMaker) -> None:
    """They are met later: whoever reads them is told, and a verification tells what SQLite finds."""
    path = closed(empty_url, tmp_path / "master.key")
    whole = open_engine(empty_url)
    vault = prepare_database(whole, tmp_path / "master.key")
    ledger = Ledger(whole, vault)
    await ledger.append([make_entry() for _ in range(200)])
    await ledger.close()
    whole.dispose()
    content = bytearray(path.read_bytes())
    content[4096 * 8 :] = b"\xff" * len(content[4096 * 8 :])
    path.write_bytes(content)
    damaged = open_engine(empty_url)
    reading = Ledger(damaged, vault)
    with pytest.raises(LedgerUnavailable, match="damaged"):
        await reading.search("bank", Search(), limit=200)
    await reading.close()
    with pytest.raises(LedgerUnavailable, match="damaged"):
        verify_ledger(damaged, vault)
    damaged.dispose()


@only_sqlite
def test_a_file_that_cannot_be_written(empty_url: str, tmp_path: Path) -> None:
    path = closed(empty_url, tmp_path / "master.key")
    engine = open_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    with pytest.raises(SetupError, match="cannot be written: make its file and its folder writable"):
        prepare_database(engine, tmp_path / "master.key")
    engine.dispose()
    folder = tmp_path / "folder"
    folder.mkdir()
    nothing = open_engine(f"sqlite:///{folder}")
    with pytest.raises(SetupError, match="cannot be opened"):
        prepare_database(nothing, tmp_path / "master.key")
    nothing.dispose()


@only_sqlite
async def test_a_long_reader_leaves_no_long_log_behind(
    engine: Engine, databases: Databases, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHECKPOINT_EVERY", 20)

    def size() -> int:
        return len(Path(f"{engine.url.database}-wal").read_bytes())

    ledger = Ledger(engine, VAULT)

    async def record(times: int) -> None:
        for _ in range(times):
            await ledger.append([make_entry(personal=b'"' + b"x" * 200_000 + b'"')])

    await record(1)
    with closing(engine.raw_connection()) as reader:
        reader.cursor().execute("BEGIN")
        reader.cursor().execute("SELECT count(*) FROM log").fetchall()
        await record(2 * MAX_WAL_BYTES // 200_000)
        assert size() > MAX_WAL_BYTES
        reader.rollback()
    monkeypatch.setattr(writing, "CHECKPOINT_EVERY", 1)
    await record(2)
    assert size() <= MAX_WAL_BYTES
    await ledger.close()
