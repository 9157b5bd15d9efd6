"""What an append promises: durable when it returns, grouped with its neighbours, and independent of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields

import pytest
from sqlalchemy import Engine, select

from service.errors import InvalidRequest, LedgerUnavailable
from service.ledger import Entry, EntryRefused, Ledger, Search
from service.ledger.appending import Appender
from service.ledger.database import serialised
from service.ledger.entries import Remembered
from service.ledger.tables import explanations
from tests.ledger.conftest import VAULT

EntryMaker = Callable[..., Entry]


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of entries of each transaction from here on."""
    sizes: list[int] = []
    append = Appender.append

    def count(appender: Appender, entries: Sequence[Entry], kept: Mapping[int, Remembered]) -> None:
        sizes.append(len(entries))
        append(appender, entries, kept)

    monkeypatch.setattr(Appender, "append", count)
    return sizes


@contextmanager
def database_held(engine: Engine) -> Iterator[None]:
    """Somebody else writes inside, so that appends gather behind the first one."""
    with serialised(engine).begin():
        yield


async def start(ledger: Ledger, *calls: list[Entry]) -> list[asyncio.Task[None]]:
    """Appends that have reached the queue."""
    tasks = [asyncio.ensure_future(ledger.append(entries)) for entries in calls]
    await asyncio.sleep(0)
    return tasks


async def is_recorded(ledger: Ledger, entry: Entry) -> bool:
    return await ledger.get(entry.tenant, entry.id) is not None


async def test_an_entry_comes_back_as_it_was_given(ledger: Ledger, engine: Engine, make_entry: EntryMaker) -> None:
    entry = make_entry(
        label="denied",
        further_labels=("delayed", "watched"),
        decision_id="d-1",
        subject="Zoë",
        converged=False,
        cohort={"channel": "web", "region": "north"},
        flags=("protected_share", "protected_share"),
        record=b'{"b": 1,"content":{"a":"\xc3\xa9"}}',
        personal=b'{"input": [1, 2],"content":"]"}',
    )
    await ledger.append([entry])
    stored = await ledger.get("bank", entry.id)
    assert stored is not None
    for name in {field.name for field in fields(Entry)} - {"flags"}:
        assert getattr(stored, name) == getattr(entry, name)
    assert stored.flags == ("protected_share",)
    assert stored.seq == 1
    assert stored.leaf == hashlib.sha256(b"\x00" + stored.logged).digest()
    said = json.loads(stored.logged)
    assert said.pop("content") == json.loads(entry.record)
    assert said.pop("personal_commitment") == hashlib.sha256(stored.opened).hexdigest()
    with engine.connect() as connection:
        (row,) = connection.execute(select(explanations)).all()
    assert said.pop("sealed") == hashlib.sha256(row.personal).hexdigest()
    assert said == {
        "schema": 1,
        "kind": "explanation",
        "id": entry.id,
        "tenant": "bank",
        "created": entry.created,
        "key_id": "key",
        "model": "loan",
        "version": "1",
        "method": "integrated_gradients",
        "label": "denied",
        "converged": False,
        "retention": "standard",
        "tags": [
            ["cohort.channel", "web"],
            ["cohort.region", "north"],
            ["flag", "protected_share"],
            ["label", "delayed"],
            ["label", "watched"],
        ],
    }


async def test_concurrent_appends_share_transactions(
    ledger: Ledger, engine: Engine, make_entry: EntryMaker, transactions: list[int]
) -> None:
    entries = [make_entry() for _ in range(300)]
    with database_held(engine):
        waiting = await start(ledger, *([entry] for entry in entries))
    await asyncio.gather(*waiting)
    assert sum(transactions) == 300
    assert len(transactions) <= 2
    page = await ledger.search("bank", Search(), limit=1000)
    assert [stored.id for stored in page.entries] == [entry.id for entry in reversed(entries)]
    assert [stored.seq for stored in page.entries] == list(range(300, 0, -1))


async def test_the_entries_of_one_call_are_recorded_all_or_none(ledger: Ledger, make_entry: EntryMaker) -> None:
    first, second = make_entry(), make_entry()
    with pytest.raises(EntryRefused):
        await ledger.append([first, second, make_entry(id=first.id)])
    assert not await is_recorded(ledger, first)
    await ledger.append([second, first])
    page = await ledger.search("bank", Search())
    assert {stored.id: stored.seq for stored in page.entries} == {second.id: 1, first.id: 2}


async def test_a_duplicate_id_fails_alone(ledger: Ledger, engine: Engine, make_entry: EntryMaker) -> None:
    known = make_entry()
    await ledger.append([known])
    good = [make_entry() for _ in range(20)]
    calls = [[entry] for entry in good]
    calls.insert(7, [make_entry(id=known.id)])
    with database_held(engine):
        waiting = await start(ledger, *calls)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [EntryRefused]
    assert isinstance(outcomes[7], EntryRefused)
    page = await ledger.search("bank", Search(), limit=100)
    assert [stored.id for stored in page.entries] == [entry.id for entry in reversed([known, *good])]
    assert [stored.seq for stored in page.entries] == list(range(21, 0, -1))


async def test_a_cancelled_waiter_does_not_disturb_the_others(engine: Engine, make_entry: EntryMaker) -> None:
    ledger = Ledger(engine, VAULT, waiting_limit=4)
    entries = [make_entry() for _ in range(4)]
    with database_held(engine):
        waiting = await start(ledger, *([entry] for entry in entries))
        waiting[0].cancel()
        waiting[2].cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [True, False, True, False]
    assert outcomes[1] is outcomes[3] is None
    for entry in (entries[1], entries[3]):
        assert await is_recorded(ledger, entry)
    await ledger.append([make_entry()])
    await ledger.close()


async def test_more_than_the_limit_is_refused_at_once(engine: Engine, make_entry: EntryMaker) -> None:
    ledger = Ledger(engine, VAULT, waiting_limit=3)
    with database_held(engine):
        waiting = await start(ledger, [make_entry()], [make_entry(), make_entry()])
        with pytest.raises(LedgerUnavailable):
            await ledger.append([make_entry()])
    await asyncio.gather(*waiting)
    await ledger.append([make_entry()])
    await ledger.close()


async def test_close_records_what_waits_and_takes_no_more(engine: Engine, make_entry: EntryMaker) -> None:
    ledger = Ledger(engine, VAULT)
    with database_held(engine):
        waiting = await start(ledger, *([make_entry()] for _ in range(5)))
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.sleep(0)
    await asyncio.gather(closing, *waiting)
    await ledger.close()
    with pytest.raises(LedgerUnavailable):
        await ledger.append([make_entry()])
    with pytest.raises(LedgerUnavailable):
        await ledger.get("bank", "id")


async def test_two_ledgers_on_one_database_make_one_log(engine: Engine, make_entry: EntryMaker) -> None:
    ledgers = [Ledger(engine, VAULT), Ledger(engine, VAULT)]
    entries = [make_entry() for _ in range(60)]
    await asyncio.gather(*(ledgers[i % 2].append([entry]) for i, entry in enumerate(entries)))
    page = await ledgers[0].search("bank", Search(), limit=100)
    assert sorted(stored.seq for stored in page.entries) == list(range(1, 61))
    for ledger in ledgers:
        await ledger.close()


@pytest.fixture
async def observed(engine: Engine) -> AsyncIterator[tuple[Ledger, list[tuple[int, bool]]]]:
    calls: list[tuple[int, bool]] = []

    def observe(seconds: float, entries: int, ok: bool) -> None:
        assert seconds >= 0
        calls.append((entries, ok))

    ledger = Ledger(engine, VAULT, observe)
    yield ledger, calls
    await ledger.close()


async def test_appends_are_observed(observed: tuple[Ledger, list[tuple[int, bool]]], make_entry: EntryMaker) -> None:
    ledger, calls = observed
    entry = make_entry()
    await ledger.append([])
    await ledger.append([entry, make_entry()])
    with pytest.raises(EntryRefused):
        await ledger.append([entry])
    assert calls == [(2, True), (1, False)]


@pytest.mark.parametrize("text", ["x" * 201, "nul \0", "half a pair \ud800"])
@pytest.mark.parametrize("field", ["subject", "decision_id", "label", "cohort"])
def test_a_text_no_database_holds_is_refused_before_it_meets_others(
    make_entry: EntryMaker, field: str, text: str
) -> None:
    with pytest.raises(InvalidRequest):
        make_entry(**{field: {"channel": text} if field == "cohort" else text})


async def test_the_longest_texts_are_held(ledger: Ledger, make_entry: EntryMaker) -> None:
    longest = "".join(chr(0x1F300 + i) for i in range(200))  # four bytes each, hardly compressible
    entry = make_entry(
        tenant=longest,
        model=longest,
        version=longest,
        subject=longest,
        decision_id=longest,
        label=longest,
        cohort={longest: longest},
        flags=(longest,),
    )
    await ledger.append([entry])
    page = await ledger.search(longest, Search(model=longest, version=longest, cohort=((longest, longest),)))
    assert [stored.id for stored in page.entries] == [entry.id]
