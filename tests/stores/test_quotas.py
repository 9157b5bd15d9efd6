"""Quotas: what they admit in one process, and what several that share a Redis admit together."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import quotas
from service.errors import InvalidRequest, Overloaded, QuotaSpent
from service.permissions import Quota
from service.quotas import Account, Quotas, Usage, charged, counted

if TYPE_CHECKING:
    from service.embedded_redis import EmbeddedRedis
    from tests.stores.conftest import MakeCache

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR = 1_700_000_000 // 3600 * 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, ten minutes into an hour; a test may move it."""
    clock = SimpleNamespace(now=HOUR + 600.0)
    monkeypatch.setattr(quotas, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


def alone(quota: Quota) -> Account:
    """An account of one key."""
    return Account(quota, Usage("a", quota.seconds))


def spend(account: Account, requests: int) -> int:
    """Asks so many times; gives how many were admitted."""
    admitted = 0
    for _ in range(requests):
        try:
            account.count(1)
        except QuotaSpent:
            continue
        admitted += 1
    return admitted


async def test_requests_until_the_period_ends(clock: SimpleNamespace) -> None:
    account = alone(Quota(3, None, "hour"))

    assert spend(account, 10) == 3
    with pytest.raises(QuotaSpent, match="3 requests a hour") as refused:
        account.count(1)
    assert refused.value.headers == {"Retry-After": "3000"}
    clock.now = HOUR + 3599.5
    with pytest.raises(QuotaSpent) as refused:
        account.count(1)
    assert refused.value.headers == {"Retry-After": "1"}
    clock.now = HOUR + 3600
    assert spend(account, 10) == 3


async def test_a_clock_that_is_set_back_gives_no_quota_anew(clock: SimpleNamespace) -> None:
    account = alone(Quota(3, None, "hour"))
    assert spend(account, 2) == 2
    clock.now -= 7200
    assert spend(account, 10) == 1
    clock.now += 7200  # the hour ends as usual
    assert spend(account, 10) == 3


async def test_points_are_reserved_and_settled(clock: SimpleNamespace) -> None:
    account = alone(Quota(None, 100, "hour"))

    period = account.reserve(60)
    with pytest.raises(QuotaSpent, match="100 gradient points"):
        account.reserve(50)  # whatever the first costs in the end, both may not fit
    account.settle(period, 60, 10)
    account.reserve(50)
    with pytest.raises(InvalidRequest, match="may cost 101 gradient points"):
        account.reserve(101)
    assert account.usage.points == 60
    clock.now += 3600
    account.reserve(100)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=60))
async def test_what_is_admitted_never_exceeds_the_quota(asked: list[tuple[int, float]]) -> None:
    account = alone(Quota(None, 100, "day"))
    spent = 0
    for points, share in asked:
        try:
            period = account.reserve(points)
        except QuotaSpent:
            continue
        cost = round(points * share)
        account.settle(period, points, cost)
        spent += cost
    assert spent == account.usage.points <= 100


async def test_a_quota_that_was_changed_counts_at_once(make_cache: MakeCache, clock: SimpleNamespace) -> None:
    one = Quotas(make_cache().cache)
    assert spend(one.account("changed", Quota(2, None, "hour")), 5) == 2
    assert spend(one.account("changed", Quota(5, None, "hour")), 5) == 3


async def test_several_are_counted_all_or_none(clock: SimpleNamespace) -> None:
    account = alone(Quota(10, None, "hour"))
    period = account.count(7)
    with pytest.raises(QuotaSpent):
        account.count(4)
    with pytest.raises(InvalidRequest, match="these count as 11 requests, and the key's quota is 10"):
        account.count(11)
    assert spend(account, 10) == 3
    account.give_back(period, 7)
    assert spend(account, 10) == 7


async def test_what_was_admitted_before_is_not_given_back_to_another_period(clock: SimpleNamespace) -> None:
    account = alone(Quota(10, 100, "hour"))
    period = account.count(7)
    assert account.reserve(80) == period
    clock.now += 3600
    account.count(1)
    account.reserve(90)

    account.give_back(period, 7)
    account.settle(period, 80, 10)

    assert (account.usage.requests, account.usage.points) == (1, 90)
    with pytest.raises(QuotaSpent):
        account.reserve(11)


async def test_keys_of_one_account_with_other_quotas_do_not_reset_each_other(make_cache: MakeCache) -> None:
    quotas = Quotas(make_cache().cache)
    keys = [Quota(10, None, "hour"), Quota(20, None, "day"), Quota(4, None, "hour")]

    admitted = [spend(quotas.account("several", quota), 3) for quota in keys * 5]

    by_key = [sum(admitted[at::3]) for at in range(3)]
    assert by_key == [9, 15, 1]  # the first and the last count together, and stop at their own limits
    assert spend(quotas.account("several", keys[0]), 20) == 0


async def test_what_fails_costs_nothing_and_what_is_left_costs_all(clock: SimpleNamespace) -> None:
    account = alone(Quota(10, 100, "hour"))

    async def work(error: BaseException | None) -> int:
        if error is not None:
            raise error
        return 20

    async def done(error: BaseException | None) -> int:
        with counted(account, 4):
            return await charged(account, 30, lambda: work(error), lambda found: found)

    with pytest.raises(Overloaded):
        await done(Overloaded("it is full"))
    assert (account.usage.requests, account.usage.points) == (0, 0)
    assert await done(None) == 20
    assert (account.usage.requests, account.usage.points) == (4, 20)
    with pytest.raises(asyncio.CancelledError):
        await done(asyncio.CancelledError())
    assert (account.usage.requests, account.usage.points) == (8, 50)
    with pytest.raises(QuotaSpent):
        await done(None)


async def test_sharing_goes_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    again = asyncio.Event()
    calls = 0

    class Broken:
        async def share(self, *_told: object) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                again.set()
            raise RuntimeError("something unforeseen")

    monkeypatch.setattr(quotas, "SYNC_SECONDS", 0)
    host = Quotas(Broken())
    host.account("a", Quota(10, None, "hour")).count(1)
    host.start()
    async with asyncio.timeout(30):
        await again.wait()
    await host.close()
    assert "something unforeseen" in caplog.text


async def test_hosts_that_share_a_redis_share_a_quota(make_cache: MakeCache, clock: SimpleNamespace) -> None:
    hosts = [Quotas(make_cache().cache) for _ in range(3)]
    quota = Quota(100, 1000, "hour")
    accounts = [host.account("shared", quota) for host in hosts]

    assert [spend(account, 30) for account in accounts] == [30, 30, 30]
    accounts[0].reserve(900)
    for host in hosts * 2:
        await host.sync()
    assert [spend(account, 30) for account in accounts] == [10, 10, 10]  # until they hear of one another
    for host in hosts * 2:
        await host.sync()
    assert [spend(account, 30) for account in accounts] == [0, 0, 0]
    with pytest.raises(QuotaSpent):
        accounts[1].reserve(200)

    again = Quotas(hosts[0]._shared)  # one that was started anew
    account = again.account("shared", quota)
    account.count(1)
    await again.sync()
    assert spend(account, 30) == 0
    clock.now += 3600
    assert spend(account, 200) == 100


async def test_without_redis_each_host_counts_alone(
    make_cache: MakeCache, hung: EmbeddedRedis, clock: SimpleNamespace
) -> None:
    for cache in (make_cache().cache, make_cache(url=None).cache):
        host = Quotas(cache)
        account = host.account("alone", Quota(10, None, "hour"))
        assert spend(account, 7) == 7
        await host.sync()
        assert spend(account, 7) == 3
