"""Searching by whether somebody reviewed an explanation, and what becomes of their notes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select

from service.ledger import EventSearch, Ledger, Search
from service.ledger.entries import REVIEW
from service.ledger.erasing import erase
from service.ledger.retention import retain
from service.ledger.tables import log
from service.ledger.verifying import verify_ledger
from tests.ledger.conftest import VAULT

if TYPE_CHECKING:
    from tests.ledger.conftest import EntryMaker


async def test_the_queue_of_a_flag_holds_what_nobody_reviewed(ledger: Ledger, make_entry: EntryMaker) -> None:
    entries = [make_entry(flags=("protected_share",) if number % 2 else ()) for number in range(20)]
    await ledger.append(entries)
    reviewed = {entry.id for entry in entries[:9]}
    for explanation in reviewed:
        await ledger.append_event(REVIEW, "bank", "key", explanation, {"verdict": "accepted", "note": ""})
    await ledger.append_event("look_up", "bank", "key", entries[11].id)
    await ledger.append_event(REVIEW, "broker", "key", entries[13].id, {"verdict": "accepted", "note": ""})

    for flag in (None, "protected_share"):
        for is_reviewed in (True, False, None):
            found = await ledger.search("bank", Search(flag=flag, reviewed=is_reviewed))
            assert [stored.id for stored in found.entries] == [
                entry.id
                for entry in reversed(entries)
                if (flag is None or flag in entry.flags) and is_reviewed in (None, entry.id in reviewed)
            ]


async def test_a_note_goes_with_what_it_is_about(ledger: Ledger, engine: Engine, make_entry: EntryMaker) -> None:
    entries = [make_entry(subject="Ann"), make_entry(subject="Bob"), make_entry()]
    await ledger.append(entries)
    stored = [one for entry in entries if (one := await ledger.get("bank", entry.id)) is not None]
    for one in stored:
        await ledger.review(one, "key", "rejected", f"called at home: {one.id}")
        await ledger.review(one, "key", "accepted", "")
        await ledger.append_event(REVIEW, "bank", "key", one.id, {"verdict": "accepted", "note": "an early one"})

    async def notes() -> list[list[str | None]]:
        return [[note for _, note in reversed(await ledger.reviews(one, 10))] for one in stored]

    whole = [[f"called at home: {one.id}", "", "an early one"] for one in stored]
    lost: list[str | None] = [None, "", "an early one"]
    assert await notes() == whole
    with engine.connect() as connection:
        assert not any(b"called at home" in record for record in connection.scalars(select(log.c.record)))
    erase(engine, VAULT, "bank", "Ann", "key")
    assert await notes() == [lost, *whole[1:]]
    await ledger.review(stored[0], "key", "rejected", "called again")
    events = (await ledger.events("bank", EventSearch(kind=REVIEW, about=stored[0].id), 1)).events
    assert events[0].details == {"verdict": "rejected"}
    retain(engine, {"standard": 1}, "key", datetime(2100, 1, 1, tzinfo=UTC))
    assert (await notes())[1:] == [lost, lost]
    verdict = verify_ledger(engine, VAULT)
    assert verdict.faults == [
        "the row that identifies the master key is missing"
    ]  # there never was one in this database
