"""`/v1/jobs`: many explanations in the background."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from service.answers.records import Caller, Context, uuid7
from service.api.access_log import record_lookup
from service.api.auth import CallerOf, caller_of, needs
from service.api.background import MOST_LISTED, find_job, jobs_of, new_job
from service.api.explanations import ledger_of
from service.api.filters import FilterBody
from service.api.idempotency import once, repeatable
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import ContextBody, ExplainParameters, Strict
from service.background.jobs import EXPLAIN, Runner, sealed_payload, sealed_spec, spec_of, stored_input
from service.catalog.inputs.instances import read_instances
from service.catalog.versions import ModelVersion
from service.errors import Fault, Forbidden, InvalidRequest, Kind, MalformedBody
from service.ledger import Stored, Vault
from service.ledger.entries import Remembered, RequestKey
from service.ledger.ledger import Ledger
from service.ledger.stored_jobs import DONE, Job, JobRow, State
from service.usecases.explaining import refuse_method
from service.usecases.planning import make_plan

MOST_ROWS = 10_000
MOST_RESULTS = 1000
READ_SCOPE = "ledger:read"

making = APIRouter(route_class=StrictRoute, tags=["Jobs"])
reading = APIRouter(tags=["Jobs"], responses=answers(401, 403, 404, 422, 429, 503))
routers = (making, reading)


class JobBody(Strict):
    """Instances to explain, or stored explanations whose inputs are to be explained again."""

    model: StrictStr = Field(description="the model's name")
    version: StrictStr | None = Field(None, description="the newest ready one at the start, if none is named")
    kind: Literal["explain"] = Field("explain", description="what is done with each row")
    instances: Annotated[list[Any], Field(min_length=1, max_length=MOST_ROWS)] | None = Field(
        None, description="as of an explanation"
    )
    explanations: FilterBody | None = Field(None, description="needs the scope ledger:read too")
    parameters: ExplainParameters = Field(default_factory=lambda: ExplainParameters(), description="how to explain")
    context: ContextBody | Annotated[list[ContextBody], Field(max_length=MOST_ROWS, fail_fast=True)] | None = Field(
        None, description="of instances: one for all, or a list with one for each; explanations have their own"
    )

    @model_validator(mode="after")
    def _consistent(self) -> JobBody:
        if (self.instances is None) == (self.explanations is None):
            raise PydanticCustomError("one_of", "send either instances or explanations")
        if self.instances is None and self.context is not None:
            raise PydanticCustomError("one_of", "stored explanations have a context already")
        return self


class ProgressItem(BaseModel):
    """How far the rows are."""

    total: int | None = Field(None, description="absent until it is known")
    done: int = Field(description="rows that are explained")
    failed: int = Field(description="rows that cannot be")


class ResultItem(BaseModel):
    """A row that is finished: its explanation, or why there is none."""

    row: int = Field(description="its number, from 0")
    explanation: str | None = Field(None, description="the id of its explanation")
    error: str | None = Field(None, description="why there is none")


class JobItem(BaseModel):
    """A job."""

    id: str = Field(description="of the job")
    kind: str = Field(description="what is done with each row")
    model: str = Field(description="the model's name")
    version: str = Field(description="the model's version")
    state: State = Field(description="how it stands")
    detail: str | None = Field(None, description="why it failed")
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


@making.post(
    "/v1/jobs",
    status_code=202,
    responses={202: {"model": JobItem}, **answers(400, 401, 403, 404, 408, 413, 415, 422, 429, 503)},
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("explain")
@repeatable
async def make_job(request: Request, body: JobBody) -> Response:
    """Takes rows to explain at bulk priority. The answer is the job; it survives restarts of the service."""
    return await once(request, lambda key: _make_job(request, body, key), _accepted_again)


async def _make_job(request: Request, body: JobBody, key: RequestKey | None) -> Response:
    caller, ledger, jobs = caller_of(request), ledger_of(request), jobs_of(request)
    version: ModelVersion = request.app.state.catalog.find(body.model, body.version)
    refuse_method(caller.policy, body.parameters.method or version.manifest.defaults.method)
    vault: Vault = request.app.state.vault
    job_id = uuid7()
    rows = (
        await asyncio.to_thread(_given_rows, body, version, vault, caller.tenant)
        if body.instances is not None
        else await _found_rows(body, version, ledger, caller)
    )
    spec = {
        "model": version.key.name,
        "version": version.key.version,
        "parameters": body.parameters.model_dump(),
    }
    if body.explanations is not None:
        conditions = [name for name, value in body.explanations if value]
        await record_lookup(request, caller, job_id, {"action": "job", "conditions": conditions, "rows": len(rows)})
    job = new_job(job_id, caller, EXPLAIN, sealed_spec(vault, job_id, spec), len(rows))
    shown = _shown(job, spec)
    await asyncio.to_thread(jobs.create, job, rows, None if key is None else key.remembered(shown))
    runner: Runner = request.app.state.runner
    runner.wake()
    return _accepted(shown)


async def _accepted_again(_kept: Remembered, shown: dict[str, Any]) -> Response:
    return _accepted(shown)


def _accepted(shown: dict[str, Any]) -> Response:
    """The job as it was when it was made."""
    return Response(orjson.dumps(shown), 202, {"Location": f"/v1/jobs/{shown['id']}"}, media_type="application/json")


@reading.get("/v1/jobs", responses={200: {"model": JobsReply}})
@needs("explain")
async def list_jobs(request: Request, caller: CallerOf) -> Response:
    """The last jobs, the newest first."""
    vault: Vault = request.app.state.vault
    found = await asyncio.to_thread(jobs_of(request).newest, caller.tenant, (EXPLAIN,), MOST_LISTED)
    return _answer({"jobs": [_shown(job, spec_of(vault, job)) for job in found]})


@reading.get("/v1/jobs/{job}", responses={200: {"model": JobReply}})
@needs("explain")
async def show_job(
    request: Request,
    job: str,
    caller: CallerOf,
    limit: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = MOST_RESULTS,
    cursor: Annotated[int, Query(ge=0, le=MOST_ROWS)] = 0,
) -> Response:
    """The state of a job, how far it is, and the rows that are finished, in their order."""
    jobs = jobs_of(request)
    found = await find_job(request, job, caller, EXPLAIN)
    results = await asyncio.to_thread(jobs.results, found.id, cursor - 1, limit)
    vault: Vault = request.app.state.vault
    reply = _shown(found, spec_of(vault, found)) | {"results": [_result(row) for row in results]}
    if results and (len(results) == limit or found.ended is None):
        reply["next_cursor"] = results[-1].number + 1
    return _answer(reply)


@reading.delete("/v1/jobs/{job}", responses={200: {"model": JobItem}})
@needs("explain")
async def cancel_job(request: Request, job: str, caller: CallerOf) -> Response:
    """Ends a job within seconds; the explanations that are made stay. One that has ended stays as it is."""
    found = await find_job(request, job, caller, EXPLAIN)
    await asyncio.to_thread(jobs_of(request).cancel, caller.tenant, found.id)
    cancelled = await find_job(request, job, caller, EXPLAIN)
    vault: Vault = request.app.state.vault
    return _answer(_shown(cancelled, spec_of(vault, cancelled)))


def _given_rows(body: JobBody, version: ModelVersion, vault: Vault, tenant: str) -> list[JobRow]:
    """The rows of instances, each of which could be explained. Raises InvalidRequest."""
    assert body.instances is not None
    parameters = body.parameters.parameters()
    contexts = _contexts(body, len(body.instances))
    rows: list[JobRow] = []
    read = read_instances(version.manifest, body.instances, version.tokenizer)
    for number, (values, _) in enumerate(read):
        if number == 0:
            make_plan(version, values, parameters, tenant)
        explanation, context = uuid7(), contexts[number]
        payload = sealed_payload(vault, explanation, body.instances[number], context)
        subject = None if context.subject is None else vault.lookup(tenant, context.subject)
        rows.append(JobRow(number, explanation, payload=payload, subject=subject))
    return rows


def _contexts(body: JobBody, count: int) -> list[Context]:
    if not isinstance(body.context, list):
        return [Context() if body.context is None else body.context.context()] * count
    if len(body.context) != count:
        detail = f"there are {count} instances and {len(body.context)} contexts"
        raise MalformedBody(detail, Fault(Kind.WRONG_SHAPE, "/context", detail))
    return [context.context() for context in body.context]


async def _found_rows(body: JobBody, version: ModelVersion, ledger: Ledger, caller: Caller) -> list[JobRow]:
    """The rows of stored explanations, the newest first. Raises Forbidden, InvalidRequest."""
    assert body.explanations is not None
    if READ_SCOPE not in caller.scopes:
        raise Forbidden(f"the key lacks the scope {READ_SCOPE}, which explaining stored inputs needs")
    search = body.explanations.search(model=version.key.name)
    found = await ledger.find(caller.tenant, search, MOST_ROWS + 1)
    if len(found) > MOST_ROWS:
        raise InvalidRequest(f"the filter finds more than {MOST_ROWS} explanations; narrow it")
    if not found:
        raise InvalidRequest("the filter finds no explanation")
    first = await ledger.get(caller.tenant, found[0].id)
    if first is not None and first.tombstone is None:
        await asyncio.to_thread(_refuse_impossible, body, version, first)
    return [JobRow(number, uuid7(), source=one.id, subject=one.subject) for number, one in enumerate(found)]


def _refuse_impossible(body: JobBody, version: ModelVersion, stored: Stored) -> None:
    """Raises InvalidRequest for parameters that the model cannot be explained with: a row does not say which."""
    try:
        values, _ = stored_input(stored, version)
    except InvalidRequest:  # this one; others may fit
        return
    make_plan(version, values, body.parameters.parameters(), stored.tenant)


def _shown(job: Job, spec: dict[str, Any]) -> dict[str, Any]:
    progress = {"total": job.total, "done": job.done, "failed": job.failed}
    shown = {
        "id": job.id,
        "kind": job.kind,
        "model": spec["model"],
        "version": spec["version"],
        "state": job.state,
        "detail": job.detail,
        "created": job.created,
        "ended": job.ended,
    }
    return {name: value for name, value in shown.items() if value is not None} | {"progress": progress}


def _result(row: JobRow) -> dict[str, Any]:
    told = {"explanation": row.explanation_id} if row.outcome == DONE else {"error": row.detail}
    return {"row": row.number, **told}


def _answer(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
