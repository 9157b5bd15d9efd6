"""Keys and scopes. Every route declares its scope, or that it is public; one that declares nothing is closed."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from service.access.callers import Caller
from service.access.permissions import OPERATOR_TENANT
from service.access.quotas import Quotas
from service.errors import Forbidden, LedgerUnavailable, TooManyWrongKeys, Unauthenticated
from service.ledger.clock import Clock
from service.ledger.keys import SCOPES, Key, Keys

FRESH_SECONDS = 5.0
FIND_SECONDS = 3.0
"""How long a key is looked for; while the database hangs, one that is remembered goes on after that."""
FINDERS = 4
"""Threads that look for keys. They are of their own: one that waits for a database that hangs waits long, and must not
keep others from work that needs no database."""
MOST_REMEMBERED = 10_000
WRONG_KEYS = 30
"""From one address in `WRONG_SECONDS`; those after are told to come back later."""
WRONG_SECONDS = 60.0
MOST_ADDRESSES = 10_000
PUBLIC = "public"

F = TypeVar("F", bound=Callable[..., Any])


def needs(scope: str, *, by_operator: bool = False) -> Callable[[F], F]:
    """Declares the scope of a route's handler, `PUBLIC` for none; and whether the key must be the operator's, too."""
    if scope != PUBLIC and scope not in SCOPES:
        raise ValueError(f"unknown scope {scope}")

    def declare(handler: F) -> F:
        handler.__dict__["needs_scope"] = scope
        handler.__dict__["needs_operator"] = by_operator
        return handler

    return declare


def scope_of(handler: object) -> str | None:
    """What a route's handler declares; None where it declares nothing."""
    scope: str | None = getattr(handler, "needs_scope", None)
    return scope


def needs_operator(handler: object) -> bool:
    """Whether a route's handler is for keys of the operator's tenant only."""
    return bool(getattr(handler, "needs_operator", False))


class WrongKeys:
    """How many different wrong keys each address has sent since its minute began; of the newest `MOST_ADDRESSES`.

    `turn` is for looking up those of addresses that have sent too many.
    """

    def __init__(self) -> None:
        self._of: dict[str, tuple[float, int]] = {}
        self.turn = asyncio.Lock()

    def seconds_left(self, address: str) -> float:
        """Until an address that has sent too many may send others; 0 where it has not."""
        ends, count = self._of.get(address, (0.0, 0))
        return max(0.0, ends - time.monotonic()) if count >= WRONG_KEYS else 0.0

    def count(self, address: str) -> None:
        now = time.monotonic()
        ends, count = self._of.get(address, (0.0, 0))
        if ends <= now:
            ends, count = now + WRONG_SECONDS, 0
            self._of.pop(address, None)  # to the end: the first are the oldest
        self._of[address] = ends, count + 1
        if len(self._of) > MOST_ADDRESSES:
            del self._of[next(iter(self._of))]


class Authenticator:
    """Finds keys, remembering each for a few seconds so that a revoked one stops working soon, and counts requests.

    A right key is found whatever else came from its address, which may be that of a proxy and so everybody's. What
    strangers behind it can take is bounded: keys from an address that sent too many wrong ones are looked up one after
    another, so that they never have more than one thread and one connection to the database.


    Keys end by the ledger's `clock`.
    """

    def __init__(self, keys: Keys, quotas: Quotas, clock: Clock | None = None) -> None:
        self._keys = keys
        self._clock = clock or Clock()
        self._quotas = quotas
        self._wrong = WrongKeys()
        self._remembered: dict[bytes, tuple[float, Key | None]] = {}
        self._finding: dict[bytes, Future[Key | None]] = {}
        self._finders = ThreadPoolExecutor(FINDERS, thread_name_prefix="keys")

    def close(self) -> None:
        """Looks for no more keys; waits for nobody who still does."""
        self._finders.shutdown(wait=False, cancel_futures=True)

    async def find_for(self, address: str, secret: str) -> Key:
        """The valid key of this secret. Raises Unauthenticated, or TooManyWrongKeys after many from the address."""
        is_new = _digest(secret) not in self._remembered
        if is_new and self._wrong.seconds_left(address):
            async with self._wrong.turn:
                key = await self.find(secret)
        else:
            key = await self.find(secret)
        if key is not None:
            return key
        if left := self._wrong.seconds_left(address):
            raise TooManyWrongKeys(
                f"the key is not valid, and this address has sent {WRONG_KEYS} others that are not", math.ceil(left)
            )
        if is_new:  # a client that goes on with its old key guesses nothing
            self._wrong.count(address)
        raise Unauthenticated("the key is not valid")

    async def find(self, secret: str) -> Key | None:
        """The valid key of this secret."""
        now = time.monotonic()
        digest = _digest(secret)
        remembered = self._remembered.get(digest)
        if remembered is None or remembered[0] < now:
            key = await self._look_up(secret, digest, remembered)
            self._remember(digest, time.monotonic() + FRESH_SECONDS, key)
        else:
            key = remembered[1]
        return key if key is not None and key.is_valid(self._clock.now()) else None

    def admit(self, key: Key) -> Caller:
        """The caller with this key, for one request. Raises QuotaSpent."""
        if key.quota is None:
            return Caller(key.tenant, key.id, key.scopes, key.policy)
        account = self._quotas.account(key.account, key.quota)
        account.count(1)
        return Caller(key.tenant, key.id, key.scopes, key.policy, account)

    async def _look_up(self, secret: str, digest: bytes, remembered: tuple[float, Key | None] | None) -> Key | None:
        """The stored key, looked for once for all who ask; while the database is away, or hangs, a key that was valid
        goes on being so. Raises LedgerUnavailable."""
        finding = self._finding.get(digest)
        if finding is None or finding.done():
            self._finding = {asked: one for asked, one in self._finding.items() if not one.done()}
            finding = self._finding[digest] = self._finders.submit(self._keys.find, secret)
        found = asyncio.wrap_future(finding)
        try:
            await asyncio.wait({found}, timeout=FIND_SECONDS)
            if not found.done() or found.cancelled():
                finding.cancel()  # if no thread has begun it
                found.cancel()
                raise LedgerUnavailable("The database does not answer, so the key cannot be looked up.")
            self._finding.pop(digest, None)
            return found.result()
        except LedgerUnavailable:
            if remembered is None or remembered[1] is None:
                raise
            return remembered[1]

    def _remember(self, digest: bytes, until: float, key: Key | None) -> None:
        if len(self._remembered) >= MOST_REMEMBERED:  # strangers' first
            self._remembered = {d: found for d, found in self._remembered.items() if found[1] is not None}
        if len(self._remembered) < MOST_REMEMBERED:
            self._remembered[digest] = (until, key)


def _digest(secret: str) -> bytes:
    """What a key is remembered by: of one size, whatever strangers send."""
    return hashlib.sha256(secret.encode()).digest()


async def authorise(request: Request) -> None:
    """Lets a request through to its handler; the app runs this before every route. Sets `request.state.caller`."""
    endpoint = request.scope.get("endpoint")
    scope = scope_of(endpoint)
    if scope == PUBLIC:
        return
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret:
        raise Unauthenticated("send a key: Authorization: Bearer <key>")
    authenticator: Authenticator = request.app.state.authenticator
    address = request.client.host if request.client is not None else ""
    key = await authenticator.find_for(address, secret.strip())
    if scope is None or scope not in key.scopes:
        raise Forbidden(f"the key lacks the scope {scope}" if scope else "this route is closed")
    if needs_operator(endpoint) and key.tenant != OPERATOR_TENANT:
        raise Forbidden("this is for keys of the operator's tenant, for it concerns all tenants")
    request.state.caller = authenticator.admit(key)


def caller_of(request: Request) -> Caller:
    """The caller of an authorised request."""
    caller: Caller = request.state.caller
    return caller


async def _caller(request: Request) -> Caller:  # async: FastAPI runs plain functions in threads
    return caller_of(request)


CallerOf = Annotated[Caller, Depends(_caller)]
"""The same, for handlers that FastAPI runs."""
