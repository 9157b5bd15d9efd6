"""The cache against a real Redis: what it keeps, for whom, and that its failures are misses."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.answers import cache as cache_module
from service.answers.cache import Cache, _explanation, _result_key
from service.domain import Completeness, Explanation, GroupShare
from service.processes.embedded_redis import EmbeddedRedis, start_embedded_redis
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.conftest import MakeCache

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE_BOUND_SECONDS = 1.0
"""A call takes at most two timeouts of 50 ms; redis-py's defaults take from 3.6 to over 25 s."""


EXPLANATION = Explanation(
    outputs=(0.25, 0.75),
    target=1,
    output=0.75,
    baseline_output=0.1,
    attributions=(0.1, -0.2, 1 / 3),
    shape=(3,),
    standard_error=None,
    completeness=Completeness.EXACT,
    completeness_error=1e-7,
    attribution_error=2e-7,
    converged=True,
    reason=None,
    evaluations=17,
    rule="exact",
    small_difference=False,
    chunk_rows="64+512",
)

finite = st.floats(allow_nan=False, allow_infinity=False)
several = st.lists(finite, min_size=1, max_size=5).map(tuple)
explanations = st.builds(
    Explanation,
    outputs=st.none() | several,
    target=st.integers(0, 1000),
    output=st.none() | finite,
    baseline_output=st.none() | finite,
    attributions=st.none() | several,
    shape=st.lists(st.integers(1, 500), max_size=3).map(tuple),
    standard_error=st.none() | several,
    completeness=st.sampled_from(Completeness),
    completeness_error=st.none() | finite,
    attribution_error=st.none() | finite,
    converged=st.booleans(),
    reason=st.none() | st.text(),
    evaluations=st.integers(0, 2**53),
    rule=st.text(),
    small_difference=st.booleans(),
    chunk_rows=st.text(),
    interactions=st.none() | st.lists(several, min_size=1, max_size=3).map(tuple),
    groups=st.lists(
        st.builds(GroupShare, st.lists(st.integers(0, 99), min_size=1).map(tuple), finite, finite), max_size=3
    ).map(tuple),
    noisy_output=st.none() | finite,
)


def bits(explanation: Explanation) -> str:
    """Tells -0.0 from 0.0 and types apart, which == does not."""
    return repr(explanation)


async def test_what_was_kept_is_found(make_cache: MakeCache) -> None:
    one = make_cache()
    assert await one.cache.result("bank", "found") is None
    one.cache.keep_result("bank", "found", EXPLANATION)
    await one.written()

    assert await one.cache.result("bank", "found") == EXPLANATION
    assert one.observed == [("results", "miss"), ("results", "hit")]


async def test_no_tenant_finds_what_another_keeps(make_cache: MakeCache) -> None:
    one = make_cache()
    one.cache.keep_result("bank", "plan", EXPLANATION)
    await one.written()

    assert await one.cache.result("other", "plan") is None
    assert await one.cache.result("ban", "kplan") is None
    assert await one.cache.result("", "bankplan") is None


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"null",
        b"[]",
        b"{}",
        b"",
        orjson.dumps(EXPLANATION),
        bytes(32) + orjson.dumps(EXPLANATION),
    ],
)
async def test_a_value_that_nobody_here_wrote_is_a_counted_miss(
    redis: EmbeddedRedis, make_cache: MakeCache, content: bytes
) -> None:
    one = make_cache()
    async with Redis.from_url(redis.url) as client:
        await client.set(_result_key("bank", "foreign"), content)

    assert await one.cache.result("bank", "foreign") is None
    assert one.observed == [("results", "foreign")]


async def test_a_value_that_answers_to_another_key_is_a_counted_miss(
    redis: EmbeddedRedis, make_cache: MakeCache
) -> None:
    """Another plan's, or another tenant's."""
    one = make_cache()
    for tenant, plan in (("bank", "another"), ("broker", "mine")):
        one.cache.keep_result(tenant, plan, EXPLANATION)
        await one.written()
        async with Redis.from_url(redis.url) as client:
            await client.copy(_result_key(tenant, plan), _result_key("bank", "mine"), replace=True)
        assert await one.cache.result("bank", "mine") is None
    assert one.observed == [("results", "foreign")] * 2


async def test_a_value_that_was_changed_is_a_counted_miss(redis: EmbeddedRedis, make_cache: MakeCache) -> None:
    """Any bit of it: an attribution that was flipped would be answered, and recorded."""
    one, another = make_cache(), make_cache(secret=bytes(32))
    one.cache.keep_result("bank", "plan", EXPLANATION)
    await one.written()
    key = _result_key("bank", "plan")
    async with Redis.from_url(redis.url) as client:
        stored = await client.get(key)
        assert isinstance(stored, bytes)
        assert await another.cache.result("bank", "plan") is None
        for place in range(0, len(stored), 7):
            changed = stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :]
            await client.set(key, changed)
            assert await one.cache.result("bank", "plan") is None
        await client.set(key, stored)
    assert await one.cache.result("bank", "plan") is not None
    assert {result for _, result in one.observed[:-1]} == {"foreign"}
    assert another.observed == [("results", "foreign")]


@pytest.mark.parametrize(
    "value", [None, 1, "text", [], {}, {"outputs": 1}, {**orjson.loads(orjson.dumps(EXPLANATION)), "new_field": 1}]
)
async def test_a_value_of_another_version_of_the_service_is_a_miss(
    redis: EmbeddedRedis, make_cache: MakeCache, value: object
) -> None:
    one = make_cache()
    key = _result_key("bank", "old")
    async with Redis.from_url(redis.url) as client:
        content = orjson.dumps(value)
        await client.set(key, one.cache._mac("bank", key, content) + content)

    assert await one.cache.result("bank", "old") is None
    assert one.observed == [("results", "foreign")]


async def test_values_expire(redis: EmbeddedRedis, make_cache: MakeCache) -> None:
    one = make_cache(ttl_seconds=1234)
    one.cache.keep_result("bank", "ttl", EXPLANATION)
    await one.written()

    async with Redis.from_url(redis.url) as client:
        assert 1200 < await client.ttl(_result_key("bank", "ttl")) <= 1234


async def test_an_explanation_comes_back_bit_for_bit(make_cache: MakeCache) -> None:
    one = make_cache()
    hard = replace(EXPLANATION, attributions=(-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e23))
    one.cache.keep_result("bank", "bits", hard)
    await one.written()

    found = await one.cache.result("bank", "bits")
    assert found is not None
    assert bits(found) == bits(hard)


@given(explanations)
@pytest.mark.filterwarnings("ignore::pytest.PytestWarning")
def test_every_explanation_survives_its_storage(explanation: Explanation) -> None:
    assert bits(_explanation(orjson.loads(orjson.dumps(explanation)))) == bits(explanation)


async def test_100_at_once_find_it(
    redis: EmbeddedRedis, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "TIMEOUT_SECONDS", PATIENCE_SECONDS)  # a busy machine is no miss
    first = make_cache()
    first.cache.keep_result("bank", "many", EXPLANATION)
    await first.written()
    one = make_cache()
    found = await asyncio.gather(*(one.cache.result("bank", "many") for _ in range(100)))
    assert found == [EXPLANATION] * 100


async def timed(cache: Cache) -> float:
    """Seconds of a look-up, which must miss."""
    started = time.monotonic()
    assert await cache.result("bank", "anything") is None
    cache.keep_result("bank", "anything", EXPLANATION)
    return time.monotonic() - started


async def test_a_hung_redis_is_a_miss_within_two_timeouts(make_cache: MakeCache, hung: EmbeddedRedis) -> None:
    one = make_cache()
    started = time.monotonic()
    await asyncio.gather(*(timed(one.cache) for _ in range(100)))
    assert time.monotonic() - started < 2 * WIDE_BOUND_SECONDS
    assert {result for _, result in one.observed} == {"error"}


async def test_a_redis_that_hangs_between_two_calls(
    redis: EmbeddedRedis, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "REST_SECONDS", 0.0)
    one = make_cache()
    one.cache.keep_result("bank", "before", EXPLANATION)
    await one.written()
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        assert await timed(one.cache) < 2 * WIDE_BOUND_SECONDS
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    await one.written()

    assert await one.cache.result("bank", "before") == EXPLANATION
    assert await one.cache.result("bank", "never kept") is None
    assert "foreign" not in {result for _, result in one.observed}


async def test_a_busy_event_loop_reads_what_has_come_meanwhile(make_cache: MakeCache) -> None:
    first = make_cache()
    first.cache.keep_result("bank", "busy", EXPLANATION)
    await first.written()
    one = make_cache()
    assert await one.cache.result("bank", "busy") == EXPLANATION
    for _ in range(2):
        asking = asyncio.create_task(one.cache.result("bank", "busy"))
        while not asking.done():
            await asyncio.sleep(0)
            time.sleep(1.5 * cache_module.TIMEOUT_SECONDS)  # noqa: ASYNC251 - the fault that is tried
        assert await asking == EXPLANATION
    assert {result for _, result in one.observed} == {"hit"}


async def test_the_breaker_keeps_calls_away_and_lets_them_back(
    redis: EmbeddedRedis, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "REST_SECONDS", 3600.0)
    one = make_cache()
    one.cache.keep_result("bank", "breaker", EXPLANATION)
    await one.written()
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        for _ in range(cache_module.FAILURES_TO_OPEN):
            assert await one.cache.result("bank", "breaker") is None
        # With the breaker open nothing is asked: a thousand calls take less than two timeouts would.
        started = time.monotonic()
        for _ in range(1000):
            assert await one.cache.result("bank", "breaker") is None
            one.cache.keep_result("bank", "breaker", EXPLANATION)
        assert time.monotonic() - started < WIDE_BOUND_SECONDS
        assert not one.cache._writes
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    assert await one.cache.result("bank", "breaker") is None, "the breaker did not rest"

    later = time.monotonic() + 3600
    monkeypatch.setattr("service.answers.cache.time.monotonic", lambda: later)
    assert await one.cache.result("bank", "breaker") == EXPLANATION


async def test_redis_is_killed_and_another_comes_at_the_same_place(make_cache: MakeCache, tmp_path: object) -> None:
    mortal = await start_embedded_redis()
    assert mortal is not None
    one = make_cache(mortal.url)
    one.cache.keep_result("bank", "mortal", EXPLANATION)
    await one.written()
    assert await one.cache.result("bank", "mortal") == EXPLANATION
    await mortal.close()

    assert await timed(one.cache) < 2 * WIDE_BOUND_SECONDS
    await one.written()
    assert await timed(one.cache) < 2 * WIDE_BOUND_SECONDS


async def test_closing_does_not_wait_for_a_hung_redis(make_cache: MakeCache, hung: EmbeddedRedis) -> None:
    one = make_cache()
    one.cache.keep_result("bank", "closing", EXPLANATION)
    started = time.monotonic()
    await one.cache.close()
    assert time.monotonic() - started < 3 * WIDE_BOUND_SECONDS


async def test_without_redis_everything_misses(make_cache: MakeCache) -> None:
    none = make_cache(None)
    assert await timed(none.cache) < WIDE_BOUND_SECONDS
    assert not none.observed


async def test_writes_that_redis_refuses_leave_no_reply_for_the_next_call(make_cache: MakeCache) -> None:
    one, refused = make_cache(), make_cache(ttl_seconds=0)
    one.cache.keep_result("bank", "kept", EXPLANATION)
    await one.written()
    for number in range(5):
        refused.cache.keep_result("bank", f"refused {number}", EXPLANATION)
    await refused.written()

    assert await refused.cache.result("bank", "refused 0") is None
    assert await refused.cache.result("bank", "kept") == EXPLANATION
    assert refused.observed == [("results", "miss"), ("results", "hit")]
