"""What a caller reads when a request is wrong: the right status, and a sentence that helps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI

from service.api import problems
from service.api.transport import RequestIds
from tests.api.conftest import filled

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import Service

EXPLAIN = "/v1/models/loan/versions/1:explain"
PREDICT = "/v1/models/loan/versions/1:predict"
JSON = {"Content-Type": "application/json"}
NESTED = 250_000

ABSENT = object()
A_NUMBER = "must be a number"
NOT_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" + "0" * 400,
    '"Infinity"',
    '"1"',
    "true",
    "[]",
    "{}",
]


@pytest.mark.parametrize("path", [EXPLAIN, PREDICT])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loan_amount": ABSENT}, "missing: loan_amount"),
        ({"loan_amount": ABSENT, "net_worth": ABSENT}, "missing: loan_amount, net_worth"),
        ({"loan_amont": 5}, "the model has no feature loan_amont; did you mean loan_amount?"),
        ({"zodiac": 5}, "the model has no feature zodiac"),
        ({"net_worth": ABSENT, "networth": 5}, "missing: net_worth; not known: networth; did you mean net_worth?"),
        ({"x" * 100_000: 5}, "the model has no feature " + "x" * 64),
        ({str(number): 1 for number in range(9)}, "0, 1, 2, 3, 4 and 4 more"),
        ({"loan_amount": 1001}, "loan_amount is 1001, outside its range from 1 to 1000 (thousand USD)"),
        ({"loan_amount": 0.5}, "loan_amount is 0.5, outside its range from 1 to 1000 (thousand USD)"),
        ({"loan_amount": -(2**63)}, "loan_amount is -9223372036854775808, outside its range"),
        ({"loan_amount": "103"}, "loan_amount must be a number"),
        ({"loan_amount": True}, "loan_amount must be a number"),
        ({"loan_amount": None}, "loan_amount must be a number"),
        ({"loan_amount": [103]}, "loan_amount must be a number"),
        ({"loan_term": "360"}, "loan_term must be a number or null"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_wrong_features(
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    path: str,
    change: dict[str, Any],
    sentence: str,
) -> None:
    changed = {name: value for name, value in (instance | change).items() if value is not ABSENT}

    response = await client.post(path, json={"instances": [changed]})

    assert sentence in assert_problem(response, 422)


async def test_the_wrong_one_of_several_instances_is_named(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    wrong = {**instance, "loan_amount": -1}

    response = await client.post(EXPLAIN, json={"instances": [instance, instance, wrong]})

    assert assert_problem(response, 422).startswith("instance 2: loan_amount is -1")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ([1, 2], "the instance has 2 values, the model has 38 features"),
        ("103", "an instance is an object by feature name, or a list in feature order"),
        (5, "an instance is an object by feature name, or a list in feature order"),
        (None, "an instance is an object by feature name, or a list in feature order"),
        ({}, "missing: loan_amount, purchase_price, appraised_value, loan_to_price, other_financing and 33 more"),
        ([None] * 38, f"loan_amount {A_NUMBER}; purchase_price {A_NUMBER}; appraised_value {A_NUMBER}"),
    ],
)
async def test_wrong_instances(
    client: httpx.AsyncClient, assert_problem: AssertProblem, wrong: object, sentence: str
) -> None:
    response = await client.post(EXPLAIN, json={"instances": [wrong]})

    assert assert_problem(response, 422) == sentence


@pytest.mark.parametrize("number", NOT_NUMBERS, ids=lambda text: text[:12])
@pytest.mark.parametrize("path", [EXPLAIN, PREDICT])
async def test_what_is_no_finite_number_is_refused_in_an_instance(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, path: str, number: str
) -> None:
    body = json.dumps({"instances": [instance | {"loan_amount": "HERE"}]}).replace('"HERE"', number)

    response = await client.post(path, content=body, headers=JSON)

    sentence = assert_problem(response, 422)
    assert sentence == "loan_amount must be a number" or (
        sentence.startswith("instances.0.loan_amount is ") and sentence.endswith("; numbers must be finite")
    )
    assert [fault["pointer"] for fault in response.json()["errors"]] == ["/instances/0/loan_amount"]


@pytest.mark.parametrize("number", NOT_NUMBERS, ids=lambda text: text[:12])
@pytest.mark.parametrize("name", ["tolerance", "max_evaluations", "seed", "deadline_ms"])
async def test_what_is_no_finite_number_is_refused_in_a_parameter(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, name: str, number: str
) -> None:
    body = json.dumps({"instances": [instance], "parameters": {name: "HERE"}}).replace('"HERE"', number)

    response = await client.post(EXPLAIN, content=body, headers=JSON)

    sentence = assert_problem(response, 422)
    assert sentence.startswith(
        (f"parameters.{name} must be a number", f"parameters.{name} must be a whole number")
    ) or (sentence.startswith(f"parameters.{name} is ") and sentence.endswith("; numbers must be finite"))
    assert [fault["pointer"] for fault in response.json()["errors"]] == [f"/parameters/{name}"]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"method": "tarot"}, "method 'tarot' is not known; the methods are integrated_gradients"),
        ({"method": 5}, "parameters.method must be a text"),
        ({"target": "maybe"}, "target 'maybe' is not a label; the labels are approved, denied, predicted"),
        ({"target": 2}, "target 2 is not a label's index; it must lie between 0 and 1"),
        ({"target": -1}, "target -1 is not a label's index; it must lie between 0 and 1"),
        (
            {"target": True},
            "parameters.target must be a label or a value, by its name or index, or `predicted`",
        ),
        (
            {"target": 1.5},
            "parameters.target must be a label or a value, by its name or index, or `predicted`",
        ),
        (
            {"target": None},
            "parameters.target must be a label or a value, by its name or index, or `predicted`",
        ),
        ({"output_space": "odds"}, "output_space 'odds' is not known; the spaces are probability, logit"),
        ({"baseline": "mean"}, "baseline 'mean' is not known; the baselines are training@1, approved@1"),
        ({"baseline": "training@2"}, "baseline 'training@2' is not known"),
        ({"baseline": "training@"}, "baseline 'training@' is not known"),
        ({"baseline": ""}, "baseline '' is not known"),
        ({"baseline": 5}, "baseline: an instance is an object by feature name"),
        ({"baseline": {"loan_amount": 5}}, "baseline: missing: purchase_price"),
        ({"tolerance": 0}, "tolerance is 0; it must be over 0 and at most 1"),
        ({"tolerance": 2}, "tolerance is 2; it must be over 0 and at most 1"),
        ({"tolerance": -0.5}, "tolerance is -0.5; it must be over 0 and at most 1"),
        ({"max_evaluations": 0}, "max_evaluations is 0; it must lie between 1 and 65536"),
        ({"max_evaluations": -1}, "max_evaluations is -1; it must lie between 1 and 65536"),
        ({"max_evaluations": 1_000_001}, "max_evaluations is 1000001; it must lie between 1 and 65536"),
        ({"max_evaluations": 1.5}, "parameters.max_evaluations must be a whole number"),
        (
            {"method": "expected_gradients", "max_evaluations": 127},
            "expected_gradients with a baseline set of 128 rows needs at least 128 evaluations, max_evaluations is 127",
        ),
        ({"seed": -1}, "seed must not be negative"),
        ({"deadline_ms": 0}, "deadline_ms must be at least 1"),
        ({"strict": "yes"}, "parameters.strict must be true or false"),
        ({"strict": 1}, "parameters.strict must be true or false"),
        ({"options": {"steps": 50}}, "integrated_gradients has no option 'steps'; the options are rule"),
        ({"options": {"rule": "simpson"}}, "option rule is 'simpson'; the values are auto, exact"),
        ({"options": {"rule": ["auto"]}}, "option rule is ['auto']; the values are auto, exact"),
        ({"options": {"rule": None}}, "option rule is None; the values are auto, exact"),
        (
            {"method": "expected_gradients", "options": {"rule": "auto"}},
            "expected_gradients has no option 'rule'; there are no options",
        ),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
async def test_impossible_parameters(
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    parameters: dict[str, Any],
    sentence: str,
) -> None:
    response = await client.post(EXPLAIN, json={"instances": [instance], "parameters": parameters})

    assert sentence in assert_problem(response, 422)


@pytest.mark.parametrize("name", ["method", "target", "baseline", "output_space"])
async def test_a_sentence_repeats_only_the_beginning_of_what_was_sent(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, name: str
) -> None:
    response = await client.post(EXPLAIN, json={"instances": [instance], "parameters": {name: "x" * 100_000}})

    assert f"{name} 'xxx" in assert_problem(response, 422)


async def test_an_option_nested_deep_is_refused_like_any_other(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    nested = "[" * 990 + "]" * 990
    body = json.dumps({"instances": [instance], "parameters": {"options": {"rule": "HERE"}}}).replace('"HERE"', nested)

    response = await client.post(EXPLAIN, content=body, headers=JSON)

    assert "option rule is [" in assert_problem(response, 422)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "instances is required"),
        ({"instances": [], "parametres": {}}, "parametres is not a known field; did you mean parameters?"),
        ({"instances": [1], "zodiac": 1}, "zodiac is not a known field"),
        ({"instances": [1], "parameters": {"tolerence": 1}}, "parameters.tolerence is not a known field; did you mean"),
        (
            {"instances": [1], "context": {"subjekt": "a"}},
            "context.subjekt is not a known field; did you mean subject?",
        ),
        ({"instances": [1], "context": [{}, {"x": 1}]}, "context.1.x is not a known field"),
        ({"instances": [1], "parameters": [1]}, "parameters must be a JSON object"),
        ({"instances": [1], "parameters": {"options": 5}}, "parameters.options must be a JSON object"),
        ({"instances": [1], "context": 5}, "context must be a JSON object"),
        ({"instances": [1], "context": {"cohort": 5}}, "context.cohort must be a JSON object"),
        ({"instances": 5}, "instances must be a list"),
        ([], "the body must be a JSON object"),
        ("instances", "the body must be a JSON object"),
        ({"instances": [1], "x" * 100_000: 1}, "x" * 64 + " is not a known field"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict | list) else "",
)
async def test_a_body_of_the_wrong_shape(
    client: httpx.AsyncClient, assert_problem: AssertProblem, body: object, sentence: str
) -> None:
    response = await client.post(EXPLAIN, json=body)

    assert assert_problem(response, 400).startswith(sentence)


@pytest.mark.parametrize("parameter", ["method", "tolerance", "target", "baseline", "options"])
async def test_a_prediction_takes_no_parameters_of_an_explanation(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, parameter: str
) -> None:
    response = await client.post(PREDICT, json={"instances": [instance], "parameters": {parameter: "x"}})

    assert f"parameters.{parameter} is not a known field" in assert_problem(response, 400)


@pytest.mark.parametrize("path", [EXPLAIN, PREDICT])
async def test_as_many_contexts_as_instances(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, path: str
) -> None:
    response = await client.post(path, json={"instances": [instance, instance], "context": [{}]})

    assert assert_problem(response, 400) == "the request has 2 instances and 1 context"


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ({"subject": 5}, "context.subject must be a text"),
        ({"subject": "x" * 201}, "context.subject must have at most 200 characters"),
        ({"decision_id": "x" * 201}, "context.decision_id must have at most 200 characters"),
        ([{"subject": "x" * 201}], "context.0.subject must have at most 200 characters"),
        ({"cohort": {"channel": 5}}, "context.cohort.channel must be a text"),
        ({"cohort": {"channel": "x" * 201}}, "cohort value is longer than 200 characters"),
        ({"cohort": {str(number): "x" for number in range(9)}}, "context.cohort must have at most 8 tags"),
        ({"subject": "\0"}, "subject holds a character that cannot be stored"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict | list) else "",
)
async def test_a_context_that_cannot_be_kept(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, context: object, sentence: str
) -> None:
    response = await client.post(EXPLAIN, json={"instances": [instance], "context": context})

    assert sentence in assert_problem(response, 422)


@pytest.mark.parametrize(("count", "limit"), [(0, "at least 1 item"), (1001, "at most 1000 items")])
@pytest.mark.parametrize("path", [EXPLAIN, PREDICT])
async def test_too_few_or_too_many_instances(
    client: httpx.AsyncClient, assert_problem: AssertProblem, path: str, count: int, limit: str
) -> None:
    response = await client.post(path, json={"instances": [1] * count})

    assert limit in assert_problem(response, 422)


@pytest.mark.parametrize(
    "item", ["1", '{"a":1}', '{"subject":5}', "[]"], ids=["numbers", "unknown fields", "wrong values", "lists"]
)
async def test_a_body_full_of_mistakes_costs_no_more_than_its_first(
    client: httpx.AsyncClient, assert_problem: AssertProblem, item: str
) -> None:
    """Such a body used to take 34 seconds and 6.8 GB, for a description of each mistake."""
    body = f'{{"instances":[1],"context":[{",".join([item] * 400_000)}]}}'

    response = await client.post(EXPLAIN, content=body, headers=JSON)

    assert response.status_code in (400, 422)
    assert_problem(response, response.status_code)


async def test_a_body_full_of_unknown_names(client: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    unknown = ",".join(f'"{number}":1' for number in range(500_000))

    for body in (
        f"{{{unknown}}}",
        f'{{"instances":[1],"parameters":{{{unknown}}}}}',
        f'{{"instances":[1],"context":{{"cohort":{{{unknown}}}}}}}',
        f'{{"instances":[{{{unknown}}}]}}',
    ):
        response = await client.post(EXPLAIN, content=body, headers=JSON)
        assert response.status_code in (400, 422)
        assert_problem(response, response.status_code)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "a body is required"),
        (b"{", "the body is not JSON"),
        (b"{'instances': []}", "the body is not JSON"),
        (b'{"instances": [1],}', "the body is not JSON"),
        (b'{"instances": ["\xff"]}', "the body is not JSON"),
        (b'{"instances": ["\\ud800"]}', "the body is not JSON"),
        ('{"instances": [1]}'.encode("utf-16"), "the body is not JSON"),
        (b'{"instances": [NaN]', "the body is not JSON"),
    ],
)
async def test_what_is_not_json(
    client: httpx.AsyncClient, assert_problem: AssertProblem, body: bytes, sentence: str
) -> None:
    response = await client.post(EXPLAIN, content=body, headers=JSON)

    assert assert_problem(response, 400).startswith(sentence)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/octet-stream"}])
async def test_json_by_another_name(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, headers: dict[str, str]
) -> None:
    response = await client.post(EXPLAIN, content=json.dumps({"instances": [instance]}), headers=headers)

    assert "Content-Type: application/json" in assert_problem(response, 400)


async def test_a_deeply_nested_body_harms_no_route(
    service: Service, client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    posts = [path for path, operations in service.app.openapi()["paths"].items() if "post" in operations]
    assert len(posts) >= 4

    for path in posts:
        for body in ("[" * NESTED, "[" * NESTED + "]" * NESTED, '{"instances":' * NESTED):
            response = await client.post(filled(path), content=body, headers=JSON)
            assert assert_problem(response, 400) == "the body is nested too deep"

    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/v1/models/nothing:explain", "there is no such model"),
        ("/v1/models/nothing:predict", "there is no such model"),
        ("/v1/models/loan/versions/99:explain", "the model has no such version"),
        ("/v1/models/loan/versions/99:predict", "the model has no such version"),
        ("/v1/models/loan:nothing", "Not Found"),
        ("/v1/nothing", "Not Found"),
    ],
)
async def test_what_is_not_there(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, path: str, sentence: str
) -> None:
    response = await client.post(path, json={"instances": [instance]})

    assert assert_problem(response, 404) == sentence


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "..", "%2e%2e", "loan%00", "a:b", "x" * 65, "loan%0d%0a"])
@pytest.mark.parametrize("path", ["/v1/models/{}:explain", "/v1/models/loan/versions/{}:explain"])
async def test_names_that_are_no_names(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, path: str, name: str
) -> None:
    response = await client.post(path.format(name), json={"instances": [instance]})

    assert response.status_code in (404, 405, 422)
    assert_problem(response, response.status_code)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/models"),
        ("DELETE", "/v1/models/loan"),
        ("PUT", EXPLAIN),
        ("POST", "/v1/explanations"),
        ("POST", "/metrics"),
        ("POST", "/v2"),
        ("PATCH", "/v2/health/ready"),
    ],
)
async def test_a_method_that_a_route_does_not_have(
    client: httpx.AsyncClient, assert_problem: AssertProblem, method: str, path: str
) -> None:
    response = await client.request(method, path)

    assert_problem(response, 405)
    assert response.headers["allow"] in ("GET", "POST")


async def test_an_unexpected_error_says_nothing_of_itself(
    assert_problem: AssertProblem, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(RequestIds)

    @app.get("/")
    async def fail() -> None:
        raise RuntimeError("/work/secret.py holds ak_secret")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"X-Request-Id": "r-1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        response = await client.get("/")

    assert_problem(response, 500)
    assert response.headers["x-request-id"] == "r-1"
    assert response.headers["traceparent"] == headers["traceparent"]
    assert "ak_secret" in caplog.text
