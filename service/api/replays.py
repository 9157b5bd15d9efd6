"""`POST /v1/explanations/{id}:replay`: a stored explanation computed again, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.api.auth import caller_of, needs
from service.api.explanations import find_stored
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import NOTHING, Nothing
from service.api.transport import while_connected
from service.usecases.replaying import Replayed, Replaying

ERRORS = answers(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507)

router = APIRouter(route_class=StrictRoute, tags=["Stored explanations"])


class DifferenceItem(BaseModel):
    """Something that the numbers depend on and that is not what it was when they were recorded."""

    what: str = Field(description="`artefact`, `baseline`, `manifest`, or `environment.` and a name")
    recorded: str | None = Field(None, description="what it was")
    now: str | None = Field(
        None, description="what it is here and now; of a set that lost rows of an erased person, or all: `erased`"
    )


class ReplayReply(BaseModel):
    """The verdict. Without `numbers` and `max_difference` nothing was computed: what it takes is no longer here."""

    id: str = Field(description="of the explanation")
    verdict: Literal["bit_exact", "within_tolerance", "environment_differs", "differs"] = Field(
        description="what came of it, as the operation says"
    )
    numbers: Literal["equal", "within_tolerance", "differ"] | None = Field(None, description="how they compare")
    max_difference: float | None = Field(None, description="the largest absolute difference of two numbers")
    fields: list[str] = Field(description="the parts of the explanation that differ")
    differences: list[DifferenceItem] = Field(description="what the numbers depend on and is not what it was")


@router.post("/v1/explanations/{explanation}:replay", responses={200: {"model": ReplayReply}, **ERRORS})
@needs("ledger:read")
async def replay_explanation(request: Request, explanation: str, body: Nothing = NOTHING) -> Response:  # noqa: ARG001
    """Computes a stored explanation again from its record and compares all numbers, bit for bit.

    `bit_exact`: nothing differs. `within_tolerance`: numbers differ, by no more than the explanation's own tolerance.
    `environment_differs`: something they depend on is not what it was; `differences` names it. `differs`: all is as it
    was, and yet the numbers differ: the record was changed, or something here is broken.
    """
    caller = caller_of(request)
    stored = await find_stored(request, explanation, caller)
    replaying: Replaying = request.app.state.replaying
    replayed = await while_connected(request, replaying.replay(stored, caller.account))
    return Response(orjson.dumps(_shown(stored.id, replayed)), media_type="application/json")


def _shown(explanation: str, replayed: Replayed) -> dict[str, object]:
    """What was not computed is left out, never null."""
    shown: dict[str, object] = {"id": explanation, "verdict": replayed.verdict}
    if replayed.numbers is not None:
        shown |= {"numbers": replayed.numbers, "max_difference": replayed.max_difference}
    differences = [
        {name: value for name, value in asdict(one).items() if value is not None} for one in replayed.differences
    ]
    return {**shown, "fields": replayed.fields, "differences": differences}
