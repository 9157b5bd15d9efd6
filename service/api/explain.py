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
from service.answers.encoding import encode
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
from service.catalog.outputs.predictions import AnyPrediction
from service.catalog.versions import ModelVersion
from service.domain import Context
from service.errors import Fault, Kind, MalformedBody
from service.ledger import LogChanged, Stored
from service.ledger.entries import RequestKey
from service.monitoring.labels import PREDICT
from service.usecases.explaining import Answer, NotExplained, limited_answer, refuse_method
from service.usecases.explaining import Request as ExplainingRequest
from service.usecases.planning import Parameters
from service.usecases.references import with_instances_read
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
        parsed = await _request(model_version, body, request.caller, received, use_cache=_may_cache(request), key=key)
        request.observed.timings = parsed.timings
        when = body.parameters.when
        answers: Sequence[Answer | NotExplained] = await while_connected(
            request,
            services.explaining.explain(parsed) if when is None else services.explaining.explain_where(parsed, when),
        )
        times = len(answers) // len(body.instances)
        lacks_subject = services.ledger is not None and any(
            answer.explanation is not None and parsed.contexts[at // times].subject is None
            for at, answer in enumerate(answers)
        )
        return _reply(answers, body, lacks_subject=lacks_subject)

    return await once(request, explain, lambda _remembered, answer: _repeat(request, answer, body))


async def _repeat(request: ApiRequest, answer: Mapping[str, Any], body: ExplainBody) -> Response:
    """The same answer again, read from its records; like every look-up, that is recorded. What was only predicted is
    predicted again.

    Raises PolicyForbids, Erased, LedgerUnavailable, and what a prediction raises.
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
    answers: Sequence[Answer | NotExplained] = await asyncio.to_thread(
        _answers_of, records, caller.policy, remembered.timings
    )
    if remembered.explained is not None:
        others = await _predicted_again(request, records[0], body)
        times, explained = len(records) // len(remembered.explained), iter(answers)
        is_explained = frozenset(remembered.explained)
        answers = [
            next(explained) if at in is_explained else other for at, other in enumerate(others) for _ in range(times)
        ]
    lacks_subject = any(record.subject is None for record in records)
    return await asyncio.to_thread(_reply, answers, body, lacks_subject=lacks_subject)


def _answers_of(records: Sequence[Stored], policy: Policy, timings: Sequence[TimingsItem]) -> list[Answer]:
    return [limited_answer(*answer_of(record), policy, timing) for record, timing in zip(records, timings, strict=True)]


async def _predicted_again(request: ApiRequest, record: Stored, body: ExplainBody) -> list[NotExplained]:
    """The predictions of all instances, by the version of the record."""
    version = request.services.catalog.find(record.model, record.version)
    parsed = await _request(version, body, request.caller, time.monotonic(), use_cache=False)
    asked = replace(parsed, counted=len(parsed.rows))
    return [NotExplained(one) for one in await request.services.explaining.predict(asked)]


def _reply(answers: Sequence[Answer | NotExplained], body: ExplainBody, *, lacks_subject: bool) -> Response:
    """The reply to instances each of which has as many answers, the first with its prediction."""
    predictions = [answer.prediction for answer in answers[:: len(answers) // len(body.instances)]]
    reply = ExplainReply(
        predictions=_shown(predictions, body),
        explanations=tuple(answer.explanation for answer in answers),
    )
    headers = {}
    explained = next((answer.explanation for answer in answers if answer.explanation is not None), None)
    if explained is not None:
        timings = vars(explained.timings_ms)
        headers["Server-Timing"] = ", ".join(f"{name};dur={value}" for name, value in timings.items())
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
    return Response(encode(PredictReply(predictions=_shown(predictions, body))), media_type="application/json")


def _shown(predictions: Sequence[AnyPrediction], body: ExplainBody | PredictBody) -> tuple[AnyPrediction, ...]:
    """Without what the request leaves out."""
    return tuple(predictions if body.parameters.embedding else (each.brief() for each in predictions))


async def _request(
    version: ModelVersion,
    body: ExplainBody | PredictBody,
    caller: Caller,
    received: float,
    *,
    use_cache: bool,
    key: RequestKey | None = None,
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
        key=key,
    )


def _read(version: ModelVersion, body: ExplainBody | PredictBody) -> tuple[list[Row], Parameters]:
    """The rows of the instances, and the parameters with those of the instances in them."""
    called = "instance" if len(body.instances) > 1 else ""
    rows = [*read_instances(version.manifest, body.instances, version.folder, called=called)]
    return rows, with_instances_read(version, body.parameters.parameters())


def _contexts(contexts: ContextBody | list[ContextBody], count: int) -> list[Context]:
    if isinstance(contexts, ContextBody):
        return [contexts.context()] * count
    if len(contexts) != count:
        detail = f"the request has {number_of(count, 'instance')} and {number_of(len(contexts), 'context')}"
        raise MalformedBody(detail, Fault(Kind.WRONG_SHAPE, "/context", detail))
    return [context.context() for context in contexts]


def _may_cache(request: ApiRequest) -> bool:
    return "no-cache" not in request.headers.get("cache-control", "").lower()
