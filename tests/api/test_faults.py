"""Everything that is wrong with a request is told at once: its kind, where it is, and what was probably meant."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.api.conftest import filled

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import Service

EXPLAIN = "/v1/models/loan/versions/1:explain"
JSON = {"Content-Type": "application/json"}
TYPE = "urn:answerable:problem:"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def told(response: httpx.Response) -> list[tuple[str, str]]:
    """(kind, place) of every fault."""
    errors = response.json()["errors"]
    return [(one["type"].removeprefix(TYPE), one.get("pointer", one.get("parameter"))) for one in errors]


async def test_every_fault_of_every_instance(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    first = {name: value for name, value in instance.items() if name != "net_worth"} | {
        "networth": 1,
        "loan_amount": -1,
    }
    third = {**instance, "loan_amount": 1e9, "loan_term": "long", "zodiac/sign": 1}

    response = await client.post(EXPLAIN, json={"instances": [first, instance, third, [1, 2]]})

    sentence = assert_problem(response, 422)
    assert sentence == (
        "instance 0: missing: net_worth; not known: networth; did you mean net_worth?; "
        "loan_amount is -1, outside its range from 1 to 1000 (thousand USD); 4 more faults are listed in `errors`"
    )
    assert told(response) == [
        ("missing-feature", "/instances/0/net_worth"),
        ("unknown-feature", "/instances/0/networth"),
        ("out-of-range", "/instances/0/loan_amount"),
        ("unknown-feature", "/instances/2/zodiac~1sign"),
        ("out-of-range", "/instances/2/loan_amount"),
        ("not-a-number", "/instances/2/loan_term"),
        ("wrong-instance", "/instances/3"),
    ]
    assert response.json()["title"] == "Missing feature"
    assert response.json()["errors"][1]["detail"] == "the model has no feature networth; did you mean net_worth?"


async def test_at_most_twenty_faults_are_told(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    cases: list[list[Any]] = [
        [{}],
        [[None] * 38] * 3,
        [{**instance, "loan_amount": -1}] * 30,
        [{**instance, **{str(n): 1 for n in range(30)}}],
    ]
    for wrong in cases:
        response = await client.post(EXPLAIN, json={"instances": wrong})
        assert_problem(response, 422)
        assert len(told(response)) == 20


@pytest.mark.parametrize(
    ("body", "kind", "pointer", "meant"),
    [
        (
            {"parameters": {"method": "integrated_gradient"}},
            "unknown-method",
            "/parameters/method",
            "integrated_gradients",
        ),
        ({"parameters": {"target": "denyed"}}, "unknown-label", "/parameters/target", "denied"),
        ({"parameters": {"output_space": "logits"}}, "wrong-value", "/parameters/output_space", "logit"),
        ({"parameters": {"baseline": "trainin"}}, "unknown-baseline", "/parameters/baseline", "training"),
        ({"parameters": {"baseline": "training@7"}}, "unknown-baseline", "/parameters/baseline", "training@1"),
        ({"parameters": {"options": {"rules": "exact"}}}, "unknown-option", "/parameters/options/rules", "rule"),
        ({"parameters": {"options": {"rule": "exakt"}}}, "wrong-value", "/parameters/options/rule", "exact"),
        ({"parameters": {"noise": {"kind": "smoothgrat"}}}, "wrong-value", "/parameters/noise/kind", "smoothgrad"),
        ({"parameters": {"tolerance": 7}}, "wrong-value", "/parameters/tolerance", None),
        ({"parameters": {"noise": {"kind": "vargrad", "scale": 2}}}, "wrong-value", "/parameters/noise/scale", None),
        ({"parameters": {"method": "grad_cam"}}, "unfit-method", "/parameters/method", None),
        (
            {"parameters": {"baseline": {"loan_amount": 0}}},
            "missing-feature",
            "/parameters/baseline/purchase_price",
            None,
        ),
        ({"parameters": {"tolerence": 1}}, "unknown-field", "/parameters/tolerence", "tolerance"),
        ({"context": {"subjekt": "a"}}, "unknown-field", "/context/subjekt", "subject"),
        ({"context": [{"subject": 5}]}, "wrong-value", "/context/0/subject", None),
        ({"context": [{}, {}]}, "wrong-shape", "/context", None),
        ({"parameters": []}, "wrong-shape", "/parameters", None),
        ({"instances": 5}, "wrong-shape", "/instances", None),
        ({"parameters": {"options": {str(n): 1 for n in range(40)}}}, "wrong-value", "/parameters/options", None),
    ],
    ids=str,
)
async def test_the_kind_the_place_and_what_was_meant(
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    body: dict[str, Any],
    kind: str,
    pointer: str,
    meant: str | None,
) -> None:
    response = await client.post(EXPLAIN, json={"instances": [instance], **body})

    sentence = assert_problem(response, response.status_code)
    assert response.status_code in (400, 422)
    assert response.json()["type"] == TYPE + kind
    assert told(response)[0] == (kind, pointer)
    assert (f"; did you mean {meant}?" in sentence) if meant else ("did you mean" not in sentence)


async def test_all_that_is_wrong_with_the_shape_is_told(
    client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    body = {"parameters": {"seed": "x", "strict": 1, "tolerance": []}, "context": [{"subject": 5}, {"decision_id": 5}]}

    response = await client.post(EXPLAIN, json=body)

    assert_problem(response, response.status_code)
    assert {place for _, place in told(response)} >= {
        "/instances",
        "/parameters/seed",
        "/parameters/strict",
        "/parameters/tolerance",
        "/context/0/subject",
    }


def twice(body: str) -> list[tuple[str, str]]:
    """Bodies in which one name is there twice, by the pointer to it."""
    return [
        (body.replace('"loan_amount":', '"loan_amount":5,"loan_amount":'), "/instances/0/loan_amount"),
        (body.replace('"loan_amount":', '"loan_\\u0061mount":5,"loan_amount":'), "/instances/0/loan_amount"),
        (body.replace('"subject":', '"subject":"urn:a:b","subject":'), "/context/subject"),
        (body.replace('"channel":', '"channel":"x","channel":'), "/context/cohort/channel"),
        (body.replace('"seed":', '"seed":1,"seed":'), "/parameters/seed"),
        (body.replace('"rule":', '"rule":"auto","rule":'), "/parameters/options/rule"),
        (body.replace('{"instances":', '{"instances":[],"instances":'), "/instances"),
    ]


async def test_a_name_given_twice_in_an_explanation_is_refused(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    sent = {
        "instances": [instance],
        "parameters": {"seed": 0, "options": {"rule": "exact"}},
        "context": {"subject": "urn:person:7", "cohort": {"channel": "web"}},
    }
    body = json.dumps(sent, separators=(",", ":"))

    assert (await client.post(EXPLAIN, content=body, headers=JSON)).status_code == 200
    for wrong, pointer in twice(body):
        response = await client.post(EXPLAIN, content=wrong, headers=JSON)
        assert_problem(response, 422)
        assert told(response) == [("duplicate-name", pointer)]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/v1/jobs", '{"model": "loan", "instances": [{"a": 1}, {"b": 1, "b": 2}]}', "/instances/1/b"),
        ("/v1/jobs", '{"model": "loan", "explanations": {"label": "x", "label": "y"}}', "/explanations/label"),
        ("/v1/models/loan/baselines", '{"name": "mine", "rows": [[1], {"x": [{"b": 1, "b": 2}]}]}', "/rows/1/x/0/b"),
        ("/v1/subjects/nobody:hold", '{"reason": "a", "reason": "b"}', "/reason"),
        ("/v1/subjects/nobody:erase", '{"reason": "a: b", "re\\u0061son": "b"}', "/reason"),
        ("/v1/explanations/nothing:review", '{"verdict": "accepted", "verdict": "rejected"}', "/verdict"),
        ("/v1/exports", '{"explanations": {"cohort": {"a": "b", "a": "c"}}}', "/explanations/cohort/a"),
        (
            "/v2/repository/models/nothing/load",
            '{"parameters": {"version": "1", "version": "2"}}',
            "/parameters/version",
        ),
    ],
)
async def test_a_name_given_twice_is_refused_everywhere(
    client: httpx.AsyncClient, assert_problem: AssertProblem, path: str, body: str, pointer: str
) -> None:
    response = await client.post(path, content=body, headers=JSON)

    assert_problem(response, 422)
    assert told(response) == [("duplicate-name", pointer)]


async def test_a_large_body_is_looked_through_as_a_small_one_is(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    """It is read in a thread."""
    instances = ",".join([json.dumps(instance)] * 150)
    for wrong, fault in (('{"a": 1, "a": 2}', ("duplicate-name", "a")), ('{"b": NaN}', ("not-finite", "b"))):
        response = await client.post(EXPLAIN, content=f'{{"instances": [{instances}, {wrong}]}}', headers=JSON)
        assert_problem(response, 422)
        assert told(response) == [(fault[0], f"/instances/150/{fault[1]}")]


async def test_every_route_with_a_body_refuses_a_name_given_twice(
    service: Service, client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    posts = [path for path, operations in service.app.openapi()["paths"].items() if "post" in operations]
    assert len(posts) >= 10

    for path in posts:
        response = await client.post(filled(path), content='{"x": {"y": 1, "y": 1}}', headers=JSON)
        assert_problem(response, 422)
        assert told(response) == [("duplicate-name", "/x/y")]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("/v1/explanations?subject=a&subject=b", "subject"),
        ("/v1/explanations?limit=5&sub%6Aect=a&limit=5", "limit"),
        ("/v1/explanations?cohort.channel=a&cohort.ch%61nnel=b", "cohort.channel"),
        ("/v1/events?kind=hold&kind=erasure", "kind"),
        ("/v1/jobs/nothing?cursor=1&cursor=2", "cursor"),
        ("/v1/consistency?from=1&to=2&from=2", "from"),
    ],
)
async def test_a_parameter_given_twice_is_refused(
    client: httpx.AsyncClient, assert_problem: AssertProblem, query: str, name: str
) -> None:
    response = await client.get(query)

    assert assert_problem(response, 422) == f"{name} is given 2 times; send one value"
    assert told(response) == [("repeated-parameter", name)]


@pytest.mark.parametrize(
    ("query", "missing", "sentence"),
    [
        ("?to=2", ["from"], "from is required"),
        ("", ["from", "to"], "from is required; 1 more fault is listed in `errors`"),
    ],
)
async def test_a_parameter_that_is_missing_is_named(
    client: httpx.AsyncClient, assert_problem: AssertProblem, query: str, missing: list[str], sentence: str
) -> None:
    response = await client.get(f"/v1/consistency{query}")

    assert assert_problem(response, 400) == sentence
    assert told(response) == [("missing-field", name) for name in missing]


async def test_a_wrong_parameter_is_named(client: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    response = await client.get("/v1/explanations?limit=0&converged=perhaps")

    assert_problem(response, 422)
    assert set(told(response)) == {("wrong-value", "limit"), ("wrong-value", "converged")}


async def test_every_path_knows_its_methods(service: Service, assert_problem: AssertProblem) -> None:
    async with service.client() as client:
        for path, operations in service.app.openapi()["paths"].items():
            its_own = {method.upper() for method in operations}
            for method in METHODS:
                if method in its_own:
                    continue
                response = await client.request(method, filled(path))
                assert response.status_code == 405, (method, path)
                assert response.headers["allow"].split(", ") == sorted(its_own), (method, path)
                if method != "HEAD":
                    assert response.json()["type"] == TYPE + "method-not-allowed"


@pytest.mark.parametrize("path", ["/v1/models/", "/docs/", "/docs/assets", "/v2/", "/v1/models/loan/", "//v1/models"])
async def test_nobody_is_sent_to_the_host_that_the_request_names(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"Host": "elsewhere.example"})

    assert response.status_code == 404
    assert "location" not in response.headers
    assert "elsewhere" not in response.text


async def test_the_root_answers(service: Service) -> None:
    async with service.client() as client:
        response = await client.get("/")

    assert (response.status_code, response.json()) == (200, {"status": "alive"})
