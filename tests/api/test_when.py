"""`when`: all instances are predicted, and only those for which a rule holds are explained and recorded."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.access.permissions import Policy, Quota
from tests.api.test_jobs import ended

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service

LOAN = "/v1/models/loan/versions/1:explain"
DENIED = "label == denied"


@pytest.fixture
async def bank(service: Service, make_key: MakeKey) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=f"when-{uuid.uuid4()}")) as client:
        yield client


async def recorded(client: httpx.AsyncClient) -> set[str]:
    """The ids of all records."""
    return {one["id"] for one in (await client.get("/v1/explanations")).json()["explanations"]}


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        (DENIED, [True, False, True]),
        ("label != denied", [False, True, False]),
        ("probability(approved) > 0.5", [False, True, False]),
        ("margin >= 0", [True, True, True]),
        ("margin > 1", [False, False, False]),
    ],
)
async def test_only_those_for_which_it_holds_are_explained(
    explain: Explain,
    bank: httpx.AsyncClient,
    instance: dict[str, Any],
    approved: dict[str, Any],
    when: str,
    holds: list[bool],
) -> None:
    instances = [instance, approved, {**instance, "net_worth": 7.0}]
    contexts = [{"decision_id": f"d-{number}"} for number in range(3)]
    reply = await explain(instances, by=bank, context=contexts, when=when)
    predicted = await bank.post(LOAN.replace("explain", "predict"), json={"instances": instances})

    assert reply["predictions"] == predicted.json()["predictions"]
    assert [one is not None for one in reply["explanations"]] == holds
    explained = [one["id"] for one in reply["explanations"] if one is not None]
    assert await recorded(bank) == set(explained)
    records = [(await bank.get(f"/v1/explanations/{id_}")).json() for id_ in explained]
    assert [record["decision_id"] for record in records] == [f"d-{at}" for at, one in enumerate(holds) if one]


async def test_it_is_what_would_be_explained_without_it(
    explain: Explain, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    fresh = {"Cache-Control": "no-cache"}
    some = await explain([approved, instance], when=DENIED, targets=["approved", "denied"], headers=fresh)
    (alone,) = (await explain([instance], target="denied", headers=fresh))["explanations"]

    assert some["explanations"][:2] == [None, None]
    assert [one["target"]["label"] for one in some["explanations"][2:]] == ["approved", "denied"]
    different = ("id", "timings_ms")
    assert {**some["explanations"][3], **{name: alone[name] for name in different}} == alone


async def test_a_repetition_has_the_same_answer(
    bank: httpx.AsyncClient, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    parameters = {"when": DENIED, "targets": [0, 1]}
    body = {"instances": [approved, instance, approved], "parameters": parameters}
    header = {"Idempotency-Key": str(uuid.uuid4())}
    first, second = [await bank.post(LOAN, json=body, headers=header) for _ in range(2)]

    assert first.status_code == 200, first.text
    assert [one is None for one in first.json()["explanations"]] == [True, True, False, False, True, True]
    assert second.json() == first.json()
    assert second.headers["server-timing"] == first.headers["server-timing"]
    assert len(await recorded(bank)) == 2


async def test_a_prediction_counts_once_and_each_explanation_of_it(
    service: Service,
    make_key: MakeKey,
    instance: dict[str, Any],
    approved: dict[str, Any],
    assert_problem: AssertProblem,
) -> None:
    limited = make_key(tenant=f"when-{uuid.uuid4()}", quota=Quota(6, None, "day"))
    async with service.client(limited) as client:
        body = {"instances": [instance, approved], "parameters": {"when": DENIED, "targets": [0, 1]}}
        for _ in range(2):  # three each: one that is only predicted, and two explanations
            assert (await client.post(LOAN, json=body)).status_code == 200
        assert "quota" in assert_problem(await client.post(LOAN, json=body), 429)


async def test_a_job_explains_those_for_which_it_holds(
    bank: httpx.AsyncClient, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    body = {"model": "loan", "version": "1", "instances": [instance, approved], "parameters": {"when": DENIED}}
    made = await bank.post("/v1/jobs", json=body)
    assert made.status_code == 202, made.text
    job = await ended(bank, made.json()["id"])

    assert job["progress"] == {"total": 2, "done": 2, "failed": 0}
    explained, other = job["results"]
    assert set(explained) == {"row", "explanation"}
    assert other == {"row": 1, "not_explained": "`when` does not hold for its prediction"}
    assert await recorded(bank) == {explained["explanation"]}


async def test_it_tells_no_number_that_the_policy_withholds(
    service: Service, make_key: MakeKey, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    for policy in (Policy(outputs=False), Policy(digits=2)):
        async with service.client(make_key(tenant=f"when-{uuid.uuid4()}", policy=policy)) as client:
            for when, status in (("probability > 0.83", 403), (DENIED, 200)):
                body: dict[str, Any] = {"instances": [instance], "parameters": {"when": when}}
                reply = await client.post(LOAN, json=body)
                assert reply.status_code == status, reply.text
                made = await client.post("/v1/jobs", json={"model": "loan", "version": "1", **body})
                assert made.status_code == (202 if status == 200 else status), made.text
            assert "only ask for the label" in assert_problem(
                await client.post(LOAN, json={"instances": [instance], "parameters": {"when": "margin < 1"}}), 403
            )


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ("probability", "is no rule"),
        ("probability > high", "'high' is not a quantity"),
        ("probability(refused) > 0.5", "'refused' is not among the labels"),
        ("label == refused", "'refused' is not among the labels"),
        ("value > 3", "`value` is for values"),
        ("protected_share > 0.2", "known of explanations only"),
        ("margin < 2 * completeness_error", "known of explanations only"),
        ("p" * 201, "at most 200 characters"),
    ],
)
async def test_a_wrong_rule_is_refused_with_its_place(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, when: str, says: str
) -> None:
    body = {"instances": [instance], "parameters": {"when": when}}
    for path, more in ((LOAN, {}), ("/v1/jobs", {"model": "loan", "version": "1"})):
        response = await client.post(path, json={**more, **body})
        assert says in assert_problem(response, 422)
        assert response.json()["errors"][0]["pointer"] == "/parameters/when"
