"""`/v1/exports`: stored explanations as a file, written in the background."""

from __future__ import annotations

import asyncio
from socket import gethostname
from typing import Any

from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from service.access.callers import Caller
from service.api.auth import needs
from service.api.background import MAX_LISTED, find_job, new_job
from service.api.filters import FilterBody
from service.api.idempotency import once, repeatable
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import Reply, new_router
from service.api.schemas import Strict
from service.background.exporting import DOWNLOAD, ExportSpec, Format, is_available
from service.background.jobs import sealed_spec
from service.errors import Conflict, Gone, InvalidRequest, PolicyForbids
from service.ledger.entries import Remembered, RequestKey
from service.ledger.ids import uuid7
from service.ledger.stored_jobs import EXPORT, Job, State

MEDIA_TYPES = {
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
    Format.ZIP: "application/zip",
}

router = new_router("Exports")


class ExportBody(Strict):
    """Which stored explanations, and as what."""

    format: Format = Field(
        Format.ZIP, description="`csv` and `parquet`: a table; `zip`: signed, with a proof for every record"
    )
    explanations: FilterBody = Field(default_factory=lambda: FilterBody(), description="conditions that all hold")


class WrittenItem(BaseModel):
    """How far the file is."""

    total: int | None = Field(None, description="absent until it is known")
    done: int = Field(description="records that are written")


class ExportItem(BaseModel):
    """An export."""

    id: str = Field(description="of the export")
    format: Format = Field(description="of the file")
    state: State = Field(description="how it stands")
    detail: str | None = Field(None, description="why it failed, or what it waits for")
    created: int = Field(description="microseconds since the epoch, UTC")
    ended: int | None = Field(None, description="microseconds since the epoch, UTC; absent until it has")
    progress: WrittenItem = Field(description="how far it is")


class ExportsReply(BaseModel):
    """The last exports."""

    exports: list[ExportItem] = Field(description="the newest first")


EXAMPLE = {"denials": {"value": {"format": "csv", "explanations": {"label": "denied"}}}}


@router.post(
    "/v1/exports",
    status_code=202,
    responses=answers(404, 503),
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("ledger:read")
@repeatable
async def make_export(request: ApiRequest, body: ExportBody) -> Reply[ExportItem]:
    """Has stored explanations written to a file, in the background; the answer is the export."""
    return await once(request, lambda key: _make_export(request, body, key), _repeat)


async def _make_export(request: ApiRequest, body: ExportBody, key: RequestKey | None) -> Reply[ExportItem]:
    caller, with_ledger, vault = request.caller, request.services.need_ledger(), request.services.vault
    _refuse_limited(caller)
    if not is_available(body.format):
        raise InvalidRequest("this service was installed without the extra `parquet`; csv and zip are there")
    search = body.explanations.search()
    conditions = [name for name, value in body.explanations if value]
    spec = ExportSpec(body.format, search, tuple(conditions))
    export_id = uuid7()
    job = new_job(export_id, caller, EXPORT, sealed_spec(vault, export_id, spec), None)
    item = _item(job, spec)
    remembered = None if key is None else key.remembered(item.model_dump(exclude_defaults=True))
    await asyncio.to_thread(with_ledger.jobs.create, job, kept=remembered)
    with_ledger.runner.wake()
    return _accepted(item)


async def _repeat(_remembered: Remembered, answer: dict[str, Any]) -> Reply[ExportItem]:
    """The export as it was when it was made."""
    return _accepted(ExportItem(**answer))


def _accepted(item: ExportItem) -> Reply[ExportItem]:
    return Reply(item, 202, {"Location": f"/v1/exports/{item.id}"})


@router.get("/v1/exports", responses=answers(404, 503))
@needs("ledger:read")
async def list_exports(request: ApiRequest) -> ExportsReply:
    """The last exports, the newest first."""
    jobs, vault = request.services.need_ledger().jobs, request.services.vault
    newest = await asyncio.to_thread(jobs.newest, request.caller.tenant, (EXPORT,), MAX_LISTED)
    return ExportsReply(exports=[_item(job, ExportSpec.of(vault, job)) for job in newest])


@router.get("/v1/exports/{export}", responses=answers(404, 503))
@needs("ledger:read")
async def show_export(request: ApiRequest, export: str) -> ExportItem:
    """The state of an export, and how far it is."""
    job = await find_job(request, export, EXPORT)
    return _item(job, ExportSpec.of(request.services.vault, job))


@router.delete("/v1/exports/{export}", responses=answers(404, 503))
@needs("ledger:read")
async def cancel_export(request: ApiRequest, export: str) -> ExportItem:
    """Ends an export that is being written. One that has ended stays as it is."""
    job = await find_job(request, export, EXPORT)
    await asyncio.to_thread(request.services.need_ledger().jobs.cancel, request.caller.tenant, job.id)
    return await show_export(request, export)


@router.get(
    "/v1/exports/{export}/file",
    response_class=FileResponse,
    responses={
        200: {
            "content": {
                media.partition(";")[0]: {"schema": {"type": "string", "format": "binary"}}
                for media in MEDIA_TYPES.values()
            }
        },
        **answers(404, 409, 410, 503),
    },
)
@needs("ledger:read")
async def fetch_export(request: ApiRequest, export: str) -> FileResponse:
    """The file. It is kept for a day, and withdrawn as soon as anybody's data is erased."""
    caller, with_ledger = request.caller, request.services.need_ledger()
    _refuse_limited(caller)
    job = await find_job(request, export, EXPORT)
    if job.state is not State.DONE:
        raise Conflict(f"the export is {job.state}" + (f"; {job.detail}" if job.detail else ""))
    path = await with_ledger.exports.file(job)
    if path is None:
        raise Gone(f"{_place(await with_ledger.exports.host(job))}, for a day, and not past an erasure")
    await with_ledger.ledger.append_event(DOWNLOAD, caller.tenant, caller.key_id, job.id)
    form = Format(path.suffix[1:])
    return FileResponse(path, media_type=MEDIA_TYPES[form], filename=f"explanations-{job.id}.{form}")


def _place(written_on: str | None) -> str:
    """A sentence on where a file is kept that is not on this host."""
    here = gethostname()
    if written_on is None or written_on == here:
        return "the file is no longer here: it is kept where it was written"
    return f"the file is not on this host, {here}: it is kept on {written_on}, which wrote it"


def _refuse_limited(caller: Caller) -> None:
    if caller.policy.limits_values:
        raise PolicyForbids("an export holds whole records, and the key's policy limits what is shown")


def _item(job: Job, spec: ExportSpec) -> ExportItem:
    return ExportItem(
        id=job.id,
        format=spec.format,
        state=job.state,
        detail=job.detail,
        created=job.created,
        ended=job.ended,
        progress=WrittenItem(total=job.total, done=job.done),
    )
