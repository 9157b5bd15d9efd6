"""What is kept of one person: counted, erased, or held back from erasure."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.convertors import StringConvertor, register_url_convertor

from service.api.access_log import record_lookup
from service.api.auth import CallerOf, caller_of, needs
from service.api.evidence import maintenance_of
from service.api.idempotency import once, repeatable
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import Strict
from service.background.exporting import Exports
from service.errors import InvalidRequest
from service.ledger.entries import MAX_TEXT_LENGTH, Remembered, RequestKey
from service.ledger.legal_holds import RELEASED
from service.ledger.naming import normal

LONGEST_REASON = 500
NO_REASON = "none was given"
"""The reason that is recorded of an erasure which names none."""


class _AnyText(StringConvertor):
    """Of a path: whatever stands there. Names may hold slashes, and old ones line breaks."""

    regex = "(?s:.*)"


register_url_convertor("text", _AnyText())


def _examples(reason: str) -> dict[str, Any]:
    """What the documentation shows for a body."""
    examples = {"reason": {"value": {"reason": reason}}}
    return {"requestBody": {"content": {"application/json": {"examples": examples}}}}


acting = APIRouter(
    route_class=StrictRoute,
    tags=["People"],
    responses=answers(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
)
reading = APIRouter(tags=["People"], responses=answers(401, 403, 404, 422, 503))
routers = (acting, reading)


class ReasonBody(Strict):
    """Why. It stays in the log for good, so it must not say who the person is."""

    reason: Annotated[str, Field(max_length=LONGEST_REASON, description="why it is done")] = ""


class HoldBody(Strict):
    """Why the data must be kept: whoever asks for erasure meanwhile is told. It must not say who the person is."""

    reason: Annotated[str, Field(min_length=1, max_length=LONGEST_REASON, description="why it must be kept")]


class ErasedReply(BaseModel):
    """So many records lost their personal part, so many rows of jobs that waited to be explained what they held, and
    so many rows were removed from baseline sets, by the event at place `tombstone` of the log. So many exports had been
    asked for by the name, and forgot it."""

    records: int = Field(description="records whose personal part was erased")
    job_rows: int = Field(description="rows of jobs that were not explained yet")
    exports: int = Field(description="exports that had been asked for by the name, and forgot it")
    set_rows: int = Field(description="rows of baseline sets")
    tombstone: int = Field(description="the row of the log that says so")


class HoldItem(BaseModel):
    """The hold; `subject` is the token by which the log knows the person."""

    subject: str = Field(description="the token by which the log knows the person")
    by: str = Field(description="the id of a key, or an operator at the command line")
    reason: str = Field(description="why the data must be kept")
    created: int = Field(description="microseconds since the epoch, UTC")


class ReleasedReply(BaseModel):
    """The hold has ended."""

    released: bool = Field(description="true")


class HoldReply(HoldItem):
    """The hold, and what it is on so far; 0 of a person whom nobody has named yet, or of a name that is misspelt."""

    explanations: int = Field(description="explanations on record")
    job_rows: int = Field(description="rows of jobs that wait to be explained")
    set_rows: int = Field(description="rows of baseline sets")


class KeptReply(BaseModel):
    """What an erasure would destroy: explanations, rows of jobs that wait to be explained, rows of baseline sets."""

    explanations: int = Field(description="explanations on record")
    job_rows: int = Field(description="rows of jobs that wait to be explained")
    set_rows: int = Field(description="rows of baseline sets")
    hold: HoldItem | None = Field(description="the legal hold in force, which forbids to erase it")


@reading.get("/v1/subjects/{subject:text}:count", responses={200: {"model": KeptReply}})
@needs("ledger:read")
async def count_subject(request: Request, subject: str, caller: CallerOf) -> Response:
    """How much is kept of the person, before it is held or erased. However a name is spelt in Unicode, it is one."""
    kept = await maintenance_of(request).kept_of(caller.tenant, _known(subject))
    about = kept.tokens[0] if kept.tokens else None
    await record_lookup(request, caller, about, {"action": "subject"})
    hold = None if kept.hold is None else kept.hold.told
    counts = {"explanations": kept.explanations, "job_rows": kept.job_rows, "set_rows": kept.set_rows}
    return _json({**counts, "hold": hold})


@acting.post(
    "/v1/subjects/{subject:text}:erase",
    responses={200: {"model": ErasedReply}},
    openapi_extra=_examples("asked for by the person"),
)
@needs("ledger:write")
@repeatable
async def erase_subject(request: Request, subject: str, body: ReasonBody = ReasonBody()) -> Response:  # noqa: B008
    """Destroys what is kept of the person, for good; every proof stays valid. 409 under a legal hold.

    The tenant's files of earlier exports are withdrawn. Rows of jobs with the person's input end, unexplained.
    Rows of baseline sets that were kept as the person's are removed; such a set goes on with the others.
    """
    caller = caller_of(request)
    reason = body.reason or NO_REASON

    async def erased(key: RequestKey | None) -> Response:
        done = await maintenance_of(request).erase(caller.tenant, _known(subject), caller.key_id, reason, key)
        exports: Exports = request.app.state.exports
        await asyncio.to_thread(exports.sweep)
        return _json(asdict(done))

    return await once(request, erased, _told_again)


@acting.post(
    "/v1/subjects/{subject:text}:hold",
    responses={200: {"model": HoldReply}},
    openapi_extra=_examples("case 2026-118"),
)
@needs("ledger:write")
@repeatable
async def hold_subject(request: Request, subject: str, body: HoldBody) -> Response:
    """Puts a legal hold on the person's data: neither erasure nor retention touches it until it is released."""
    caller = caller_of(request)

    async def held(key: RequestKey | None) -> Response:
        kept = await maintenance_of(request).hold(caller.tenant, _known(subject), caller.key_id, body.reason, key)
        return _json(kept.told)

    return await once(request, held, _told_again)


@acting.post(
    "/v1/subjects/{subject:text}:release",
    responses={200: {"model": ReleasedReply}},
    openapi_extra=_examples("case 2026-118 is closed"),
)
@needs("ledger:write")
@repeatable
async def release_subject(request: Request, subject: str, body: ReasonBody = ReasonBody()) -> Response:  # noqa: B008
    """Ends the legal hold."""
    caller = caller_of(request)

    async def released(key: RequestKey | None) -> Response:
        await maintenance_of(request).release(caller.tenant, _known(subject), caller.key_id, body.reason, key)
        return _json(RELEASED)

    return await once(request, released, _told_again)


async def _told_again(_kept: Remembered, reply: dict[str, Any]) -> Response:
    return _json(reply)


def _known(subject: str) -> str:
    """A name that something may be recorded under, also one that is refused by now. Raises InvalidRequest."""
    if len(normal(subject)) > MAX_TEXT_LENGTH:
        raise InvalidRequest(f"a subject has at most {MAX_TEXT_LENGTH} characters")
    return subject


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
