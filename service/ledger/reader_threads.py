"""Threads in which an event loop reads from the ledger's database, none longer than its caller waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import LedgerUnavailable
from service.ledger.append_queue import CLOSED, SILENT

READERS = 4
READ_SECONDS = 10.0
"""How long a reader waits for the database."""

T = TypeVar("T")


class ReaderThreads:
    """A few threads for calls that block on the database; for one event loop."""

    def __init__(self) -> None:
        self.is_closed = False
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-read")

    async def call(self, blocking: Callable[[], T]) -> T:
        """The result of a call, made in a thread. Raises LedgerUnavailable when that takes too long, and once these are
        closed."""
        if self.is_closed:
            raise LedgerUnavailable(CLOSED)
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self.call_to_the_end(blocking)
        except TimeoutError:
            raise LedgerUnavailable(SILENT) from None

    async def call_to_the_end(self, blocking: Callable[[], T]) -> T:
        """As `call`, however long it takes, and until the threads have ended."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, blocking)

    def refuse(self) -> None:
        """Refuses new calls from here on; `close` follows."""
        self.is_closed = True

    def close(self) -> None:
        """Ends the threads; blocks until their calls have returned."""
        self.is_closed = True
        self._threads.shutdown()
