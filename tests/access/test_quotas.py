"""Quotas: what they admit in one process, after a restart, and what several that share a database admit together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from service.access import quotas
from service.access.permissions import Quota
from service.access.quotas import Account, Quotas, Usage, charged, counted
from service.errors import InvalidRequest, LedgerUnavailable, Overloaded, QuotaSpent
from service.ledger import open_engine
from service.ledger.spent_quotas import SpentQuotas
from service.ledger.tables import spent_quotas

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR = 1_700_000_000 // 3600 * 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, ten minutes into an hour; a test may move it."""
    clock = SimpleNamespace(now=HOUR + 600.0)
    monkeypatch.setattr(quotas, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """One of each kind, with nothing spent."""
    is_sqlite = request.param == "sqlite"
    engine = open_engine(f"sqlite:///{tmp_path}/kept.db" if is_sqlite else request.getfixturevalue("postgresql_url"))
    spent_quotas.create(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def kept(database: Engine) -> SpentQuotas:
    """What is spent, in that database."""
    return SpentQuotas(database)


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


async def test_a_quota_that_was_changed_counts_at_once(kept: SpentQuotas, clock: SimpleNamespace) -> None:
    one = Quotas(kept)
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


async def test_keys_of_one_account_with_other_quotas_do_not_reset_each_other(kept: SpentQuotas) -> None:
    quotas = Quotas(kept)
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
    again = threading.Event()
    calls = 0

    class Broken(SpentQuotas):
        def __init__(self) -> None:
            pass

        def tell(self, *_told: object) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                again.set()
            raise RuntimeError("something unforeseen")

    monkeypatch.setattr(quotas, "SYNC_SECONDS", 0)
    host = Quotas(Broken())
    host.account("a", Quota(10, None, "hour")).count(1)
    host.start()
    assert await asyncio.to_thread(again.wait, 30)
    await host.close()
    assert "something unforeseen" in caplog.text


async def test_hosts_that_share_a_database_share_a_quota(kept: SpentQuotas, clock: SimpleNamespace) -> None:
    hosts = [Quotas(kept) for _ in range(3)]
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

    again = Quotas(kept)  # one that was started anew
    account = again.account("shared", quota)
    account.count(1)
    await again.sync()
    assert spend(account, 30) == 0
    clock.now += 3600
    assert spend(account, 200) == 100


async def test_a_spent_quota_is_spent_after_a_restart(
    kept: SpentQuotas, database: Engine, clock: SimpleNamespace
) -> None:
    quota = Quota(10, 1000, "hour")
    host = Quotas(kept)
    await host.load()
    account = host.account("restarted", quota)
    assert spend(account, 7) == 7
    account.reserve(900)
    await host.close()  # which tells what was used last

    for left in (3, 0, 0):
        host = Quotas(kept)
        await host.load()
        account = host.account("restarted", quota)
        with pytest.raises(QuotaSpent):
            account.reserve(200)
        assert spend(account, 20) == left  # from its very first request on
        assert spend(host.account("another", quota), 1) == 1
        await host.close()

    clock.now += 3600
    host = Quotas(kept)
    await host.load()
    assert spend(host.account("restarted", quota), 20) == 10
    with database.connect() as connection:
        assert connection.execute(spent_quotas.select()).all() == []  # what is over is swept


async def test_while_the_database_is_away_each_host_counts_alone(
    kept: SpentQuotas, database: Engine, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    host = Quotas(kept)
    with database.begin() as connection:
        spent_quotas.drop(connection)
    account = host.account("alone", Quota(10, None, "hour"))
    assert spend(account, 7) == 7
    with pytest.raises(LedgerUnavailable):
        await host.sync()
    assert spend(account, 7) == 3
    await host.close()
    assert "usage of quotas could not be shared" in caplog.text
