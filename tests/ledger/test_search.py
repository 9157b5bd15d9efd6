"""Searches against a slow oracle, their paging, and the indexes they use."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert, text

from service.errors import InvalidRequest
from service.ledger import Entry, Event, Ledger, MalformedCursor, Search, Stored, searching
from service.ledger.entries import REVIEW
from service.ledger.tables import subjects
from tests.ledger.conftest import VAULT

EntryMaker = Callable[..., Entry]

MIDDLE = 1_700_000_000_000_030
TENANTS = ["bank", "broker", "stranger"]

SEARCHES = {
    "newest": Search(),
    "model": Search(model="loan"),
    "version": Search(model="loan", version="2"),
    "subject": Search(subject="ann"),
    "decision_id": Search(decision_id="d-3"),
    "from": Search(created_from=MIDDLE),
    "to": Search(created_to=MIDDLE),
    "window": Search(created_from=MIDDLE - 9, created_to=MIDDLE + 9, model="loan"),
    "converged": Search(converged=True),
    "not_converged": Search(converged=False),
    "flag": Search(flag="protected_share"),
    "label": Search(label="denied"),
    "label_beside_another": Search(label="delayed"),
    "label_with_flag": Search(label="delayed", flag="protected_share", reviewed=True),
    "label_of_subject": Search(label="delayed", subject="ann", converged=True),
    "cohort": Search(cohort=(("channel", "web"),)),
    "cohorts": Search(cohort=(("channel", "web"), ("region", "north"))),
    "everything": Search(
        model="loan",
        version="2",
        created_from=MIDDLE - 25,
        created_to=MIDDLE + 29,
        converged=True,
        flag="protected_share",
        label="denied",
        cohort=(("channel", "web"),),
    ),
    "subject_of_version": Search(model="loan", version="2", subject="ann"),
    "label_not_converged": Search(label="denied", converged=False),
    "subject_with_flag": Search(subject="ann", flag="protected_share"),
    "nothing": Search(subject="nobody"),
    "reviewed": Search(reviewed=True),
    "not_reviewed": Search(reviewed=False),
    "reviewed_of_model": Search(reviewed=True, model="loan"),
    "reviewed_of_subject": Search(reviewed=True, subject="ann"),
    "reviewed_with_flag": Search(reviewed=True, flag="protected_share"),
    "queue": Search(reviewed=False, flag="protected_share"),
}


FURTHER: dict[str | None, list[tuple[str, ...]]] = {
    None: [()],
    "denied": [(), ("delayed",), ("approved", "delayed")],
    "approved": [(), ("denied",), ("delayed", "denied")],
}
"""What may be predicted beside a label."""


def varied(make_entry: EntryMaker, count: int) -> list[Entry]:
    draw = random.Random(7)
    tags = {"channel": ["web", "branch"], "region": ["north", "south"]}
    entries = [
        make_entry(
            tenant=draw.choice(["bank", "bank", "bank", "broker"]),
            model=draw.choice(["loan", "loan", "digits"]),
            version=draw.choice(["1", "2"]),
            subject=draw.choice(["ann", "bob", None]),
            decision_id=draw.choice(["d-1", "d-2", "d-3", None]),
            converged=draw.random() < 0.7,
            label=draw.choice(["denied", "approved", None]),
            flags=tuple(flag for flag in ("protected_share", "low_margin") if draw.random() < 0.5),
            cohort={name: draw.choice(values) for name, values in tags.items() if draw.random() < 0.8},
        )
        for _ in range(count)
    ]
    entries = [replace(entry, further_labels=draw.choice(FURTHER[entry.label])) for entry in entries]
    draw.shuffle(entries)  # requests commit in another order than they were made in
    return entries


def reviews(entries: list[Entry]) -> dict[str, list[Event]]:
    """Reviews of some of the entries, by the id that they are about: some have two, some none or another tenant's."""
    each: dict[str, list[Event]] = {}
    for number, entry in enumerate(entries):
        for tenant in ((entry.tenant,) * (number % 3), ("stranger",))[number % 5 == 0]:
            event = Event(kind=REVIEW, tenant=tenant, key_id="key", about=entry.id, details={"verdict": "accepted"})
            each.setdefault(entry.id, []).append(event)
    return each


def is_meant(entry: Entry, search: Search, about: dict[str, list[Event]]) -> bool:
    """The search, said again in other words."""
    columns = ("model", "version", "subject", "decision_id", "converged")
    asked = {name: getattr(search, name) for name in columns}
    return (
        all(wanted is None or getattr(entry, name) == wanted for name, wanted in asked.items())
        and (search.created_from is None or search.created_from <= entry.created)
        and (search.created_to is None or entry.created < search.created_to)
        and (search.flag is None or search.flag in entry.flags)
        and (search.label is None or search.label in (entry.label, *entry.further_labels))
        and set(search.cohort) <= set(entry.cohort.items())
        and search.reviewed in (None, any(event.tenant == entry.tenant for event in about.get(entry.id, [])))
    )


async def follow(ledger: Ledger, tenant: str, search: Search, limit: int) -> list[Stored]:
    """Every entry of every page."""
    page = await ledger.search(tenant, search, limit)
    found = list(page.entries)
    while page.next_cursor is not None:
        assert len(page.entries) == limit
        page = await ledger.search(tenant, search, limit, page.next_cursor)
        found += page.entries
    return found


@pytest.mark.parametrize(("limit", "tenants"), [(1, ["broker"]), (7, TENANTS), (1000, TENANTS)])
async def test_every_search_finds_what_is_meant(
    ledger: Ledger, make_entry: EntryMaker, limit: int, tenants: list[str]
) -> None:
    """Page by page, of one record even: there with the tenant who has the fewest."""
    entries = varied(make_entry, 70)
    about = reviews(entries)
    later = [event for entry in entries[:40] for event in about.get(entry.id, [])]
    await ledger.append([*entries, *(event for entry in entries[40:] for event in about.get(entry.id, []))])
    await ledger.append(later)
    found_any = set()
    for tenant in tenants:
        for name, search in SEARCHES.items():
            meant = [entry for entry in entries if entry.tenant == tenant and is_meant(entry, search, about)]
            found = await follow(ledger, tenant, search, limit)
            newest_first = sorted(meant, key=lambda entry: entry.created, reverse=True)
            assert [stored.id for stored in found] == [entry.id for entry in newest_first], name
            assert [stored.flags for stored in found] == [tuple(sorted(entry.flags)) for entry in newest_first]
            assert [stored.cohort for stored in found] == [entry.cohort for entry in newest_first]
            assert [stored.further_labels for stored in found] == [entry.further_labels for entry in newest_first]
            found_any |= {name} if meant else set()
    assert found_any == set(SEARCHES) - {"nothing"} or tenants != TENANTS


async def test_a_page_of_large_records_ends_early_and_none_is_left_out(
    ledger: Ledger, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "MAX_BYTES", 10_000)
    sizes = [100, 3_000, 3_000, 100, 20_000, 100, 5_000, 4_000, 100, 9_000]
    entries = [make_entry(personal=json.dumps({"input": "x" * size}).encode(), subject="Ann") for size in sizes]
    await ledger.append(entries)
    for search in (Search(), Search(subject="Ann")):
        pages: list[tuple[Stored, ...]] = []
        cursor: str | None = None
        while cursor is not None or not pages:
            page = await ledger.search("bank", search, 4, cursor)
            pages.append(page.entries)
            cursor = page.next_cursor
        assert [one.id for page in pages for one in page] == [entry.id for entry in reversed(entries)]
        assert [len(page) for page in pages] == [1, 2, 2, 1, 4]  # 20,000 alone; the last ends with its limit
    found = await ledger.find("bank", Search(subject="Ann"), 100)
    assert [one.id for one in found] == [entry.id for entry in reversed(entries)]
    assert {one.subject for one in found} == {VAULT.lookup("bank", "Ann")}
    assert await ledger.find("bank", Search(subject="Bob"), 100) == []
    assert await ledger.find("broker", Search(), 100) == []


async def test_another_tenant_sees_nothing(ledger: Ledger, make_entry: EntryMaker) -> None:
    entry = make_entry(subject="ann", flags=("protected_share",))
    await ledger.append([entry])
    assert await ledger.get("broker", entry.id) is None
    assert await ledger.get("bank", "absent") is None
    page = await ledger.search("bank", Search(), limit=1)
    for search in (Search(), Search(subject="ann"), Search(flag="protected_share")):
        assert (await ledger.search("broker", search)).entries == ()
    assert page.next_cursor is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.integers(0, 5), min_size=1, max_size=25),
    meanwhile=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=30),
    limit=st.integers(1, 6),
    flagged=st.booleans(),
)
async def test_paging_is_stable_while_records_are_added(
    ledger: Ledger,
    make_entry: EntryMaker,
    before: list[int],
    meanwhile: list[list[int]],
    limit: int,
    flagged: bool,
) -> None:
    """Whatever is added, of whatever time: the old ones come once each, in order, the new at most once."""
    tenant = make_entry().id
    search = Search(flag="seen") if flagged else Search()

    def made(times: list[int]) -> list[Entry]:
        return [make_entry(tenant=tenant, created=time, flags=("seen",)) for time in times]

    old = made(before)
    await ledger.append(old)
    found: list[Stored] = []
    additions = iter(meanwhile)
    cursor = None
    while True:
        page = await ledger.search(tenant, search, limit, cursor)
        found += page.entries
        cursor = page.next_cursor
        if cursor is None:
            break
        await ledger.append(made(next(additions, [])))
    places = [(stored.created, stored.seq) for stored in found]
    assert places == sorted(set(places), reverse=True)
    assert {entry.id for entry in old} <= {stored.id for stored in found}


@pytest.mark.parametrize("cursor", ["", "x", "é", "AAAA", "A" * 23, "A" * 100, "'; DROP TABLE keys"])
async def test_a_malformed_cursor_is_named(ledger: Ledger, cursor: str) -> None:
    with pytest.raises(MalformedCursor):
        await ledger.search("bank", Search(), 10, cursor)


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_limit_out_of_range(ledger: Ledger, limit: int) -> None:
    with pytest.raises(InvalidRequest):
        await ledger.search("bank", Search(), limit)


def test_a_version_without_a_model() -> None:
    with pytest.raises(InvalidRequest):
        Search(version="1")


async def plan(ledger: Ledger, engine: Engine, search: Search) -> list[str]:
    """How the database goes about the search, first page and next, in its own words."""
    sent: list[tuple[str, Any]] = []

    def remember(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", remember)
    page = await ledger.search("bank", search, 1)
    if page.next_cursor:
        await ledger.search("bank", search, 1, page.next_cursor)
    event.remove(engine, "before_cursor_execute", remember)
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        return [
            str(row[-1])
            for statement, parameters in sent
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
        ]


INDEXES = {
    "newest": "explanations_newest (tenant=?",
    "model": "explanations_model (tenant=? AND model=?",
    "version": "explanations_version (tenant=? AND model=? AND version=?",
    "subject": "explanations_subject (tenant=? AND subject=?",
    "decision_id": "explanations_decision_id (tenant=? AND decision_id=?",
    "from": "explanations_newest (tenant=? AND created>?",
    "to": "explanations_newest (tenant=? AND created<?",
    "window": "explanations_model (tenant=? AND model=? AND created>? AND created<?",
    "converged": "explanations_newest (tenant=?",
    "not_converged": "explanations_not_converged (tenant=? AND converged=?",
    "flag": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "label": "explanations_label (tenant=? AND label=?",
    "label_beside_another": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "label_with_flag": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "label_of_subject": "explanations_subject (tenant=? AND subject=?",
    "cohort": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "cohorts": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "subject_of_version": "explanations_subject (tenant=? AND subject=?",
    "label_not_converged": "explanations_not_converged (tenant=? AND converged=?",
    "subject_with_flag": "explanations_subject (tenant=? AND subject=?",
    "everything": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "reviewed": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "not_reviewed": "explanations_newest (tenant=?",
    "reviewed_of_model": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "reviewed_of_subject": "explanations_subject (tenant=? AND subject=?",
    "reviewed_with_flag": "explanation_tags_newest (tenant=? AND name=? AND value=?",
    "queue": "explanation_tags_newest (tenant=? AND name=? AND value=?",
}


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", INDEXES)
async def test_sqlite_reads_a_range_of_the_right_index(
    ledger: Ledger, engine: Engine, make_entry: EntryMaker, name: str
) -> None:
    entries = varied(make_entry, 70)
    await ledger.append([*entries, *(event for each in reviews(entries).values() for event in each)])
    steps = await plan(ledger, engine, SEARCHES[name])
    assert any(INDEXES[name] in step for step in steps), steps
    assert not [step for step in steps if step.startswith("SCAN") or "TEMP B-TREE" in step], steps


MANY_EXPLANATIONS = """
    INSERT INTO explanations (seq, id, tenant, created, model, version, method, label, converged, decision_id, subject,
                              key_id, retention, personal)
    SELECT i, md5(i::text), 'bank', i, 'model' || i % 10, i % 7, 'gradient', 'label' || i % 50, i % 100 > 0,
           'd' || i, 's' || i % 2000, 'key', 'standard', NULL FROM generate_series(1, 20000) i
"""
MANY_LEAVES = "INSERT INTO log SELECT i, 'explanation', '{}', '' FROM generate_series(1, 20000) i"
MANY_SUBJECTS = "INSERT INTO subjects SELECT 't' || i, 'l' || i, '' FROM generate_series(1, 2000) i"
MANY_TAGS = "INSERT INTO explanation_tags SELECT i, 'flag', 'seen', 'bank', i FROM generate_series(1, 20000, 40) i"
MANY_REVIEWS = (
    "INSERT INTO explanation_tags SELECT i, 'reviewed', 'true', 'bank', i FROM generate_series(1, 20000, 80) i"
)
MANY_LABELS = "INSERT INTO explanation_tags SELECT i, 'label', 'label7', 'bank', i FROM generate_series(1, 20000, 50) i"


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
async def test_postgresql_never_reads_the_whole_table(ledger: Ledger, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(MANY_EXPLANATIONS))
        connection.execute(text(MANY_LEAVES))
        connection.execute(text(MANY_TAGS))
        connection.execute(text(MANY_REVIEWS))
        connection.execute(text(MANY_LABELS))
        connection.execute(text(MANY_SUBJECTS))
        lookup = VAULT.lookup("bank", "Ann")
        connection.execute(
            insert(subjects).values(token="s77", lookup=lookup, key=VAULT.wrap(bytes(32), f"s77 {lookup}"))
        )
        connection.execute(text("ANALYZE"))
    indexes = {
        "newest": Search(),
        "model": Search(model="model1"),
        "version": Search(model="model1", version="3"),
        "subject": Search(subject="Ann"),
        "decision_id": Search(decision_id="d88"),
        "label": Search(label="label7"),
        "not_converged": Search(converged=False),
    }
    named = {f"explanations_{name}": search for name, search in indexes.items()}
    for index, search in [
        *named.items(),
        ("explanations_newest", Search(reviewed=False)),
        ("explanation_tags_newest", Search(reviewed=True)),
        ("explanation_tags_newest", Search(label="label7")),
        ("explanation_tags_newest", Search(flag="seen", reviewed=False)),
    ]:
        steps = await plan(ledger, engine, search)
        assert any(index in step for step in steps), steps
        assert not [step for step in steps if "Seq Scan" in step or "Sort" in step], steps
    for search in (Search(flag="seen"), Search(created_from=9, created_to=99), Search(converged=True)):
        steps = await plan(ledger, engine, search)
        assert not [step for step in steps if "Seq Scan" in step], steps
