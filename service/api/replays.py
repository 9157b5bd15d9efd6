"""`POST /v1/explanations/{id}:replay`: a stored explanation computed again, and what came of it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.answers.encoding import encode
from service.answers.replies import ReplayReply
from service.api.auth import caller_of, needs
from service.api.explanations import find_stored
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import NOTHING, Nothing
from service.api.transport import while_connected
from service.usecases.replaying import Replaying

ERRORS = answers(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507)

router = APIRouter(route_class=StrictRoute, tags=["Stored explanations"])


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
    return Response(encode(replayed), media_type="application/json")
