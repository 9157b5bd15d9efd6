"""What is left when the process or the database goes."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, make_url, select

from service.errors import LedgerUnavailable
from service.ledger import Entry, Keys, Ledger, Search, Vault, open_engine, postgresql
from service.ledger.appending import CHECKPOINT_EVERY
from service.ledger.database import bounded, serialised
from service.ledger.tables import explanations
from service.ledger.writer import Outcome, Outcomes, Writer
from tests.conftest import PATIENCE_SECONDS
from tests.ledger.conftest import VAULT

EntryMaker = Callable[..., Entry]

WRITER = """
import asyncio, sys, uuid
from service.ledger import Entry, Ledger, Vault, open_engine
from service.ledger.writer import Writer
from service.ledger.writer_process import WriterProcess

def entry():
    return Entry(id=str(uuid.uuid4()), tenant="bank", created=1, model="loan", version="1", method="gradient",
                 converged=True, key_id="key", record=b'"%b"' % (b"x" * 1000), personal=b"{}",
                 flags=("protected_share",))

async def append_for_ever(ledger):
    while True:
        made = entry()
        await ledger.append([made])
        print(made.id, flush=True)

async def main():
    ledger = Ledger(open_engine(sys.argv[1]), Vault(bytes(range(32))), writer=globals()[sys.argv[2]])
    await asyncio.gather(*(append_for_ever(ledger) for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("writer", ["Writer", "WriterProcess"])
def test_every_acknowledged_record_survives_kill_9(engine: Engine, url: str, writer: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, writer],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(300)]
    process.kill()
    acknowledged += process.stdout.read().split("\n")[:-1]
    process.stdout.close()
    assert process.wait() == -9
    after = open_engine(url)
    with after.connect() as connection:
        recorded = set(connection.scalars(select(explanations.c.id)))
        count, last = connection.execute(select(func.count(), func.max(explanations.c.seq))).one()
    after.dispose()
    assert set(acknowledged) <= recorded
    assert count == last


@contextmanager
def disk_full(_engine: Engine) -> Iterator[None]:
    """This process writes to no file inside."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@contextmanager
def database_closed(engine: Engine) -> Iterator[None]:
    """PostgreSQL takes no new connections to the database inside."""
    name = engine.url.database
    outside = open_engine(str(make_url(engine.url.render_as_string(False)).set(database="postgres")))
    with outside.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        yield
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    outside.dispose()


@contextmanager
def database_gone(engine: Engine) -> Iterator[None]:
    """PostgreSQL ends every connection to the database inside, and takes no new ones."""
    name = engine.url.database
    outside = open_engine(str(make_url(engine.url.render_as_string(False)).set(database="postgres")))
    with outside.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        yield
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    outside.dispose()


async def test_without_its_database_the_ledger_refuses_and_recovers(
    ledger: Ledger, engine: Engine, make_entry: EntryMaker, caplog: pytest.LogCaptureFixture
) -> None:
    broken = disk_full if engine.dialect.name == "sqlite" else database_gone
    before = make_entry()
    await ledger.append([before])
    refused = [make_entry(record=b'"%b"' % (b"x" * 100_000), subject="Ann Example") for _ in range(20)]
    with broken(engine):
        outcomes = await asyncio.gather(*(ledger.append([entry]) for entry in refused), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {LedgerUnavailable}
    assert "Ann Example" not in caplog.text
    after = [make_entry() for _ in range(20)]
    await asyncio.gather(*(ledger.append([entry]) for entry in after))
    page = await ledger.search("bank", Search(), limit=100)
    assert {stored.id for stored in page.entries} == {entry.id for entry in [before, *after]}
    assert sorted(stored.seq for stored in page.entries) == list(range(1, 22))


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
async def test_reads_without_the_database(ledger: Ledger, engine: Engine) -> None:
    with database_gone(engine):
        with pytest.raises(LedgerUnavailable):
            await ledger.search("bank", Search())
        with pytest.raises(LedgerUnavailable):
            await ledger.get("bank", "id")
    assert await ledger.get("bank", "id") is None


def write_ahead_log_size(engine: Engine) -> int:
    return Path(f"{engine.url.database}-wal").stat().st_size


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_the_write_ahead_log_is_used_again(ledger: Ledger, engine: Engine, make_entry: EntryMaker) -> None:
    await ledger.append([make_entry() for _ in range(CHECKPOINT_EVERY)])
    size = write_ahead_log_size(engine)
    for _ in range(5):
        await ledger.append([make_entry() for _ in range(CHECKPOINT_EVERY)])
    assert write_ahead_log_size(engine) < 2 * size


async def is_recording(ledger: Ledger, expected: bool) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while ledger.is_recording is not expected:  # noqa: ASYNC110 - the writer, or its database, comes round
            await asyncio.sleep(0.005)


async def test_an_append_is_given_up_while_the_database_is_locked_and_then_all_at_once(
    engine: Engine, make_entry: EntryMaker
) -> None:
    ledger = Ledger(engine, VAULT, append_seconds=0.05, probe_seconds=0.02)
    given_up, refused, after = make_entry(), make_entry(), make_entry()
    with serialised(engine).begin():
        with pytest.raises(LedgerUnavailable) as unavailable:
            await ledger.append([given_up])
        assert int(unavailable.value.headers["Retry-After"]) > 0
        assert not ledger.is_recording
        refusing = asyncio.ensure_future(ledger.append([refused]))
        await asyncio.sleep(0)
        assert isinstance(refusing.exception(), LedgerUnavailable), "it waits for what others wait for in vain"
    await is_recording(ledger, True)
    ledger.queue.append_seconds = PATIENCE_SECONDS
    await ledger.append([after])
    page = await ledger.search("bank", Search())
    assert [stored.id for stored in page.entries] == [after.id, given_up.id], "what was given up was recorded later"
    await ledger.close()


async def test_a_timer_that_is_due_with_the_outcome_gives_nothing_up(engine: Engine, make_entry: EntryMaker) -> None:
    ledger = Ledger(engine, VAULT)
    queue, entry = ledger.queue, make_entry()
    settle = queue._settle

    def settle_late(outcomes: Outcomes) -> None:
        settle(outcomes)
        for number, _ in outcomes:
            queue._give_up(number)  # as the timer does that comes due in the same round of the event loop

    writer = queue._writer
    queue._writer = Writer(engine, VAULT, settle_late)
    await writer.close()
    await ledger.append([entry])

    assert ledger.is_recording
    await ledger.append([make_entry()])
    await ledger.close()


async def test_an_idle_ledger_knows_whether_it_could_record(engine: Engine) -> None:
    ledger = Ledger(engine, VAULT, append_seconds=0.05, probe_seconds=0.02)
    assert ledger.is_recording
    for _ in range(2):
        with serialised(engine).begin():
            await is_recording(ledger, False)
        await is_recording(ledger, True)
    assert not (await ledger.search("bank", Search())).entries
    await ledger.close()


async def test_a_ledger_without_its_database_says_so_until_it_is_back(engine: Engine, make_entry: EntryMaker) -> None:
    ledger = Ledger(engine, VAULT, probe_seconds=0.02)
    broken = disk_full if engine.dialect.name == "sqlite" else database_gone
    with broken(engine):
        with pytest.raises(LedgerUnavailable):
            await ledger.append([make_entry()])
        await is_recording(ledger, False)
    await is_recording(ledger, True)
    await ledger.append([make_entry()])
    await ledger.close()


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_what_no_database_could_take_says_nothing_about_the_database(
    engine: Engine, make_entry: EntryMaker
) -> None:
    settled: Outcomes = []

    class Watched(Writer):
        def __init__(self, engine: Engine, vault: Vault, settle: Callable[[Outcomes], None]) -> None:
            def settle_and_tell(outcomes: Outcomes) -> None:
                settled.extend(outcomes)
                settle(outcomes)

            super().__init__(engine, vault, settle_and_tell)

    ledger = Ledger(engine, VAULT, writer=Watched, probe_seconds=PATIENCE_SECONDS)
    with pytest.raises(LedgerUnavailable):
        await ledger.append([make_entry(personal="not bytes")])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(settled) < 2 or not ledger.is_recording:  # noqa: ASYNC110 - the database is asked, and answers
            await asyncio.sleep(0.005)
    assert [outcome for _, outcome in settled] == [Outcome.UNAVAILABLE, Outcome.RECORDED]
    assert ledger.is_recording
    await ledger.close()


@pytest.fixture
def stopped(url: str) -> Callable[[], AbstractContextManager[None]]:
    """Stops every process of PostgreSQL that serves the database now: what it is sent it takes, and does not answer."""

    @contextmanager
    def stop() -> Iterator[None]:
        engine = open_engine(url)
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
            pids = [pid for (pid,) in found]
        try:
            for pid in pids:
                with suppress(ProcessLookupError):  # one that has ended meanwhile
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):  # so that all the others go on
                    os.kill(pid, signal.SIGCONT)
            engine.dispose()

    return stop


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
async def test_a_server_that_hangs_holds_nobody_for_long(
    engine: Engine, stopped: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "SILENCE_SECONDS", 0.1)
    keys = Keys(bounded(engine))
    _, secret = keys.create("one", "bank", {"explain"})
    with stopped(), database_closed(engine), pytest.raises(LedgerUnavailable):
        keys.find(secret)
    with stopped():
        assert keys.find(secret) is not None, "a new connection does not hang"


@pytest.mark.parametrize("databases", ["postgresql"], indirect=True)
async def test_readers_wait_for_a_server_that_hangs_no_longer_than_they_may(
    engine: Engine, stopped: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(engine, VAULT, probe_seconds=PATIENCE_SECONDS)
    assert await ledger.get("bank", "id") is None
    monkeypatch.setattr("service.ledger.reader_threads.READ_SECONDS", 0.05)
    with stopped(), pytest.raises(LedgerUnavailable):
        await ledger.get("bank", "id")
    monkeypatch.undo()
    assert await ledger.get("bank", "id") is None
    await ledger.close()
