"""Several targets of one instance in one request: each is what it is when it is asked for alone."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from service.access.permissions import Quota
from tests.api.test_jobs import ended
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service

LOAN = "/v1/models/loan/versions/1:explain"
DIGITS = "/v1/models/digits/versions/1:explain"
FRESH = {"Cache-Control": "no-cache"}
LABELS = [str(digit) for digit in range(10)]
DIFFERENT = ("id", "cached", "timings_ms")


@pytest.fixture
async def bank(service: Service, make_key: MakeKey) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=f"targets-{uuid.uuid4()}")) as client:
        yield client


@pytest.fixture
def digit() -> Any:
    """The digits model's example."""
    return yaml.safe_load((MODELS / "digits" / "1" / "manifest.yaml").read_bytes())["example"]


def numbers(explanation: dict[str, Any]) -> dict[str, Any]:
    """All of an explanation but what differs from one request to the next."""
    return {name: value for name, value in explanation.items() if name not in DIFFERENT}


@pytest.mark.parametrize(
    "parameters",
    [
        {"method": "integrated_gradients", "tolerance": 0.01},
        {"method": "integrated_gradients", "options": {"rule": "midpoint"}, "output_space": "logit"},
        {"method": "integrated_gradients", "options": {"rule": "exact"}, "output_space": "logit"},
        {"method": "expected_gradients", "max_evaluations": 700},
        {"method": "integrated_gradients", "noise": {"kind": "smoothgrad", "samples": 2}, "tolerance": 0.1},
    ],
    ids=str,
)
async def test_each_of_ten_is_bit_equal_to_it_alone(explain: Explain, digit: Any, parameters: dict[str, Any]) -> None:
    together = await explain([digit], path=DIGITS, headers=FRESH, targets=LABELS, **parameters)

    assert [one["target"]["label"] for one in together["explanations"]] == LABELS
    assert len({one["id"] for one in together["explanations"]}) == len(LABELS)
    for label, found in zip(LABELS, together["explanations"], strict=True):
        alone = await explain([digit], path=DIGITS, headers=FRESH, target=label, **parameters)
        assert alone["predictions"] == together["predictions"]
        assert numbers(alone["explanations"][0]) == numbers(found)


async def test_explanations_are_by_instance_and_then_by_target(
    explain: Explain, instance: dict[str, Any], approved: dict[str, Any], client: httpx.AsyncClient
) -> None:
    contrast = {"label": "denied", "rather_than": "approved"}
    targets = ["approved", 1, contrast, "predicted"]
    contexts = [{"decision_id": "first"}, {"decision_id": "second"}]
    reply = await explain([instance, approved], targets=targets, context=contexts)

    assert [one["label"] for one in reply["predictions"]] == ["denied", "approved"]
    said = [(one["target"]["label"], one["target"].get("rather_than")) for one in reply["explanations"]]
    pair = [("approved", None), ("denied", None), ("denied", "approved")]
    assert said == [*pair, ("denied", None), *pair, ("approved", None)]
    records = [(await client.get(f"/v1/explanations/{one['id']}")).json() for one in reply["explanations"]]
    assert [record["decision_id"] for record in records] == ["first"] * 4 + ["second"] * 4
    assert [record["parameters"]["target"] for record in records[:4]] == [0, 1, {"index": 1, "rather_than": 0}, None]
    for record in records[:4]:
        replayed = await client.post(f"/v1/explanations/{record['id']}:replay")
        assert replayed.json()["verdict"] == "bit_exact"


async def test_each_target_is_cached_for_itself(explain: Explain, fresh: dict[str, Any]) -> None:
    await explain([fresh], target="denied")
    reply = await explain([fresh], targets=["approved", "denied"])

    assert [one["cached"] for one in reply["explanations"]] == [False, True]
    again = await explain([fresh], target="approved")
    assert again["explanations"][0]["cached"]


async def test_a_repetition_has_the_same_answer(bank: httpx.AsyncClient, fresh: dict[str, Any]) -> None:
    body = {"instances": [fresh, fresh], "parameters": {"targets": ["approved", "denied"]}}
    header = {"Idempotency-Key": str(uuid.uuid4())}

    first, second = [await bank.post(LOAN, json=body, headers=header) for _ in range(2)]

    assert first.status_code == 200, first.text
    assert len(first.json()["predictions"]) == 2
    assert len(first.json()["explanations"]) == 4
    assert second.json() == first.json()
    assert len((await bank.get("/v1/explanations")).json()["explanations"]) == 4


async def test_each_explanation_counts_against_the_quota(
    service: Service, make_key: MakeKey, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    limited = make_key(tenant=f"targets-{uuid.uuid4()}", quota=Quota(5, None, "day"))
    async with service.client(limited) as client:
        body = {"instances": [instance], "parameters": {"targets": ["approved", "denied"]}}
        for _ in range(2):
            assert (await client.post(LOAN, json=body)).status_code == 200
        assert "quota" in assert_problem(await client.post(LOAN, json=body), 429)


async def test_a_job_explains_every_target_of_every_row(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    instances = [{**instance, "net_worth": float(number)} for number in range(3)]
    parameters = {"targets": ["approved", "denied"]}
    made = await bank.post(
        "/v1/jobs", json={"model": "loan", "version": "1", "instances": instances, "parameters": parameters}
    )
    assert made.status_code == 202, made.text
    job = await ended(bank, made.json()["id"])

    assert job["progress"] == {"total": 6, "done": 6, "failed": 0}
    records = [(await bank.get(f"/v1/explanations/{one['explanation']}")).json() for one in job["results"]]
    assert [record["target"]["label"] for record in records] == ["approved", "denied"] * 3
    assert [record["input"]["net_worth"] for record in records] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]

    again = {"model": "loan", "version": "1", "explanations": {"label": "denied"}, "parameters": {"targets": [0, 1, 0]}}
    made = await bank.post("/v1/jobs", json=again)
    assert (await ended(bank, made.json()["id"]))["progress"]["done"] == 18


@pytest.mark.parametrize(
    ("parameters", "pointer", "says"),
    [
        ({"targets": ["denied"], "target": "denied"}, "/parameters/targets", "either `target` or `targets`"),
        ({"targets": ["denied", "refused"]}, "/parameters/targets/1", "refused"),
        (
            {"targets": [0, {"label": "denied", "rather_than": 1}]},
            "/parameters/targets/1/rather_than",
            "is the label itself",
        ),
        ({"targets": []}, "/parameters/targets", "at least 1"),
        ({"targets": [0] * 21}, "/parameters/targets", "at most 20"),
        ({"targets": [0, 0.5]}, "/parameters/targets/1", "must be a label"),
    ],
    ids=str,
)
async def test_wrong_targets_are_refused_with_their_place(
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    parameters: dict[str, Any],
    pointer: str,
    says: str,
) -> None:
    response = await client.post(LOAN, json={"instances": [instance], "parameters": parameters})
    assert says in assert_problem(response, 422)
    assert response.json()["errors"][0]["pointer"] == pointer
    made = await client.post(
        "/v1/jobs", json={"model": "loan", "version": "1", "instances": [instance], "parameters": parameters}
    )
    assert says in assert_problem(made, 422)


async def test_more_explanations_than_a_request_may_have(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    body = {"instances": [instance] * 51, "parameters": {"targets": [0] * 20}}
    assert "1020 explanations" in assert_problem(await client.post(LOAN, json=body), 422)
