"""`:explain` and `:predict` (KServe's V1 protocol)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Path, Response

from service.access.callers import Caller
from service.access.permissions import Policy
from service.answers.encoding import encode, to_json
from service.answers.items import TimingsItem
from service.answers.reading import answer_of, read
from service.answers.replies import ExplainReply, PredictReply, RememberedReply
from service.api.access_log import record_lookup
from service.api.auth import needs
from service.api.explanations import refuse_erased
from service.api.idempotency import once, repeatable
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import ContextBody, ExplainBody, PredictBody
from service.api.transport import while_connected
from service.catalog.inputs.instances import read_instances
from service.catalog.inputs.kind import Row
from service.catalog.versions import ModelVersion
from service.domain import Context
from service.errors import Fault, Kind, MalformedBody
from service.ledger import LogChanged, Stored
from service.ledger.entries import RequestKey
from service.monitoring.labels import PREDICT
from service.usecases.explaining import Answer, limited_answer, refuse_method
from service.usecases.explaining import Request as ExplainingRequest
from service.usecases.planning import Parameters, with_baseline_read
from service.wording import number_of

ERRORS = answers(404, 414, 431, 500, 503, 504, 507)
REPEATED = answers(410)
"""Of a request that is sent again: the person whom its answer was about has been erased since."""
WITHOUT_SUBJECT = "recorded without context.subject: no search, hold or erasure of a person will find this explanation"
"""A hint for developers: the subject is easily forgotten, and missed years later."""
ModelName = Annotated[str, Path(pattern=r"^[^:/]+$", max_length=64)]

router = new_router("Predict and explain")


@router.post("/v1/models/{model}:explain", responses={200: {"model": ExplainReply}, **ERRORS, **REPEATED})
@needs("explain")
@repeatable
async def explain_newest(request: ApiRequest, model: ModelName, body: ExplainBody) -> Response:
    """Predicts and explains with the newest ready version."""
    return await _explain(request, model, None, body)


@router.post(
    "/v1/models/{model}/versions/{version}:explain", responses={200: {"model": ExplainReply}, **ERRORS, **REPEATED}
)
@needs("explain")
@repeatable
async def explain_version(request: ApiRequest, model: ModelName, version: ModelName, body: ExplainBody) -> Response:
    """Predicts and explains with one version."""
    return await _explain(request, model, version, body)


@router.post("/v1/models/{model}:predict", responses={200: {"model": PredictReply}, **ERRORS})
@needs("explain")
async def predict_newest(request: ApiRequest, model: ModelName, body: PredictBody) -> Response:
    """Predicts with the newest ready version."""
    return await _predict(request, model, None, body)


@router.post("/v1/models/{model}/versions/{version}:predict", responses={200: {"model": PredictReply}, **ERRORS})
@needs("explain")
async def predict_version(request: ApiRequest, model: ModelName, version: ModelName, body: PredictBody) -> Response:
    """Predicts with one version."""
    return await _predict(request, model, version, body)


async def _explain(request: ApiRequest, model: str, version: str | None, body: ExplainBody) -> Response:
    received = time.monotonic()
    services = request.services

    async def explain(key: RequestKey | None) -> Response:
        model_version = services.catalog.find(model, version)
        request.observed.name(model, body.parameters.method or model_version.manifest.defaults.method)
        parsed = await _request(model_version, body, request.caller, received, use_cache=_may_cache(request))
        request.observed.timings = parsed.timings
        answers = await while_connected(request, services.explaining.explain(replace(parsed, key=key)))
        is_recorded = services.ledger is not None
        return _reply(answers, lacks_subject=is_recorded and any(each.subject is None for each in parsed.contexts))

    return await once(request, explain, lambda _remembered, answer: _repeat(request, answer))


async def _repeat(request: ApiRequest, answer: Mapping[str, Any]) -> Response:
    """The same answer again, read from its records; like every look-up, that is recorded.

    Raises PolicyForbids, Erased, LedgerUnavailable.
    """
    ledger, caller = request.services.need_ledger().ledger, request.caller
    remembered = read(RememberedReply, answer)
    records = [
        stored
        for stored in await asyncio.gather(*(ledger.get(caller.tenant, id_) for id_ in remembered.ids))
        if stored is not None
    ]
    if len(records) != len(remembered.ids):
        raise LogChanged("an explanation that was answered is gone")
    request.observed.name(records[0].model, records[0].method)
    about = records[0].id if len(records) == 1 else None
    await record_lookup(request, about, {"action": "repeat", "seen": [stored.seq for stored in records]})
    for stored in records:
        refuse_method(caller.policy, stored.method)
        await refuse_erased(request, stored)
    return await asyncio.to_thread(_reply_of, records, caller.policy, remembered.timings)


def _reply_of(records: Sequence[Stored], policy: Policy, timings: Sequence[TimingsItem]) -> Response:
    answers = [
        limited_answer(*answer_of(record), policy, timing) for record, timing in zip(records, timings, strict=True)
    ]
    return _reply(answers, lacks_subject=any(record.subject is None for record in records))


def _reply(answers: Sequence[Answer], *, lacks_subject: bool) -> Response:
    reply = ExplainReply(
        predictions=tuple(answer.prediction for answer in answers),
        explanations=tuple(answer.explanation for answer in answers),
    )
    timings = to_json(answers[0].explanation.timings_ms)
    headers = {"Server-Timing": ", ".join(f"{name};dur={value}" for name, value in timings.items())}
    if lacks_subject:
        headers["Answerable-Hint"] = WITHOUT_SUBJECT
    return Response(encode(reply), media_type="application/json", headers=headers)


async def _predict(request: ApiRequest, model: str, version: str | None, body: PredictBody) -> Response:
    received = time.monotonic()
    services = request.services
    model_version = services.catalog.find(model, version)
    request.observed.name(model, PREDICT)
    parsed = await _request(model_version, body, request.caller, received, use_cache=False)
    request.observed.timings = parsed.timings
    predictions = await while_connected(request, services.explaining.predict(parsed))
    return Response(encode(PredictReply(predictions=tuple(predictions))), media_type="application/json")


async def _request(
    version: ModelVersion,
    body: ExplainBody | PredictBody,
    caller: Caller,
    received: float,
    *,
    use_cache: bool,
) -> ExplainingRequest:
    if version.manifest.inputs.is_read_at_once:
        rows, parameters = _read(version, body)
    else:
        rows, parameters = await asyncio.to_thread(_read, version, body)
    contexts = _contexts(body.context, len(rows))
    return ExplainingRequest(
        version,
        rows,
        parameters,
        contexts,
        caller,
        use_cache,
        received,
        counted=1,
    )


def _read(version: ModelVersion, body: ExplainBody | PredictBody) -> tuple[list[Row], Parameters]:
    """The rows of the instances, and the parameters with the baseline's."""
    called = "instance" if len(body.instances) > 1 else ""
    rows = [*read_instances(version.manifest, body.instances, version.folder, called=called)]
    return rows, with_baseline_read(version, body.parameters.parameters())


def _contexts(contexts: ContextBody | list[ContextBody], count: int) -> list[Context]:
    if isinstance(contexts, ContextBody):
        return [contexts.context()] * count
    if len(contexts) != count:
        detail = f"the request has {number_of(count, 'instance')} and {number_of(len(contexts), 'context')}"
        raise MalformedBody(detail, Fault(Kind.WRONG_SHAPE, "/context", detail))
    return [context.context() for context in contexts]


def _may_cache(request: ApiRequest) -> bool:
    return "no-cache" not in request.headers.get("cache-control", "").lower()
