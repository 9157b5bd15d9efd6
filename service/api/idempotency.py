"""`Idempotency-Key`: a client that got no answer sends the same again, and what it asked for is done once.

A key belongs to a tenant and is remembered for a day, with the records that it led to and in their transaction
(`service.ledger.remembering`). The same key and body, as JSON, get the same answer, built again from these records; the
same key with another body is refused. Only what came to a record is remembered: a request that failed may be sent again
and is then done.

Here, equal keys take turns, so that the second waits for the first and computes nothing. Another host computes too, and
what it computed is refused by the database: it then answers as the first did.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response

from service.api.auth import caller_of
from service.api.transport import while_connected
from service.errors import AnswerableError, IdempotencyKeyReused, WrongIdempotencyKey
from service.ledger import Ledger, Vault
from service.ledger.entries import MAX_TEXT_LENGTH, Remembered, RequestKey

HEADER = "Idempotency-Key"
PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "of your own making, a UUID for instance: the same key and body get the same answer within a day, "
    "and are recorded once; it goes before `Cache-Control: no-cache`",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_LENGTH},
}

F = TypeVar("F", bound=Callable[..., Any])


def repeatable(handler: F) -> F:
    """Declares a handler whose route takes the header; it answers by `once`."""
    handler.__dict__["is_repeatable"] = True
    return handler


def is_repeatable(handler: object) -> bool:
    """Whether it was declared so."""
    return getattr(handler, "is_repeatable", False)


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


class Turns:
    """Requests with equal keys in this process, one after the other."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def turn(self, request: Request, lookup: str) -> AsyncIterator[None]:
        """Waits for those before. Raises ClientGone when the client leaves meanwhile."""
        turn = self._turns.setdefault(lookup, _Turn())
        turn.wanted += 1
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
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[lookup]


def keep_key(request: Request, content: object) -> None:
    """Reads the header of an authorised request with this body, for `once`. Raises WrongIdempotencyKey."""
    given = request.headers.getlist(HEADER)
    key: RequestKey | None = None
    if given and request.app.state.ledger is not None:
        if len(given) > 1 or not given[0].isascii() or not 1 <= len(given[0]) <= MAX_TEXT_LENGTH:
            raise WrongIdempotencyKey(f"{HEADER} has 1 to {MAX_TEXT_LENGTH} visible characters, and is sent once")
        vault: Vault = request.app.state.vault
        asked = orjson.dumps([request.method, request.scope["path"], content], option=orjson.OPT_SORT_KEYS)
        key = vault.request_key(caller_of(request).tenant, given[0], asked.decode())
    request.state.key = key


async def once(
    request: Request,
    work: Callable[[RequestKey | None], Awaitable[Response]],
    again: Callable[[Remembered, dict[str, Any]], Awaitable[Response]],
) -> Response:
    """What `work` answers, if no equal request was answered; else that answer, built `again` from what is remembered.

    `work` gets the key, if there is one, and has what is remembered written with its records. Raises
    IdempotencyKeyReused, LedgerUnavailable where nobody can say what was answered, and what the two raise.
    """
    key: RequestKey | None = request.state.key
    if key is None:
        return await work(None)
    ledger: Ledger = request.app.state.ledger
    turns: Turns = request.app.state.turns
    async with turns.turn(request, key.lookup):
        kept = await ledger.remembered(key.lookup)
        if kept is None:
            try:
                return await work(key)
            except AnswerableError:  # on another host an equal one may have been quicker: that is what it got
                kept = await ledger.remembered(key.lookup)
                if kept is None:
                    raise
    if kept.digest != key.digest:
        raise IdempotencyKeyReused(
            f"this {HEADER} was sent with another request within a day; send a new key with a new request"
        )
    return await again(kept, orjson.loads(kept.answer))
