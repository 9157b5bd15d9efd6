"""Whose the rows of baseline sets are: found by an erasure, kept by a hold, and forgotten with the set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from service.errors import HeldByLaw, NotFound
from service.ledger import Entry, EventSearch, Ledger, Vault
from service.ledger.erasing import erase
from service.ledger.legal_holds import hold, release
from service.ledger.sealing import prepare_database
from service.ledger.set_subjects import SetSubjects
from service.ledger.tables import set_subjects
from service.ledger.verifying import verify_ledger

PERSON = "Adelheid Quendolin Xanthopoulos"


@pytest.fixture
def vault(engine: Engine, tmp_path: Path) -> Vault:
    return prepare_database(engine, tmp_path / "master.key")


async def events_of(ledger: Ledger, kind: str) -> list[tuple[str | None, object]]:
    return [(one.about, one.details) for one in (await ledger.events("bank", EventSearch(kind=kind))).events]


async def test_an_erasure_finds_the_rows_of_the_tenants_person_and_of_nobody_else(
    engine: Engine, vault: Vault, make_entry: Callable[..., Entry]
) -> None:
    ledger, rows = Ledger(engine, vault), SetSubjects(engine, vault)
    theirs = rows.enter("bank", [PERSON, "Bob", None, PERSON])
    rows.enter("broker", [PERSON])
    assert theirs[2] is None
    assert len({*theirs}) == 4
    assert rows.erased() == frozenset()
    await ledger.append([make_entry(tenant="bank", subject=PERSON)])

    erased = erase(engine, vault, "bank", PERSON, "key")

    assert (erased.records, erased.set_rows) == (1, 2)
    assert rows.erased() == {theirs[0], theirs[3]}
    ((_, details),) = await events_of(ledger, "erasure")
    in_sets = {"set_rows": 2, "set_tokens": sorted([theirs[0] or "", theirs[3] or ""])}
    assert details == {"records": [[1, 1]], "count": 1, **in_sets, "reason": ""}
    with pytest.raises(NotFound):
        erase(engine, vault, "bank", PERSON, "key")
    with engine.connect() as connection:  # no pseudonym of the person is left
        assert vault.lookup("bank", PERSON) not in connection.scalars(select(set_subjects.c.lookup)).all()
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()


async def test_whose_only_trace_is_a_set_is_erased_unless_a_hold_forbids_it(engine: Engine, vault: Vault) -> None:
    ledger, rows = Ledger(engine, vault), SetSubjects(engine, vault)
    theirs = rows.enter("bank", [PERSON, None])
    hold(engine, vault, "bank", PERSON, "key", "a case")
    with pytest.raises(HeldByLaw):
        erase(engine, vault, "bank", PERSON, "key")
    with pytest.raises(HeldByLaw):
        rows.remove("bank", "key", "loan/mine@1", {}, theirs)
    assert rows.erased() == frozenset()
    assert await events_of(ledger, "baseline_removed") == []

    release(engine, vault, "bank", PERSON, "key")
    assert erase(engine, vault, "bank", PERSON, "key").set_rows == 1
    assert rows.erased() == {theirs[0]}
    await ledger.close()


async def test_rows_of_a_set_that_was_removed_are_nobodys(engine: Engine, vault: Vault) -> None:
    ledger, rows = Ledger(engine, vault), SetSubjects(engine, vault)
    theirs = rows.enter("bank", [PERSON])

    rows.remove("bank", "key", "loan/mine@1", {"rows": 1}, theirs)

    assert await events_of(ledger, "baseline_removed") == [("loan/mine@1", {"rows": 1})]
    with pytest.raises(NotFound):
        erase(engine, vault, "bank", PERSON, "key")
    assert verify_ledger(engine, vault).faults == []
    await ledger.close()
