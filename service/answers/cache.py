"""Redis: results of explanations.

A cache that fails is a cache that misses: no call here raises, and none takes longer than two timeouts. After three
failures in a row a breaker keeps Redis out of the way for `REST_SECONDS`. What is asked for while a call is under way
travels together in the next one: of 50 calls at once, each on a new connection, 9 were seen to time out, and open the
breaker, while Redis was well; and a call costs the front more time than Redis. Every value begins with an
HMAC-SHA-256 of the tenant, the key that it is stored under and what follows: one that answers to another key
(CVE-2023-28858 gave clients one another's replies), was changed, or written by somebody else is dropped and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import orjson
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.domain import Completeness, Explanation, GroupShare

TIMEOUT_SECONDS = 0.05
TICKS = 5
FAILURES_TO_OPEN = 3
REST_SECONDS = 2.0
MAX_PENDING_WRITES = 1000
MAX_TOGETHER = 200
GATHER_SECONDS = 0.02
"""What is kept waits so long for others to be written with; until then it is read from here."""

MAC_BYTES = 32

RESULT = "answerable:result:"

LOG = logging.getLogger("answerable.cache")
T = TypeVar("T")

Observe = Callable[[str, str], None]
"""Told the cache (`results`, `baselines`) and the result (`hit`, `miss`, `error`, `foreign`) of every request."""


class _Breaker:
    """Open, it keeps calls away for a while; one failure after that opens it again."""

    def __init__(self) -> None:
        self._failures = 0
        self._closed_from = 0.0

    @property
    def is_open(self) -> bool:
        return time.monotonic() < self._closed_from

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN:
            self._closed_from = time.monotonic() + REST_SECONDS


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Raises TimeoutError when what is inside takes `TIMEOUT_SECONDS`.

    They are counted in ticks, of which an event loop that is busy misses most: a reply that came meanwhile is read, and
    is not thrown away because nobody had looked for it. Of 500 requests at once some looked in vain, and computed.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def tick(left: int) -> None:
            nonlocal waiting
            if left:
                waiting = loop.call_later(TIMEOUT_SECONDS / TICKS, tick, left - 1)
            else:
                limit.reschedule(loop.time())

        waiting = loop.call_later(TIMEOUT_SECONDS / TICKS, tick, TICKS - 1)
        try:
            yield
        finally:
            waiting.cancel()


class _Line:
    """One connection to Redis, made when it is first needed and again whenever a call on it failed.

    It is redis-py's connection without its client and pool around it. With these, a whole cached `:explain` took 7%
    more of the front's time and 3% longer where each request asks Redis alone (medians of 60 rounds of 100 in turns;
    nothing where eight or more share a call), and on a busy machine the 50 ms passed before a new connection had its
    reply. A call that fails or is cancelled closes the connection, so that no reply is left for the next call to read.
    """

    def __init__(self, url: str) -> None:
        pool = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        self._connection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._lock = asyncio.Lock()

    async def ask(self, *commands: Sequence[object]) -> list[Any]:
        """The replies to the commands. Raises RedisError or OSError; TimeoutError after `TIMEOUT_SECONDS`, of which
        what the event loop was busy for counts little."""
        async with self._lock:
            try:
                async with _patience():
                    packed = self._connection.pack_commands(commands)
                    await self._connection.send_packed_command(packed, check_health=False)
                    return [await self._connection.read_response() for _ in commands]
            except BaseException:
                await self._connection.disconnect(nowait=True)
                raise

    async def close(self) -> None:
        await self._connection.disconnect()


class Cache:
    """The caches in one Redis. `url` None means that there is none, and everything misses.

    `secret` is the key of the values' HMAC; hosts that share a Redis share it.
    """

    def __init__(
        self, url: str | None, ttl_seconds: int, secret: bytes, observe: Observe = lambda _cache, _result: None
    ) -> None:
        self._ttl = ttl_seconds
        self._secret = secret
        self._observe = observe
        self._breaker = _Breaker()
        self._wanted: list[tuple[str, asyncio.Future[object]]] = []
        self._reading: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._unwritten: dict[str, bytes] = {}
        self._line = None if url is None else _Line(url)
        self.url = url
        self.forgotten = 0
        """How often results were forgotten: whoever began one before the last time does not keep it."""

    async def close(self) -> None:
        """Finishes pending writes and closes the connection."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.written(), 1)
        if self._line is not None:
            await self._line.close()

    async def written(self) -> None:
        """Waits until everything that was kept has been written, or tried."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def result(self, tenant: str, plan_digest: str) -> Explanation | None:
        """The stored explanation of a plan, for this tenant only."""
        return await self._get("results", tenant, _result_key(tenant, plan_digest), _explanation)

    def keep_result(self, tenant: str, plan_digest: str, explanation: Explanation) -> None:
        """Stores an explanation in the background; it is found from now on."""
        self._put(tenant, _result_key(tenant, plan_digest), explanation)

    async def forget_results(self) -> None:
        """Drops every stored explanation, for one of them may be of a person who was erased.

        Where Redis does not answer they go when their time is over.
        """
        self.forgotten += 1
        for key in [key for key in self._unwritten if key.startswith(RESULT)]:
            del self._unwritten[key]
        cursor: Any = 0
        while True:
            replies = await self._ask(("SCAN", cursor, "MATCH", f"{RESULT}*", "COUNT", MAX_TOGETHER))
            if replies is None:
                LOG.warning("results of people who were erased may stay in Redis for %d s", self._ttl)
                return
            cursor, keys = replies[0]
            if keys:
                await self._ask(("UNLINK", *keys))
            if int(cursor) == 0:
                return

    async def _get(self, cache: str, tenant: str, key: str, read: Callable[[Any], T]) -> T | None:
        if self._line is None:
            return None
        content: object = self._unwritten.get(key)
        if content is None:
            content = await self._read(key)
        if content is False:
            self._observe(cache, "error")
            return None
        if content is None:
            self._observe(cache, "miss")
            return None
        try:
            value = read(self._value(tenant, key, content))
        except (ValueError, TypeError, KeyError):  # not this key's, not ours, or not what this version writes
            self._observe(cache, "foreign")
            return None
        self._observe(cache, "hit")
        return value

    def _value(self, tenant: str, key: str, content: Any) -> object:
        """What was stored under `key`. Raises ValueError when `content` is something else."""
        mac, value = content[:MAC_BYTES], content[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(tenant, key, value)):
            raise ValueError("the value is not what was stored under this key")
        return orjson.loads(value)

    def _mac(self, tenant: str, key: str, value: bytes) -> bytes:
        return hmac.digest(self._secret, b"\0".join((tenant.encode(), key.encode(), value)), hashlib.sha256)

    def _put(self, tenant: str, key: str, value: object) -> None:
        if self._line is None or self._breaker.is_open or len(self._unwritten) >= MAX_PENDING_WRITES:
            return
        content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        self._unwritten[key] = self._mac(tenant, key, content) + content
        if not self._writes:
            writing = asyncio.get_running_loop().create_task(self._write_all())
            self._writes.add(writing)
            writing.add_done_callback(self._writes.discard)

    async def _read(self, key: str) -> object:
        """What Redis has under the key, or None; False when it failed."""
        found: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._wanted.append((key, found))
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read_all())
        return await found

    async def _read_all(self) -> None:
        """Asks for everything that is wanted, and for what is wanted meanwhile."""
        while self._wanted:
            batch, self._wanted = self._wanted[:MAX_TOGETHER], self._wanted[MAX_TOGETHER:]
            replies = await self._ask(("MGET", *(key for key, _ in batch)))
            contents = replies[0] if replies is not None else [False] * len(batch)
            for (_, found), content in zip(batch, contents, strict=True):
                if not found.done():
                    found.set_result(content)

    async def _write_all(self) -> None:
        """Stores everything that is unwritten, and what is kept meanwhile."""
        while self._unwritten:
            await asyncio.sleep(GATHER_SECONDS)
            batch = dict(itertools.islice(self._unwritten.items(), MAX_TOGETHER))
            await self._ask(*(("SET", key, content, "EX", self._ttl) for key, content in batch.items()))
            for key, content in batch.items():
                if self._unwritten.get(key) is content:
                    del self._unwritten[key]

    async def _ask(self, *commands: Sequence[object]) -> list[Any] | None:
        """The replies, or None when Redis failed, took too long or rests."""
        if self._line is None or self._breaker.is_open:
            return None
        try:
            replies = await self._line.ask(*commands)
        except (RedisError, OSError, TimeoutError):
            self._breaker.failed()
            return None
        self._breaker.succeeded()
        return replies


def plan_cache_digest(plan_digest: str, manifest_digest: str, environment: Mapping[str, str]) -> str:
    """The digest under which a plan's result is kept: the plan, and all that decides the last bits of its numbers."""
    parts = [plan_digest, manifest_digest, environment]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _result_key(tenant: str, plan_digest: str) -> str:
    return RESULT + hashlib.sha256(f"{tenant}\0{plan_digest}".encode()).hexdigest()


def _explanation(stored: Any) -> Explanation:
    for name in ("outputs", "attributions", "standard_error", "shape"):
        stored[name] = None if stored[name] is None else tuple(stored[name])
    if stored["interactions"] is not None:
        stored["interactions"] = tuple(map(tuple, stored["interactions"]))
    groups = tuple(GroupShare(**{**group, "members": tuple(group["members"])}) for group in stored["groups"])
    return Explanation(**{**stored, "completeness": Completeness(stored["completeness"]), "groups": groups})
