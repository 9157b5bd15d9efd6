"""Stored explanations computed again: as they were (`:replay`), and with other choices (`/robustness`)."""

from __future__ import annotations

from fastapi import Response

from service.answers.encoding import encode
from service.answers.replies import ReplayReply
from service.answers.robustness import RobustnessReply
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


@router.get(
    "/v1/explanations/{explanation}/robustness",
    responses={200: {"model": RobustnessReply}, **answers(403, 404, 409, 410, 422, 429, 503, 504, 507)},
)
@needs("ledger:read")
async def show_robustness(request: ApiRequest, explanation: str) -> Response:
    """Which statements of a stored explanation hold whatever baseline, seed, tolerance and noise it is computed with.

    The explanation is computed with one choice changed at a time, behind all other work: each of the model's other
    baselines, other seeds where something is drawn, a finer and a coarser tolerance, noise. Held against each are the
    signs and the order of its largest components, and its principal reasons. Every choice counts as a request. What the
    key's policy withholds or rounds is withheld or rounded here, before anything is said of it.
    """
    stored = await find_stored(request, explanation)
    table = await while_connected(request, request.services.robustness.table(stored, request.caller))
    return Response(encode(table), media_type="application/json")
