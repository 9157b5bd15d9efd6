"""A request with a key of its own: its records and what is remembered of it are one transaction, on every host."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, update

from service.errors import NotFound
from service.ledger import Entry, EntryRefused, Event, Ledger, Search
from service.ledger.entries import REVIEW, Remembered, RequestKey
from service.ledger.erasing import erase
from service.ledger.jobs import Jobs
from service.ledger.legal_holds import hold
from service.ledger.remembering import expired_before, read_remembered, sweep
from service.ledger.stored_jobs import Job, JobRow, State
from service.ledger.tables import job_rows, jobs, log, remembered
from tests.ledger.conftest import VAULT

EntryMaker = Callable[..., Entry]


def new_key(sent: str = "body") -> RequestKey:
    return VAULT.request_key("bank", str(uuid.uuid4()), sent)


def new_job() -> Job:
    return Job(
        id=str(uuid.uuid4()),
        tenant="bank",
        key_id="key",
        kind="explain",
        state=State.WAITING,
        created=1,
        ended=None,
        spec=b"{}",
        total=1,
        done=0,
        failed=0,
        detail=None,
    )


def kept_under(engine: Engine, key: RequestKey) -> Remembered | None:
    with engine.connect() as connection:
        return read_remembered(connection, key.lookup)


async def ids(ledger: Ledger) -> set[str]:
    return {stored.id for stored in (await ledger.search("bank", Search(), limit=100)).entries}


async def test_it_is_found_with_the_place_of_its_last_record(ledger: Ledger, make_entry: EntryMaker) -> None:
    keys = [new_key() for _ in range(5)]
    calls = [
        ledger.append([make_entry() for _ in range(number + 1)], key.remembered({"number": number}))
        for number, key in enumerate(keys)
    ]
    await asyncio.gather(*calls, ledger.append([make_entry()]))

    places = []
    for number, key in enumerate(keys):
        kept = await ledger.remembered(key.lookup)
        assert kept is not None
        assert (kept.digest, kept.answer) == (key.digest, b'{"number":%d}' % number)
        assert kept.seq is not None
        places.append(kept.seq)
    assert places == [1, 3, 6, 10, 15]
    assert await ledger.remembered(new_key().lookup) is None


async def test_of_two_hosts_one_records(engine: Engine, ledger: Ledger, make_entry: EntryMaker) -> None:
    other, key = Ledger(engine, VAULT), new_key()
    mine, theirs = [make_entry(), make_entry()], [make_entry(), make_entry()]

    outcomes = await asyncio.gather(
        ledger.append(mine, key.remembered({"from": "here"})),
        other.append(theirs, key.remembered({"from": "there"})),
        return_exceptions=True,
    )

    refused = [outcome for outcome in outcomes if outcome is not None]
    assert [type(outcome) for outcome in refused] == [EntryRefused]
    quicker = "here" if outcomes[0] is None else "there"
    assert await ids(ledger) == {entry.id for entry in (mine if quicker == "here" else theirs)}
    for host in (ledger, other):
        kept = await host.remembered(key.lookup)
        assert kept is not None
        assert kept.answer == b'{"from":"%s"}' % quicker.encode()
    await other.close()


async def test_one_that_is_refused_disturbs_none_of_its_group(ledger: Ledger, make_entry: EntryMaker) -> None:
    key = new_key()
    await ledger.append([make_entry()], key.remembered({}))
    before = await ids(ledger)
    others = [make_entry() for _ in range(10)]

    calls = [ledger.append([entry], new_key().remembered({})) for entry in others]
    calls.insert(4, ledger.append([make_entry()], key.remembered({})))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if outcome is not None] == [EntryRefused]
    assert await ids(ledger) == before | {entry.id for entry in others}


async def test_what_is_not_recorded_is_not_remembered(
    engine: Engine, ledger: Ledger, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the transaction, after every one of its statements."""
    entry, key = make_entry(), new_key()
    await ledger.append([entry])
    with pytest.raises(EntryRefused):
        await ledger.append([make_entry(), make_entry(id=entry.id)], key.remembered({}))
    assert kept_under(engine, key) is None

    with monkeypatch.context() as patch:
        patch.setattr("service.ledger.appending._MARK", "no statement at all")  # the last one before the commit
        with pytest.raises(Exception):  # noqa: B017, PT011 - what becomes of it is what counts
            await ledger.append([Event(kind=REVIEW, tenant="bank", key_id="key", about=entry.id)], key.remembered({}))
    assert kept_under(engine, key) is None
    with engine.connect() as connection:
        assert len(connection.execute(select(log.c.seq)).all()) == 1
    await ledger.append([make_entry()], key.remembered({}))
    assert kept_under(engine, key) is not None


async def test_after_a_day_another_takes_its_place(engine: Engine, ledger: Ledger, make_entry: EntryMaker) -> None:
    key, young = new_key(), new_key()
    await ledger.append([make_entry()], key.remembered({"day": 1}))
    with engine.begin() as connection:
        connection.execute(update(remembered).values(created=expired_before() - 1))
    assert await ledger.remembered(key.lookup) is None
    await ledger.append([make_entry()], key.remembered({"day": 2}))
    kept = await ledger.remembered(key.lookup)
    assert kept is not None
    assert kept.answer == b'{"day":2}'

    with engine.begin() as connection:
        connection.execute(update(remembered).values(created=expired_before() - 1))
    await ledger.append([make_entry()], young.remembered({}))
    assert sweep(engine) == 1
    assert kept_under(engine, young) is not None


def test_of_two_equal_jobs_one_is_made(engine: Engine) -> None:
    key, store = new_key(), Jobs(engine)
    first, second = new_job(), new_job()
    store.create(first, [JobRow(0, str(uuid.uuid4()))], key.remembered({"id": first.id}))
    with pytest.raises(EntryRefused):
        store.create(second, [JobRow(0, str(uuid.uuid4()))], key.remembered({"id": second.id}))
    with engine.connect() as connection:
        assert connection.scalars(select(jobs.c.id)).all() == [first.id]
        assert connection.scalars(select(job_rows.c.job_id)).all() == [first.id]


async def test_of_two_equal_erasures_one_is_done(engine: Engine, ledger: Ledger, make_entry: EntryMaker) -> None:
    key, held = new_key(), new_key()
    await ledger.append([make_entry(subject="Ann")])
    hold(engine, VAULT, "bank", "Bob", "key", "case 7", held)
    with pytest.raises(EntryRefused):
        hold(engine, VAULT, "bank", "Bob", "key", "case 7", held)
    erased = erase(engine, VAULT, "bank", "Ann", "key", "asked for", key)
    with pytest.raises(NotFound):
        erase(engine, VAULT, "bank", "Ann", "key", "asked for", key)
    kept = kept_under(engine, key)
    assert kept is not None
    assert kept.seq == erased.tombstone
    with engine.connect() as connection:
        assert connection.scalars(select(log.c.kind).order_by(log.c.seq)).all() == ["explanation", "hold", "erasure"]


def test_what_is_kept_tells_nothing_without_the_clients_key() -> None:
    key = VAULT.request_key("bank", "one", '{"age":20}')
    assert key == VAULT.request_key("bank", "one", '{"age":20}')
    assert key.lookup == VAULT.request_key("bank", "one", '{"age":21}').lookup
    assert key.digest != VAULT.request_key("bank", "one", '{"age":21}').digest
    assert key.lookup != VAULT.request_key("shop", "one", '{"age":20}').lookup
    assert key.digest != VAULT.request_key("bank", "two", '{"age":20}').digest  # so equal bodies are not told apart
