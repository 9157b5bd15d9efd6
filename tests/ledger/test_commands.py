"""`answerable ledger` as an officer types it, each command in the whole program's own words and exit codes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from service.__main__ import main
from service.app import open_database
from service.catalog.baselines import BASELINES, KeptSets
from service.catalog.manifest import read_manifest
from service.ledger import Entry, Event, Ledger, open_engine, upgrade
from service.ledger.set_subjects import SetSubjects
from service.ledger.tables import explanations
from service.settings import Settings

EntryMaker = Callable[..., Entry]
Answer = tuple[int, str, str]
LOAN = Path(__file__).parents[2] / "models" / "loan" / "1"


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
    assert (code, said.count("\n")) == (0, 1)
    assert f"key key-1  get  {recorded[0].id}" in said

    assert ask("hold", "Ann", "--reason", "case 12")[0] == 0
    assert "case 12" in ask("holds")[1]
    code, _, refused = ask("erase", "Ann")
    assert code == 1
    assert "case 12" in refused
    assert ask("release", "Ann")[0] == 0
    assert ask("release", "Ann")[0] == 1
    assert "2 records" in ask("erase", "Ann", "--reason", "asked for")[1]
    assert ask("erase", "Ann")[0] == 1
    assert "standard: 0 records" in ask("retain")[1]
    assert ask("rotate-key")[0] == 0

    for chosen, count in (((), 8), (("--tenant", "default"), 4), (("--tenant", "default", "--subject", "Bob"), 1)):
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
    assert "FAULT  row 3: the column label" in said
    assert "NOT VALID" in said


def test_keys_that_are_older_than_their_events_are_told(ask: Callable[..., Answer], empty_url: str) -> None:
    engine = open_engine(empty_url)
    upgrade(engine, "0005")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO keys (id, hash, tenant, scopes, name, created) VALUES ('k', '', 'bank', 'explain', 'front', 1)"
        )
    engine.dispose()
    code, said, _ = ask("verify")
    assert code == 0, said
    assert "1 keys are as they were at 20" in said


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

    code, said, _ = ask("erase", "Ann")
    assert (code, "1 rows of baseline sets were removed" in said) == (0, True), said
    (left,) = sets.of("loan")
    assert (left.size, left.erased) == (1, (kept.digest,))
    assert sets.rows_of(left).tolist() == [[*range(38, 76)]]
    assert not (sets.place("loan") / kept.listed.file).exists()
    assert ask("erase", "Ann")[0] == 1
