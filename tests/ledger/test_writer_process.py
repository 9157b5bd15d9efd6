"""The writer in a process of its own: what holds of it beyond what holds of every writer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.errors import LedgerUnavailable
from service.ledger import Entry, EntryRefused, Ledger, Search, writer_process
from service.ledger.database import serialised
from service.ledger.writer_process import WriterProcess
from tests.conftest import PATIENCE_SECONDS
from tests.ledger.conftest import VAULT

EntryMaker = Callable[..., Entry]
IN_SQLITE = pytest.mark.parametrize(
    "databases", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
"""For what is between the two processes, whichever database the writer has."""


@pytest.fixture
def others() -> set[int]:
    """The writers that were there before."""
    return writers()


@pytest.fixture
async def ledger(engine: Engine) -> AsyncIterator[Ledger]:
    ledger = Ledger(engine, VAULT, writer=WriterProcess, append_seconds=PATIENCE_SECONDS)
    yield ledger
    await ledger.close()


def writers() -> set[int]:
    """The writers that this process has: those of this test, and of services that others share."""
    children = {pid for path in Path("/proc/self/task").glob("*/children") for pid in contents(path).split()}
    return {int(pid) for pid in children if "service.ledger.writer_process" in contents(Path(f"/proc/{pid}/cmdline"))}


def contents(of_process: Path) -> str:
    """A file that tells of a process or a thread; of one that has ended, nothing."""
    try:
        return of_process.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def recorded(ledger: Ledger) -> dict[int, str]:
    """The ids of what is recorded, by their places."""
    page = await ledger.search("bank", Search(), limit=1000)
    return {stored.seq: stored.id for stored in page.entries}


async def test_it_records_and_refuses_as_the_thread_does(ledger: Ledger, make_entry: EntryMaker) -> None:
    first = make_entry(subject="Ann Example", cohort={"region": "north"}, flags=("protected_share",))
    await ledger.append([first])
    stored = await ledger.get("bank", first.id)
    assert stored is not None
    assert (stored.subject, stored.cohort, stored.personal) == ("Ann Example", {"region": "north"}, first.personal)
    entries = [make_entry() for _ in range(300)]
    await asyncio.gather(*(ledger.append([entry]) for entry in entries))
    with pytest.raises(EntryRefused):
        await ledger.append([make_entry(), first])
    await ledger.append_event("review", "bank", "key", first.id)
    assert await recorded(ledger) == dict(enumerate([first.id, *(entry.id for entry in entries)], 1))


async def test_a_writer_that_dies_is_replaced(
    others: set[int], ledger: Ledger, engine: Engine, make_entry: EntryMaker, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [make_entry()]
    await ledger.append(kept)
    (first,) = writers() - others
    with serialised(engine).begin():  # somebody else writes, so what is appended waits
        lost = [asyncio.ensure_future(ledger.append([make_entry(subject="Ann Example")])) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LedgerUnavailable}
    kept += [make_entry() for _ in range(3)]
    for entry in kept[1:]:
        await ledger.append([entry])
    assert await recorded(ledger) == dict(enumerate([entry.id for entry in kept], 1))
    (second,) = writers() - others
    assert second != first
    assert "the ledger's writer is gone, and with it 3 appends; starting another" in caplog.text
    assert "Ann Example" not in caplog.text


@IN_SQLITE
async def test_a_writer_that_hangs_is_replaced(
    others: set[int],
    ledger: Ledger,
    make_entry: EntryMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await ledger.append([make_entry()])
    (first,) = writers() - others
    monkeypatch.setattr(writer_process, "SILENCE_SECONDS", 0.5)
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(LedgerUnavailable):
        await ledger.append([make_entry()])
    monkeypatch.undo()
    after = make_entry()
    await ledger.append([after])
    assert after.id in (await recorded(ledger)).values()
    assert first not in writers()
    assert "the ledger's writer has work and has said nothing" in caplog.text


@IN_SQLITE
async def test_a_writer_that_hangs_does_not_hold_up_the_end(
    others: set[int], ledger: Ledger, make_entry: EntryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.append([make_entry()])
    (writer,) = writers() - others
    os.kill(writer, signal.SIGSTOP)
    monkeypatch.setattr(writer_process, "SILENCE_SECONDS", 0.5)
    await ledger.close()
    assert writers() == others


async def test_what_was_put_after_a_death_is_recorded_by_the_end(
    others: set[int], ledger: Ledger, engine: Engine, make_entry: EntryMaker, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.append([make_entry()])
    (writer,) = writers() - others
    os.kill(writer, signal.SIGKILL)
    while "starting another" not in caplog.text:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    entry = make_entry()
    waiting = asyncio.ensure_future(ledger.append([entry]))
    await asyncio.sleep(0)
    await ledger.close()
    await waiting
    again = Ledger(engine, VAULT)
    assert entry.id in (await recorded(again)).values()
    await again.close()


@IN_SQLITE
async def test_close_records_what_waits(
    others: set[int], ledger: Ledger, engine: Engine, make_entry: EntryMaker
) -> None:
    entries = [make_entry() for _ in range(50)]
    waiting = [asyncio.ensure_future(ledger.append([entry])) for entry in entries]
    await asyncio.sleep(0)
    await ledger.close()  # before the process has started even
    await asyncio.gather(*waiting)
    assert writers() == others
    again = Ledger(engine, VAULT)
    assert await recorded(again) == dict(enumerate([entry.id for entry in entries], 1))
    await again.close()


@IN_SQLITE
async def test_signals_for_the_service_do_not_end_it(others: set[int], ledger: Ledger, make_entry: EntryMaker) -> None:
    await ledger.append([make_entry()])
    (writer,) = writers() - others
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(writer, number)
    await ledger.append([make_entry()])
    assert writers() - others == {writer}
