"""Quotas of keys: counted in this process, so that a request costs no call, and kept in the database once a second.

A period begins where the clock has a multiple of it, and everything counts anew. Every host tells the database what it
has admitted of each account in this period, and learns what the others have: so together they admit at most the quota
and what all of them admit within a second or so, which in the worst case is the quota once for each host. While the
database is away each host counts alone. A process that is started anew finds what was spent before it, but for the last
second of one that was killed. The keys that replace one another are one account.

A request counts once, and every further instance in it, every row of a job and every counterfactual hint once more: an
explanation tells the same of the model, however it was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from service.access.permissions import Quota
from service.errors import AnswerableError, InvalidRequest, LedgerUnavailable, QuotaSpent

LOG = logging.getLogger("answerable.quotas")
SYNC_SECONDS = 1.0

Period = tuple[str, int, int]
"""An account, the seconds of a period, and its number since the epoch."""
Counts = tuple[int, int]
"""Requests and gradient points."""

T = TypeVar("T")


class Kept(Protocol):
    """Where counts outlast a process, and hosts learn of one another: `SpentQuotas`. Its calls block."""

    def tell(self, counts: Mapping[Period, Counts], member: str) -> None:
        """Stores what this process admitted. Raises LedgerUnavailable."""
        ...

    def others(self, member: str, now: int) -> Mapping[Period, Counts]:
        """What all others admitted in the periods of this moment. Raises LedgerUnavailable."""
        ...

    def sweep(self, now: int) -> None:
        """Deletes the counts of periods that are over. Raises LedgerUnavailable."""
        ...


@dataclass(slots=True)
class Usage:
    """What the keys of one account have used in the present period, here (`requests`, `points`) and elsewhere.

    `seconds` is the length of a period, and `period` the number of the present one.
    """

    account: str
    seconds: int
    period: int = 0
    requests: int = 0
    points: int = 0
    elsewhere: Counts = (0, 0)

    @property
    def key(self) -> Period:
        """Of the counts in this period."""
        return self.account, self.seconds, self.period

    def begin_period(self) -> None:
        """Counts anew when the period has ended."""
        period = int(time.time()) // self.seconds
        if period < self.period:  # the clock was set back, which gives nobody a quota anew
            self.period = period
        elif period > self.period:
            self.period, self.requests, self.points, self.elsewhere = period, 0, 0, (0, 0)


@dataclass(frozen=True, slots=True)
class Account:
    """The quota of one key, and what is used of it: together with the others of its account that have such a period.

    What is counted or reserved is given back with the period that it was admitted in; once that has ended, giving back
    changes nothing.
    """

    quota: Quota
    usage: Usage

    def count(self, requests: int, before: int = 0) -> int:
        """Admits so many requests, all or none; gives the period. `before` are counted already and belong to them.

        Raises QuotaSpent, InvalidRequest if they never fit together.
        """
        usage, most = self.usage, self.quota.requests
        usage.begin_period()
        if most is not None:
            if before + requests > most:
                raise InvalidRequest(
                    f"these count as {before + requests} requests, and the key's quota is {most} a "
                    f"{self.quota.period}; send fewer instances at once"
                )
            if usage.requests + usage.elsewhere[0] + requests > most:
                raise self._spent(f"the key's quota of {most} requests a {self.quota.period} is spent")
        usage.requests += requests
        return usage.period

    def give_back(self, period: int, requests: int) -> None:
        """So many of the requests that were counted came to nothing."""
        if period == self.usage.period:
            self.usage.requests -= requests

    def reserve(self, points: int) -> int:
        """Admits work that costs at most so many points; gives the period. Raises QuotaSpent, InvalidRequest if it
        never fits."""
        usage, most = self.usage, self.quota.points
        usage.begin_period()
        if most is not None:
            if points > most:
                raise InvalidRequest(
                    f"this may cost {points} gradient points, and the key's quota is {most} a {self.quota.period}; "
                    "lower max_evaluations, or send fewer instances at once"
                )
            if usage.points + usage.elsewhere[1] + points > most:
                raise self._spent(f"the key's quota of {most} gradient points a {self.quota.period} is spent")
        usage.points += points
        return usage.period

    def settle(self, period: int, reserved: int, spent: int) -> None:
        """Corrects what was reserved by what it cost in the end."""
        if period == self.usage.period:
            self.usage.points += spent - reserved

    def _spent(self, detail: str) -> QuotaSpent:
        left = (self.usage.period + 1) * self.quota.seconds - time.time()
        return QuotaSpent(detail, retry_after=max(1, math.ceil(left)))


@contextmanager
def counted(account: Account | None, requests: int, before: int = 0) -> Iterator[None]:
    """Counts what happens inside as so many requests, of which `before` were counted already.

    What fails counts as none, what its client leaves as all. Raises as `Account.count`.
    """
    if account is None or requests <= before:
        yield
        return
    period = account.count(requests - before, before)
    try:
        yield
    except AnswerableError:
        account.give_back(period, requests - before)
        raise


async def charged(
    account: Account | None, points: int, work: Callable[[], Awaitable[T]], cost: Callable[[T], int]
) -> T:
    """What the work gives. It costs at most so many points, which are reserved, and in the end `cost` of what it gave.

    Work that fails costs nothing; work that its client leaves costs what was reserved. Raises as `Account.reserve`.
    """
    if account is None:
        return await work()
    period = account.reserve(points)
    try:
        done = await work()
    except AnswerableError:
        account.settle(period, points, 0)
        raise
    account.settle(period, points, cost(done))
    return done


class Quotas:
    """The accounts that this process has seen.

    `load` before the first request, on the event loop that `start` and `close` are called on.
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._member = uuid.uuid4().hex
        self._told: Mapping[Period, Counts] = {}
        self._others: Mapping[Period, Counts] = {}
        self._usages: dict[tuple[str, int], Usage] = {}
        self._syncing: asyncio.Task[None] | None = None

    def account(self, account: str, quota: Quota) -> Account:
        """The account of that id for a key of this quota. Its keys count together where their periods are as long."""
        usage = self._usages.get((account, quota.seconds))
        if usage is None:
            usage = self._usages[account, quota.seconds] = Usage(account, quota.seconds)
            usage.begin_period()
            usage.elsewhere = self._others.get(usage.key, (0, 0))
        return Account(quota, usage)

    async def load(self) -> None:
        """Learns what was admitted before this process began, and elsewhere. Raises LedgerUnavailable."""
        now = int(time.time())
        await asyncio.to_thread(self._kept.sweep, now)
        self._others = await asyncio.to_thread(self._kept.others, self._member, now)

    def start(self) -> None:
        """Shares the counts from now on."""
        self._syncing = asyncio.get_running_loop().create_task(self._sync_for_ever())

    async def close(self) -> None:
        """Shares what was used last, and then no more."""
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.wait([self._syncing])
        await self._sync_if_it_can()

    async def sync(self) -> None:
        """Tells the others what was used here, and learns what they used. Raises LedgerUnavailable."""
        now = int(time.time())
        usages = [usage for usage in self._usages.values() if usage.period == now // usage.seconds]
        if not usages:
            return
        counts = {usage.key: (usage.requests, usage.points) for usage in usages}
        changed = {key: count for key, count in counts.items() if self._told.get(key) != count}
        if changed:
            await asyncio.to_thread(self._kept.tell, changed, self._member)
            self._told = counts
        self._others = await asyncio.to_thread(self._kept.others, self._member, now)
        for usage in usages:
            usage.elsewhere = self._others.get(usage.key, (0, 0))  # of a new period, if it has begun meanwhile

    async def _sync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self._sync_if_it_can()

    async def _sync_if_it_can(self) -> None:
        try:
            await self.sync()
        except LedgerUnavailable as error:
            LOG.warning("the counts of quotas are not shared: %s", error)
        except Exception:
            LOG.exception("the counts of quotas were not shared; they will be, a moment later")
