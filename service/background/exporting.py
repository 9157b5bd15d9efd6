"""Exports: stored explanations as a file, written as a stream in memory that does not grow with their number.

CSV and Parquet are tables for people; the zip, of `service.ledger.exporting`, is for auditors, with a proof for every
record. A file gets its final name only when it is complete. It lies in a folder of its tenant, is kept for a day, and
is withdrawn when anybody's data in that tenant is erased meanwhile: what was exported before an erasure must not be
handed out after it. Its name holds the size that the log had before anything was read, so that every erasure with a
later place in the log withdraws it, and no clock is needed. The log records an export before its file can be fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from socket import gethostname
from typing import TypeVar

from sqlalchemy import Engine

from service.access.callers import Caller
from service.background.export_tables import table_row, write_csv, write_parquet
from service.background.jobs import PAUSE_SECONDS, LeaseLost, Postponed, opened_spec
from service.errors import LedgerUnavailable, NotFound
from service.ledger import CheckpointSigner, EventSearch, Ledger, Search, Stored, Vault
from service.ledger.database import database_in_reach
from service.ledger.events import last_erasures
from service.ledger.exporting import asked_of, found_lines, write_export
from service.ledger.jobs import Jobs
from service.ledger.searching import count_found, read_in_log_order
from service.ledger.stored_jobs import EXPORT, Job
from service.ledger.stored_tree import log_size

LOG = logging.getLogger("answerable.exporting")
T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """What a job of an export is to write, stored sealed, for conditions may name people.

    `conditions` are the names of those that were asked for, which the log has in clear. `search` is None once the
    person that it names is erased, which also ends the job.
    """

    format: Format
    search: Search | None
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, vault: Vault, job: Job) -> ExportSpec:
        """That of a stored job."""
        stored = opened_spec(vault, job)
        search = None
        if (conditions := stored.get("search")) is not None:
            search = Search(**{**conditions, "cohort": tuple((name, value) for name, value in conditions["cohort"])})
        return cls(Format(stored["format"]), search, tuple(stored["conditions"]))


class Exports:
    """The work of jobs of kind `export`, and the files they wrote, under `folder`."""

    def __init__(
        self, jobs: Jobs, engine: Engine, ledger: Ledger, signer: CheckpointSigner, vault: Vault, folder: Path
    ) -> None:
        self._jobs = jobs
        self._engine = engine
        self._ledger = ledger
        self._signer = signer
        self._vault = vault
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="export")  # not a thread that requests wait for
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Deletes what may not be kept, now and every minute from now on."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def close(self) -> None:
        """Ends the sweeping. The job of a file that is being written stops writing it."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.to_thread(self._writer.shutdown)

    async def __call__(self, job: Job, caller: Caller) -> None:
        """Writes the file, records it in the log, and then gives it its final name.

        Raises Postponed while the database does not answer: the file is then written anew.
        """
        try:
            await self._export(job, caller)
        except LedgerUnavailable as error:
            raise Postponed(f"it is tried again: {error}", PAUSE_SECONDS) from error

    async def _export(self, job: Job, caller: Caller) -> None:
        spec = ExportSpec.of(self._vault, job)
        folder = self._folder_of(job.tenant)
        part = folder / f"{job.id}.{job.owner}{PART}"  # no other run of this job writes to it
        stop = threading.Event()
        try:
            records, begun = await self._write(job, spec, part, stop)
            details = {
                "format": spec.format,
                "records": records,
                "conditions": sorted(spec.conditions),
                "host": gethostname(),
            }
            await self._ledger.append_event(EXPORT, caller.tenant, caller.key_id, job.id, details)
            part.replace(folder / f"{job.id}.{begun}.{spec.format}")
        finally:
            stop.set()
            part.unlink(missing_ok=True)

    async def file(self, job: Job) -> Path | None:
        """The file of an export that is done; None when it is not kept any more, or lies on another host.

        Raises LedgerUnavailable.
        """
        return await asyncio.to_thread(self._path_of, job)

    async def host(self, job: Job) -> str | None:
        """The host that wrote the file of an export that is done, as the log has it. Raises LedgerUnavailable."""
        written = await self._ledger.events(job.tenant, EventSearch(kind=EXPORT, about=job.id), 1)
        return next((event.details.get("host") for event in written.events), None)

    def sweep(self) -> None:
        """Deletes what has been kept long enough, was begun before its tenant erased something, or is a part that no
        run of a job writes. Blocks."""
        oldest = time.time() - KEPT_SECONDS
        paths = [*self._folder.glob("*/*")]  # before the owners are read: parts that are begun later are not listed
        if not paths:
            return
        owners = self._jobs.owners()
        begun = {path: _begun(path) for path in paths if path.suffix != PART}
        with database_in_reach(), self._engine.connect() as connection:
            erased = last_erasures(connection, min(begun.values())) if begun else {}
        withdrawn = {self._folder_of(tenant): last for tenant, last in erased.items()}
        for path in paths:
            with suppress(FileNotFoundError):  # another sweep was faster
                if path in begun:
                    is_due = path.stat().st_mtime < oldest or begun[path] < withdrawn.get(path.parent, 0)
                else:
                    is_due = path.name.split(".")[1] not in owners
                if is_due:
                    path.unlink()

    def _path_of(self, job: Job) -> Path | None:
        oldest = time.time() - KEPT_SECONDS
        form = ExportSpec.of(self._vault, job).format
        for path in self._folder_of(job.tenant).glob(f"{job.id}.*.{form}"):
            with database_in_reach(), self._engine.connect() as connection:
                is_withdrawn = bool(last_erasures(connection, _begun(path), job.tenant))
            with suppress(FileNotFoundError):
                if not is_withdrawn and path.stat().st_mtime >= oldest:
                    return path
        return None

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except LedgerUnavailable:
                pass  # those who need the ledger report it
            except Exception:
                LOG.exception("export files were not swept; they will be, a minute later")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _write(self, job: Job, spec: ExportSpec, part: Path, stop: threading.Event) -> tuple[int, int]:
        """Writes the part; returns the number of records, and the size of the log before the first was read."""
        form, search = spec.format, spec.search
        if search is None:
            raise LeaseLost
        checkpoint = await self._ledger.checkpoint() if form is Format.ZIP else None
        if form is Format.ZIP and checkpoint is None:
            raise NotFound("nothing is recorded yet")
        report = self._reporter(job, stop)

        def write() -> tuple[int, int]:
            part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with database_in_reach(), self._engine.connect() as connection:
                begun = log_size(connection)
                total = count_found(connection, self._vault, job.tenant, search)
            report(0, total)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                if checkpoint is not None:
                    lines = found_lines(self._engine, self._vault, job.tenant, search, checkpoint.size)
                    conditions = asked_of(job.tenant, search)
                    return write_export(
                        file, self._engine, self._signer, checkpoint, _counted(lines, report), conditions
                    ), begun
                rows = _counted(map(table_row, self._stored(job.tenant, search)), report)
                return (write_csv if form is Format.CSV else write_parquet)(file, rows), begun

        return await asyncio.get_running_loop().run_in_executor(self._writer, write)

    def _stored(self, tenant: str, search: Search) -> Iterator[Stored]:
        after = 0
        while True:
            with database_in_reach(), self._engine.connect() as connection:
                page = read_in_log_order(connection, self._vault, tenant, search, after, PAGE)
            if not page:
                return
            yield from page
            after = page[-1].seq

    def _reporter(self, job: Job, stop: threading.Event) -> Callable[[int, int | None], None]:
        def report(done: int, total: int | None) -> None:
            if stop.is_set() or not self._jobs.tell(job.id, str(job.owner), done, total):
                raise LeaseLost

        return report

    def _folder_of(self, tenant: str) -> Path:
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32]


def _begun(path: Path) -> int:
    """The size of the log before the file was begun; 0 if its name does not say, so that any erasure withdraws it."""
    sizes = path.name.split(".")[1:-1]
    return int(sizes[0]) if sizes and sizes[0].isdecimal() else 0


def _counted(items: Iterable[T], report: Callable[[int, int | None], None]) -> Iterator[T]:
    """The same items; reports now and then how many have gone by."""
    done = 0
    for item in items:
        yield item
        done += 1
        if done % PAGE == 0:
            report(done, None)
    report(done, done)
