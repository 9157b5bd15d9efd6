"""`POST /v1/explanations/{id}:replay`: a stored explanation computed again, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from service.api.auth import needs
from service.api.explanations import find_stored
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import NOTHING, Nothing
from service.api.transport import while_connected
from service.usecases.replaying import Replayed

router = new_router("Stored explanations")


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


@router.post("/v1/explanations/{explanation}:replay", responses=answers(404, 409, 410, 500, 503, 507))
@needs("ledger:read")
async def replay_explanation(
    request: ApiRequest,
    explanation: str,
    body: Nothing = NOTHING,  # noqa: ARG001
) -> ReplayReply:
    """Computes a stored explanation again from its record and compares all numbers, bit for bit.

    `bit_exact`: nothing differs. `within_tolerance`: numbers differ, by no more than the explanation's own tolerance.
    `environment_differs`: something they depend on is not what it was; `differences` names it. `differs`: all is as it
    was, and yet the numbers differ: the record was changed, or something here is broken.
    """
    stored = await find_stored(request, explanation)
    replayed = await while_connected(request, request.services.replaying.replay(stored, request.caller.account))
    return _reply(stored.id, replayed)


def _reply(explanation: str, replayed: Replayed) -> ReplayReply:
    return ReplayReply(
        id=explanation,
        verdict=replayed.verdict,
        numbers=replayed.numbers,
        max_difference=None if replayed.numbers is None else replayed.max_difference,
        fields=[*replayed.fields],
        differences=[DifferenceItem(**asdict(difference)) for difference in replayed.differences],
    )
