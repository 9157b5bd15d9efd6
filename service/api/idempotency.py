"""`Idempotency-Key`: a client that got no answer may send the request again, and it is done only once.

A key belongs to a tenant and is remembered for a day, together with the records of its request and in the same
transaction (`service.ledger.remembering`). The same key and body, as JSON, get the same answer, built again from these
records; the same key with another body is refused. Only requests that were recorded are remembered: one that failed may
be sent again and is then done.

In one process, requests with equal keys take turns, so that the second waits for the first and computes nothing. On
another host the second is computed too; the database then refuses its records, and it is answered as the first was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson

from service.api.requests import ApiRequest
from service.errors import AnswerableError, IdempotencyKeyReused, WrongIdempotencyKey
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
T = TypeVar("T")


def repeatable(handler: F) -> F:
    """Declares a handler whose route takes the header; it answers by `once`."""
    handler.__dict__["is_repeatable"] = True
    return handler


def is_repeatable(handler: object) -> bool:
    """Whether a handler was declared as `repeatable`."""
    return getattr(handler, "is_repeatable", False)


def read_key(request: ApiRequest, content: object) -> RequestKey | None:
    """The header of a request with this body; None where there is none, or no ledger. Raises WrongIdempotencyKey."""
    values = request.headers.getlist(HEADER)
    if not values or (services := request.services).ledger is None:
        return None
    if len(values) > 1 or not values[0].isascii() or not 1 <= len(values[0]) <= MAX_TEXT_LENGTH:
        raise WrongIdempotencyKey(f"{HEADER} has 1 to {MAX_TEXT_LENGTH} visible characters, and is sent once")
    whole = orjson.dumps([request.method, request.scope["path"], content], option=orjson.OPT_SORT_KEYS)
    return services.vault.request_key(request.caller.tenant, values[0], whole.decode())


async def once(
    request: ApiRequest,
    work: Callable[[RequestKey | None], Awaitable[T]],
    repeat: Callable[[Remembered, dict[str, Any]], Awaitable[T]],
) -> T:
    """What `work` answers, or, if an equal request was answered before, that answer, which `repeat` builds again.

    `work` gets the key, if there is one, and writes what is to be remembered together with its records. Raises
    IdempotencyKeyReused, LedgerUnavailable if it cannot be known what was answered, and what the two raise.
    """
    key = request.key
    if key is None:
        return await work(None)
    ledger = request.services.need_ledger().ledger
    async with request.services.turns.turn(request, key.lookup):
        remembered = await ledger.remembered(key.lookup)
        if remembered is None:
            try:
                return await work(key)
            except AnswerableError:  # an equal request on another host may have been recorded first
                remembered = await ledger.remembered(key.lookup)
                if remembered is None:
                    raise
    if remembered.digest != key.digest:
        raise IdempotencyKeyReused(
            f"this {HEADER} was sent with another request within a day; send a new key with a new request"
        )
    return await repeat(remembered, orjson.loads(remembered.answer))
