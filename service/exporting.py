"""Exports: stored explanations as a file, written as a stream in memory that does not grow with their number.

CSV and Parquet are tables for people; the zip, of `service.ledger.exporting`, is for auditors, with a proof for every
record. A file is whole when it can be found, lies in a folder of its tenant, is kept for a day, and is withdrawn when
anybody's data in that tenant is erased meanwhile: what was exported before must not be handed out after. That there is
an export is an event in the log before its file can be fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import Engine

from service.errors import LedgerUnavailable, NotFound
from service.export_tables import table_row, write_csv, write_parquet
from service.jobs import patiently, spec_of
from service.ledger import Ledger, Notary, Search, Stored, Vault
from service.ledger.database import database_in_reach
from service.ledger.events import erasures_since
from service.ledger.exporting import found_lines, write_export
from service.ledger.jobs import Job, Jobs
from service.ledger.searching import count_found, read_in_log_order
from service.records import Caller

T = TypeVar("T")

EXPORT = "export"
DOWNLOAD = "export_download"
KEPT_SECONDS = 86_400
SWEEP_SECONDS = 60.0
PART = ".part"
PAGE = 500


class Format(StrEnum):
    """Of an export's file."""

    CSV = "csv"
    PARQUET = "parquet"
    ZIP = "zip"


def is_available(form: Format) -> bool:
    """Whether files of this format can be written: Parquet needs pyarrow, of the extra `parquet`."""
    return form is not Format.PARQUET or find_spec("pyarrow") is not None


class Cancelled(Exception):
    """The export is no longer wanted."""


class Exports:
    """The work of jobs of kind `export`, and the files they wrote, under `folder`."""

    def __init__(self, jobs: Jobs, engine: Engine, ledger: Ledger, notary: Notary, vault: Vault, folder: Path) -> None:
        self._jobs = jobs
        self._engine = engine
        self._ledger = ledger
        self._notary = notary
        self._vault = vault
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="export")  # not a thread that requests wait for
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Deletes what may not be kept, now and every minute from now on."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def close(self) -> None:
        """Ends the sweeping; what is being written is given up by its job."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.to_thread(self._writer.shutdown)

    async def __call__(self, job: Job, caller: Caller) -> None:
        """Writes the file, tells the log, and then lets it be found."""
        spec = spec_of(self._vault, job)
        form, search = Format(spec["format"]), Search(**_with_pairs(spec["search"]))
        path = self._path(job, form)
        part = path.with_suffix(PART)
        stop = threading.Event()
        begun = time.time()
        try:
            records = await self._written(job, form, search, part, stop)
            details = {"format": form, "records": records, "conditions": sorted(spec["conditions"])}
            await self._ledger.append_event(EXPORT, caller.tenant, caller.key_id, job.id, details)
            os.utime(part, (begun, begun))  # whatever is erased from then on withdraws it
            part.replace(path)
        finally:
            stop.set()
            part.unlink(missing_ok=True)

    async def file(self, job: Job) -> Path | None:
        """The file of an export that is done; None when it is not kept any more, or lies on another host.

        Raises LedgerUnavailable.
        """
        path = self._path(job, Format(spec_of(self._vault, job)["format"]))
        await asyncio.to_thread(self.sweep)
        return path if await asyncio.to_thread(path.is_file) else None

    def sweep(self) -> None:
        """Deletes what has been kept long enough, or was begun before its tenant erased something. Blocks."""
        oldest = time.time() - KEPT_SECONDS
        with database_in_reach(), self._engine.connect() as connection:
            erased = erasures_since(connection, round(oldest * 1e6))
        withdrawn = {self._folder_of(tenant): last / 1e6 for tenant, last in erased.items()}
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):  # another sweep was faster
                is_part = path.suffix == PART  # which is withdrawn, if need be, when it is whole
                if path.stat().st_mtime < max(oldest, 0.0 if is_part else withdrawn.get(path.parent, 0.0)):
                    path.unlink()

    async def _sweep_for_ever(self) -> None:
        while True:
            with suppress(LedgerUnavailable):
                await asyncio.to_thread(self.sweep)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _written(self, job: Job, form: Format, search: Search, part: Path, stop: threading.Event) -> int:
        checkpoint = await self._ledger.checkpoint() if form is Format.ZIP else None
        if form is Format.ZIP and checkpoint is None:
            raise NotFound("nothing is recorded yet")
        tell = self._teller(job, stop)

        def write() -> int:
            part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with database_in_reach(), self._engine.connect() as connection:
                total = count_found(connection, self._vault, job.tenant, search)
            tell(0, total)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                if checkpoint is not None:
                    lines = found_lines(self._engine, self._vault, job.tenant, search, checkpoint.size)
                    asked = {"tenant": job.tenant, "conditions": orjson.loads(orjson.dumps(search))}
                    return write_export(file, self._engine, self._notary, checkpoint, _told(lines, tell), asked)
                rows = _told(map(table_row, self._stored(job.tenant, search)), tell)
                return (write_csv if form is Format.CSV else write_parquet)(file, rows)

        return await patiently(write, self._writer)

    def _stored(self, tenant: str, search: Search) -> Iterator[Stored]:
        after = 0
        while True:
            with database_in_reach(), self._engine.connect() as connection:
                page = read_in_log_order(connection, self._vault, tenant, search, after, PAGE)
            if not page:
                return
            yield from page
            after = page[-1].seq

    def _teller(self, job: Job, stop: threading.Event) -> Callable[[int, int | None], None]:
        def tell(done: int, total: int | None) -> None:
            if stop.is_set():
                raise Cancelled
            self._jobs.tell(job.id, done=done, total=total)

        return tell

    def _folder_of(self, tenant: str) -> Path:
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32]

    def _path(self, job: Job, form: Format) -> Path:
        return self._folder_of(job.tenant) / f"{job.id}.{form}"


def _told(items: Iterable[T], tell: Callable[[int, int | None], None]) -> Iterator[T]:
    """The same items; how many have gone by is told now and then."""
    done = 0
    for item in items:
        yield item
        done += 1
        if done % PAGE == 0:
            tell(done, None)
    tell(done, done)


def _with_pairs(search: Mapping[str, Any]) -> dict[str, Any]:
    return {**search, "cohort": tuple((name, value) for name, value in search["cohort"])}
