"""Quotas: what they admit in one process, and what several that share a Redis admit together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import quotas
from service.errors import InvalidRequest, QuotaSpent
from service.permissions import Quota
from service.quotas import Account, Quotas

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


def spend(account: Account, requests: int) -> int:
    """Asks so many times; gives how many were admitted."""
    admitted = 0
    for _ in range(requests):
        try:
            account.count_request()
        except QuotaSpent:
            continue
        admitted += 1
    return admitted


async def test_requests_until_the_period_ends(clock: SimpleNamespace) -> None:
    account = Account("a", Quota(3, None, "hour"))

    assert spend(account, 10) == 3
    with pytest.raises(QuotaSpent, match="3 requests a hour") as refused:
        account.count_request()
    assert refused.value.headers == {"Retry-After": "3000"}
    clock.now = HOUR + 3599.5
    with pytest.raises(QuotaSpent) as refused:
        account.count_request()
    assert refused.value.headers == {"Retry-After": "1"}
    clock.now = HOUR + 3600
    assert spend(account, 10) == 3


async def test_points_are_reserved_and_settled(clock: SimpleNamespace) -> None:
    account = Account("a", Quota(None, 100, "hour"))

    account.reserve(60)
    with pytest.raises(QuotaSpent, match="100 gradient points"):
        account.reserve(50)  # whatever the first costs in the end, both may not fit
    account.settle(60, 10)
    account.reserve(50)
    with pytest.raises(InvalidRequest, match="may cost 101 gradient points"):
        account.reserve(101)
    assert account.points == 60
    clock.now += 3600
    account.reserve(100)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=60))
async def test_what_is_admitted_never_exceeds_the_quota(asked: list[tuple[int, float]]) -> None:
    account = Account("a", Quota(None, 100, "day"))
    spent = 0
    for points, share in asked:
        try:
            account.reserve(points)
        except QuotaSpent:
            continue
        cost = round(points * share)
        account.settle(points, cost)
        spent += cost
    assert spent == account.points <= 100


async def test_a_quota_that_was_changed_counts_at_once(make_cache: MakeCache, clock: SimpleNamespace) -> None:
    one = Quotas(make_cache().cache)
    assert spend(one.account("changed", Quota(2, None, "hour")), 5) == 2
    assert spend(one.account("changed", Quota(5, None, "hour")), 5) == 3


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
    account.count_request()
    await again.sync()
    assert spend(account, 30) == 0
    clock.now += 3600
    assert spend(account, 200) == 100


async def test_without_redis_each_host_counts_alone(
    make_cache: MakeCache, hung: EmbeddedRedis, clock: SimpleNamespace
) -> None:
    for cache in (make_cache().cache, make_cache(url=None).cache):
        alone = Quotas(cache)
        account = alone.account("alone", Quota(10, None, "hour"))
        assert spend(account, 7) == 7
        await alone.sync()
        assert spend(account, 7) == 3
