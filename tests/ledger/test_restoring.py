"""What a start makes of a database that is older than the files beside it, and of files that were torn."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from service.ledger import CheckpointSigner, Entry, Ledger, Search, Vault, open_engine, prepare_database
from service.ledger.entries import ERASURE, FILE_REPAIRED, RESTORED
from service.ledger.erasing import erase
from service.ledger.erasure_list import NAME, ErasureList
from service.ledger.job_erasing import ERASED_SEARCH
from service.ledger.jobs import Jobs
from service.ledger.legal_holds import hold, holds
from service.ledger.restoring import catch_up
from service.ledger.set_subjects import SetSubjects
from service.ledger.stored_jobs import EXPORT, FAILED, JobRow, State
from service.ledger.tables import events
from service.ledger.verifying import verify_ledger
from tests.ledger.conftest import Databases, EntryMaker
from tests.ledger.test_erasing import COMPOSED, DECOMPOSED, an_export
from tests.ledger.test_jobs import job

SHIPPED = "checkpoints.jsonl"


class Host:
    """A database with the files beside it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.engine: Engine = open_engine(url)
        self.vault: Vault = prepare_database(self.engine, folder / "master.key")
        self.signer = CheckpointSigner(self.engine, folder / "signing.pem", folder / SHIPPED)
        self.erasures = ErasureList(folder / NAME, self.vault)

    def start(self) -> list[str]:
        self.signer.open()
        return catch_up(self.engine, self.vault, self.folder / SHIPPED, self.erasures)

    def faults(self) -> list[str]:
        return verify_ledger(self.engine, self.vault, self.folder / SHIPPED).faults

    def kinds(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(select(events.c.kind).order_by(events.c.seq)))

    def erase(self, subject: str) -> None:
        erased = erase(self.engine, self.vault, "bank", subject, "key", "asked for")
        self.erasures.add_from(self.engine, erased.tombstone - 1)

    async def record(self, entries: list[Entry]) -> None:
        ledger = Ledger(self.engine, self.vault)
        await ledger.append(entries)
        await ledger.close()

    async def found(self, subject: str | None) -> int:
        ledger = Ledger(self.engine, self.vault)
        page = await ledger.search("bank", Search(subject=subject))
        await ledger.close()
        return len([one for one in page.entries if one.tombstone is None])


@pytest.fixture
def host(empty_url: str, tmp_path: Path) -> Iterator[Host]:
    host = Host(empty_url, tmp_path)
    assert host.start() == []
    yield host
    host.engine.dispose()


def restored(host: Host, backup: str) -> Host:
    """The host with the database as it was, and the files as they are."""
    host.engine.dispose()
    return Host(backup, host.folder)


def backed_up(host: Host, databases: Databases) -> str:
    host.engine.dispose()
    folder = host.folder / "backup"
    folder.mkdir()
    return databases.make(folder, host.engine.url.render_as_string(hide_password=False))


async def test_a_copy_from_before_an_erasure(host: Host, databases: Databases, make_entry: EntryMaker) -> None:
    await host.record([make_entry(subject=name) for name in ("Ann", "Bob", "Ann", "Cid")])
    hold(host.engine, host.vault, "bank", "Bob", "key", "a trial")
    host.signer.sign()
    backup = backed_up(host, databases)
    host.erase("Ann")
    host.erase("Cid")
    host.signer.sign()
    assert host.faults() == []
    assert host.start() == []

    older = restored(host, backup)
    assert await older.found("Ann") == 2
    assert any("is there again" in fault for fault in older.faults())
    told = older.start()
    assert [sentence for sentence in told if "2 erasures" in sentence and "3 records" in sentence]
    assert [sentence for sentence in told if "the log has 5 rows, and 7 were signed" in sentence]
    assert [await older.found(name) for name in ("Ann", "Bob", "Cid")] == [0, 1, 0]
    assert older.kinds() == ["hold", RESTORED, ERASURE, ERASURE]
    with older.engine.connect() as connection:
        assert len(holds(connection)) == 1
    assert not any("is there again" in fault for fault in older.faults())
    older.signer.sign()
    assert verify_ledger(older.engine, older.vault).faults == []
    assert older.start() == []  # and nothing twice
    assert older.kinds() == ["hold", RESTORED, ERASURE, ERASURE]
    assert older.erasures.read() == (older.erasures.read()[0], [])
    assert len(older.erasures.read()[0]) == 4
    assert b"Ann" not in (host.folder / NAME).read_bytes()
    older.engine.dispose()


async def test_a_copy_in_which_somebody_still_waits(host: Host, databases: Databases) -> None:
    """Who was known by rows of jobs alone has no token: whatever waits for anybody of the tenant's ends."""
    jobs, one = Jobs(host.engine), replace(job(), tenant="bank")
    jobs.create(one, [JobRow(0, "e-0", payload=b"sealed", subject=host.vault.lookup("bank", "Ann"))])
    backup = backed_up(host, databases)
    host.erase("Ann")
    older = restored(host, backup)
    assert any("1 erasures" in sentence for sentence in older.start())
    (row,) = Jobs(older.engine).results(one.id, -1, 9)
    assert (row.outcome, row.payload, row.subject) == (FAILED, None, None)
    assert older.start() == []
    older.engine.dispose()


async def test_a_copy_in_which_rows_of_baseline_sets_are_somebodys_again(
    host: Host, databases: Databases, make_entry: EntryMaker
) -> None:
    """Those of somebody of whom nothing else is kept, and of somebody on record; nobody else's."""
    await host.record([make_entry(subject="Bob")])
    ann, bob, cid, nobodys = SetSubjects(host.engine, host.vault).enter("bank", ["Ann", "Bob", "Cid", None])
    host.signer.sign()
    backup = backed_up(host, databases)
    host.erase("Ann")
    host.erase("Bob")
    assert SetSubjects(host.engine, host.vault).erased() == {ann, bob}
    assert nobodys is None
    older = restored(host, backup)
    rows = SetSubjects(older.engine, older.vault)
    assert rows.erased() == frozenset()
    assert sum("of a baseline set was erased" in fault for fault in older.faults()) == 2
    assert any("2 erasures" in sentence for sentence in older.start())
    assert rows.erased() == {ann, bob}
    assert not any("of a baseline set" in fault for fault in older.faults())
    assert older.start() == []
    assert erase(older.engine, older.vault, "bank", "Cid", "key").set_rows == 1
    assert rows.erased() == {ann, bob, cid}
    older.engine.dispose()


@pytest.mark.parametrize("before", [(DECOMPOSED,), (COMPOSED, DECOMPOSED)])
async def test_a_copy_that_knows_somebody_by_several_spellings(
    host: Host, databases: Databases, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch, before: tuple[str, ...]
) -> None:
    """What waits for them bears the pseudonym of the one name, and an export may have been asked for by it."""
    with monkeypatch.context() as as_it_was:
        for module in ("entries", "sealing"):
            as_it_was.setattr(f"service.ledger.{module}.normal", lambda name: name)
        as_it_was.setattr("service.ledger.sealing.spellings", lambda name: (name,))
        await host.record([make_entry(subject=name) for name in before])
    export = an_export(host.engine, host.vault, subject=COMPOSED)
    jobs, one = Jobs(host.engine), replace(job(), tenant="bank")
    jobs.create(one, [JobRow(0, "e-0", payload=b"sealed", subject=host.vault.lookup("bank", COMPOSED))])
    backup = backed_up(host, databases)
    host.erase(COMPOSED)
    (listed,) = host.erasures.read()[0]
    assert len(listed.tokens) == len(before)
    older = restored(host, backup)
    assert any(f"made again: {len(before)} records" in sentence for sentence in older.start())
    assert await older.found(COMPOSED) == 0
    (row,) = Jobs(older.engine).results(one.id, -1, 9)
    assert (row.outcome, row.payload, row.subject) == (FAILED, None, None)
    asked = Jobs(older.engine).get("bank", export.id, [EXPORT])
    assert asked is not None
    assert (asked.state, asked.detail) == (State.FAILED, ERASED_SEARCH)
    assert b"search" not in older.vault.open(asked.spec, asked.id, None)
    assert older.start() == []
    older.engine.dispose()


def test_a_list_that_was_changed(host: Host) -> None:
    jobs = Jobs(host.engine)
    for number, name in enumerate(("Ann", "Bob", "Cid")):
        jobs.create(job(), [JobRow(0, f"e-{number}", payload=b"sealed", subject=host.vault.lookup("bank", name))])
        host.erase(name)
    host.signer.sign()
    path = host.folder / NAME
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + third)
    assert host.erasures.read()[1] == [f"line 2 of {NAME} does not follow the one before it"]
    path.write_bytes(first + second.replace(b"bank", b"bang") + third)
    assert f"line 2 of {NAME} is not what was written" in host.faults()
    another = Vault(bytes(32))
    path.write_bytes(first + second + third)
    assert len(ErasureList(path, another).read()[1]) == 3


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_new_database_beside_the_files_of_another(host: Host, make_entry: EntryMaker) -> None:
    await host.record([make_entry()])
    host.signer.sign()
    host.engine.dispose()
    for path in host.folder.glob("ledger.db*"):
        path.unlink()
    newer = Host(f"sqlite:///{host.folder / 'ledger.db'}", host.folder)
    (told,) = newer.start()
    assert "the log has 0 rows, and 1 were signed" in told
    assert newer.kinds() == [RESTORED]
    assert any("cut off" in fault or "kept elsewhere" in fault for fault in newer.faults())
    newer.engine.dispose()


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_torn_line_of_the_checkpoints(host: Host, make_entry: EntryMaker) -> None:
    path = host.folder / SHIPPED
    for _ in range(2):
        await host.record([make_entry()])
        host.signer.sign()
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert host.faults() == []
    (told,) = host.start()
    assert f"{SHIPPED} ended in a torn line" in told
    assert host.kinds() == [FILE_REPAIRED]
    host.signer.sign()
    assert path.read_bytes().startswith(whole.splitlines(keepends=True)[0])
    assert path.read_bytes().count(b"\n") == 2
    assert host.faults() == []
    assert host.start() == []


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_torn_line_that_others_follow(host: Host, make_entry: EntryMaker) -> None:
    """While the service runs, and in files of versions that wrote behind it."""
    path = host.folder / SHIPPED
    await host.record([make_entry()])
    host.signer.sign()
    first = path.read_bytes()
    path.write_bytes(first + first[:99])
    await host.record([make_entry()])
    host.signer.sign()
    assert [line[:8] for line in path.read_bytes().splitlines()] == [b'{"body":'] * 2
    assert path.read_bytes().startswith(first)
    second = path.read_bytes()[len(first) :]
    path.write_bytes(first + first[:99] + second)
    assert host.faults() == []
    path.write_bytes(first[:-1])  # whole but for its end
    assert host.start() == []
    assert path.read_bytes() == first


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_disk_that_is_full(host: Host, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = host.folder / SHIPPED
    await host.record([make_entry()])
    host.signer.sign()
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    await host.record([make_entry()])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert host.signer.sign() is not None
    assert path.read_bytes() == before
    assert host.faults() == []
