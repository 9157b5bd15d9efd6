"""The Python client: what it reads of the real service's answers, what it sends again, and how refusals are told."""

from __future__ import annotations

import ast
import asyncio
import json
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

import service.client
from service.answers.explanation import ExplanationItem
from service.answers.record import RecordItem
from service.api.schemas import ExplainParameters
from service.catalog.inputs.registry import AnyAttributions
from service.catalog.inputs.series import SeriesAttributions
from service.catalog.outputs.predictions import AnyPrediction
from service.client import (
    AsyncClient,
    ByFeature,
    ByPixel,
    ByStep,
    ByToken,
    Client,
    ClientError,
    Context,
    DamagedRecord,
    Erased,
    Explanation,
    ImpossibleRequest,
    NotFound,
    Parameters,
    PredictedClass,
    PredictedEmbedding,
    PredictedLabels,
    PredictedTokens,
    PredictedValues,
    Prediction,
    Record,
    Refused,
    Retries,
    TargetOf,
    TryLater,
    Unauthenticated,
    UnexpectedAnswer,
    Unreachable,
)
from service.client.answers import Attributions
from service.client.retries import Attempts, read_retry_after
from tests.conftest import NO_AUTHORITIES, PATIENCE_SECONDS, MakeKey, Service

AT_ONCE = Retries(attempts=3, backoff=0.0)
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def asking(service: Service) -> Iterator[Client]:
    with Client(service.url, service.key.secret) as client:
        yield client


@pytest.fixture
async def asking_async(service: Service) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url, service.key.secret) as client:
        yield client


def stubbed(*answers: Answer | httpx.Response, retries: Retries | None = AT_ONCE) -> tuple[Client, list[httpx.Request]]:
    """A client of a server that gives these answers in turn, and the requests that it got."""
    left, requests = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = left.pop(0)
        return answer if isinstance(answer, httpx.Response) else answer(request)

    return Client("http://there", "ak_key", retries=retries, transport=httpx.MockTransport(handle)), requests


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("reset", request=request)


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


NAMES = httpx.Response(200, json={"models": ["loan"]})


def problem(status: int, kind: str, headers: dict[str, str] | None = None, **members: Any) -> httpx.Response:
    content = {"type": f"urn:answerable:problem:{kind}", "detail": f"it is {kind}", "request_id": "r1", **members}
    return httpx.Response(status, json=content, headers=headers)


# What the service answers


def test_an_explanation_of_a_table_is_read_whole(asking: Client, instance: dict[str, Any]) -> None:
    loan = asking.model("loan", "1")
    context = Context(subject="client-1", decision_id="client-test", cohort={"channel": "web"})
    explanation = loan.explain(instance, context=context, target="denied", errors=True, fresh=True)
    assert isinstance(explanation.prediction, PredictedClass)
    assert (explanation.prediction.label, explanation.prediction.text) == ("denied", "denied")
    assert explanation.target is not None
    assert explanation.target.text == "denied"
    assert isinstance(explanation.attributions, ByFeature)
    assert set(explanation.attributions.names) == {one.group or one.name for one in loan.describe().inputs}
    assert explanation.change is not None
    assert sum(explanation.attributions.values) == pytest.approx(explanation.change, rel=1e-4)
    name, largest = explanation.attributions.ranked()[0]
    assert explanation.attributions[name] == largest == max(explanation.attributions.values, key=abs)
    assert explanation.attribution_errors is not None
    assert explanation.attribution_errors.names == explanation.attributions.names
    assert explanation.reasons[0].contribution > 0
    assert explanation.timings_ms is not None
    assert explanation.timings_ms.total > 0
    assert not explanation.cached

    record = asking.explanation(explanation.id)
    assert (record.subject, record.decision_id, record.cohort) == ("client-1", "client-test", {"channel": "web"})
    assert record.attributions == explanation.attributions
    assert record.prediction == explanation.prediction
    assert record.input["loan_amount"] == instance["loan_amount"]
    verification = asking.verify(explanation.id)
    assert (verification.valid, verification.erased, verification.faults) == (True, False, ())
    assert verification.size >= record.ledger.sequence


def test_a_model_says_what_it_takes(asking: Client, instance: dict[str, Any]) -> None:
    assert "loan" in asking.models()
    description = asking.model("loan", "1").describe()
    assert {feature.name for feature in description.inputs} == set(instance)
    assert description.example == instance
    assert any(feature.protected for feature in description.inputs)
    assert {method.name for method in description.methods} >= {"integrated_gradients", "saliency"}
    assert (description.outputs.kind, description.outputs.labels) == ("classes", ("approved", "denied"))
    assert description.outputs.adverse == "denied"
    assert {one.name: one.size for one in description.baselines if one.version == "1"}["training"] == 128


async def test_an_image_is_explained_by_pixel(asking_async: AsyncClient) -> None:
    digits = asking_async.model("digits")
    example = (await digits.describe()).example
    (prediction,) = await digits.predict([example])
    explanation = await digits.explain(example, channels=True)
    assert explanation.prediction == prediction
    assert isinstance(explanation.attributions, ByPixel)
    assert explanation.attributions.shape == (8, 8)
    assert explanation.attributions.channels is not None
    row, column = divmod(explanation.attributions.values.index(max(explanation.attributions.values)), 8)
    assert f"row {row}, column {column}" in dict(explanation.attributions.ranked())


async def test_many_are_asked_for_in_batches_and_faults_count_all_of_them(
    asking_async: AsyncClient, instance: dict[str, Any]
) -> None:
    loan = asking_async.model("loan", "1")
    rows = [{**instance, "loan_amount": 80 + number} for number in range(5)]
    contexts = [Context(decision_id=f"batch-{number}") for number in range(5)]
    explanations = [one async for one in loan.explain_many(rows, contexts=contexts, batch=2)]
    records = await asyncio.gather(*(asking_async.explanation(one.id) for one in explanations))
    assert [(record.input["loan_amount"], record.decision_id) for record in records] == [
        (80 + number, f"batch-{number}") for number in range(5)
    ]

    rows[3] = {**rows[3], "loan_amont": 1}
    answered = []
    with pytest.raises(ImpossibleRequest) as error:
        answered += [one async for one in loan.explain_many(rows, batch=2)]
    assert [(fault.instance, fault.pointer) for fault in error.value.faults] == [(3, "/instances/3/loan_amont")]
    assert "did you mean loan_amount?" in error.value.faults[0].detail


async def test_several_targets_of_one_instance(
    asking: Client, asking_async: AsyncClient, instance: dict[str, Any]
) -> None:
    targets: list[TargetOf] = ["approved", 1, {"label": "denied", "rather_than": "approved"}]
    context = Context(decision_id="targets")
    found = asking.model("loan", "1").explain_targets(instance, targets, context=context, tolerance=0.05)
    assert [one.target.text for one in found if one.target] == ["approved", "denied", "denied rather than approved"]
    assert {one.prediction.text for one in found if one.prediction} == {"denied"}
    assert {asking.explanation(one.id).decision_id for one in found} == {"targets"}
    again = await asking_async.model("loan", "1").explain_targets(instance, targets, tolerance=0.05)
    assert [one.attributions for one in again] == [one.attributions for one in found]


async def test_only_those_for_which_a_rule_holds_are_explained(
    asking: Client, asking_async: AsyncClient, instance: dict[str, Any]
) -> None:
    approved = {**instance, "consumer_credit_grade": 1, "public_record": 0, "obligations_ratio": 30}
    rows, when = [instance, approved, instance], "label == denied"
    found = [*asking.model("loan", "1").explain_where(rows, when, batch=2)]
    assert [type(one) for one in found] == [Explanation, PredictedClass, Explanation]
    assert isinstance(found[1], PredictedClass)
    assert found[1].label == "approved"
    others = [one async for one in asking_async.model("loan", "1").explain_where(rows, when, batch=1)]
    assert [type(one) for one in others] == [type(one) for one in found]


def test_refusals_are_errors_of_their_kinds(service: Service, asking: Client, make_key: MakeKey) -> None:
    with pytest.raises(NotFound) as missing:
        asking.explanation(str(uuid.uuid4()))
    assert (missing.value.status, missing.value.kind) == (404, "not-found")
    assert missing.value.request_id
    with Client(service.url, "ak_wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.models()
    with pytest.raises(ImpossibleRequest) as wrong:
        asking.model("loan").explain({}, target="denide")
    assert wrong.value.faults
    assert all(fault.instance == 0 for fault in wrong.value.faults)


def test_a_damaged_record_and_an_erased_one_are_told_apart() -> None:
    client, _ = stubbed(
        httpx.Response(200, json={"id": "a", "damaged": True, "ledger": {"sequence": 1, "leaf": "00"}}),
        problem(410, "erased", tombstone={"kind": "erasure", "sequence": 7}),
    )
    with pytest.raises(DamagedRecord):
        client.explanation("a")
    with pytest.raises(Erased) as erased:
        client.explanation("a")
    assert erased.value.tombstone == {"kind": "erasure", "sequence": 7}


def test_the_client_knows_every_field_and_parameter_of_the_service() -> None:
    def names(kind: type) -> set[str]:
        return {field.name for field in fields(kind)}

    assert names(ExplanationItem) <= names(Explanation)
    unread = {"schema", "parameters", "policy", "rule", "answers_until_deadline", "manifest", "reason_texts"}
    unread |= {"environment", "personal_commitment"}  # in `content`
    assert names(RecordItem) - unread <= names(Record)
    of_their_own = {"targets", "when"}  # arguments of `explain_targets` and `explain_where`
    assert set(ExplainParameters.model_fields) == set(Parameters.__annotations__) | of_their_own
    kinds = {frozenset(field.name for field in fields(kind)) for kind in get_args(AnyPrediction)}
    assert kinds == {
        frozenset(field.name for field in fields(kind))
        for kind in (PredictedClass, PredictedLabels, PredictedValues, PredictedEmbedding, PredictedTokens)
    }


@pytest.mark.parametrize(
    ("content", "kind", "text"),
    [
        ({"label": "b", "index": 1, "outputs": [0.2, 0.8], "output_space": "probability"}, PredictedClass, "b"),
        ({"outputs": [], "output_space": "probability"}, PredictedClass, "no number"),
        ({"label": "a", "labels": ["a", "b"], "outputs": [], "output_space": "logit"}, PredictedLabels, "a, b"),
        ({"labels": [], "outputs": [0.1], "output_space": "logit"}, PredictedLabels, "no label"),
        (
            {"values": {"price": 231000.0, "n": 2}, "units": {"price": "USD", "n": "1"}, "output_space": "value"},
            PredictedValues,
            "price 231000 USD, n 2",
        ),
        ({"values": {}, "units": {"price": "USD"}, "output_space": "value"}, PredictedValues, "no number"),
    ],
)
def test_predictions_are_of_the_kind_that_they_look_like(content: dict[str, Any], kind: type, text: str) -> None:
    prediction = Prediction.from_json(content)
    assert type(prediction) is kind
    assert prediction.text == text


def test_a_series_is_read_by_step_and_feature() -> None:
    sent = SeriesAttributions(shape=(2, 2), features=("heart_rate", "oxygen"), values=(0.1, -0.2, 0.5, 0.0))
    attributions = Attributions.from_json(sent.to_json())
    assert isinstance(attributions, ByStep)
    assert dict(zip(attributions.names, attributions.values, strict=True)) == {
        "heart_rate[0]": 0.1,
        "oxygen[0]": -0.2,
        "heart_rate[1]": 0.5,
        "oxygen[1]": 0.0,
    }


def test_every_kind_of_attributions_has_a_class_of_its_own() -> None:
    classes = {kind.__name__ for kind in Attributions.__subclasses__()}
    assert len(get_args(AnyAttributions)) == len(classes)


def test_tokens_are_read_in_their_order() -> None:
    content = [{"token": "he", "start": 0, "end": 2, "attribution": -0.5}, {"token": 7, "attribution": 0.25}]
    attributions = Attributions.from_json(content)
    assert isinstance(attributions, ByToken)
    assert (attributions.names, attributions.ranked()[0]) == (("he", "7"), ("he", -0.5))
    assert attributions.tokens[1].start is None


def test_series_are_read_by_step_and_feature() -> None:
    content = {"shape": [2, 2], "features": ["pulse", "age"], "values": [1.0, 2.0, 3.0, -4.0], "over_time": [4.0, -2.0]}
    attributions = Attributions.from_json(content)
    assert isinstance(attributions, ByStep)
    assert attributions.names == ("pulse[0]", "age[0]", "pulse[1]", "age[1]")
    assert attributions.ranked()[0] == ("age[1]", -4.0)
    assert (attributions.over_time, attributions.over_feature) == ((4.0, -2.0), None)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"names": []}),
        httpx.Response(200, json=[]),
    ],
)
def test_what_is_no_answer_of_the_service_is_said(response: httpx.Response) -> None:
    client, _ = stubbed(response)
    with pytest.raises(UnexpectedAnswer, match="is it the service"):
        client.models()


def test_an_answer_that_lacks_a_field_is_said_and_one_with_more_is_read() -> None:
    verification = {"id": "a", "valid": True, "erased": False, "faults": [], "size": 3, "signed": 4}
    client, _ = stubbed(
        httpx.Response(200, json={**verification, "new": [1]}),
        httpx.Response(200, json={name: value for name, value in verification.items() if name != "size"}),
    )
    assert client.verify("a").size == 3
    with pytest.raises(UnexpectedAnswer, match=r"Verification .*size"):
        client.verify("a")


def test_a_refusal_by_something_in_between_is_an_error_of_the_client_too() -> None:
    client, _ = stubbed(
        httpx.Response(502, json={"errors": ["no upstream"]}), httpx.Response(502, json={"errors": {"a": 1}})
    )
    for _ in range(2):
        with pytest.raises(Refused, match="the server answered 502") as error:
            client.models()
        assert error.value.faults == ()


# Over TLS


@pytest.mark.parametrize("url", ["https://localhost:1", "HTTPS://localhost:1", "Https://localhost:1"])
def test_who_answers_by_https_is_always_verified(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(httpx, "Client", lambda **options: asked.append(options["verify"]))
    Client(url)
    assert asked == [True]


def test_a_certificate_that_is_not_trusted_is_said() -> None:
    def untrusted(request: httpx.Request) -> httpx.Response:
        try:
            raise ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
        except ssl.SSLError as error:
            raise httpx.ConnectError(str(error), request=request) from error

    client, _ = stubbed(untrusted, retries=None)
    with pytest.raises(Unreachable, match=r"^TLS with http://there failed: .*SSL_CERT_FILE"):
        client.models()


# What is sent again


def test_what_may_be_answered_later_is_sent_again_with_the_same_key() -> None:
    explanation = {"id": "a", "method": "saliency", "flags": [], "cached": False}
    answer = httpx.Response(
        200, json={"explanations": [explanation], "predictions": [{"outputs": [], "output_space": "logit"}]}
    )
    client, requests = stubbed(problem(429, "overloaded", {"Retry-After": "0"}), lost, answer)
    assert client.model("loan").explain({"x": 1}).id == "a"
    keys = [request.headers["Idempotency-Key"] for request in requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert uuid.UUID(keys[0])
    assert {request.content for request in requests} == {requests[0].content}
    assert json.loads(requests[0].content) == {"instances": [{"x": 1}], "parameters": {}}


def test_a_request_that_is_lost_once_is_recorded_once(service: Service, instance: dict[str, Any]) -> None:
    """The answer is lost on the way back, after the service has recorded it."""
    inner = httpx.HTTPTransport(verify=NO_AUTHORITIES)
    answered: list[str] = []

    class LosesTheFirst(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = inner.handle_request(request)
            response.read()
            answered.append(response.json()["explanations"][0]["id"])
            if len(answered) == 1:
                raise httpx.ReadError("reset", request=request)
            return response

        def close(self) -> None:
            inner.close()

    with Client(service.url, service.key.secret, retries=AT_ONCE, transport=LosesTheFirst()) as client:
        explanation = client.model("loan", "1").explain(instance)
    assert answered == [explanation.id, explanation.id]


def test_nothing_is_sent_twice_without_retries() -> None:
    client, requests = stubbed(problem(503, "model-not-ready", {"Retry-After": "5"}), NAMES, retries=None)
    with pytest.raises(TryLater) as error:
        client.models()
    assert (error.value.retry_after, len(requests)) == (5.0, 1)
    assert "Idempotency-Key" not in requests[0].headers


def test_what_would_not_help_is_not_sent_again() -> None:
    client, requests = stubbed(problem(422, "unknown-label"), NAMES)
    with pytest.raises(ImpossibleRequest):
        client.models()
    assert len(requests) == 1


def test_it_gives_up_after_the_attempts_that_were_allowed() -> None:
    client, requests = stubbed(refused, refused, refused, NAMES)
    with pytest.raises(Unreachable, match=r"^nothing answers at http://there; is the service running"):
        client.models()
    assert len(requests) == 3


async def test_the_async_client_sends_again_too() -> None:
    answers = [problem(503, "worker-lost", {"Retry-After": "0"}), NAMES]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        AsyncClient("http://there", retries=AT_ONCE, transport=transport) as c,
    ):
        assert await c.models() == ["loan"]


def test_pauses_are_what_the_service_asks_for_and_a_growing_random_part_on_top() -> None:
    later = TryLater("full", status=429, kind="overloaded", retry_after=3.0)
    pauses = []
    for _ in range(200):
        attempts = Attempts(Retries(attempts=4, backoff=1.0))
        pauses.append([attempts.pause_after(later) for _ in range(3)])
    for at, most in enumerate((1.0, 2.0, 4.0)):
        parts = [pause[at] - 3.0 for pause in pauses]
        assert 0.0 <= min(parts) < 0.2 * most  # of 200 draws
        assert 0.8 * most < max(parts) <= most


def test_a_pause_longer_than_the_patience_is_not_begun() -> None:
    spent = TryLater("the quota is spent", status=429, kind="quota-spent", retry_after=3600.0)
    with pytest.raises(TryLater):
        Attempts(Retries(patience=60.0)).pause_after(spent)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert read_retry_after("7") == 7.0
    assert read_retry_after(None) is read_retry_after("soon") is None
    in_an_hour = read_retry_after(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert in_an_hour is not None
    assert 3000 < in_an_hour <= 3600


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 429, 500, 503, 504])
def test_every_refusal_is_an_error_of_the_client(status: int) -> None:
    client, _ = stubbed(problem(status, "anything"), retries=None)
    with pytest.raises(Refused) as error:
        client.models()
    assert isinstance(error.value, ClientError)
    assert (str(error.value), error.value.status, error.value.kind) == ("it is anything", status, "anything")


def test_it_can_be_installed_alone_under_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports httpx, the standard library and itself, by relative names: the folder is a package as it is."""
    folder = Path(service.client.__file__).parent
    imported = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"httpx"}

    spec = spec_from_file_location("answerable", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    alone = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "answerable", alone)
    try:
        spec.loader.exec_module(alone)
        assert set(alone.__all__) == set(service.client.__all__)
        assert alone.Client is not Client
    finally:
        for name in [name for name in sys.modules if name.startswith("answerable.")]:
            del sys.modules[name]
