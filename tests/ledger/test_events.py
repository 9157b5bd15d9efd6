"""Events: in the same log as the explanations, in the same groups, found by what they are about."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import orjson
import pytest
from sqlalchemy import Engine, select

from service.errors import InvalidRequest
from service.ledger import Entry, Event, EventSearch, Ledger, MalformedCursor, Search, StoredEvent
from service.ledger.tables import log

EntryMaker = Callable[..., Entry]


async def test_explanations_and_events_make_one_log(ledger: Ledger, engine: Engine, make_entry: EntryMaker) -> None:
    first, second = make_entry(), make_entry()
    event = Event(
        kind="review", tenant="bank", key_id="key", about=first.id, details={"outcome": "upheld", "by": "Zoë"}
    )
    await ledger.append([first, event, second])
    await ledger.append_event("hold", "bank", "another key")

    with engine.connect() as connection:
        rows = connection.execute(select(log).order_by(log.c.seq)).all()
    assert [(row.seq, row.kind) for row in rows] == [
        (1, "explanation"),
        (2, "review"),
        (3, "explanation"),
        (4, "hold"),
    ]
    for row in rows:
        assert row.leaf == hashlib.sha256(b"\0" + row.record).digest()
    assert orjson.loads(rows[1].record) == {
        "schema": 1,
        "kind": "review",
        "tenant": "bank",
        "created": event.created,
        "key_id": "key",
        "about": first.id,
        "details": {"outcome": "upheld", "by": "Zoë"},
    }
    assert [stored.seq for stored in (await ledger.search("bank", Search())).entries] == [3, 1]
    page = await ledger.events("bank", EventSearch(kind="review"))
    assert page.events == (
        StoredEvent(
            seq=2,
            kind="review",
            tenant="bank",
            key_id="key",
            about=first.id,
            details=event.details,
            created=event.created,
        ),
    )


async def test_events_are_found_by_kind_subject_and_time_page_by_page(ledger: Ledger) -> None:
    events = [
        Event(
            kind=("lookup", "review")[i % 2],
            tenant=("bank", "broker")[i % 3 == 0],
            key_id="key",
            about=(None, "a", "b")[i % 3],
            created=1000 + i // 2,
        )
        for i in range(40)
    ]
    await asyncio.gather(*(ledger.append([event]) for event in events))
    searches: list[tuple[EventSearch, Callable[[Event], bool]]] = [
        (EventSearch(), lambda _: True),
        (EventSearch(kind="lookup"), lambda event: event.kind == "lookup"),
        (EventSearch(about="a"), lambda event: event.about == "a"),
        (EventSearch(kind="review", about="b"), lambda event: (event.kind, event.about) == ("review", "b")),
        (EventSearch(created_from=1005, created_to=1012), lambda event: 1005 <= event.created < 1012),
    ]
    for tenant in ("bank", "broker", "stranger"):
        for search, is_meant in searches:
            found: list[StoredEvent] = []
            cursor = None
            while True:
                page = await ledger.events(tenant, search, 3, cursor)
                found += page.events
                cursor = page.next_cursor
                if cursor is None:
                    break
            meant = [event for event in events if event.tenant == tenant and is_meant(event)]
            places = [(event.created, event.seq) for event in found]
            assert places == sorted(set(places), reverse=True)
            assert sorted((e.created, e.kind, e.about or "") for e in found) == sorted(
                (e.created, e.kind, e.about or "") for e in meant
            )


async def test_events_that_cannot_be(ledger: Ledger) -> None:
    with pytest.raises(InvalidRequest):
        Event(kind="x" * 201, tenant="bank", key_id="key")
    with pytest.raises(InvalidRequest):
        EventSearch(about="\0")
    with pytest.raises(ValueError, match="Entry"):
        Event(kind="explanation", tenant="bank", key_id="key")
    with pytest.raises(InvalidRequest):
        await ledger.events("bank", EventSearch(), 0)
    with pytest.raises(MalformedCursor):
        await ledger.events("bank", EventSearch(), 1, "nonsense")
    with pytest.raises(TypeError):
        await ledger.append_event("review", "bank", "key", details={"outcome": object()})
    await ledger.append_event("review", "bank", "key")
    assert len((await ledger.events("bank", EventSearch())).events) == 1
