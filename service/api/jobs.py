"""`/v1/jobs`: many explanations in the background."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from service.access.callers import Caller
from service.api.access_log import record_lookup
from service.api.auth import needs
from service.api.background import MAX_LISTED, find_job, new_job
from service.api.filters import FilterBody
from service.api.idempotency import once, repeatable
from service.api.problems import answers
from service.api.queries import QueryModel
from service.api.requests import ApiRequest
from service.api.routing import Reply, new_router
from service.api.schemas import ContextBody, ExplainParameters, Strict, check_size
from service.background.jobs import EXPLAIN, ExplainSpec, sealed_payload, sealed_spec, stored_input
from service.catalog.inputs.instances import read_instances
from service.catalog.versions import ModelVersion
from service.domain import Context
from service.errors import Fault, Forbidden, InvalidRequest, Kind, MalformedBody
from service.ledger import Stored, Vault
from service.ledger.entries import Remembered, RequestKey
from service.ledger.ids import uuid7
from service.ledger.ledger import Ledger
from service.ledger.stored_jobs import DONE, Job, JobRow, State
from service.usecases.explaining import refuse_method, rule_of
from service.usecases.references import check_explained, check_request
from service.wording import SENTENCE, number_of

MAX_ROWS = 10_000
MAX_RESULTS = 1000
READ_SCOPE = "ledger:read"

router = new_router("Jobs")


class ResultsQuery(QueryModel):
    """Which of a job's finished rows."""

    limit: int = Field(MAX_RESULTS, ge=1, le=MAX_RESULTS, description="at most so many")
    cursor: int = Field(0, ge=0, le=MAX_ROWS, description="the `next_cursor` of the page before")


class JobBody(Strict):
    """Instances to explain, or stored explanations whose inputs are to be explained again."""

    model: StrictStr = Field(description="the model's name")
    version: StrictStr | None = Field(None, description="the newest ready one at the start, if none is named")
    kind: Literal["explain"] = Field("explain", description="what is done with each row")
    instances: Annotated[list[Any], Field(min_length=1, max_length=MAX_ROWS)] | None = Field(
        None, description="as of an explanation"
    )
    explanations: FilterBody | None = Field(None, description="needs the scope ledger:read too")
    parameters: ExplainParameters = Field(default_factory=lambda: ExplainParameters(), description="how to explain")
    context: ContextBody | Annotated[list[ContextBody], Field(max_length=MAX_ROWS, fail_fast=True)] | None = Field(
        None, description="of instances: one for all, or a list with one for each; explanations have their own"
    )

    @model_validator(mode="after")
    def _consistent(self) -> JobBody:
        if (self.instances is None) == (self.explanations is None):
            raise PydanticCustomError(SENTENCE, "send either instances or explanations")
        if self.instances is None and self.context is not None:
            raise PydanticCustomError(SENTENCE, "stored explanations have a context already; leave `context` out")
        check_size(self.instances or (), self.parameters, MAX_ROWS)
        return self


class ProgressItem(BaseModel):
    """How far the rows are."""

    total: int | None = Field(None, description="absent until it is known")
    done: int = Field(description="rows that are explained")
    failed: int = Field(description="rows that cannot be")


class ResultItem(BaseModel):
    """A row that is finished: its explanation, or why there is none; one of the three."""

    row: int = Field(description="its number, from 0")
    explanation: str | None = Field(None, description="the id of its explanation")
    not_explained: str | None = Field(None, description="why it was not to be explained")
    error: str | None = Field(None, description="why it could not be")


class JobItem(BaseModel):
    """A job."""

    id: str = Field(description="of the job")
    kind: str = Field(description="what is done with each row")
    model: str = Field(description="the model's name")
    version: str = Field(description="the model's version")
    state: State = Field(description="how it stands")
    detail: str | None = Field(None, description="why it failed, or what it waits for")
    created: int = Field(description="microseconds since the epoch, UTC")
    ended: int | None = Field(None, description="microseconds since the epoch, UTC; absent until it has")
    progress: ProgressItem = Field(description="how far it is")


class JobReply(JobItem):
    """A job, and the rows of it that are finished."""

    results: list[ResultItem] = Field(description="in the order of the rows")
    next_cursor: int | None = Field(None, description="where the next results begin, now or later")


class JobsReply(BaseModel):
    """The last jobs."""

    jobs: list[JobItem] = Field(description="the newest first")


EXAMPLE = {"again": {"value": {"model": "loan", "explanations": {"label": "denied"}}}}


@router.post(
    "/v1/jobs",
    status_code=202,
    responses=answers(404, 503),
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("explain")
@repeatable
async def make_job(request: ApiRequest, body: JobBody) -> Reply[JobItem]:
    """Takes rows to explain at bulk priority. The answer is the job; it survives restarts of the service."""
    return await once(request, lambda key: _make_job(request, body, key), _repeat)


async def _make_job(request: ApiRequest, body: JobBody, key: RequestKey | None) -> Reply[JobItem]:
    caller, services, with_ledger = request.caller, request.services, request.services.need_ledger()
    version = services.catalog.find(body.model, body.version)
    refuse_method(caller.policy, body.parameters.method or version.manifest.defaults.method)
    if body.parameters.when is not None:
        rule_of(version, body.parameters.when, caller.policy)
    vault = services.vault
    job_id = uuid7()
    rows = (
        await asyncio.to_thread(_rows_of_instances, body, version, vault, caller.tenant)
        if body.instances is not None
        else await _rows_of_explanations(body, version, with_ledger.ledger, caller)
    )
    spec = ExplainSpec(version.key.name, version.key.version, body.parameters.parameters())
    if body.explanations is not None:
        conditions = [name for name, value in body.explanations if value]
        await record_lookup(request, job_id, {"action": "job", "conditions": conditions, "rows": len(rows)})
    job = new_job(job_id, caller, EXPLAIN, sealed_spec(vault, job_id, spec), len(rows))
    item = _item(job, spec)
    remembered = None if key is None else key.remembered(item.model_dump(exclude_defaults=True))
    await asyncio.to_thread(with_ledger.jobs.create, job, rows, remembered)
    with_ledger.runner.wake()
    return _accepted(item)


async def _repeat(_remembered: Remembered, answer: dict[str, Any]) -> Reply[JobItem]:
    """The job as it was when it was made."""
    return _accepted(JobItem(**answer))


def _accepted(item: JobItem) -> Reply[JobItem]:
    return Reply(item, 202, {"Location": f"/v1/jobs/{item.id}"})


@router.get("/v1/jobs", responses=answers(404, 503))
@needs("explain")
async def list_jobs(request: ApiRequest) -> JobsReply:
    """The last jobs, the newest first."""
    jobs, vault = request.services.need_ledger().jobs, request.services.vault
    newest = await asyncio.to_thread(jobs.newest, request.caller.tenant, (EXPLAIN,), MAX_LISTED)
    return JobsReply(jobs=[_item(job, ExplainSpec.of(vault, job)) for job in newest])


@router.get("/v1/jobs/{job}", responses=answers(404, 503))
@needs("explain")
async def show_job(request: ApiRequest, job: str, query: Annotated[ResultsQuery, Query()]) -> JobReply:
    """The state of a job, how far it is, and the rows that are finished, in their order."""
    stored = await find_job(request, job, EXPLAIN)
    jobs = request.services.need_ledger().jobs
    rows = await asyncio.to_thread(jobs.results, stored.id, query.cursor - 1, query.limit)
    has_more = bool(rows) and (len(rows) == query.limit or stored.ended is None)
    return JobReply(
        **dict(_item(stored, ExplainSpec.of(request.services.vault, stored))),
        results=[_result(row) for row in rows],
        next_cursor=rows[-1].number + 1 if has_more else None,
    )


@router.delete("/v1/jobs/{job}", responses=answers(404, 503))
@needs("explain")
async def cancel_job(request: ApiRequest, job: str) -> JobItem:
    """Ends a job within seconds; the explanations that are made stay. One that has ended stays as it is."""
    stored = await find_job(request, job, EXPLAIN)
    await asyncio.to_thread(request.services.need_ledger().jobs.cancel, request.caller.tenant, stored.id)
    cancelled = await find_job(request, job, EXPLAIN)
    return _item(cancelled, ExplainSpec.of(request.services.vault, cancelled))


def _rows_of_instances(body: JobBody, version: ModelVersion, vault: Vault, tenant: str) -> list[JobRow]:
    """The rows of instances, each of which could be explained. Raises InvalidRequest."""
    assert body.instances is not None
    parameters = body.parameters.parameters()
    contexts = _contexts(body, len(body.instances))
    rows: list[JobRow] = []
    read = read_instances(version.manifest, body.instances, version.folder)
    for number, row in enumerate(read):
        if number == 0:
            check_request(version, row, parameters, tenant)
        if parameters.when is None:  # else only some are explained, and it is not known yet which
            check_explained(version, [row], parameters, [number])
        context = contexts[number]
        subject = None if context.subject is None else vault.lookup(tenant, context.subject)
        for _ in range(parameters.explanations):
            explanation = uuid7()
            payload = sealed_payload(vault, explanation, body.instances[number], context)
            rows.append(JobRow(len(rows), explanation, payload=payload, subject=subject))
    return rows


def _contexts(body: JobBody, count: int) -> list[Context]:
    if not isinstance(body.context, list):
        return [Context() if body.context is None else body.context.context()] * count
    if len(body.context) != count:
        detail = f"the job has {number_of(count, 'instance')} and {number_of(len(body.context), 'context')}"
        raise MalformedBody(detail, Fault(Kind.WRONG_SHAPE, "/context", detail))
    return [context.context() for context in body.context]


async def _rows_of_explanations(body: JobBody, version: ModelVersion, ledger: Ledger, caller: Caller) -> list[JobRow]:
    """The rows of stored explanations, the newest first. Raises Forbidden, InvalidRequest."""
    assert body.explanations is not None
    if READ_SCOPE not in caller.scopes:
        raise Forbidden(f"the key lacks the scope {READ_SCOPE}, which explaining stored inputs needs")
    search = body.explanations.search(model=version.key.name)
    targets = body.parameters.parameters().explanations
    entries = await ledger.find(caller.tenant, search, MAX_ROWS // targets + 1)
    if len(entries) > MAX_ROWS // targets:
        of_targets = "" if targets == 1 else f", of which each is explained {targets} times"
        raise InvalidRequest(f"the filter finds more than {MAX_ROWS // targets} explanations{of_targets}; narrow it")
    if not entries:
        raise InvalidRequest("the filter finds no explanation")
    first = await ledger.get(caller.tenant, entries[0].id)
    if first is not None and first.tombstone is None:
        await asyncio.to_thread(_refuse_impossible, body, version, first)
    sources = [entry for entry in entries for _ in range(targets)]
    return [JobRow(number, uuid7(), source=entry.id, subject=entry.subject) for number, entry in enumerate(sources)]


def _refuse_impossible(body: JobBody, version: ModelVersion, stored: Stored) -> None:
    """Raises InvalidRequest for parameters that the model cannot be explained with: a row does not say which."""
    try:
        row = stored_input(stored, version)
    except InvalidRequest:  # this one; others may fit
        return
    check_request(version, row, body.parameters.parameters(), stored.tenant)


def _item(job: Job, spec: ExplainSpec) -> JobItem:
    return JobItem(
        id=job.id,
        kind=job.kind,
        model=spec.model,
        version=spec.version,
        state=job.state,
        detail=job.detail,
        created=job.created,
        ended=job.ended,
        progress=ProgressItem(total=job.total, done=job.done, failed=job.failed),
    )


def _result(row: JobRow) -> ResultItem:
    if row.outcome == DONE and row.detail is not None:
        return ResultItem(row=row.number, not_explained=row.detail)
    if row.outcome == DONE:
        return ResultItem(row=row.number, explanation=row.explanation_id)
    return ResultItem(row=row.number, error=row.detail)
