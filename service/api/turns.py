"""Requests with equal idempotency keys, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Request

from service.api.transport import while_connected


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiters: int = 0


class Turns:
    """Of the requests in this process that have equal keys, one is answered at a time."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def turn(self, request: Request, lookup: str) -> AsyncIterator[None]:
        """Waits for those before. Raises ClientGone when the client leaves meanwhile."""
        turn = self._turns.setdefault(lookup, _Turn())
        turn.waiters += 1
        try:
            if turn.lock.locked():
                await while_connected(request, turn.lock.acquire())
            else:
                await turn.lock.acquire()
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.waiters -= 1
            if not turn.waiters:
                del self._turns[lookup]
