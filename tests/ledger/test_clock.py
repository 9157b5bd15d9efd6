"""A clock that jumps, forward and back: times on record never fall, and whatever is recorded verifies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine

from service.ledger import (
    CheckpointSigner,
    Entry,
    EventSearch,
    Keys,
    Ledger,
    Search,
    Vault,
    maintenance,
    open_engine,
    prepare_database,
)
from service.ledger.clock import OPERATORS, Clock
from service.ledger.entries import CLOCK
from service.ledger.legal_holds import hold
from service.ledger.verifying import verify_ledger
from tests.conftest import Until
from tests.ledger.conftest import EntryMaker

HOUR = 3_600_000_000
DAY = 24 * HOUR


class MachineClock:
    """The machine's clock, which stands still unless it is set. Times are in microseconds since the epoch."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000

    def time_ns(self) -> int:
        return self.now * 1000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    clock = MachineClock()
    monkeypatch.setattr(time, "time_ns", clock.time_ns)
    return clock


@pytest.fixture
def opened(empty_url: str, tmp_path: Path) -> Iterator[tuple[Engine, Vault, CheckpointSigner]]:
    engine = open_engine(empty_url)
    vault = prepare_database(engine, tmp_path / "master.key")
    yield engine, vault, CheckpointSigner(engine, tmp_path / "signing.pem", tmp_path / "checkpoints.jsonl")
    engine.dispose()


Make = Callable[[], Entry]


@pytest.fixture
def make(make_entry: EntryMaker, machine: MachineClock) -> Make:
    """Makes entries of this moment by the machine's clock."""
    return lambda: make_entry(created=machine.now)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("jump", [2 * DAY, HOUR])
async def test_a_clock_that_jumps_forward_and_back(
    opened: tuple[Engine, Vault, CheckpointSigner], make: Make, machine: MachineClock, jump: int, *, is_signed: bool
) -> None:
    engine, vault, signer = opened
    ledger = Ledger(engine, vault)
    made = []

    async def record() -> None:
        machine.now += 1_000_000
        made.append(make())
        await ledger.append([made[-1]])

    await record()
    signer.sign()
    machine.now += jump
    await record()
    if is_signed:
        signer.sign()
    machine.now -= jump
    for _ in range(3):
        await record()
    hold(engine, vault, "bank", "Ann", "key", "a trial")
    signer.sign()
    page = await ledger.search("bank", Search())
    assert [entry.id for entry in page.entries] == [entry.id for entry in reversed(made)]
    (event,) = (await ledger.events(OPERATORS, EventSearch(kind=CLOCK))).events
    assert (event.details["behind"], event.details["clock"]) == (jump - 1_000_000, made[2].created)
    machine.now += 2 * jump
    await record()
    signer.sign()
    assert (await ledger.search("bank", Search(), limit=1)).entries[0].created == made[-1].created
    await ledger.close()
    assert verify_ledger(engine, vault).faults == []


async def test_another_host_whose_clock_is_right(
    opened: tuple[Engine, Vault, CheckpointSigner], make: Make, machine: MachineClock
) -> None:
    """It writes after what the first one signed, though nobody told it."""
    engine, vault, signer = opened
    first, second = Ledger(engine, vault), Ledger(engine, vault)
    await second.append([make()])
    machine.now += 2 * DAY
    await first.append([make()])
    signer.sign()
    machine.now -= 2 * DAY
    await second.append([make()])
    machine.now += 1
    await second.append([make()])
    signer.sign()
    assert verify_ledger(engine, vault).faults == []
    assert len((await second.events(OPERATORS, EventSearch(kind=CLOCK))).events) == 1  # as long as it lasts
    await first.close()
    await second.close()


async def test_a_key_that_has_ended_stays_so(
    opened: tuple[Engine, Vault, CheckpointSigner], make: Make, machine: MachineClock
) -> None:
    engine, vault, signer = opened
    keys = Keys(engine)
    clock = Clock()
    ledger = Ledger(engine, vault, signer=signer, clock=clock)
    key, _ = keys.create("front", "bank", ["explain"], expires=keys.now() + DAY)
    assert key.is_valid(clock.now())
    machine.now += 2 * DAY
    await ledger.append([make()])
    machine.now -= 2 * DAY
    assert clock.behind == 2 * DAY / 1e6
    await ledger.close()  # which signs
    assert not key.is_valid(clock.now())
    assert not key.is_valid(keys.now())
    assert keys.rotate(key.id, HOUR) is None
    newer, _ = keys.create("front", "bank", ["explain"], expires=keys.now() + DAY)
    assert newer.is_valid(keys.now())  # whoever makes one now is not refused for days
    machine.now += 4 * DAY
    assert clock.behind == 0
    assert verify_ledger(engine, vault).faults == []


@pytest.mark.parametrize("is_running", [True, False])
async def test_what_a_clock_that_jumps_must_not_delete(
    opened: tuple[Engine, Vault, CheckpointSigner],
    make: Make,
    machine: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    until: Until,
    *,
    is_running: bool,
) -> None:
    """Three years forward, while the service runs or before it starts: all would be over its time."""
    engine, vault, signer = opened
    ledger = Ledger(engine, vault, signer=signer)
    await ledger.append([make()])
    await ledger.close()
    seconds = machine.now / 1e6
    later = seconds + 3 * 365 * 86_400
    times = chain([seconds] * 2, repeat(later)) if is_running else repeat(later)
    monkeypatch.setattr(maintenance, "time", SimpleNamespace(time=lambda: next(times), monotonic=lambda: 0.0))

    async def forget() -> None:
        return None

    looking_after = maintenance.LedgerMaintenance(engine, vault, {"standard": 25}, 30, forget)
    await until(lambda: "nothing is deleted by age for a day" in caplog.text)
    await looking_after.close()
    assert verify_ledger(engine, vault).erased == 0
