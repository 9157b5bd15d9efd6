"""The writer in a process of its own; this module has both the service's end and the process.

In the service's own process the writer shares the interpreter's lock with the event loop, and waits for it after every
statement and every hash: beside a busy loop a group of 15 took 30 ms, beside an idle one 3.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine

from service.ledger.database import open_engine
from service.ledger.sealing import Vault
from service.ledger.writer import MAX_GROUP, Append, Outcome, Outcomes, Recorder
from service.processes.children import AwakeClock, Connection, Unframer, frame, reap, start_child

RESTART_SECONDS = 0.5
"""Between the end of one writer and the start of the next. What is put meanwhile waits."""
SILENCE_SECONDS = 15.0
"""A writer that has work and reports nothing for so long hangs, or its database does; a group takes milliseconds, and a
database that is locked or refuses connections is given up sooner."""
READ_BYTES = 1 << 16
"""Bytes read at once; a buffer of this size is allocated for each read."""

_log = logging.getLogger(__name__)


class WriterProcess:
    """As `Writer`, but in another process; made and used on an event loop, where `settle` is called.

    Appends that a dying process had are settled as UNAVAILABLE, though they may be recorded, and another process is
    started. A process that has work and reports nothing for `SILENCE_SECONDS` is killed.
    """

    def __init__(self, engine: Engine, vault: Vault, settle: Callable[[Outcomes], None]) -> None:
        self._opening = engine.url.render_as_string(hide_password=False), vault
        self._settle = settle
        self._unsettled: set[int] = set()
        self._closing = False
        self._clock = AwakeClock()
        self._heard = self._clock.now
        self._connect()
        self._life = asyncio.get_running_loop().create_task(self._live())

    def put(self, append: Append) -> None:
        """Queues an append; returns at once."""
        if not self._unsettled:
            self._heard = self._clock.now
        self._unsettled.add(append.number)
        self._connection.send(append)

    async def close(self) -> None:
        """Writes what is queued, then ends the process."""
        self._closing = True
        self._heard = self._clock.now
        self._connection.finish()
        await self._life

    def _connect(self) -> None:
        self._gone = asyncio.Event()
        self._connection = Connection(self._received, self._gone.set)
        self._connection.send(self._opening)

    def _received(self, outcomes: Outcomes) -> None:
        self._heard = self._clock.now
        self._unsettled.difference_update(number for number, _ in outcomes)
        self._settle(outcomes)

    async def _live(self) -> None:
        """Runs one process after the other, until this is closed and all appends are settled."""
        while not self._closing or self._unsettled:
            try:
                process = await self._start()
            except OSError:
                _log.exception("the ledger's writer could not be started")
            else:
                await self._end_of(process)
            lost, self._unsettled = self._unsettled, set()
            if not self._closing:
                _log.error("the ledger's writer is gone, and with it %d appends; starting another", len(lost))
                self._connect()
            self._settle([(number, Outcome.UNAVAILABLE) for number in lost])
            if not self._closing:
                await asyncio.sleep(RESTART_SECONDS)

    async def _end_of(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until the process has ended; kills it if it hangs."""
        gone = asyncio.ensure_future(self._gone.wait())
        while not gone.done():
            await asyncio.wait([gone], timeout=SILENCE_SECONDS / 10)
            self._clock.tick(SILENCE_SECONDS / 10)
            has_work = self._closing or bool(self._unsettled)
            if not gone.done() and has_work and self._clock.now - self._heard > SILENCE_SECONDS:
                _log.error("the ledger's writer has work and has said nothing for %.0f s", SILENCE_SECONDS)
                process.kill()
                await gone
        await asyncio.to_thread(reap, process)

    async def _start(self) -> subprocess.Popen[bytes]:
        """Starts a process and sends it the database, the vault and what waits. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.to_thread(start_child, __name__, theirs)
        except OSError:
            ours.close()
            raise
        connection = self._connection
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
        except OSError:
            ours.close()
            await asyncio.to_thread(reap, process)
            raise
        if self._closing:
            connection.finish()
        return process


def main(connection: socket.socket) -> None:
    """The process's main function, which returns when its socket closes."""

    def settle(outcomes: Outcomes) -> None:
        with suppress(OSError):  # nobody waits any more
            connection.sendall(frame(outcomes))

    arrivals = _arrivals(connection)
    opening = next(arrivals, None)
    if opening is None:
        return
    (url, vault), *appends = opening
    engine = open_engine(url)
    recorder = Recorder(engine, vault, settle)
    recorder.record(appends)
    for appends in arrivals:
        recorder.record(appends)
    recorder.close()
    engine.dispose()


def _arrivals(connection: socket.socket) -> Iterator[list[Any]]:
    """The messages that have arrived together, at least one each time, until the socket closes."""
    unframer = Unframer()
    messages: list[Any] = []
    with suppress(ConnectionError):
        while data := connection.recv(READ_BYTES):
            for batch in unframer.feed(data):
                messages += batch
            if len(messages) >= MAX_GROUP or (messages and not select.select([connection], [], [], 0)[0]):
                yield messages
                messages = []
    if messages:
        yield messages
