"""A private Redis for each module's tests, and caches on it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from service.cache import Cache
from service.embedded_redis import EmbeddedRedis, start_embedded_redis


@dataclass(slots=True)
class CacheUnderTest:
    """A cache and what it observed."""

    cache: Cache
    observed: list[tuple[str, str]] = field(default_factory=list)

    async def written(self) -> None:
        """Waits until everything that was kept has been written."""
        while self.cache._writes:
            await asyncio.wait(self.cache._writes)


SECRET = bytes(range(32))

MakeCache = Callable[..., CacheUnderTest]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[EmbeddedRedis]:
    """A private Redis server."""
    started = await start_embedded_redis()
    assert started is not None
    yield started
    await started.close()


@pytest.fixture
def hung(redis: EmbeddedRedis) -> object:
    """The same server, stopped with SIGSTOP for the duration of a test: it accepts connections and never answers."""
    os.kill(redis.pid, signal.SIGSTOP)
    yield redis
    os.kill(redis.pid, signal.SIGCONT)


@pytest_asyncio.fixture(loop_scope="module")
async def make_cache(redis: EmbeddedRedis) -> AsyncIterator[MakeCache]:
    """Makes caches: `make_cache(url=None, ttl_seconds=10, secret=...)`; by default on the module's Redis."""
    made: list[CacheUnderTest] = []

    def make(url: str | None = redis.url, ttl_seconds: int = 60, secret: bytes = SECRET) -> CacheUnderTest:
        observed: list[tuple[str, str]] = []
        made.append(CacheUnderTest(Cache(url, ttl_seconds, secret, lambda *what: observed.append(what)), observed))
        return made[-1]

    yield make
    for one in made:
        await one.cache.close()
