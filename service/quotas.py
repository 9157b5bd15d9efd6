"""Quotas of keys: counted in this process, so that a request costs no call, and shared between hosts once a second.

A period begins where the clock has a multiple of it, and everything counts anew. Every host tells Redis what it has
admitted of each account in this period, and learns what the others have: so together they admit at most the quota and
what all of them admit within a second or so. Without Redis each host counts alone. A host that is started anew begins
at nothing, but for what Redis still has. The keys that replace one another are one account.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from service.errors import InvalidRequest, QuotaSpent
from service.permissions import Quota

SYNC_SECONDS = 1.0

Counts = tuple[int, int]
"""Requests and gradient points."""


class Shared(Protocol):
    """What several hosts have in common; it may be away."""

    async def share(self, counts: Mapping[str, Counts], member: str, seconds: int) -> Mapping[str, Counts] | None:
        """Stores this member's counts under each name, for so long, and gives the others'; None if it cannot."""
        ...


@dataclass(slots=True)
class Account:
    """What the keys of one account have used in the present period, here (`requests`, `points`) and elsewhere."""

    id: str
    quota: Quota
    period: int = 0
    requests: int = 0
    points: int = 0
    elsewhere: Counts = (0, 0)

    def count_request(self) -> None:
        """Admits a request. Raises QuotaSpent."""
        self._begin_period()
        most = self.quota.requests
        if most is not None and self.requests + self.elsewhere[0] >= most:
            raise self._spent(f"the key's quota of {most} requests a {self.quota.period} is spent")
        self.requests += 1

    def reserve(self, points: int) -> None:
        """Admits work that is expected to cost so many points. Raises QuotaSpent, InvalidRequest if it never fits."""
        self._begin_period()
        most = self.quota.points
        if most is not None:
            if points > most:
                raise InvalidRequest(
                    f"this may cost {points} gradient points, and the key's quota is {most} a {self.quota.period}"
                )
            if self.points + self.elsewhere[1] + points > most:
                raise self._spent(f"the key's quota of {most} gradient points a {self.quota.period} is spent")
        self.points += points

    def settle(self, reserved: int, spent: int) -> None:
        """Corrects what was reserved by what it cost in the end."""
        self.points = max(0, self.points + spent - reserved)

    @property
    def share_name(self) -> str:
        """Of the counts in this period."""
        return f"{self.id}:{self.quota.seconds}:{self.period}"

    def _begin_period(self) -> None:
        period = int(time.time()) // self.quota.seconds
        if period != self.period:
            self.period, self.requests, self.points, self.elsewhere = period, 0, 0, (0, 0)

    def _spent(self, detail: str) -> QuotaSpent:
        left = (self.period + 1) * self.quota.seconds - time.time()
        return QuotaSpent(detail, retry_after=max(1, math.ceil(left)))


class Quotas:
    """The accounts that this process has seen."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._member = uuid.uuid4().hex
        self._accounts: dict[str, Account] = {}
        self._syncing: asyncio.Task[None] | None = None

    def account(self, account: str, quota: Quota) -> Account:
        """The account of that id, whose quota may have been changed."""
        found = self._accounts.get(account)
        if found is None:
            found = self._accounts[account] = Account(account, quota)
        found.quota = quota
        return found

    def start(self) -> None:
        """Shares the counts from now on."""
        self._syncing = asyncio.get_running_loop().create_task(self._sync_for_ever())

    async def close(self) -> None:
        """Shares no more."""
        if self._syncing is not None:
            self._syncing.cancel()

    async def sync(self) -> None:
        """Tells the others what was used here, and learns what they used."""
        now = time.time()
        current = [
            account for account in self._accounts.values() if account.period == int(now) // account.quota.seconds
        ]
        if not current:
            return
        by_name = {account.share_name: account for account in current}
        counts = {name: (account.requests, account.points) for name, account in by_name.items()}
        longest = max(account.quota.seconds for account in current)
        others = await self._shared.share(counts, self._member, longest)
        for name, elsewhere in (others or {}).items():
            if by_name[name].share_name == name:  # its period may have ended meanwhile
                by_name[name].elsewhere = elsewhere

    async def _sync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await self.sync()
