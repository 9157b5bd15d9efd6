"""`POST /v1/explanations/{id}:replay`: a stored explanation computed again, and what came of it."""

from __future__ import annotations

from fastapi import Response

from service.answers.encoding import encode
from service.answers.replies import ReplayReply
from service.api.auth import needs
from service.api.explanations import find_stored
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import NOTHING, Nothing
from service.api.transport import while_connected

router = new_router("Stored explanations")


@router.post(
    "/v1/explanations/{explanation}:replay",
    responses={200: {"model": ReplayReply}, **answers(404, 409, 410, 500, 503, 507)},
)
@needs("ledger:read")
async def replay_explanation(
    request: ApiRequest,
    explanation: str,
    body: Nothing = NOTHING,  # noqa: ARG001
) -> Response:
    """Computes a stored explanation again from its record and compares all numbers, bit for bit.

    `bit_exact`: nothing differs. `within_tolerance`: numbers differ, by no more than the explanation's own tolerance.
    `environment_differs`: something they depend on is not what it was; `differences` names it. `differs`: all is as it
    was, and yet the numbers differ: the record was changed, or something here is broken.
    """
    stored = await find_stored(request, explanation)
    replayed = await while_connected(request, request.services.replaying.replay(stored, request.caller.account))
    return Response(encode(replayed), media_type="application/json")
