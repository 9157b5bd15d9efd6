"""Searching by whether somebody reviewed an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.ledger import Ledger, Search
from service.ledger.entries import REVIEW

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
