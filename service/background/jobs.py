"""Jobs: many rows in the background, at bulk priority, through restarts.

`service.ledger.jobs` stores them. A `Runner` in each process claims jobs that no other process runs and hands them to
the work of their kind. The key that made a job must be valid as long as it runs, and its quota is charged.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from service.access.callers import Caller
from service.access.quotas import Quotas
from service.catalog.inputs.kind import Row
from service.catalog.versions import Catalog, ModelVersion
from service.domain import Context, Priority
from service.errors import (
    AnswerableError,
    ComputationFailed,
    DeadlineExceeded,
    DeviceOutOfMemory,
    InvalidRequest,
    LedgerUnavailable,
    ModelNotReady,
    NotConverged,
    NotFound,
    Overloaded,
    PolicyForbids,
    QuotaSpent,
    WorkerLost,
)
from service.ledger import EntryRefused, Keys, Ledger, Stored, Vault
from service.ledger.clock import Clock
from service.ledger.jobs import LEASE_SECONDS, Jobs
from service.ledger.stored_jobs import DONE, FAILED, Job, JobRow, State
from service.usecases.explaining import Explaining, Request
from service.usecases.planning import USUAL_BUDGET, Parameters, with_baseline_read
from service.usecases.references import with_instances_read

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LOG = logging.getLogger("answerable.jobs")
EXPLAIN = "explain"
POLL_SECONDS = 1.0
JOBS_AT_ONCE = 32
"""Jobs of one process. Enough that jobs which wait, for their quota say, do not keep others from running."""
WINDOW = 64
"""Rows that are read, explained and marked together."""
ROWS_AT_ONCE = 16
"""Of all jobs in this process. With the usual budget they fill a third of the engine's queue; rows with larger
budgets are explained one by one."""
DEFER_SECONDS = 3.0
"""A process that has as many rows to explain as it explains at once leaves a new job to other processes for this long;
they look every `POLL_SECONDS`. Then it takes the job, one at each look, so that no job waits for another to end."""
MAX_WAIT_SECONDS = 30.0
NOT_HELD = "`when` does not hold for its prediction"
"""The detail of a row that is done and was not explained."""
UNEXPECTED = "an unexpected error; the job's id leads to it in the log"
PAUSE_SECONDS = 5.0
"""Until a job whose model is not here, or not ready, is tried again: here, or by a process that has it."""
LOST_WORKERS = 3
"""A row is given up once this many workers died while computing it."""

FAILURES: Mapping[type[AnswerableError], str] = {
    NotConverged: "the tolerance was not met",
    InvalidRequest: "it cannot be explained with these parameters, or within the key's quota; :explain says why",
    PolicyForbids: "the key's policy does not allow the method",
    ComputationFailed: "the model failed on this input",
    DeadlineExceeded: "the deadline passed before any result",
    DeviceOutOfMemory: "the device has not the memory for it",
    WorkerLost: "the worker died each time that it was tried",
}
"""What is stored of a row's error: errors' own sentences may hold the person's values, and jobs are listed in clear."""

T = TypeVar("T")

Work = Callable[[Job, Caller], Awaitable[None]]
"""Does a job for a caller. It is cancelled when the job is, and begun anew after a restart."""


class Postponed(Exception):
    """A job that can be resumed in so many seconds; the message says what it waits for."""

    def __init__(self, waits_for: str, seconds: float) -> None:
        super().__init__(waits_for)
        self.seconds = seconds


class LeaseLost(Exception):
    """This run no longer has the lease of its job, which was cancelled or taken over."""


class RowFailed(Exception):
    """A row that cannot be explained. The message says why, and is stored, so it holds nothing of the input."""


class JobFailed(Exception):
    """A job that cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class ExplainSpec:
    """What a job of explanations is to do, stored sealed, for parameters may hold a person's values."""

    model: str
    version: str
    parameters: Parameters

    @classmethod
    def of(cls, vault: Vault, job: Job) -> ExplainSpec:
        """That of a stored job."""
        stored = opened_spec(vault, job)
        return cls(stored["model"], stored["version"], Parameters(**stored["parameters"]))


def sealed_spec(vault: Vault, job_id: str, spec: DataclassInstance) -> bytes:
    """What a job is to do, as it is stored: sealed, for it may name people."""
    return vault.seal(orjson.dumps(spec), job_id, None, None)


def opened_spec(vault: Vault, job: Job) -> dict[str, Any]:
    """The JSON of what a job is to do, for the class of its kind to read."""
    spec: dict[str, Any] = orjson.loads(vault.open(job.spec, job.id, None))
    return spec


def sealed_payload(vault: Vault, explanation_id: str, instance: object, context: Context) -> bytes:
    """An instance and its context, sealed as a row holds them until it is finished."""
    belongs = {"decision_id": context.decision_id, "subject": context.subject, "cohort": dict(context.cohort)}
    return vault.seal(orjson.dumps({"instance": instance, "context": belongs}), explanation_id, None, None)


async def until_available(call: Callable[[], T]) -> T:
    """The result of a call of the database, made in a thread, and again until the database answers."""
    while True:
        try:
            return await asyncio.to_thread(call)
        except LedgerUnavailable:
            await asyncio.sleep(POLL_SECONDS)


class Runner:
    """Runs jobs in this process; `works` has the work for each kind. `start` and `close` it on the event loop."""

    def __init__(
        self, jobs: Jobs, keys: Keys, quotas: Quotas, works: Mapping[str, Work], clock: Clock | None = None
    ) -> None:
        self._jobs = jobs
        self._clock = clock or Clock()
        self._keys = keys
        self._quotas = quotas
        self._works = works
        self._running: dict[asyncio.Task[None], Job] = {}
        self._wanted = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """How many jobs run in this process."""
        return len(self._running)

    def start(self) -> None:
        """Looks for jobs from now on."""
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def wake(self) -> None:
        """Has the runner look for a new job at once."""
        self._wanted.set()

    async def close(self) -> None:
        """Stops; running jobs are released, so that another process can resume them."""
        tasks = [*self._running] if self._looking is None else [self._looking, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self._wanted.clear()
            while self.running < JOBS_AT_ONCE:
                is_full = self._is_full()
                job = await self._claimed(
                    [kind for kind in self._works if kind != EXPLAIN] if is_full else [*self._works]
                )
                if job is None and is_full:
                    job = await self._claimed([EXPLAIN], DEFER_SECONDS)
                if job is None:
                    break
                task = asyncio.get_running_loop().create_task(self._run(job))
                self._running[task] = job
                task.add_done_callback(self._ended)
                if is_full and job.kind == EXPLAIN:
                    break
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wanted.wait()

    async def _claimed(self, kinds: list[str], unclaimed_for: float = 0.0) -> Job | None:
        here = {
            job.id for job in self._running.values()
        }  # also one whose lease has expired: it goes on once that is renewed
        return await until_available(lambda: self._jobs.claim(str(uuid.uuid4()), kinds, here, unclaimed_for))

    def _is_full(self) -> bool:
        """Whether the jobs that run here had, when they were taken, as many rows left as are explained at once."""
        rows_left = (
            job.total - job.done - job.failed for job in self._running.values() if job.total and job.kind == EXPLAIN
        )
        return sum(rows_left) >= ROWS_AT_ONCE

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self.wake()

    async def _run(self, job: Job) -> None:
        owner, pause = str(job.owner), 0.0
        waits_for: str | None = None
        loop = asyncio.get_running_loop()
        work, lease = loop.create_task(self._work(job)), loop.create_task(self._keep_lease(job))
        try:
            ended, _ = await asyncio.wait({work, lease}, return_when=asyncio.FIRST_COMPLETED)
            error = next((error for task in ended if (error := task.exception()) is not None), None)
            if isinstance(error, Postponed):
                pause, waits_for = error.seconds, str(error)
            elif not isinstance(error, LeaseLost) and (error is not None or work in ended):
                state, detail = (State.DONE, None) if error is None else (State.FAILED, _failure_text(job, error))
                await until_available(lambda: self._jobs.end(job.id, owner, state, detail))
        finally:
            for task in (work, lease):
                task.cancel()
            await asyncio.gather(work, lease, return_exceptions=True)
            with suppress(LedgerUnavailable):
                await asyncio.to_thread(self._jobs.release, job.id, owner, pause, waits_for)

    async def _work(self, job: Job) -> None:
        await self._works[job.kind](job, await self._caller(job))

    async def _keep_lease(self, job: Job) -> None:
        """Renews the lease; returns when it is lost, because the job was cancelled or taken over."""
        while await until_available(lambda: self._jobs.renew(job.id, str(job.owner))):
            await self._caller(job)
            await asyncio.sleep(LEASE_SECONDS / 5)

    async def _caller(self, job: Job) -> Caller:
        """The caller that the job is done for. Raises JobFailed when the key is no longer valid."""
        key = await until_available(lambda: self._keys.get(job.key_id))
        if key is None or not key.is_valid(self._clock.now()):
            raise JobFailed("the key that made this job is no longer valid")
        account = None if key.quota is None else self._quotas.account(key.account, key.quota)
        return Caller(key.tenant, key.id, key.scopes, key.policy, account)


def _failure_text(job: Job, error: BaseException) -> str:
    if isinstance(error, JobFailed | AnswerableError):
        return str(error)
    LOG.error("job %s failed", job.id, exc_info=error)
    return UNEXPECTED


class ExplainRows:
    """The work of jobs of explanations.

    A row waits while the queue is full, or the database or a worker is unavailable. The whole job waits, and others run
    in its place, while the quota is used up or the model is not ready. If a row cannot be explained, the reason is
    stored, without the row's values, and the other rows go on.
    """

    def __init__(self, jobs: Jobs, explaining: Explaining, catalog: Catalog, ledger: Ledger, vault: Vault) -> None:
        self._jobs = jobs
        self._explaining = explaining
        self._catalog = catalog
        self._ledger = ledger
        self._vault = vault
        self._room = asyncio.Semaphore(ROWS_AT_ONCE)
        self._room_for_large = asyncio.Semaphore(1)

    async def __call__(self, job: Job, caller: Caller) -> None:
        """Explains every row that is not finished."""
        spec = ExplainSpec.of(self._vault, job)
        last = -1
        while rows := await until_available(lambda after=last: self._jobs.unfinished_rows(job.id, after, WINDOW)):  # type: ignore[misc]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._outcome(job, row, there, spec, caller)) for row, there in rows]
            results = [task.result() for task in tasks]
            outcomes = [result for result in results if not isinstance(result, Postponed)]
            await until_available(lambda done=outcomes: self._jobs.finish_rows(job.id, done))  # type: ignore[misc]
            for result in results:
                if isinstance(result, Postponed):  # quota that others had reserved may be available again
                    raise Postponed(str(result), 0.0 if outcomes else result.seconds)
            last = rows[-1][0].number

    async def _outcome(
        self, job: Job, row: JobRow, is_there: bool, spec: ExplainSpec, caller: Caller
    ) -> tuple[int, str, str | None] | Postponed:
        """Explains one row, unless that is done; returns its number, its outcome, and why it failed, if it did."""
        lost, wait = 0, 0.5
        while not is_there:
            try:
                detail = await self._explain(job, row, spec, caller)
            except RowFailed as error:
                return row.number, FAILED, str(error)
            except EntryRefused:  # another process explained it, or what it holds was erased, just now
                break
            except Postponed as wait_for:
                return wait_for
            except QuotaSpent as error:
                return Postponed(str(error), min(error.retry_after, MAX_WAIT_SECONDS))
            except ModelNotReady as error:
                return Postponed(str(error), PAUSE_SECONDS)
            except (Overloaded, LedgerUnavailable, WorkerLost) as error:
                lost += isinstance(error, WorkerLost)
                if lost == LOST_WORKERS:
                    return row.number, FAILED, failure_of(error)
                wait = error.retry_after if isinstance(error, Overloaded) else 2 * wait
                await asyncio.sleep(min(wait, MAX_WAIT_SECONDS))
            except AnswerableError as error:
                return row.number, FAILED, failure_of(error)
            except Exception:
                LOG.exception("row %d of job %s failed", row.number, job.id)
                return row.number, FAILED, UNEXPECTED
            else:
                return row.number, DONE, detail
        return row.number, DONE, None

    async def _explain(self, job: Job, row: JobRow, spec: ExplainSpec, caller: Caller) -> str | None:
        """Explains the row, if it has not ended meanwhile; `NOT_HELD` where it was not to be explained. Its input is in
        memory no longer than that takes."""
        try:
            version = self._catalog.find(spec.model, spec.version)
        except (NotFound, ModelNotReady) as error:
            raise Postponed(f"{spec.model} {spec.version}: {error}", PAUSE_SECONDS) from None
        parameters = spec.parameters.of(row.number)
        is_large = (parameters.max_evaluations or 0) > USUAL_BUDGET
        async with self._room_for_large if is_large else self._room:
            current = await asyncio.to_thread(self._jobs.unfinished_row, job.id, row.number)
            if current is None:
                return None
            if current.payload is not None:
                read, context = await asyncio.to_thread(self._input_of_payload, current, current.payload, version)
            else:
                read, context = await self._input_of_source(current, caller, version)
            parameters = await asyncio.to_thread(_with_instances, version, parameters)
            request = Request(
                version,
                [read],
                parameters,
                [context],
                caller,
                True,
                time.monotonic(),
                Priority.BULK,
                [row.explanation_id],
                must_be_recorded=True,
                job_row=(job.id, row.number),
            )
            if parameters.when is None:
                await self._explaining.explain(request)
                return None
            (answer,) = await self._explaining.explain_where(request, parameters.when)
            return NOT_HELD if answer.explanation is None else None

    def _input_of_payload(self, row: JobRow, payload: bytes, version: ModelVersion) -> tuple[Row, Context]:
        content = orjson.loads(self._vault.open(payload, row.explanation_id, None))
        try:
            read = version.manifest.inputs.read(content["instance"], version.folder)
        except InvalidRequest:
            raise RowFailed("the instance does not fit this model") from None
        return read, Context(**content["context"])

    async def _input_of_source(self, row: JobRow, caller: Caller, version: ModelVersion) -> tuple[Row, Context]:
        """The input of a stored explanation, and its context. Raises RowFailed."""
        stored = None if row.source is None else await self._ledger.get(caller.tenant, row.source)
        if stored is None or stored.tombstone is not None:
            raise RowFailed("the explanation whose input was to be explained is no longer there")
        try:
            read = await asyncio.to_thread(stored_input, stored, version)
        except InvalidRequest:
            raise RowFailed("the stored input does not fit this model") from None
        return read, Context(stored.decision_id, stored.subject, stored.cohort)


def failure_of(error: AnswerableError) -> str:
    """What is stored of a row's error."""
    return next((FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES), error.title)


def _with_instances(version: ModelVersion, parameters: Parameters) -> Parameters:
    """The parameters with the instances in them read. Raises RowFailed."""
    try:
        parameters = with_baseline_read(version, parameters)
    except InvalidRequest:
        raise RowFailed("the baseline does not fit this model") from None
    try:
        return with_instances_read(version, parameters)
    except InvalidRequest:
        raise RowFailed("what the target refers to does not fit this model") from None


def stored_input(stored: Stored, version: ModelVersion) -> Row:
    """The input of a stored explanation, as this version takes it. Raises InvalidRequest."""
    return version.manifest.inputs.of_other_version(orjson.loads(stored.personal))
