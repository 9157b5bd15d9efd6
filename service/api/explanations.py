"""Look-ups of stored explanations: by id, and by what they belong to."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Annotated, cast

import orjson
from fastapi import Query, Response
from pydantic import Field

from service.access.permissions import Policy
from service.access.quotas import counted
from service.access.visibility import Absent
from service.answers.disclosure import limited
from service.answers.encoding import encode
from service.answers.reading import NOT_WHOLE, damaged, record_of
from service.answers.reasons import MAX_REASONS, why_no_reasons
from service.answers.record import DamagedItem, RecordItem
from service.answers.replies import ReasonsReply, SearchReply
from service.api.access_log import record_lookup, search_details
from service.api.auth import needs
from service.api.filters import FROM, TO, From, To, search_of
from service.api.problems import answers
from service.api.queries import QueryModel
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import MAX_COHORT_TAGS
from service.api.transport import while_connected
from service.errors import AnswerableError, Erased, InvalidRequest, NotFound
from service.ledger.entries import LogChanged, Stored
from service.ledger.searches import Page

LOG = logging.getLogger("answerable.api")
MAX_PER_PAGE = 200
COHORT = "cohort."
ID = re.compile(r"[0-9a-f-]{36}")

router = new_router("Stored explanations")


class ReasonsQuery(QueryModel):
    """How many reasons."""

    most: int = Field(MAX_REASONS, alias="max", ge=1, le=MAX_REASONS, description="at most so many reasons")


class SearchQuery(QueryModel):
    """Which explanations; all conditions hold. `cohort.<name>` is the tag of that name."""

    prefix = COHORT
    noun = "condition"

    model: str | None = Field(None, description="the name of a model")
    version: str | None = Field(None, description="a version of the model")
    subject: str | None = Field(None, description="the person, as requests named them in `context.subject`")
    decision_id: str | None = Field(None, description="the decision, as requests named it in `context.decision_id`")
    created_from: From = Field(None, alias="from", description=FROM)
    created_to: To = Field(None, alias="to", description=TO)
    converged: bool | None = Field(None, description="whether the tolerance was met")
    flag: str | None = Field(None, description="a review rule that fired")
    label: str | None = Field(None, description="the predicted label")
    reviewed: bool | None = Field(None, description="whether a person has reviewed it")
    limit: int = Field(50, ge=1, le=MAX_PER_PAGE, description="at most so many")
    cursor: str | None = Field(None, description="the `next_cursor` of the page before")


@router.get(
    "/v1/explanations/{explanation:name}",
    responses={200: {"model": RecordItem | DamagedItem}, **answers(404, 410, 503)},
)
@needs("ledger:read")
async def show_explanation(request: ApiRequest, explanation: str) -> Response:
    """The record: everything that was answered, and what it takes to repeat it.

    Of one that was changed behind the ledger's back and cannot be read, its place in the log, and `damaged`.
    """
    stored = await find_stored(request, explanation)
    content = await asyncio.to_thread(_record_content, stored, request.caller.policy)
    return Response(content, media_type="application/json")


@router.get(
    "/v1/explanations/{explanation}/reasons",
    responses={200: {"model": ReasonsReply}, **answers(404, 410, 429, 503, 504, 507)},
)
@needs("ledger:read")
async def show_reasons(request: ApiRequest, explanation: str, query: Annotated[ReasonsQuery, Query()]) -> Response:
    """The principal reasons, adverse direction only, the strongest first, and a counterfactual hint.

    The hint is found along the explained path, from the input towards the baseline, with the features of these reasons
    only: the fewest reasons and the smallest step at which the deployed model answers another label, or a value within
    the bound. It says what this model would answer, and is no advice. A key whose policy limits values gets none.
    """
    caller = request.caller
    stored = await find_stored(request, explanation)
    record = await asyncio.to_thread(lambda: limited(record_of(stored), caller.policy))
    if record.reasons is None:
        raise NotFound(f"the explanation has no reasons: {_why_no_reasons(request, record)}")
    hint = None
    if not caller.policy.limits_values:
        with counted(caller.account, 1):  # it reveals the model's answer to another row
            hint = await while_connected(request, request.services.counterfactuals.find(stored, query.most))
    reply = ReasonsReply(
        id=record.id,
        reasons=record.reasons[: query.most],
        reason_texts=None if isinstance(record.reason_texts, Absent) else record.reason_texts,
        counterfactual=hint,
    )
    return Response(encode(reply), media_type="application/json")


@router.get("/v1/explanations", responses={200: {"model": SearchReply}, **answers(404, 503)})
@needs("ledger:read")
async def search_explanations(request: ApiRequest, query: Annotated[SearchQuery, Query()]) -> Response:
    """Records that meet all conditions, the newest first. `cohort.<name>=<value>` finds by cohort tag.

    There are more as long as there is a `next_cursor`: a page of large records, of images say, ends before its `limit`.
    In the place of a record that cannot be read stands its id and place in the log, and `damaged`.
    `flag=<name>&reviewed=false` is the review queue of a rule.
    """
    cohort = {
        name.removeprefix(COHORT): value for name, value in request.query_params.items() if name.startswith(COHORT)
    }
    if len(cohort) > MAX_COHORT_TAGS:
        raise InvalidRequest(f"at most {MAX_COHORT_TAGS} conditions on cohort tags")
    conditions = {name: value for name, value in query if name not in ("limit", "cursor")}
    search = search_of(**conditions, cohort=cohort)
    ledger = request.services.need_ledger().ledger
    page = await ledger.search(request.caller.tenant, search, query.limit, query.cursor)
    await record_lookup(request, None, search_details(page))
    return Response(await asyncio.to_thread(_page_content, page, request.caller.policy), media_type="application/json")


def _why_no_reasons(request: ApiRequest, record: RecordItem) -> str:
    try:
        version = (
            None if record.model is None else request.services.catalog.find(record.model.name, record.model.version)
        )
    except AnswerableError:
        version = None
    if version is None or version.manifest_digest != record.manifest:
        return (
            "its model, which is not served here as it was, named nothing adverse, or its target says nothing of that"
        )
    target = None if record.target is None else record.target.text
    return why_no_reasons(version.manifest, target, has_attributions=record.attributions is not None)


def _record_content(stored: Stored, policy: Policy) -> bytes:
    """The record as it is shown, or that it is damaged.

    That of an image is a million numbers: not for the event loop.
    """
    try:
        return encode(limited(record_of(stored), policy))
    except (LogChanged, *NOT_WHOLE):
        LOG.error("the record of explanation %s is not what was written", stored.id)  # noqa: TRY400
        return encode(damaged(stored))


def _page_content(page: Page, policy: Policy) -> bytes:
    """The records of a page as JSON. Only one at a time is in memory as a value; the others are bytes already."""
    written = tuple(cast(RecordItem, orjson.Fragment(_record_content(stored, policy))) for stored in page.entries)
    return encode(SearchReply(explanations=written, next_cursor=page.next_cursor))


async def find_stored(
    request: ApiRequest, explanation: str, *, erased_too: bool = False, opened: bool = True
) -> Stored:
    """The caller's record of that id; that it was looked up is recorded.

    With `opened` False, what is sealed stays so. Raises NotFound, Erased unless `erased_too`, LedgerUnavailable when
    the look-up cannot be recorded.
    """
    ledger = request.services.need_ledger().ledger
    is_id = ID.fullmatch(explanation) is not None  # PostgreSQL would not even compare a text with a NUL
    stored = await ledger.get(request.caller.tenant, explanation, opened=opened) if is_id else None
    if stored is None:
        raise NotFound("there is no such explanation")
    await record_lookup(request, stored.id)
    if not erased_too:
        await refuse_erased(request, stored)
    return stored


async def refuse_erased(request: ApiRequest, stored: Stored) -> None:
    """Raises Erased, with what the log says of it."""
    if stored.tombstone is not None:
        raise Erased(await _tombstone(request, stored.tombstone))


async def _tombstone(request: ApiRequest, place: int) -> dict[str, object]:
    """What the log says of an erasure."""
    event = await request.services.need_ledger().maintenance.tombstone(place)
    if event is None:
        raise LogChanged("the tombstone of this explanation is gone")
    why = {name: event.details[name] for name in ("reason", "class") if name in event.details}
    return {"kind": event.kind, "created": event.created, "key_id": event.key_id, "sequence": place, **why}
