"""Look-ups of stored explanations: by id, and by what they belong to."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from service.access.permissions import Policy
from service.access.quotas import counted
from service.answers.disclosure import limited
from service.answers.reasons import MOST_REASONS
from service.answers.records import Caller, whole_record
from service.api.access_log import described, record_lookup
from service.api.auth import CallerOf, needs
from service.api.filters import QUERY_NAMES, From, To, search_of
from service.api.problems import answers
from service.api.schemas import MOST_COHORT_TAGS
from service.api.stored_schemas import ReasonsReply, RecordItem, SearchReply
from service.api.transport import while_connected
from service.catalog.nearest import Searches
from service.errors import MOST_FAULTS, Erased, Fault, InvalidRequest, Kind, NotFound
from service.ledger.entries import LogChanged, Stored
from service.ledger.ledger import Ledger
from service.ledger.maintenance import LedgerMaintenance
from service.ledger.searches import Page
from service.usecases.counterfactual import Counterfactuals

MOST_PER_PAGE = 200
COHORT = "cohort."
ID = re.compile(r"[0-9a-f-]{36}")
FILTERS = QUERY_NAMES | {"limit", "cursor"}

router = APIRouter(tags=["Stored explanations"], responses=answers(401, 403, 404, 410, 422, 503))


@router.get("/v1/explanations/{explanation:name}", responses={200: {"model": RecordItem}})
@needs("ledger:read")
async def show_explanation(request: Request, explanation: str, caller: CallerOf) -> Response:
    """The record: everything that was answered, and what it takes to repeat it."""
    stored = await find_stored(request, explanation, caller)
    content = await asyncio.to_thread(_record_content, stored, caller.policy)
    return Response(content, media_type="application/json")


@router.get("/v1/explanations/{explanation}/reasons", responses={200: {"model": ReasonsReply}}, response_model=None)
@needs("ledger:read")
async def show_reasons(
    request: Request,
    explanation: str,
    caller: CallerOf,
    most: Annotated[int, Query(alias="max", ge=1, le=MOST_REASONS)] = MOST_REASONS,
) -> dict[str, Any]:
    """The principal reasons, adverse direction only, the strongest first, and a counterfactual hint.

    The hint is found along the explained path, from the input towards the baseline, with the features of these reasons
    only: the fewest reasons and the smallest step at which the deployed model answers another label. It says what this
    model would answer, and is no advice. A key whose policy limits values gets none.
    """
    stored = await find_stored(request, explanation, caller)
    record = await asyncio.to_thread(lambda: limited(whole_record(stored), caller.policy))
    if "reasons" not in record:
        raise NotFound("the explanation has no reasons: its model names no adverse label or no reason texts")
    shown = {"id": record["id"], "reasons": record["reasons"][:most]}
    if record.get("reason_texts") is not None:
        shown["reason_texts"] = record["reason_texts"]
    if caller.policy.limits_values:
        return shown
    counterfactuals: Counterfactuals = request.app.state.counterfactuals
    with counted(caller.account, 1):  # it tells what the model answers to another row
        hint = await while_connected(request, counterfactuals.find(stored, most))
    return {**shown, "counterfactual": hint}


@router.get("/v1/explanations", responses={200: {"model": SearchReply}})
@needs("ledger:read")
async def search_explanations(
    request: Request,
    caller: CallerOf,
    model: str | None = None,
    version: str | None = None,
    subject: str | None = None,
    decision_id: str | None = None,
    created_from: Annotated[From, Query(alias="from")] = None,
    created_to: Annotated[To, Query(alias="to")] = None,
    converged: bool | None = None,
    flag: str | None = None,
    label: str | None = None,
    reviewed: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_PER_PAGE)] = 50,
    cursor: str | None = None,
) -> Response:
    """Records that meet all conditions, the newest first. `cohort.<name>=<value>` finds by cohort tag.

    There are more as long as there is a `next_cursor`: a page of large records, of images say, ends before its `limit`.
    `flag=<name>&reviewed=false` is the review queue of a rule.
    """
    names = request.query_params.keys()
    unknown = [name for name in names if name not in FILTERS and not name.startswith(COHORT)]
    if unknown:
        known = f"known are {', '.join(sorted(FILTERS))}, cohort.*"
        searches = Searches()
        faults = [
            Fault(
                Kind.UNKNOWN_PARAMETER,
                "",
                f"{name[:64]!r} is not a condition; {known}{searches.hint(name, FILTERS)}",
                name[:64],
            )
            for name in unknown[:MOST_FAULTS]
        ]
        raise InvalidRequest(faults[0].detail, *faults)
    cohort = {
        name.removeprefix(COHORT): value for name, value in request.query_params.items() if name.startswith(COHORT)
    }
    if len(cohort) > MOST_COHORT_TAGS:
        raise InvalidRequest(f"at most {MOST_COHORT_TAGS} conditions on cohort tags")
    search = search_of(
        model=model,
        version=version,
        subject=subject,
        decision_id=decision_id,
        created_from=created_from,
        created_to=created_to,
        converged=converged,
        flag=flag,
        label=label,
        reviewed=reviewed,
        cohort=cohort,
    )
    page = await ledger_of(request).search(caller.tenant, search, limit, cursor)
    await record_lookup(request, caller, None, described(page))
    return Response(await asyncio.to_thread(_page_content, page, caller.policy), media_type="application/json")


def _record_content(stored: Stored, policy: Policy) -> bytes:
    """The record as it is shown. That of an image is a million numbers: not for the event loop."""
    return orjson.dumps(limited(whole_record(stored), policy))


def _page_content(page: Page, policy: Policy) -> bytes:
    """The records of a page, of which one at a time is more than its bytes."""
    shown = [orjson.Fragment(_record_content(stored, policy)) for stored in page.entries]
    return orjson.dumps({"explanations": shown, "next_cursor": page.next_cursor})


def ledger_of(request: Request) -> Ledger:
    """The ledger. Raises NotFound where there is none."""
    ledger: Ledger | None = request.app.state.ledger
    if ledger is None:
        raise NotFound("this service keeps no ledger")
    return ledger


async def find_stored(
    request: Request, explanation: str, caller: Caller, *, erased_too: bool = False, opened: bool = True
) -> Stored:
    """The caller's record of that id; that it was looked up is recorded.

    `opened` False leaves sealed what is. Raises NotFound, Erased unless `erased_too`, LedgerUnavailable when the
    look-up cannot be recorded.
    """
    is_id = ID.fullmatch(explanation) is not None  # PostgreSQL would not even compare a text with a NUL
    stored = await ledger_of(request).get(caller.tenant, explanation, opened=opened) if is_id else None
    if stored is None:
        raise NotFound("there is no such explanation")
    await record_lookup(request, caller, stored.id)
    if not erased_too:
        await refuse_erased(request, stored)
    return stored


async def refuse_erased(request: Request, stored: Stored) -> None:
    """Raises Erased, with what the log says of it."""
    if stored.tombstone is not None:
        raise Erased(await _tombstone(request, stored.tombstone))


async def _tombstone(request: Request, place: int) -> dict[str, object]:
    """What the log says of an erasure."""
    maintenance: LedgerMaintenance = request.app.state.maintenance
    event = await maintenance.tombstone(place)
    if event is None:
        raise LogChanged("the tombstone of this explanation is gone")
    told = {name: event.details[name] for name in ("reason", "class") if name in event.details}
    return {"kind": event.kind, "created": event.created, "key_id": event.key_id, "sequence": place, **told}
