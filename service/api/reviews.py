"""`POST /v1/explanations/{id}:review`: what a person found of an explanation that a rule flagged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.api.auth import CallerOf, caller_of, needs
from service.api.explanations import find_stored, ledger_of
from service.api.idempotency import once, repeatable
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import Strict
from service.ledger.entries import Remembered, RequestKey, Stored, StoredEvent
from service.monitoring.metrics import Metrics

MOST_SHOWN = 100
LONGEST_NOTE = 500

reviewing = APIRouter(route_class=StrictRoute, tags=["Stored explanations"])
reading = APIRouter(tags=["Stored explanations"])
routers = (reviewing, reading)


class ReviewBody(Strict):
    """What was found. The verdict is in the log for good, the note until what it is about is erased."""

    verdict: Literal["accepted", "rejected", "escalated"] = Field(description="what was found")
    note: Annotated[str, Field(max_length=LONGEST_NOTE, description="why, and what is to be done")] = ""


class ReviewItem(BaseModel):
    """One review."""

    verdict: str = Field(description="`accepted`, `rejected` or `escalated`")
    note: str = Field(description="why, and what is to be done")
    created: int = Field(description="microseconds since the epoch, UTC")
    key_id: str = Field(description="of the reviewer's key")
    sequence: int = Field(description="its place in the log")


class ReviewsReply(BaseModel):
    """The reviews of an explanation, the newest first, which is the one that counts."""

    id: str = Field(description="of the explanation")
    reviews: list[ReviewItem] = Field(description="the newest first")


EXAMPLE = {"verdict": {"value": {"verdict": "accepted", "note": "the protected features count for little here"}}}


@reviewing.post(
    "/v1/explanations/{explanation}:review",
    responses={200: {"model": ReviewsReply}, **answers(400, 401, 403, 404, 408, 413, 415, 422, 503)},
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("ledger:write")
@repeatable
async def review_explanation(request: Request, explanation: str, body: ReviewBody) -> Response:
    """Records a verdict and a note as an event of the log; the explanation leaves the review queue."""
    caller = caller_of(request)
    stored = await find_stored(request, explanation, caller)

    async def reviewed(key: RequestKey | None) -> Response:
        kept = None if key is None else key.remembered({})
        await ledger_of(request).review(stored, caller.key_id, body.verdict, body.note, kept)
        metrics: Metrics = request.app.state.metrics
        metrics.reviews.labels(body.verdict).inc()
        return await _reviews(request, stored)

    async def told_again(kept: Remembered, _answer: dict[str, Any]) -> Response:
        return await _reviews(request, stored, kept.seq)

    return await once(request, reviewed, told_again)


@reading.get(
    "/v1/explanations/{explanation}/reviews",
    responses={200: {"model": ReviewsReply}, **answers(401, 403, 404, 503)},
)
@needs("ledger:read")
async def show_reviews(request: Request, explanation: str, caller: CallerOf) -> Response:
    """What was found of the explanation, by whom and when."""
    stored = await find_stored(request, explanation, caller)
    return await _reviews(request, stored)


async def _reviews(request: Request, stored: Stored, last: int | None = None) -> Response:
    """The reviews, up to the one at that place of the log where one is named."""
    reviews = await ledger_of(request).reviews(stored, MOST_SHOWN)
    shown = [_shown(event, note) for event, note in reviews if last is None or event.seq <= last]
    reply = {"id": stored.id, "reviews": shown}
    return Response(orjson.dumps(reply), media_type="application/json")


def _shown(event: StoredEvent, note: str | None) -> dict[str, Any]:
    return {
        "verdict": event.details["verdict"],
        "note": note or "",
        "created": event.created,
        "key_id": event.key_id,
        "sequence": event.seq,
    }
