"""`/v1/exports`: stored explanations as a file, written in the background."""

from __future__ import annotations

import asyncio
from socket import gethostname
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from service.answers.records import Caller, uuid7
from service.api.auth import CallerOf, caller_of, needs
from service.api.background import MOST_LISTED, find_job, jobs_of, new_job
from service.api.explanations import ledger_of
from service.api.filters import FilterBody
from service.api.idempotency import once, repeatable
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import Strict
from service.background.exporting import DOWNLOAD, Exports, Format, is_available
from service.background.jobs import Runner, sealed_spec, spec_of
from service.errors import Conflict, Gone, InvalidRequest, PolicyForbids
from service.ledger import Vault
from service.ledger.entries import Remembered, RequestKey
from service.ledger.stored_jobs import EXPORT, Job, State

MEDIA_TYPES = {
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
    Format.ZIP: "application/zip",
}

making = APIRouter(route_class=StrictRoute, tags=["Exports"])
reading = APIRouter(tags=["Exports"], responses=answers(401, 403, 404, 422, 429, 503))
routers = (making, reading)


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
    detail: str | None = Field(None, description="why it failed")
    created: int = Field(description="microseconds since the epoch, UTC")
    ended: int | None = Field(None, description="microseconds since the epoch, UTC; absent until it has")
    progress: WrittenItem = Field(description="how far it is")


class ExportsReply(BaseModel):
    """The last exports."""

    exports: list[ExportItem] = Field(description="the newest first")


EXAMPLE = {"denials": {"value": {"format": "csv", "explanations": {"label": "denied"}}}}


@making.post(
    "/v1/exports",
    status_code=202,
    responses={202: {"model": ExportItem}, **answers(400, 401, 403, 404, 408, 413, 415, 422, 429, 503)},
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("ledger:read")
@repeatable
async def make_export(request: Request, body: ExportBody) -> Response:
    """Has stored explanations written to a file, in the background; the answer is the export."""
    return await once(request, lambda key: _make_export(request, body, key), _accepted_again)


async def _make_export(request: Request, body: ExportBody, key: RequestKey | None) -> Response:
    caller, jobs = caller_of(request), jobs_of(request)
    _refuse_limited(caller)
    if not is_available(body.format):
        raise InvalidRequest("this service was installed without the extra `parquet`; csv and zip are there")
    search = body.explanations.search()
    conditions = [name for name, value in body.explanations if value]
    spec = {"format": body.format, "search": search, "conditions": conditions}
    export_id = uuid7()
    vault: Vault = request.app.state.vault
    job = new_job(export_id, caller, EXPORT, sealed_spec(vault, export_id, spec), None)
    shown = _shown(job, spec)
    await asyncio.to_thread(jobs.create, job, kept=None if key is None else key.remembered(shown))
    runner: Runner = request.app.state.runner
    runner.wake()
    return _accepted(shown)


async def _accepted_again(_kept: Remembered, shown: dict[str, Any]) -> Response:
    return _accepted(shown)


def _accepted(shown: dict[str, Any]) -> Response:
    """The export as it was when it was made."""
    location = f"/v1/exports/{shown['id']}"
    return Response(orjson.dumps(shown), 202, {"Location": location}, media_type="application/json")


@reading.get("/v1/exports", responses={200: {"model": ExportsReply}})
@needs("ledger:read")
async def list_exports(request: Request, caller: CallerOf) -> Response:
    """The last exports, the newest first."""
    vault: Vault = request.app.state.vault
    found = await asyncio.to_thread(jobs_of(request).newest, caller.tenant, (EXPORT,), MOST_LISTED)
    return _answer({"exports": [_shown(job, spec_of(vault, job)) for job in found]})


@reading.get("/v1/exports/{export}", responses={200: {"model": ExportItem}})
@needs("ledger:read")
async def show_export(request: Request, export: str, caller: CallerOf) -> Response:
    """The state of an export, and how far it is."""
    return await _one(request, export, caller)


@reading.delete("/v1/exports/{export}", responses={200: {"model": ExportItem}})
@needs("ledger:read")
async def cancel_export(request: Request, export: str, caller: CallerOf) -> Response:
    """Ends an export that is being written. One that has ended stays as it is."""
    found = await find_job(request, export, caller, EXPORT)
    await asyncio.to_thread(jobs_of(request).cancel, caller.tenant, found.id)
    return await _one(request, export, caller)


@reading.get(
    "/v1/exports/{export}/file",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **answers(409, 410),
    },
)
@needs("ledger:read")
async def fetch_export(request: Request, export: str, caller: CallerOf) -> Response:
    """The file. It is kept for a day, and withdrawn as soon as anybody's data is erased."""
    _refuse_limited(caller)
    found = await find_job(request, export, caller, EXPORT)
    if found.state is not State.DONE:
        raise Conflict(f"the export is {found.state}")
    exports: Exports = request.app.state.exports
    path = await exports.file(found)
    if path is None:
        raise Gone(f"{_place(await exports.host(found))}, for a day, and not past an erasure")
    await ledger_of(request).append_event(DOWNLOAD, caller.tenant, caller.key_id, found.id)
    form = Format(path.suffix[1:])
    return FileResponse(path, media_type=MEDIA_TYPES[form], filename=f"explanations-{found.id}.{form}")


async def _one(request: Request, export: str, caller: Caller) -> Response:
    vault: Vault = request.app.state.vault
    found = await find_job(request, export, caller, EXPORT)
    return _answer(_shown(found, spec_of(vault, found)))


def _place(written_on: str | None) -> str:
    """Where a file is kept that is not found here."""
    here = gethostname()
    if written_on is None or written_on == here:
        return "the file is no longer here: it is kept where it was written"
    return f"the file is not on this host, {here}: it is kept on {written_on}, which wrote it"


def _refuse_limited(caller: Caller) -> None:
    if caller.policy.limits_values:
        raise PolicyForbids("an export holds whole records, and the key's policy limits what is shown")


def _shown(job: Job, spec: dict[str, Any]) -> dict[str, Any]:
    shown = {
        "id": job.id,
        "format": spec["format"],
        "state": job.state,
        "detail": job.detail,
        "created": job.created,
        "ended": job.ended,
        "progress": {name: count for name, count in (("total", job.total), ("done", job.done)) if count is not None},
    }
    return {name: value for name, value in shown.items() if value is not None}


def _answer(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
