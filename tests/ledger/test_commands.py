"""`answerable ledger` as an officer types it, each command in the whole program's own words and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import make_url, text, update

from service.__main__ import main
from service.catalog.baselines import BASELINES, KeptSets
from service.catalog.manifest import read_manifest
from service.cli import ledger as commands
from service.ledger import Entry, Event, Ledger, open_engine, upgrade
from service.ledger.appending import Appender
from service.ledger.export_checking import Verdict
from service.ledger.opening import open_database
from service.ledger.set_subjects import SetSubjects
from service.ledger.tables import explanations
from service.ledger.verifying import verify_ledger
from service.settings import Settings
from tests.conftest import MODELS, PATIENCE_SECONDS
from tests.ledger.conftest import Databases

EntryMaker = Callable[..., Entry]
Answer = tuple[int, str, str]
LOAN = MODELS / "loan" / "1"


@pytest.fixture
def ask(tmp_path: Path, empty_url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command on the test's ledger: its exit code, and what it printed on both streams."""

    def run(action: str, *arguments: str) -> Answer:
        options = ["--data", str(tmp_path / "data"), "--database-url", empty_url]
        code = main(["ledger", action, *arguments, *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def recorded(tmp_path: Path, empty_url: str, make_entry: EntryMaker) -> list[Entry]:
    """Four explanations, of Ann, Bob and nobody, and one look-up."""
    engine, vault = open_database(Settings(_env_file=None, data=tmp_path / "data", database_url=empty_url))
    entries = [
        make_entry(created=time.time_ns() // 1000, subject=name, tenant="default")
        for name in ("Ann", "Ann", "Bob", None)
    ]
    seen = Event(kind="lookup", tenant="default", key_id="key-1", about=entries[0].id, details={"action": "get"})

    async def fill() -> None:
        ledger = Ledger(engine, vault)
        await ledger.append([*entries, seen])
        await ledger.close()

    asyncio.run(fill())
    engine.dispose()
    return entries


def test_the_work_of_a_compliance_officer(ask: Callable[..., Answer], recorded: list[Entry], tmp_path: Path) -> None:
    export = str(tmp_path / "export.zip")
    code, said, _ = ask("checkpoint")
    key = said.split()[2]
    assert (code, len(key)) == (0, 64)
    assert ask("verify")[:1] == (0,)
    code, said, _ = ask("lookups")
    headings, row = said.splitlines()
    assert (code, headings.split()) == (0, ["WHEN", "KEY", "DID", "PERSON", "OF", "WHAT"])
    assert re.fullmatch(rf"20\S+ \S+ \S+  key-1  get  Ann +{recorded[0].id}", row)

    assert ask("holds")[1] == "there are no holds\n"
    code, said, _ = ask("hold", "Ann", "--reason", "case 12")
    assert (code, "2 explanations are under this hold" in said) == (0, True), said
    headings, row = ask("holds")[1].splitlines()
    assert headings.split() == ["SINCE", "TENANT", "PERSON", "EXPLANATIONS", "BY", "REASON"]
    assert re.fullmatch(r"20\S+ \S+ \S+  default  Ann +2 +operator .*  case 12", row)
    code, _, refused = ask("erase", "Ann")
    assert code == 1
    assert "case 12" in refused
    code, said, _ = ask("release", "Ann")
    assert (code, said) == (0, "released: 2 explanations are no longer under a hold\n")
    assert ask("release", "Ann")[0] == 1
    said = ask("erase", "Ann", "--reason", "asked for", "--yes")[1]
    assert "2 explanations are kept of 'Ann'" in said
    assert "2 records lost" in said
    assert "0 explanations are kept of them now" in said
    assert (tmp_path / "data/erasures.jsonl").read_bytes().count(b"\n") == 1
    assert ask("erase", "Ann")[0] == 1
    assert "standard: 0 records" in ask("retain")[1]
    assert ask("rotate-key")[0] == 0

    for chosen, count in (((), 8), (("--tenant", "default"), 4), (("--tenant", "default", "--subject", "Bob"), 1)):
        Path(export).unlink(missing_ok=True)
        code, said, _ = ask("export", export, *chosen)
        assert (code, said.split()[0]) == (0, str(count))
        code, said, _ = ask(
            "verify", export, "--public-key", key, "--checkpoints", str(tmp_path / "data/checkpoints.jsonl")
        )
        assert (code, "VALID" in said) == (0, True), said
    code, said, _ = ask("verify")
    assert (code, "2 of them erased" in said) == (0, True), said
    assert ask("verify", export, "--public-key", "ab" * 32)[0] == 1


def test_what_was_changed_is_told(
    ask: Callable[..., Answer], recorded: list[Entry], tmp_path: Path, empty_url: str
) -> None:
    engine, _ = open_database(Settings(_env_file=None, data=tmp_path / "data", database_url=empty_url))
    with engine.begin() as connection:
        connection.execute(update(explanations).where(explanations.c.seq == 3).values(label="approved"))
    engine.dispose()
    code, said, _ = ask("verify")
    assert code == 1
    assert "FAULT  row 3: column label" in said
    assert "NOT VALID" in said


def test_keys_that_are_older_than_their_events_are_told(
    ask: Callable[..., Answer], tmp_path: Path, empty_url: str
) -> None:
    engine = open_engine(empty_url)
    upgrade(engine, "0005")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO keys (id, hash, tenant, scopes, name, created) VALUES ('k', '', 'bank', 'explain', 'front', 1)"
        )
    engine.dispose()
    open_database(Settings(_env_file=None, data=tmp_path / "data", database_url=empty_url))[0].dispose()
    code, said, _ = ask("verify")
    assert code == 0, said
    assert "1 keys are as they were at 20" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("export", "export.zip"),
        ("erase", "Ann", "--reason", "asked for", "--yes"),
        ("hold", "Ann", "--reason", "case 12"),
        ("release", "Ann"),
        ("holds",),
        ("retain",),
        ("checkpoint",),
        ("lookups",),
        ("rotate-key",),
    ],
)
def test_where_there_is_no_ledger_none_is_made(
    ask: Callable[..., Answer], tmp_path: Path, empty_url: str, arguments: tuple[str, ...]
) -> None:
    code, said, sentence = ask(*arguments)
    assert (code, said) == (2, "")
    looked = str(tmp_path) if empty_url.startswith("sqlite") else str(make_url(empty_url).database)
    assert looked in sentence
    assert "--data" in sentence
    assert list(tmp_path.rglob("*")) == []


def test_keys_are_not_listed_where_there_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "list", "--data", str(tmp_path / "data")]) == 1
    assert str(tmp_path / "data") in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []


def test_a_ledger_of_another_schema_is_left_as_it_is(
    ask: Callable[..., Answer], recorded: list[Entry], empty_url: str
) -> None:
    engine = open_engine(empty_url)
    for schema, advice in (("0001", "`answerable serve` brings it up to date"), ("9999", "a newer version")):
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :schema"), {"schema": schema})
        for action in (("verify",), ("retain",)):
            code, said, sentence = ask(*action)
            assert (code, said) == (2, "")
            assert advice in sentence
            assert schema in sentence
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT version_num FROM alembic_version")) == schema
    engine.dispose()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_who_only_reads_changes_no_byte(ask: Callable[..., Answer], recorded: list[Entry], tmp_path: Path) -> None:
    assert ask("checkpoint")[0] == 0
    before = contents(tmp_path)
    for action in ("verify", "holds", "lookups"):
        code, said, _ = ask(action)
        assert (code, said != "") == (0, True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_a_folder_that_may_only_be_read_is_verified(
    databases: Databases, make_entry: EntryMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with the write-ahead log of a service that was killed, and while one writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(_env_file=None, data=folder)
        engine, vault = open_database(settings)
        appender = Appender(engine, vault)
        appender.append([make_entry(), make_entry()])
        assert (folder / "ledger.db-wal").stat().st_size > 0
        for is_in_use in (True, False):
            if not is_in_use:
                appender.close()
                engine.dispose()
                assert not (folder / "ledger.db-wal").exists()
            with read_only(folder):
                code = main(["ledger", "verify", "--data", name])
            printed = capsys.readouterr()
            assert (code, printed.err) == (0, ""), printed.out
            assert "2 records" in printed.out


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_a_service_that_starts_during_a_verification_spoils_no_verdict(
    ask: Callable[..., Answer],
    recorded: list[Entry],
    make_entry: EntryMaker,
    empty_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, vault = open_database(Settings(_env_file=None, data=tmp_path / "data", database_url=empty_url))
    engine.dispose()
    appender = Appender(engine, vault)
    verified: list[Verdict] = []

    def verify(*asked: Any) -> Verdict:
        if not verified:  # what is read while somebody writes, as if nobody did, may be anything
            appender.append([make_entry()])
            verified.append(Verdict(count=1, faults=["a page of two states"]))
        else:
            verified.append(verify_ledger(*asked))
        return verified[-1]

    monkeypatch.setattr(commands, "verify_ledger", verify)
    code, said, _ = ask("verify")
    appender.close()
    engine.dispose()
    assert (code, len(verified)) == (0, 2), said
    assert "6 records" in said


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_a_file_that_is_no_database_gets_a_sentence(ask: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
    for action in ("verify", "retain"):
        code, said, sentence = ask(action)
        assert (code, said) == (2, "")
        assert f"{tmp_path / 'ledger.db'} cannot be read as a ledger: file is not a database" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder in which this process may not write, whoever runs it."""
    nobody = 65534
    paths = [folder, *folder.iterdir()]
    is_root = os.geteuid() == 0
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
        if is_root:
            os.chown(path, nobody, nobody)
    if is_root:
        os.seteuid(nobody)
    try:
        with pytest.raises(PermissionError):
            (folder / "new").touch()
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o700 if path.is_dir() else 0o600)


def test_a_period_is_whole_days_and_says_so(ask: Callable[..., Answer], tmp_path: Path, empty_url: str) -> None:
    engine, vault = open_database(Settings(_env_file=None, data=tmp_path / "data", database_url=empty_url))
    at = [datetime.fromisoformat(f"2026-11-{moment}+00:00") for moment in DAYS]
    appender = Appender(engine, vault)
    appender.append([entry_at(round(moment.timestamp() * 1e6)) for moment in at])
    appender.close()
    engine.dispose()
    for number, (period, count) in enumerate(
        [
            (("--from", "2026-11-30", "--to", "2026-11-30"), 2),
            (("--from", "2026-11-29", "--to", "2026-11-29"), 1),
            (("--to", "2026-11-29T23:59:59.999999"), 0),
            (("--from", "2026-11-30T23:59:59.999999+00:00"), 1),
            (("--from", "2026-11-30T01:00:00+01:00", "--to", "2026-11-30T12:00Z"), 1),
        ]
    ):
        file = tmp_path / f"{number}.zip"
        code, said, _ = ask("export", str(file), "--tenant", "default", *period)
        assert (code, said.split()[0]) == (0, str(count)), period
        with zipfile.ZipFile(file) as archive:
            told = json.loads(archive.read("manifest.json"))["asked"]["period"]
        assert told["zone"] == "UTC"
        if number == 0:
            assert told == {"from": "2026-11-30T00:00:00+00:00", "before": "2026-12-01T00:00:00+00:00", "zone": "UTC"}
            assert "from 2026-11-30T00:00:00+00:00 before 2026-12-01T00:00:00+00:00" in said
    code, _, sentence = ask(
        "export", str(tmp_path / "x"), "--tenant", "t", "--from", "2026-11-30", "--to", "2026-11-01"
    )
    assert (code, "ends before it begins" in sentence) == (2, True)


DAYS = ("29T23:59:59.999999", "30T00:00:00", "30T23:59:59.999999")


def entry_at(created: int) -> Entry:
    return Entry(
        id=str(uuid.uuid4()), tenant="default", created=created, model="loan", version="1", method="m",
        converged=True, key_id="k", record=b"{}", personal=b"{}",
    )  # fmt: skip


def test_a_date_that_is_none_gets_a_sentence(ask: Callable[..., Answer], recorded: list[Entry]) -> None:
    code, _, sentence = ask("lookups", "--from", "30.11.2026")
    assert code == 2
    assert "did you mean 2026-11-30?" in sentence


def test_an_export_overwrites_nothing(ask: Callable[..., Answer], recorded: list[Entry], tmp_path: Path) -> None:
    file = tmp_path / "export.zip"
    file.write_text("an earlier one")
    code, said, sentence = ask("export", str(file))
    assert (code, said) == (2, "")
    assert f"{file} is there already" in sentence
    assert file.read_text() == "an earlier one"
    file.unlink()
    assert ask("export", str(file))[0] == 0
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
def test_an_erasure_asks(ask: Callable[..., Answer], recorded: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    for given, missing in (((), "--reason and --yes"), (("--yes",), "--reason"), (("--reason", "r"), "--yes")):
        code, said, sentence = ask("erase", "Ann", *given)
        assert (code, sentence.strip().endswith(f"needs {missing}")) == (2, True), sentence
        assert "2 explanations are kept of 'Ann' of the tenant default" in said

    answers: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answers.pop(0))
    for said_so, is_erased in (["", "asked for", "no"], False), (["asked for", "yes"], True):
        answers[:] = said_so
        code, said, _ = ask("erase", "Ann")
        assert (code, "2 records lost" in said) == (0 if is_erased else 1, is_erased)
        assert answers == []
    assert ask("erase", "Bob", "--reason", "asked for", "--yes")[0] == 0


def test_a_hold_on_somebody_unknown_says_so(ask: Callable[..., Answer], recorded: list[Entry]) -> None:
    code, said, _ = ask("hold", "Anne", "--reason", "case 12")
    assert code == 0
    assert "0 explanations are under this hold" in said
    assert "Nothing is recorded of 'Anne' of the tenant default so far" in said
    assert re.search(r"  nothing recorded yet \([0-9a-f]{8}…\)  0 ", ask("holds")[1])
    assert ask("hold", "line\nbreak", "--reason", "case 12")[0] == 2


def test_commands_load_neither_the_service_nor_a_framework() -> None:
    """So they start in a second: the front's modules alone took two."""
    unwanted = ("fastapi", "torch", "onnx", "onnxruntime", "numpy", "redis", "alembic", "uvicorn", "httpx")
    program = (
        "import sys; from service.__main__ import main;"
        "[main([*group, '--help']) for group in ([], ['ledger'], ['keys'], ['serve'])];"
        f"print(*[name for name in {unwanted} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "absent.zip", "--public-key", "ab" * 32),
        ("verify", "absent.zip"),
        ("verify", "absent.zip", "--public-key", "short"),
        ("export", "export.zip"),
        ("export", "export.zip", "--model", "loan"),
    ],
)
def test_what_was_asked_wrongly(ask: Callable[..., Answer], arguments: tuple[str, ...]) -> None:
    code, _, sentence = ask(*arguments)
    assert code == 2
    assert sentence


def test_an_erasure_also_removes_the_persons_rows_of_baseline_sets(
    ask: Callable[..., Answer], tmp_path: Path, empty_url: str
) -> None:
    """From the files of the data folder, before the command ends; the service may be stopped."""
    engine, vault = open_database(Settings(_env_file=None, data=tmp_path / "data", database_url=empty_url))
    tokens = SetSubjects(engine, vault).enter("default", ["Ann", None])
    engine.dispose()
    manifest, key, _ = read_manifest(LOAN)
    sets = KeptSets(tmp_path / "data" / BASELINES)
    kept = sets.keep(key, manifest, "mine", np.arange(76.0).reshape(2, 38), "", subjects=tokens)

    assert ask("erase", "Ann")[0] == 2  # it is asked first
    code, said, _ = ask("erase", "Ann", "--reason", "asked for", "--yes")
    assert code == 0
    assert "0 explanations and 1 row of baseline sets are kept of 'Ann'" in said
    assert "1 row of baseline sets removed" in said
    assert "0 explanations are kept of them now" in said
    (left,) = sets.of("loan")
    assert (left.size, left.erased) == (1, (kept.digest,))
    assert sets.rows_of(left).tolist() == [[*range(38, 76)]]
    assert not (sets.place("loan") / kept.listed.file).exists()
    assert ask("erase", "Ann", "--reason", "asked for", "--yes")[0] == 1
