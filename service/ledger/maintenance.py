"""Maintenance of the ledger: erasure, holds, scheduled retention, verification. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, func, select

from service.errors import AnswerableError
from service.ledger import erasing, legal_holds, remembering, retention
from service.ledger.clock import signed_time
from service.ledger.database import database_in_reach
from service.ledger.entries import ERASURE, SET_REMOVED, RequestKey, StoredEvent
from service.ledger.erasing import Erased
from service.ledger.erasure_list import ErasureList
from service.ledger.export_checking import Verdict
from service.ledger.jobs import Jobs
from service.ledger.legal_holds import Held, Kept
from service.ledger.sealing import Vault
from service.ledger.tables import events, log
from service.ledger.tombstones import tombstone_of
from service.ledger.verifying import verify_explanation, verify_ledger

LOOK_SECONDS = 2.0
"""How soon the service notices an erasure by another process, for instance a command."""

DAY_SECONDS = 86_400.0
RETAIN_SECONDS = DAY_SECONDS
JUMP_SECONDS = 3600.0
"""A clock that has jumped by more since the day before may be wrong, and what is deleted by age cannot be restored."""
AHEAD_DAYS = 31.0
"""The same goes for a clock that is so far ahead of the newest checkpoint when the service starts."""
SWEEP_SECONDS = 3600.0
SCHEDULE = "schedule"
"""The `key_id` of erasures by age, which nobody asked for."""

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Forget = Callable[[], Awaitable[None]]


class LedgerMaintenance:
    """Maintains one ledger, for one event loop.

    `periods` are the months for which personal parts are kept, by class, `job_days` the days for which jobs are kept
    once they have ended. `forget` drops what is stored elsewhere of people who were erased and of baseline sets that
    were removed; it is called after every erasure and removal, also those of other processes. Erasures are added to the
    list `erasures`.
    """

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        periods: Mapping[str, int],
        job_days: int,
        forget: Forget,
        erasures: ErasureList | None = None,
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._periods = periods
        self._job_days = job_days
        self._forget = forget
        self._erasures = erasures
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(2, thread_name_prefix="ledger-maintenance")
        works = (self._notice_erasures(), self._retain_daily(), self._sweep_hourly())
        self._tasks = [self._loop.create_task(work) for work in works]

    async def erase(self, tenant: str, subject: str, key_id: str, reason: str, key: RequestKey | None = None) -> Erased:
        """Destroys everything of the subject's. With a `key` of the request the answer is remembered, here and below.

        Raises HeldByLaw, NotFound, LedgerUnavailable; EntryRefused where a request with the same key was answered.
        """
        erased = await self._run(erasing.erase, self._vault, tenant, subject, key_id, reason, key)
        await self._list_erasures(erased.tombstone - 1)
        await self._forget()
        return erased

    async def hold(self, tenant: str, subject: str, key_id: str, reason: str, key: RequestKey | None = None) -> Held:
        """Forbids the erasure of the subject's data. Raises InvalidRequest for a name that cannot be recorded,
        LedgerUnavailable, EntryRefused."""
        return await self._run(legal_holds.hold, self._vault, tenant, subject, key_id, reason, key)

    async def kept_of(self, tenant: str, subject: str) -> Kept:
        """What an erasure would destroy, or a hold protects. Raises LedgerUnavailable."""
        return await self._run(legal_holds.kept_of, self._vault, tenant, subject)

    async def release(self, tenant: str, subject: str, key_id: str, reason: str, key: RequestKey | None = None) -> None:
        """Ends the hold. Raises NotFound, LedgerUnavailable, EntryRefused."""
        await self._run(legal_holds.release, self._vault, tenant, subject, key_id, reason, key)

    async def tombstone(self, place: int) -> StoredEvent | None:
        """The tombstone at that place of the log; None where there is no event."""
        return await self._run(_read_tombstone, place)

    async def verify(self, shipped: Path | None = None) -> Verdict:
        """Checks everything that is stored, which takes minutes for millions of rows."""
        return await self._run(verify_ledger, self._vault, shipped)

    async def verify_one(self, seq: int) -> list[str]:
        """Where the explanation at that place differs from what was recorded."""
        return await self._run(verify_explanation, self._vault, seq)

    async def close(self) -> None:
        """Ends the schedule."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._thread.shutdown)

    async def _notice_erasures(self) -> None:
        seen = None
        while True:
            try:
                place, erased = await self._run(_read_erasures, seen)
                if erased and seen is not None:
                    await self._list_erasures(seen)
                    await self._forget()
                seen = place
            except AnswerableError:
                _log.warning("the ledger's database does not say whether somebody was erased; trying again")
            await asyncio.sleep(LOOK_SECONDS)

    async def _list_erasures(self, after: int) -> None:
        """Adds the erasures after a place of the log to the list outside the database."""
        erasures = self._erasures
        if erasures is not None:
            await self._run(lambda engine: erasures.add_from(engine, after))

    async def _retain_daily(self) -> None:
        usual = time.time() - time.monotonic()
        if await self._is_far_ahead():
            await asyncio.sleep(RETAIN_SECONDS)
        while True:
            jumped = time.time() - time.monotonic() - usual
            usual += jumped
            if abs(jumped) > JUMP_SECONDS:
                _log.warning("the clock has jumped by %.0f s: nothing is deleted by age for a day", jumped)
                await asyncio.sleep(RETAIN_SECONDS)
                continue
            try:
                counts = await self._run(retention.retain, self._periods, SCHEDULE)
                for name, count in counts.items():
                    if count:
                        _log.info(
                            "%d records of the class %s had reached the end of their retention and are erased",
                            count,
                            name,
                        )
                jobs = await self._run(_forget_jobs, self._job_days)
                if jobs:
                    _log.info("%d jobs ended over %d days ago and are deleted", jobs, self._job_days)
            except AnswerableError as error:
                _log.warning("nothing was erased or deleted by age: %s", error)
            await asyncio.sleep(RETAIN_SECONDS)

    async def _is_far_ahead(self) -> bool:
        """Whether the clock is so far ahead of the newest checkpoint that it may be wrong."""
        try:
            signed = await self._run(_read_signed)
        except AnswerableError:
            return False
        days = (time.time() - signed / 1e6) / DAY_SECONDS
        if signed and days > AHEAD_DAYS:
            _log.warning("the ledger was last signed %.0f days ago: nothing is deleted by age for a day", days)
        return bool(signed) and days > AHEAD_DAYS

    async def _sweep_hourly(self) -> None:
        while True:
            try:
                await self._run(remembering.sweep)
            except AnswerableError as error:
                _log.warning("answers older than a day were not deleted: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _run(self, work: Callable[Concatenate[Engine, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._thread, partial(work, self._engine, *arguments, **named))


def _forget_jobs(engine: Engine, days: int) -> int:
    return Jobs(engine).forget_ended(round((time.time() - days * DAY_SECONDS) * 1e6))


def _read_signed(engine: Engine) -> int:
    with database_in_reach(), engine.connect() as connection:
        return signed_time(connection)


def _read_tombstone(engine: Engine, place: int) -> StoredEvent | None:
    with database_in_reach(), engine.connect() as connection:
        return tombstone_of(connection, place)


def _read_erasures(engine: Engine, seen: int | None) -> tuple[int, bool]:
    """The last place of the log, and whether an erasure or a removal is after the place `seen`."""
    with database_in_reach(), engine.connect() as connection:
        last = connection.scalar(select(func.coalesce(func.max(log.c.seq), 0))) or 0
        return last, seen is not None and _is_erased_between(connection, seen, last)


def _is_erased_between(connection: Connection, seen: int, last: int) -> bool:
    between = (events.c.seq > seen, events.c.seq <= last, events.c.kind.in_((ERASURE, SET_REMOVED)))
    return connection.execute(select(events.c.seq).where(*between).limit(1)).first() is not None
