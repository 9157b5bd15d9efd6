"""`/v1/jobs`: many explanations in the background, or evaluations of many; see `evaluations.py` for what these find."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Query
from pydantic import BaseModel, Field, StrictInt, StrictStr, model_validator
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
from service.background.evaluating import EvaluateSpec
from service.background.jobs import EXPLAIN, ExplainSpec, sealed_payload, sealed_spec, stored_input
from service.catalog.inputs.instances import read_instances
from service.catalog.inputs.kind import Row
from service.catalog.version_files import HELD_OUT, read_heldout_rows
from service.catalog.versions import ModelVersion
from service.domain import Context
from service.errors import Fault, Forbidden, InvalidRequest, Kind, MalformedBody, PolicyForbids
from service.ledger import Stored, Vault
from service.ledger.entries import Remembered, RequestKey
from service.ledger.ids import uuid7
from service.ledger.ledger import Ledger
from service.ledger.stored_jobs import DONE, EVALUATE, Job, JobRow, State
from service.usecases.evaluating import read_measures
from service.usecases.explaining import refuse_method, rule_of
from service.usecases.references import check_explained, check_request
from service.wording import SENTENCE, number_of

MAX_ROWS = 10_000
MAX_RESULTS = 1000
HELD_OUT_ROWS = 100
KINDS = (EXPLAIN, EVALUATE)
READ_SCOPE = "ledger:read"

router = new_router("Jobs")


class ResultsQuery(QueryModel):
    """Which of a job's finished rows."""

    limit: int = Field(MAX_RESULTS, ge=1, le=MAX_RESULTS, description="at most so many")
    cursor: int = Field(0, ge=0, le=MAX_ROWS, description="the `next_cursor` of the page before")


Edge = Annotated[StrictInt, Field(ge=0, le=100_000)]


class ObjectBox(Strict):
    """A box in an image, in pixels of what the model takes."""

    top: Edge = Field(description="its first row")
    left: Edge = Field(description="its first column")
    bottom: Edge = Field(description="the row behind its last")
    right: Edge = Field(description="the column behind its last")

    @model_validator(mode="after")
    def _has_area(self) -> ObjectBox:
        if self.bottom <= self.top or self.right <= self.left:
            raise PydanticCustomError(SENTENCE, "a box ends behind where it begins")
        return self


class JobBody(Strict):
    """Inputs to explain, or to judge explanations of: instances, stored explanations, or the model's held-out rows.

    Explanations that are stored are judged as they are; with `methods`, their inputs are explained by these.
    """

    model: StrictStr = Field(description="the model's name")
    version: StrictStr | None = Field(None, description="the newest ready one at the start, if none is named")
    kind: Literal["explain", "evaluate"] = Field(
        "explain", description="`explain`, or `evaluate`: measure how faithful explanations are to the model"
    )
    instances: Annotated[list[Any], Field(min_length=1, max_length=MAX_ROWS)] | None = Field(
        None, description="as of an explanation"
    )
    explanations: FilterBody | None = Field(None, description="needs the scope ledger:read too")
    dataset: Literal["heldout"] | None = Field(
        None, description="of an evaluation: rows that the model was not trained on, where its folder has some"
    )
    rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] | None = Field(
        None, description=f"how many rows of the dataset; {HELD_OUT_ROWS} without"
    )
    methods: Annotated[list[StrictStr], Field(min_length=1, max_length=50)] | None = Field(
        None, description="of an evaluation: the methods that are compared; without, the one of `parameters`"
    )
    metrics: Annotated[list[StrictStr], Field(min_length=1, max_length=50)] | None = Field(
        None, description="of an evaluation; without, all that apply to the model"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="of an evaluation, by metric; `replace` names what stands in the place of removed components",
    )
    boxes: Annotated[list[list[ObjectBox]], Field(max_length=MAX_ROWS)] | None = Field(
        None, description="of an evaluation of images: for each instance the boxes around the object"
    )
    parameters: ExplainParameters = Field(default_factory=lambda: ExplainParameters(), description="how to explain")
    context: ContextBody | Annotated[list[ContextBody], Field(max_length=MAX_ROWS, fail_fast=True)] | None = Field(
        None, description="of instances: one for all, or a list with one for each; explanations have their own"
    )

    @model_validator(mode="after")
    def _consistent(self) -> JobBody:
        given = [name for name in ("instances", "explanations", "dataset") if getattr(self, name) is not None]
        if len(given) != 1 or (self.dataset is not None and self.kind != EVALUATE):
            of_evaluations = ", or the dataset" if self.kind == EVALUATE else ""
            raise PydanticCustomError(SENTENCE, f"send either instances or explanations{of_evaluations}")
        if self.kind != EVALUATE and (self.methods or self.metrics or self.options or self.boxes):
            raise PydanticCustomError(SENTENCE, "methods, metrics, options and boxes are for jobs of the kind evaluate")
        if self.boxes is not None and (self.instances is None or len(self.boxes) != len(self.instances)):
            raise PydanticCustomError(SENTENCE, "boxes are of instances: a list for each")
        if self.rows is not None and self.dataset is None:
            raise PydanticCustomError(SENTENCE, "rows are those of the dataset, which is not named")
        if self.kind == EVALUATE and (
            self.parameters.parameters().targets is not None or self.parameters.when is not None
        ):
            raise PydanticCustomError(SENTENCE, "an evaluation has one target, and no `when`")
        if self.explanations is not None and self.context is not None:
            raise PydanticCustomError(SENTENCE, "stored explanations have a context already; leave `context` out")
        check_size(self.instances or (), self.parameters, MAX_ROWS)
        return self


class ProgressItem(BaseModel):
    """How far the rows are."""

    total: int | None = Field(None, description="absent until it is known")
    done: int = Field(description="rows that are explained")
    failed: int = Field(description="rows that cannot be")


class ResultItem(BaseModel):
    """A row that is finished: its explanation, or why there is none; one of the three.

    Of an evaluation's row that was judged there is the number alone: `/result` has the figures.
    """

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


EXAMPLE = {
    "again": {"value": {"model": "loan", "explanations": {"label": "denied"}}},
    "evaluate": {
        "value": {
            "model": "loan",
            "kind": "evaluate",
            "dataset": "heldout",
            "methods": ["integrated_gradients", "saliency"],
            "metrics": ["deletion", "max_sensitivity"],
        }
    },
}


@router.post(
    "/v1/jobs",
    status_code=202,
    responses=answers(404, 503),
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("explain")
@repeatable
async def make_job(request: ApiRequest, body: JobBody) -> Reply[JobItem]:
    """Takes rows to explain, or whose explanations to judge, at bulk priority. The answer is the job; it survives
    restarts of the service."""
    return await once(request, lambda key: _make_job(request, body, key), _repeat)


async def _make_job(request: ApiRequest, body: JobBody, key: RequestKey | None) -> Reply[JobItem]:
    caller, services, with_ledger = request.caller, request.services, request.services.need_ledger()
    version = services.catalog.find(body.model, body.version)
    vault, job_id = services.vault, uuid7()
    spec = _explain_spec(body, version, caller) if body.kind == EXPLAIN else _evaluate_spec(body, version, caller)
    rows = (
        await _rows_of_explanations(body, version, with_ledger.ledger, caller)
        if body.explanations is not None
        else await asyncio.to_thread(_rows_of_instances, body, version, vault, caller.tenant)
    )
    if body.explanations is not None:
        conditions = [name for name, value in body.explanations if value]
        await record_lookup(request, job_id, {"action": "job", "conditions": conditions, "rows": len(rows)})
    job = new_job(job_id, caller, body.kind, sealed_spec(vault, job_id, spec), len(rows))
    item = _item(job, spec)
    remembered = None if key is None else key.remembered(item.model_dump(exclude_defaults=True))
    await asyncio.to_thread(with_ledger.jobs.create, job, rows, remembered)
    with_ledger.runner.wake()
    return _accepted(item)


def _explain_spec(body: JobBody, version: ModelVersion, caller: Caller) -> ExplainSpec:
    """Raises PolicyForbids, InvalidRequest."""
    refuse_method(caller.policy, body.parameters.method or version.manifest.defaults.method)
    if body.parameters.when is not None:
        rule_of(version, body.parameters.when, caller.policy)
    return ExplainSpec(version.key.name, version.key.version, body.parameters.parameters())


def _evaluate_spec(body: JobBody, version: ModelVersion, caller: Caller) -> EvaluateSpec:
    """Raises PolicyForbids, InvalidRequest, ModelNotReady."""
    if caller.policy.digits is not None or not caller.policy.outputs:
        raise PolicyForbids("the key's policy limits what is shown of outputs, and figures are made of those")
    methods = _methods(body, version)
    for method in methods:
        refuse_method(caller.policy, method)
    measures = tuple(read_measures(version, body.metrics, body.options, has_boxes=body.boxes is not None))
    source = "held-out rows" if body.dataset else "instances" if body.instances else "stored explanations"
    parameters = body.parameters.parameters()
    return EvaluateSpec(version.key.name, version.key.version, parameters, methods, measures, source)


def _methods(body: JobBody, version: ModelVersion) -> tuple[str, ...]:
    """The methods that explain each input; none where explanations are judged that are there."""
    if body.methods is not None:
        return tuple(dict.fromkeys(body.methods))
    if body.explanations is not None and body.parameters.method is None:
        return ()
    return (body.parameters.method or version.manifest.defaults.method,)


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
    newest = await asyncio.to_thread(jobs.newest, request.caller.tenant, KINDS, MAX_LISTED)
    return JobsReply(jobs=[_item(job, ExplainSpec.of(vault, job)) for job in newest])


@router.get("/v1/jobs/{job}", responses=answers(404, 503))
@needs("explain")
async def show_job(request: ApiRequest, job: str, query: Annotated[ResultsQuery, Query()]) -> JobReply:
    """The state of a job, how far it is, and the rows that are finished, in their order."""
    stored = await find_job(request, job, *KINDS)
    jobs = request.services.need_ledger().jobs
    rows = await asyncio.to_thread(jobs.results, stored.id, query.cursor - 1, query.limit)
    has_more = bool(rows) and (len(rows) == query.limit or stored.ended is None)
    return JobReply(
        **dict(_item(stored, ExplainSpec.of(request.services.vault, stored))),
        results=[_result(row, stored.kind) for row in rows],
        next_cursor=rows[-1].number + 1 if has_more else None,
    )


@router.delete("/v1/jobs/{job}", responses=answers(404, 503))
@needs("explain")
async def cancel_job(request: ApiRequest, job: str) -> JobItem:
    """Ends a job within seconds; the explanations that are made stay. One that has ended stays as it is."""
    stored = await find_job(request, job, *KINDS)
    await asyncio.to_thread(request.services.need_ledger().jobs.cancel, request.caller.tenant, stored.id)
    cancelled = await find_job(request, job, *KINDS)
    return _item(cancelled, ExplainSpec.of(request.services.vault, cancelled))


def _rows_of_instances(body: JobBody, version: ModelVersion, vault: Vault, tenant: str) -> list[JobRow]:
    """The rows of instances, each of which could be explained. Raises InvalidRequest."""
    instances = _held_out(body, version) if body.instances is None else body.instances
    parameters = body.parameters.parameters()
    contexts = _contexts(body, len(instances))
    rows: list[JobRow] = []
    read = read_instances(version.manifest, instances, version.folder)
    for number, row in enumerate(read):
        if number == 0:
            _refuse_plans(body, version, row, tenant)
        if parameters.when is None:  # else only some are explained, and it is not known yet which
            check_explained(version, [row], parameters, [number])
        context = contexts[number]
        subject = None if context.subject is None else vault.lookup(tenant, context.subject)
        for _ in range(parameters.explanations):
            explanation = uuid7()
            payload = sealed_payload(vault, explanation, instances[number], context, _boxes(body, number))
            rows.append(JobRow(len(rows), explanation, payload=payload, subject=subject))
    return rows


def _boxes(body: JobBody, number: int) -> list[tuple[int, ...]]:
    """Those of an instance."""
    return [] if body.boxes is None else [(box.top, box.left, box.bottom, box.right) for box in body.boxes[number]]


def _held_out(body: JobBody, version: ModelVersion) -> list[Any]:
    """Instances of the version's held-out rows, drawn by the seed. Raises InvalidRequest where it has none."""
    inputs = version.manifest.inputs
    known = read_heldout_rows(version.folder, inputs.shape)
    if known is None:
        raise InvalidRequest(f"{version.key} has no held-out rows (`{HELD_OUT}` in its folder); send instances")
    drawn = np.random.default_rng(body.parameters.parameters().seed).permutation(len(known))
    return [inputs.as_instance(known[at].tolist()) for at in drawn[: body.rows or HELD_OUT_ROWS]]


def _refuse_plans(body: JobBody, version: ModelVersion, row: Row, tenant: str | None) -> None:
    """Raises InvalidRequest for parameters, or methods, that the model cannot be explained with."""
    parameters = body.parameters.parameters()
    methods = [parameters.method] if body.kind == EXPLAIN else _methods(body, version)
    for method in methods:
        check_request(version, row, replace(parameters, method=method), tenant)


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
    _refuse_plans(body, version, row, stored.tenant)


def _item(job: Job, spec: ExplainSpec | EvaluateSpec) -> JobItem:
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


def _result(row: JobRow, kind: str) -> ResultItem:
    if row.outcome == DONE and kind == EVALUATE:
        return ResultItem(row=row.number)
    if row.outcome == DONE and row.detail is not None:
        return ResultItem(row=row.number, not_explained=row.detail)
    if row.outcome == DONE:
        return ResultItem(row=row.number, explanation=row.explanation_id)
    return ResultItem(row=row.number, error=row.detail)
