"""`POST /v1/explanations/{id}:review`: what a person found of an explanation that a rule flagged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.api.auth import needs
from service.api.explanations import find_stored
from service.api.idempotency import once, repeatable
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import Strict
from service.ledger.entries import Remembered, RequestKey, Stored, StoredEvent

MAX_LISTED = 100
MAX_NOTE = 500

router = new_router("Stored explanations")


class ReviewBody(Strict):
    """What was found. The verdict is in the log for good, the note until what it is about is erased."""

    verdict: Literal["accepted", "rejected", "escalated"] = Field(description="what was found")
    note: Annotated[str, Field(max_length=MAX_NOTE, description="why, and what is to be done")] = ""


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


@router.post(
    "/v1/explanations/{explanation}:review",
    responses=answers(404, 410, 503),
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": EXAMPLE}}}},
)
@needs("ledger:write")
@repeatable
async def review_explanation(request: ApiRequest, explanation: str, body: ReviewBody) -> ReviewsReply:
    """Records a verdict and a note as an event of the log; the explanation leaves the review queue."""
    services = request.services
    stored = await find_stored(request, explanation)

    async def review(key: RequestKey | None) -> ReviewsReply:
        remembered = None if key is None else key.remembered({})
        ledger = services.need_ledger().ledger
        await ledger.review(stored, request.caller.key_id, body.verdict, body.note, remembered)
        services.metrics.reviews.labels(body.verdict).inc()
        return await _reviews(request, stored)

    async def repeat(remembered: Remembered, _answer: dict[str, Any]) -> ReviewsReply:
        return await _reviews(request, stored, remembered.seq)

    return await once(request, review, repeat)


@router.get("/v1/explanations/{explanation}/reviews", responses=answers(404, 410, 503))
@needs("ledger:read")
async def show_reviews(request: ApiRequest, explanation: str) -> ReviewsReply:
    """What was found of the explanation, by whom and when."""
    return await _reviews(request, await find_stored(request, explanation))


async def _reviews(request: ApiRequest, stored: Stored, last: int | None = None) -> ReviewsReply:
    """The reviews, up to the one at that place of the log where one is named."""
    reviews = await request.services.need_ledger().ledger.reviews(stored, MAX_LISTED)
    items = [_item(event, note) for event, note in reviews if last is None or event.seq <= last]
    return ReviewsReply(id=stored.id, reviews=items)


def _item(event: StoredEvent, note: str | None) -> ReviewItem:
    return ReviewItem(
        verdict=event.details["verdict"],
        note=note or "",
        created=event.created,
        key_id=event.key_id,
        sequence=event.seq,
    )
