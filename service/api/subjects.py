"""What is stored of one person: counted, erased, or put under a legal hold."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, Field

from service.api.access_log import record_lookup
from service.api.auth import needs
from service.api.idempotency import once, repeatable
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import Strict
from service.errors import InvalidRequest
from service.ledger.entries import MAX_TEXT_LENGTH, Remembered, RequestKey
from service.ledger.legal_holds import Hold
from service.ledger.naming import normal

MAX_REASON = 500
NO_REASON = "none was given"
"""The reason that is recorded of an erasure which names none."""


def _examples(reason: str) -> dict[str, Any]:
    """What the documentation shows for a body."""
    examples = {"reason": {"value": {"reason": reason}}}
    return {"requestBody": {"content": {"application/json": {"examples": examples}}}}


router = new_router("People")


class ReasonBody(Strict):
    """Why. It stays in the log for good, so it must not say who the person is."""

    reason: Annotated[str, Field(max_length=MAX_REASON, description="why it is done")] = ""


class HoldBody(Strict):
    """Why the data must be kept: whoever asks for erasure meanwhile is told. It must not say who the person is."""

    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON, description="why it must be kept")]


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


@router.get("/v1/subjects/{subject:text}:count", responses=answers(404, 503))
@needs("ledger:read")
async def count_subject(request: ApiRequest, subject: str) -> KeptReply:
    """How much is kept of the person, before it is held or erased. However a name is spelt in Unicode, it is one."""
    maintenance = request.services.need_ledger().maintenance
    kept = await maintenance.kept_of(request.caller.tenant, _checked(subject))
    await record_lookup(request, kept.tokens[0] if kept.tokens else None, {"action": "subject"})
    return KeptReply(
        explanations=kept.explanations,
        job_rows=kept.job_rows,
        set_rows=kept.set_rows,
        hold=None if kept.hold is None else _hold_item(kept.hold),
    )


@router.post(
    "/v1/subjects/{subject:text}:erase",
    responses=answers(404, 409, 503),
    openapi_extra=_examples("asked for by the person"),
)
@needs("ledger:write")
@repeatable
async def erase_subject(request: ApiRequest, subject: str, body: ReasonBody = ReasonBody()) -> ErasedReply:  # noqa: B008
    """Destroys what is kept of the person, for good; every proof stays valid. 409 under a legal hold.

    The tenant's files of earlier exports are withdrawn. Rows of jobs with the person's input end, unexplained.
    Rows of baseline sets that were kept as the person's are removed; such a set goes on with the others.
    """
    caller, reason = request.caller, body.reason or NO_REASON

    async def erase(key: RequestKey | None) -> ErasedReply:
        with_ledger = request.services.need_ledger()
        erased = await with_ledger.maintenance.erase(caller.tenant, _checked(subject), caller.key_id, reason, key)
        await asyncio.to_thread(with_ledger.exports.sweep)
        return ErasedReply(**asdict(erased))

    async def repeat(_remembered: Remembered, answer: dict[str, Any]) -> ErasedReply:
        return ErasedReply(**answer)

    return await once(request, erase, repeat)


@router.post(
    "/v1/subjects/{subject:text}:hold", responses=answers(404, 409, 503), openapi_extra=_examples("case 2026-118")
)
@needs("ledger:write")
@repeatable
async def hold_subject(request: ApiRequest, subject: str, body: HoldBody) -> HoldReply:
    """Puts a legal hold on the person's data: neither erasure nor retention touches it until it is released."""
    caller = request.caller

    async def hold(key: RequestKey | None) -> HoldReply:
        maintenance = request.services.need_ledger().maintenance
        held = await maintenance.hold(caller.tenant, _checked(subject), caller.key_id, body.reason, key)
        return HoldReply(
            **dict(_hold_item(held.hold)),
            explanations=held.explanations,
            job_rows=held.job_rows,
            set_rows=held.set_rows,
        )

    async def repeat(_remembered: Remembered, answer: dict[str, Any]) -> HoldReply:
        return HoldReply(**answer)

    return await once(request, hold, repeat)


@router.post(
    "/v1/subjects/{subject:text}:release",
    responses=answers(404, 409, 503),
    openapi_extra=_examples("case 2026-118 is closed"),
)
@needs("ledger:write")
@repeatable
async def release_subject(request: ApiRequest, subject: str, body: ReasonBody = ReasonBody()) -> ReleasedReply:  # noqa: B008
    """Ends the legal hold."""
    caller = request.caller

    async def release(key: RequestKey | None) -> ReleasedReply:
        maintenance = request.services.need_ledger().maintenance
        await maintenance.release(caller.tenant, _checked(subject), caller.key_id, body.reason, key)
        return ReleasedReply(released=True)

    async def repeat(_remembered: Remembered, answer: dict[str, Any]) -> ReleasedReply:
        return ReleasedReply(**answer)

    return await once(request, release, repeat)


def _hold_item(hold: Hold) -> HoldItem:
    return HoldItem(subject=hold.token, by=hold.by, reason=hold.reason, created=hold.created)


def _checked(subject: str) -> str:
    """The name, of which only the length is checked: older records may have names that would be refused now.

    Raises InvalidRequest.
    """
    if len(normal(subject)) > MAX_TEXT_LENGTH:
        raise InvalidRequest(f"a subject has at most {MAX_TEXT_LENGTH} characters")
    return subject
