"""Keys and scopes. Every route declares its scope, or that it is public; one that declares nothing is closed."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from service.access.callers import Caller
from service.access.permissions import OPERATOR_TENANT
from service.access.quotas import Quotas
from service.api.tokens import Tokens, is_token
from service.errors import Forbidden, LedgerUnavailable, TooManyWrongKeys, Unauthenticated
from service.ledger.clock import Clock
from service.ledger.keys import SCOPES, Key, Keys

FRESH_SECONDS = 5.0
FIND_SECONDS = 3.0
"""How long a look-up may take; when the database hangs for longer, a remembered key stays valid."""
FINDERS = 4
"""Threads that look up keys. They are separate from others because they may wait long for a database that hangs, and
must not block work that needs no database."""
MAX_REMEMBERED = 10_000
MAX_WRONG_KEYS = 30
"""From one address in `WRONG_SECONDS`; further ones are answered 429."""
WRONG_SECONDS = 60.0
MAX_ADDRESSES = 10_000
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
    """How many different wrong keys each of the newest `MAX_ADDRESSES` addresses has sent since its minute began.

    Who holds `turn` may look up a key from an address that has sent too many.
    """

    def __init__(self) -> None:
        self._of: dict[str, tuple[float, int]] = {}
        self.turn = asyncio.Lock()

    def seconds_left(self, address: str) -> float:
        """Seconds until an address that has sent too many may send others; 0 for other addresses."""
        ends, count = self._of.get(address, (0.0, 0))
        return max(0.0, ends - time.monotonic()) if count >= MAX_WRONG_KEYS else 0.0

    def count(self, address: str) -> None:
        now = time.monotonic()
        ends, count = self._of.get(address, (0.0, 0))
        if ends <= now:
            ends, count = now + WRONG_SECONDS, 0
            self._of.pop(address, None)  # so that it moves to the end: the oldest come first
        self._of[address] = ends, count + 1
        if len(self._of) > MAX_ADDRESSES:
            del self._of[next(iter(self._of))]


class Authenticator:
    """Looks up keys and counts requests. It remembers keys for seconds only, so that a revoked one stops working soon.

    A valid key is accepted whatever else came from its address, which may be that of a proxy that everybody shares. The
    cost of strangers behind it is bounded: keys from an address that sent too many wrong ones are looked up one at a
    time, so that these never take more than one thread and one connection to the database.

    Keys expire by the ledger's `clock`. With `tokens`, those of an issuer are accepted beside keys.
    """

    def __init__(self, keys: Keys, quotas: Quotas, clock: Clock | None = None, tokens: Tokens | None = None) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock or Clock()
        self._quotas = quotas
        self._wrong = WrongKeys()
        self._remembered: dict[bytes, tuple[float, Key | str | None]] = {}  # a string says what is wrong with a token
        self._finding: dict[bytes, Future[Key | None]] = {}
        self._finders = ThreadPoolExecutor(FINDERS, thread_name_prefix="keys")
        self._checkers = ThreadPoolExecutor(FINDERS, thread_name_prefix="tokens")  # so that keys need no issuer

    def close(self) -> None:
        """Stops looking up keys, without waiting for look-ups under way."""
        for threads in (self._finders, self._checkers):
            threads.shutdown(wait=False, cancel_futures=True)
        if self._tokens is not None:
            self._tokens.close()

    async def find_for(self, address: str, secret: str) -> Key:
        """The valid key of this secret. Raises Unauthenticated, or TooManyWrongKeys after many from the address."""
        is_new = _digest(secret) not in self._remembered
        refusal = Unauthenticated("the key is not valid")
        try:
            if is_new and self._wrong.seconds_left(address):
                async with self._wrong.turn:
                    key = await self.find(secret)
            else:
                key = await self.find(secret)
        except Unauthenticated as error:
            key, refusal = None, error
        if key is not None:
            return key
        if seconds_left := self._wrong.seconds_left(address):
            raise TooManyWrongKeys(
                f"the key is not valid, and this address has sent {MAX_WRONG_KEYS} others that are not",
                math.ceil(seconds_left),
            )
        if is_new:  # a client that repeats its old key is not guessing
            self._wrong.count(address)
        raise refusal

    async def find(self, secret: str) -> Key | None:
        """The valid key of this secret. Raises Unauthenticated for a token, saying what is wrong with it."""
        now = time.monotonic()
        digest = _digest(secret)
        remembered = self._remembered.get(digest)
        if remembered is None or remembered[0] < now:
            key: Key | str | None
            try:
                key = await self._look_up(secret, digest, remembered)
            except Unauthenticated as error:
                key = str(error)
            self._remember(digest, time.monotonic() + FRESH_SECONDS, key)
        else:
            key = remembered[1]
        if isinstance(key, str):
            raise Unauthenticated(key)
        return key if key is not None and key.is_valid(self._clock.now()) else None

    def admit(self, key: Key) -> Caller:
        """The caller with this key, for one request. Raises QuotaSpent."""
        if key.quota is None:
            return Caller(key.tenant, key.id, key.scopes, key.policy)
        account = self._quotas.account(key.account, key.quota)
        account.count(1)
        return Caller(key.tenant, key.id, key.scopes, key.policy, account)

    def _begin_to_find(self, secret: str) -> Future[Key | None]:
        """Has a key looked up, or a token checked, in threads of its kind."""
        if self._tokens is not None and is_token(secret):
            return self._checkers.submit(self._tokens.find, secret)
        return self._finders.submit(self._keys.find, secret)

    async def _look_up(
        self, secret: str, digest: bytes, remembered: tuple[float, Key | str | None] | None
    ) -> Key | None:
        """The stored key, looked up once for all concurrent requests. While the database does not answer, a remembered
        key stays valid; without one raises LedgerUnavailable."""
        finding = self._finding.get(digest)
        if finding is None or finding.done():
            self._finding = {other: future for other, future in self._finding.items() if not future.done()}
            finding = self._finding[digest] = self._begin_to_find(secret)
        key = asyncio.wrap_future(finding)
        try:
            await asyncio.wait({key}, timeout=FIND_SECONDS)
            if not key.done() or key.cancelled():
                finding.cancel()  # if no thread has begun it
                key.cancel()
                raise LedgerUnavailable("The database does not answer, so the key cannot be looked up.")
            self._finding.pop(digest, None)
            return key.result()
        except LedgerUnavailable:
            if remembered is None or not isinstance(remembered[1], Key):
                raise
            return remembered[1]

    def _remember(self, digest: bytes, until: float, key: Key | str | None) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:  # drop the unknown keys first
            self._remembered = {
                secret: (fresh_until, known)
                for secret, (fresh_until, known) in self._remembered.items()
                if isinstance(known, Key)
            }
        if len(self._remembered) < MAX_REMEMBERED:
            self._remembered[digest] = (until, key)


def _digest(secret: str) -> bytes:
    """What a key is remembered by: of fixed size, whatever is sent."""
    return hashlib.sha256(secret.encode()).digest()


async def authorise(request: Request, authenticator: Authenticator, scope: str | None, by_operator: bool) -> Caller:
    """The caller, if the key has the scope; a route without a scope admits nobody.

    Raises Unauthenticated, TooManyWrongKeys, Forbidden, QuotaSpent, LedgerUnavailable.
    """
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret:
        raise Unauthenticated("send a key: Authorization: Bearer <key>")
    address = request.client.host if request.client is not None else ""
    key = await authenticator.find_for(address, secret.strip())
    if scope is None or scope not in key.scopes:
        raise Forbidden(f"the key lacks the scope {scope}" if scope else "this route is closed")
    if by_operator and key.tenant != OPERATOR_TENANT:
        raise Forbidden("this is for keys of the operator's tenant, for it concerns all tenants")
    return authenticator.admit(key)
