"""The usage of quotas in the database, where hosts that share it see one another's, and a restarted process its own.

Every process has rows of its own, under an id that it draws when it starts, and writes to no others. So what an ended
process had admitted stays counted until the period is over, and hosts never overwrite one another's counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Engine, delete, func, select, text

from service.access.quotas import Counts, Period
from service.ledger.database import database_in_reach
from service.ledger.tables import spent_quotas

_UPSERT = text(
    "INSERT INTO spent_quotas (account, seconds, period, member, requests, points)"
    " VALUES (:account, :seconds, :period, :member, :requests, :points)"
    " ON CONFLICT (account, seconds, period, member)"
    " DO UPDATE SET requests = excluded.requests, points = excluded.points"
)


class SpentQuotas:
    """The stored counts. Both calls block on the database, and raise LedgerUnavailable when it does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tell(self, counts: Mapping[Period, Counts], member: str) -> None:
        """Stores what this process admitted."""
        rows = [
            dict(zip(("account", "seconds", "period"), period, strict=True))
            | {"member": member, "requests": requests, "points": points}
            for period, (requests, points) in counts.items()
        ]
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(_UPSERT, rows)

    def others(self, member: str, now: int) -> dict[Period, Counts]:
        """What all others admitted in the periods of this moment, in seconds since the epoch."""
        c = spent_quotas.c
        sums = func.sum(c.requests), func.sum(c.points)
        query = select(c.account, c.seconds, c.period, *sums).where(
            c.member != member, (c.period + 1) * c.seconds > now
        )
        with database_in_reach(), self._engine.connect() as connection:
            rows = connection.execute(query.group_by(c.account, c.seconds, c.period)).all()
        return {(row[0], row[1], row[2]): (int(row[3]), int(row[4])) for row in rows}

    def sweep(self, now: int) -> None:
        """Deletes the counts of periods that are over."""
        c = spent_quotas.c
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(delete(spent_quotas).where((c.period + 1) * c.seconds <= now))
