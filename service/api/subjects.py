"""What is kept of one person: erased, or held back from erasure."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.api.auth import caller_of, needs
from service.api.evidence import steward_of
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import Strict
from service.errors import InvalidRequest
from service.exporting import Exports
from service.ledger.entries import LONGEST_TEXT

LONGEST_REASON = 500


def _examples(reason: str) -> dict[str, Any]:
    """What the documentation shows for a body."""
    examples = {"reason": {"value": {"reason": reason}}}
    return {"requestBody": {"content": {"application/json": {"examples": examples}}}}


router = APIRouter(
    route_class=StrictRoute,
    tags=["People"],
    responses=answers(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
)


class ReasonBody(Strict):
    """Why. It stays in the log for good, so it must not say who the person is."""

    reason: Annotated[str, Field(max_length=LONGEST_REASON, description="why it is done")] = ""


class HoldBody(Strict):
    """Why the data must be kept: whoever asks for erasure meanwhile is told. It must not say who the person is."""

    reason: Annotated[str, Field(min_length=1, max_length=LONGEST_REASON, description="why it must be kept")]


class ErasedReply(BaseModel):
    """So many records lost their personal part, so many rows of jobs that waited to be explained what they held, and
    so many rows were removed from baseline sets, by the event at place `tombstone` of the log."""

    records: int = Field(description="records whose personal part was erased")
    job_rows: int = Field(description="rows of jobs that were not explained yet")
    set_rows: int = Field(description="rows of baseline sets")
    tombstone: int = Field(description="the row of the log that says so")


class HoldReply(BaseModel):
    """The hold; `subject` is the token by which the log knows the person."""

    subject: str = Field(description="the token by which the log knows the person")
    by: str = Field(description="the id of the key that put the hold")
    reason: str = Field(description="why the data must be kept")
    created: int = Field(description="microseconds since the epoch, UTC")


class ReleasedReply(BaseModel):
    """The hold has ended."""

    released: bool = Field(description="true")


@router.post(
    "/v1/subjects/{subject:path}:erase",
    responses={200: {"model": ErasedReply}},
    openapi_extra=_examples("asked for by the person"),
)
@needs("ledger:write")
async def erase_subject(request: Request, subject: str, body: ReasonBody = ReasonBody()) -> Response:  # noqa: B008
    """Destroys what is kept of the person, for good; every proof stays valid. 409 under a legal hold.

    The tenant's files of earlier exports are withdrawn. Rows of jobs with the person's input end, unexplained.
    Rows of baseline sets that were kept as the person's are removed; such a set goes on with the others.
    """
    caller = caller_of(request)
    erased = await steward_of(request).erase(caller.tenant, _known(subject), caller.key_id, body.reason)
    exports: Exports = request.app.state.exports
    await asyncio.to_thread(exports.sweep)
    counts = {"records": erased.records, "job_rows": erased.job_rows, "set_rows": erased.set_rows}
    return _json({**counts, "tombstone": erased.tombstone})


@router.post(
    "/v1/subjects/{subject:path}:hold",
    responses={200: {"model": HoldReply}},
    openapi_extra=_examples("case 2026-118"),
)
@needs("ledger:write")
async def hold_subject(request: Request, subject: str, body: HoldBody) -> Response:
    """Puts a legal hold on the person's data: neither erasure nor retention touches it until it is released."""
    caller = caller_of(request)
    hold = await steward_of(request).hold(caller.tenant, _known(subject), caller.key_id, body.reason)
    return _json({"subject": hold.token, "by": hold.by, "reason": hold.reason, "created": hold.created})


@router.post(
    "/v1/subjects/{subject:path}:release",
    responses={200: {"model": ReleasedReply}},
    openapi_extra=_examples("case 2026-118 is closed"),
)
@needs("ledger:write")
async def release_subject(request: Request, subject: str, body: ReasonBody = ReasonBody()) -> Response:  # noqa: B008
    """Ends the legal hold."""
    caller = caller_of(request)
    await steward_of(request).release(caller.tenant, _known(subject), caller.key_id, body.reason)
    return _json({"released": True})


def _known(subject: str) -> str:
    if not subject or len(subject) > LONGEST_TEXT or "\0" in subject:
        raise InvalidRequest(f"a subject has 1 to {LONGEST_TEXT} characters")
    return subject


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
