"""Quotas of keys: counted in this process, so that a request needs no call, and stored in the database once a second.

Counts start again with each period. Every host writes to the database what it has admitted for each account in the
period, and reads what the others have. So together they admit at most the quota and what all of them admit within about
a second, which in the worst case is the quota once for each host. While the database does not answer each host counts
alone. A restarted process reads what was used before, except for the last second of a process that was killed. Keys
that replace one another are one account.

A request counts once, and every further instance in it, every row of a job and every counterfactual hint once more: an
explanation reveals the same about the model, however it was asked for.
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


class QuotaStore(Protocol):
    """Counts that outlast a process and are shared between hosts: `SpentQuotas`. Its calls block."""

    def tell(self, counts: Mapping[Period, Counts], member: str) -> None:
        """Stores what this process admitted. Raises LedgerUnavailable."""
        ...

    def others(self, member: str, now: int) -> Mapping[Period, Counts]:
        """What all other processes admitted in the periods at `now`. Raises LedgerUnavailable."""
        ...

    def sweep(self, now: int) -> None:
        """Deletes the counts of periods that are over. Raises LedgerUnavailable."""
        ...


@dataclass(slots=True)
class Usage:
    """What the keys of an account have used in this period, in this process (`requests`, `points`) and elsewhere.

    `seconds` is the length of a period, and `period` the number of the current one.
    """

    account: str
    seconds: int
    period: int = 0
    requests: int = 0
    points: int = 0
    elsewhere: Counts = (0, 0)

    @property
    def key(self) -> Period:
        """The key of the counts in the current period."""
        return self.account, self.seconds, self.period

    def begin_period(self) -> None:
        """Starts counting again when the period has ended."""
        period = int(time.time()) // self.seconds
        if period < self.period:  # the clock was set back, which must not renew a quota
            self.period = period
        elif period > self.period:
            self.period, self.requests, self.points, self.elsewhere = period, 0, 0, (0, 0)


@dataclass(frozen=True, slots=True)
class Account:
    """The quota of one key, and its usage, which it shares with the keys of its account that have the same period.

    What was counted or reserved is given back with the period in which it was admitted; once that has ended, giving
    back changes nothing.
    """

    quota: Quota
    usage: Usage

    def count(self, requests: int, before: int = 0) -> int:
        """Admits `requests`, all or none; returns the period. `before` of the same request were counted already.

        Raises QuotaSpent, InvalidRequest if together they exceed the quota.
        """
        usage, limit = self.usage, self.quota.requests
        usage.begin_period()
        if limit is not None:
            if before + requests > limit:
                raise InvalidRequest(
                    f"these count as {before + requests} requests, and the key's quota is {limit} a "
                    f"{self.quota.period}; send fewer instances at once"
                )
            if usage.requests + usage.elsewhere[0] + requests > limit:
                raise self._quota_spent(f"the key's quota of {limit} requests a {self.quota.period} is spent")
        usage.requests += requests
        return usage.period

    def give_back(self, period: int, requests: int) -> None:
        """Takes back requests that were counted and failed."""
        if period == self.usage.period:
            self.usage.requests -= requests

    def reserve(self, points: int) -> int:
        """Admits work that costs at most `points`; returns the period. Raises QuotaSpent, InvalidRequest if it
        exceeds the quota alone."""
        usage, limit = self.usage, self.quota.points
        usage.begin_period()
        if limit is not None:
            if points > limit:
                raise InvalidRequest(
                    f"this may cost {points} gradient points, and the key's quota is {limit} a {self.quota.period}; "
                    "lower max_evaluations, or send fewer instances at once"
                )
            if usage.points + usage.elsewhere[1] + points > limit:
                raise self._quota_spent(f"the key's quota of {limit} gradient points a {self.quota.period} is spent")
        usage.points += points
        return usage.period

    def settle(self, period: int, reserved: int, used: int) -> None:
        """Replaces what was reserved by the actual cost."""
        if period == self.usage.period:
            self.usage.points += used - reserved

    def _quota_spent(self, detail: str) -> QuotaSpent:
        seconds_left = (self.usage.period + 1) * self.quota.seconds - time.time()
        return QuotaSpent(detail, retry_after=max(1, math.ceil(seconds_left)))


@contextmanager
def counted(account: Account | None, requests: int, before: int = 0) -> Iterator[None]:
    """Counts what happens inside as `requests`, of which `before` were counted already.

    A failure is not counted; a request whose client leaves is. Raises what `Account.count` raises.
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
    """Does the work and returns its result. `points`, the most it may cost, are reserved first, and afterwards replaced
    by `cost` of the result.

    Work that fails costs nothing; work whose client leaves costs what was reserved. Raises what `Account.reserve`
    raises.
    """
    if account is None:
        return await work()
    period = account.reserve(points)
    try:
        result = await work()
    except AnswerableError:
        account.settle(period, points, 0)
        raise
    account.settle(period, points, cost(result))
    return result


class Quotas:
    """The accounts of the keys that this process has seen.

    Call `load` before the first request, and all methods on one event loop.
    """

    def __init__(self, store: QuotaStore) -> None:
        self._store = store
        self._member = uuid.uuid4().hex
        self._shared: Mapping[Period, Counts] = {}
        self._others: Mapping[Period, Counts] = {}
        self._usages: dict[tuple[str, int], Usage] = {}
        self._syncing: asyncio.Task[None] | None = None

    def account(self, account: str, quota: Quota) -> Account:
        """The account of that id, for a key with this quota. Keys of an account with equal periods count together."""
        usage = self._usages.get((account, quota.seconds))
        if usage is None:
            usage = self._usages[account, quota.seconds] = Usage(account, quota.seconds)
            usage.begin_period()
            usage.elsewhere = self._others.get(usage.key, (0, 0))
        return Account(quota, usage)

    async def load(self) -> None:
        """Reads what was admitted before this process started, and by others. Raises LedgerUnavailable."""
        now = int(time.time())
        await asyncio.to_thread(self._store.sweep, now)
        self._others = await asyncio.to_thread(self._store.others, self._member, now)

    def start(self) -> None:
        """Shares the counts regularly from now on."""
        self._syncing = asyncio.get_running_loop().create_task(self._sync_regularly())

    async def close(self) -> None:
        """Ends the regular sharing and shares once more."""
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.wait([self._syncing])
        await self._try_to_sync()

    async def sync(self) -> None:
        """Stores what was used here, and reads what the others used. Raises LedgerUnavailable."""
        now = int(time.time())
        usages = [usage for usage in self._usages.values() if usage.period == now // usage.seconds]
        if not usages:
            return
        counts = {usage.key: (usage.requests, usage.points) for usage in usages}
        changed = {key: count for key, count in counts.items() if self._shared.get(key) != count}
        if changed:
            await asyncio.to_thread(self._store.tell, changed, self._member)
            self._shared = counts
        self._others = await asyncio.to_thread(self._store.others, self._member, now)
        for usage in usages:
            usage.elsewhere = self._others.get(usage.key, (0, 0))  # of the new period, if one has begun meanwhile

    async def _sync_regularly(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self._try_to_sync()

    async def _try_to_sync(self) -> None:
        try:
            await self.sync()
        except LedgerUnavailable as error:
            LOG.warning("usage of quotas could not be shared: %s", error)
        except Exception:
            LOG.exception("usage of quotas could not be shared; trying again")
