"""Redis: results of explanations.

A cache that fails is a cache that misses: no call here raises, and none takes longer than two timeouts. After three
failures in a row a circuit breaker stops calls for `REST_SECONDS`. Calls that come while one is under way are sent
together in the next: of 50 calls at once, each on a new connection, 9 were seen to time out, and open the breaker,
while Redis was well; and a call costs the front more time than it costs Redis. Every value begins with an HMAC-SHA-256
of the tenant, the key that it is stored under, and the rest of the value. A value of another key (CVE-2023-28858 gave
clients one another's replies), or one that was changed or written by somebody else, is dropped and counted.
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
from dataclasses import fields
from typing import Any, TypeVar

import orjson
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.answers.reading import read
from service.domain import Explanation

TIMEOUT_SECONDS = 0.05
TICKS = 5
FAILURES_TO_OPEN = 3
REST_SECONDS = 2.0
MAX_PENDING_WRITES = 1000
MAX_TOGETHER = 200
GATHER_SECONDS = 0.02
"""How long a value waits, to be written together with others; until then it is read from this process."""

MAC_BYTES = 32

RESULT = "answerable:result:"

FIELDS = frozenset(field.name for field in fields(Explanation))

LOG = logging.getLogger("answerable.cache")
T = TypeVar("T")

Observe = Callable[[str, str], None]
"""Called with the cache (`results`, `baselines`) and the result (`hit`, `miss`, `error`, `foreign`) of each request."""


class _Breaker:
    """A circuit breaker: while open, no calls are made; after that, one more failure opens it again."""

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
async def _timeout_in_ticks() -> AsyncIterator[None]:
    """Raises TimeoutError when what is inside takes `TIMEOUT_SECONDS`.

    The time is counted in ticks of the event loop, so that the time for which the loop is busy counts little: a reply
    that arrived meanwhile is then read. With a plain timeout some of 500 simultaneous requests missed, and computed.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def tick(ticks_left: int) -> None:
            nonlocal waiting
            if ticks_left:
                waiting = loop.call_later(TIMEOUT_SECONDS / TICKS, tick, ticks_left - 1)
            else:
                limit.reschedule(loop.time())

        waiting = loop.call_later(TIMEOUT_SECONDS / TICKS, tick, TICKS - 1)
        try:
            yield
        finally:
            waiting.cancel()


class _Connection:
    """One connection to Redis, opened when it is first needed and again after a call on it failed.

    It is redis-py's connection without the client and the pool around it. With these, a whole cached `:explain` took 7%
    more of the front's time and 3% longer where each request asks Redis alone (medians of 60 rounds of 100 in turns;
    nothing where eight or more share a call), and on a busy machine the 50 ms passed before a new connection had its
    reply. A call that fails or is cancelled closes the connection, so that the next call cannot read its reply.
    """

    def __init__(self, url: str) -> None:
        pool = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
        )
        self._connection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._lock = asyncio.Lock()

    async def ask(self, *commands: Sequence[object]) -> list[Any]:
        """The replies to the commands. Raises RedisError or OSError; TimeoutError after `TIMEOUT_SECONDS`, to which
        time for which the event loop was busy counts little."""
        async with self._lock:
            try:
                async with _timeout_in_ticks():
                    packed = self._connection.pack_commands(commands)
                    await self._connection.send_packed_command(packed, check_health=False)
                    return [await self._connection.read_response() for _ in commands]
            except BaseException:
                await self._connection.disconnect(nowait=True)
                raise

    async def close(self) -> None:
        await self._connection.disconnect()


class Cache:
    """The cache in one Redis. `url` None means that there is no Redis, and everything misses.

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
        self._redis = None if url is None else _Connection(url)
        self.url = url
        self.forgotten = 0
        """How often all results were dropped: one whose computation began before the last time is not stored."""

    async def close(self) -> None:
        """Finishes pending writes and closes the connection."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.written(), 1)
        if self._redis is not None:
            await self._redis.close()

    async def written(self) -> None:
        """Waits until everything that waits to be written has been, or its write has failed."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def result(self, tenant: str, plan_digest: str) -> Explanation | None:
        """The stored explanation of a plan, for this tenant only."""
        return await self._get("results", tenant, _result_key(tenant, plan_digest), _explanation)

    def keep_result(self, tenant: str, plan_digest: str, explanation: Explanation) -> None:
        """Stores an explanation in the background; it can be read from now on."""
        self._put(tenant, _result_key(tenant, plan_digest), explanation)

    async def forget_results(self) -> None:
        """Drops every stored explanation, for one of them may be of a person who was erased.

        If Redis does not answer, they expire there.
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
        if self._redis is None:
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
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ):  # not this key's, not ours, or not what this version writes
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
        if self._redis is None or self._breaker.is_open or len(self._unwritten) >= MAX_PENDING_WRITES:
            return
        content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        self._unwritten[key] = self._mac(tenant, key, content) + content
        if not self._writes:
            writing = asyncio.get_running_loop().create_task(self._write_all())
            self._writes.add(writing)
            writing.add_done_callback(self._writes.discard)

    async def _read(self, key: str) -> object:
        """What Redis has under the key, or None; False when it failed."""
        content: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._wanted.append((key, content))
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read_all())
        return await content

    async def _read_all(self) -> None:
        """Reads all keys that are wanted, and those that come to be wanted meanwhile."""
        while self._wanted:
            batch, self._wanted = self._wanted[:MAX_TOGETHER], self._wanted[MAX_TOGETHER:]
            replies = await self._ask(("MGET", *(key for key, _ in batch)))
            contents = replies[0] if replies is not None else [False] * len(batch)
            for (_, future), content in zip(batch, contents, strict=True):
                if not future.done():
                    future.set_result(content)

    async def _write_all(self) -> None:
        """Writes everything that is unwritten, and what is added meanwhile."""
        while self._unwritten:
            await asyncio.sleep(GATHER_SECONDS)
            batch = dict(itertools.islice(self._unwritten.items(), MAX_TOGETHER))
            await self._ask(*(("SET", key, content, "EX", self._ttl) for key, content in batch.items()))
            for key, content in batch.items():
                if self._unwritten.get(key) is content:
                    del self._unwritten[key]

    async def _ask(self, *commands: Sequence[object]) -> list[Any] | None:
        """The replies; None when Redis failed or took too long, or the breaker is open."""
        if self._redis is None or self._breaker.is_open:
            return None
        try:
            replies = await self._redis.ask(*commands)
        except (RedisError, OSError, TimeoutError):
            self._breaker.failed()
            return None
        self._breaker.succeeded()
        return replies


def plan_cache_digest(plan_digest: str, manifest_digest: str, environment: Mapping[str, str]) -> str:
    """The digest that a plan's result is stored under: of the plan, and of all that its last bits depend on."""
    parts = [plan_digest, manifest_digest, environment]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _result_key(tenant: str, plan_digest: str) -> str:
    return RESULT + hashlib.sha256(f"{tenant}\0{plan_digest}".encode()).hexdigest()


def _explanation(content: Any) -> Explanation:
    """Raises TypeError, ValueError or KeyError for what another version of the service wrote."""
    unknown = content.keys() - FIELDS
    if unknown:
        raise ValueError(f"an explanation has no {', '.join(unknown)}")
    return read(Explanation, content)
