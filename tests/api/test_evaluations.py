"""Jobs of evaluations as a client meets them: what they find, what is kept of it, and what is refused."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.access.permissions import Policy
from service.ledger.verifying import verify_ledger
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.conftest import MakeKey, Service


@pytest.fixture
def tenant() -> str:
    return f"evaluations-{uuid.uuid4()}"


@pytest.fixture
async def bank(service: Service, make_key: MakeKey, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=tenant)) as client:
        yield client


async def found(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The result of a job of the loan model, once it has ended."""
    response = await client.post("/v1/jobs", json={"model": "loan", "version": "1", "kind": "evaluate", **body})
    assert response.status_code == 202, response.text
    job = response.json()["id"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            ended = (await client.get(f"/v1/jobs/{job}")).json()
            if "ended" in ended:
                break
            await asyncio.sleep(0.02)
    assert (ended["state"], ended["kind"]) == ("done", "evaluate"), ended
    result: dict[str, Any] = (await client.get(f"/v1/jobs/{job}/result")).json()
    return result


async def test_methods_are_compared_over_held_out_rows(bank: httpx.AsyncClient) -> None:
    """And the figures are kept with the version, beside the methods that they are of."""
    methods, metrics = ["integrated_gradients", "saliency"], ["deletion", "gini"]
    options = {"deletion": {"replace": "marginal", "steps": 5}}
    result = await found(bank, dataset="heldout", rows=6, methods=methods, metrics=metrics, options=options)
    assert (result["source"], result["rows"], result["version"]) == ("held-out rows", 6, "1")
    figures = {(one["method"], one["metric"]): one for one in result["figures"]}
    assert set(figures) == {(method, metric) for method in methods for metric in metrics}
    for (_, metric), one in figures.items():
        assert one["explanations"] == len(one["values"]) == 6
        assert one["mean"] == pytest.approx(sum(one["values"]) / 6)
        assert one["interval"][0] <= one["mean"] <= one["interval"][1]
        assert one["replaced"] == ("marginal" if metric == "deletion" else None)
    assert len(figures["saliency", "deletion"]["curve"]) == 6
    kept = (await bank.get("/v1/models/loan/versions/1")).json()
    measured = {method["name"]: method["measured"] for method in kept["methods"]}
    shown = {name: value for name, value in figures["saliency", "deletion"].items() if name not in ("curve", "values")}
    assert shown in measured["saliency"]
    assert measured["input_x_gradient"] == []


async def test_stored_explanations_are_judged_as_they_are(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    """By the figures of the same instances, explained anew by the same method."""
    instances = [{**instance, "net_worth": float(number)} for number in range(3)]
    parameters = {"method": "saliency"}
    body = {"parameters": parameters, "instances": instances}
    response = await bank.post("/v1/models/loan/versions/1:explain", json=body)
    assert response.status_code == 200, response.text
    metrics = {"metrics": ["deletion", "entropy"]}
    stored = await found(bank, explanations={}, **metrics)
    anew = await found(bank, instances=instances, parameters=parameters, **metrics)
    assert stored["source"] == "stored explanations"
    for one, other in zip(stored["figures"], anew["figures"], strict=True):
        assert one["method"] == "saliency"
        assert one["values"][::-1] == pytest.approx(other["values"])  # the newest explanation comes first
    by_another = await found(bank, explanations={}, methods=["input_x_gradient"], **metrics)
    assert {one["method"] for one in by_another["figures"]} == {"input_x_gradient"}


async def test_maps_of_images_are_compared_with_boxes(bank: httpx.AsyncClient) -> None:
    """Of each image its own; one without a box has no figure."""
    image = (await bank.get("/v1/models/digits")).json()["example"]
    whole = {"top": 0, "left": 0, "bottom": 8, "right": 8}
    metrics = ["pointing_game", "energy_pointing_game"]
    boxes = [[whole], [], [{**whole, "bottom": 1, "right": 1}]]
    result = await found(bank, model="digits", instances=[image] * 3, boxes=boxes, metrics=metrics)
    values = [one["values"] for one in result["figures"]]
    assert values[0] == [1.0, None, 0.0]
    assert values[1] == pytest.approx([1.0, None, 0.0])
    assert result["figures"][0]["skipped"] == {"no box came with the input": 1}


async def test_what_is_kept_is_the_tenants(
    service: Service, make_key: MakeKey, bank: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    result = await found(bank, instances=[instance], metrics=["gini"])
    default = (await bank.get("/v1/models/loan")).json()["version"]
    own = (await bank.get("/v1/models/loan/evaluations")).json()
    assert own["version"] == default
    is_there = [one["id"] for one in own["evaluations"]] == [result["id"]]
    assert is_there == (default == "1")
    async with service.client(make_key(tenant="somebody-else")) as other:
        assert result["id"] not in str((await other.get("/v1/models/loan/evaluations")).json())
        assert (await other.get(f"/v1/jobs/{result['id']}/result")).status_code == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"dataset": "heldout", "metrics": ["gain"]}, "metric 'gain' is not known"),
        ({"dataset": "heldout", "methods": ["grad_cam"]}, "grad_cam needs"),
        ({"dataset": "heldout", "methods": ["best"]}, "metrics of faithfulness disagree"),
        ({"dataset": "heldout", "kind": "explain"}, "send either instances or explanations"),
        ({}, "send either instances or explanations, or the dataset"),
        ({"instances": [{}], "kind": "explain", "metrics": ["gini"]}, "are for jobs of the kind evaluate"),
        ({"instances": [{}], "rows": 3}, "rows are those of the dataset"),
        ({"instances": [{}], "boxes": []}, "a list for each"),
        ({"dataset": "heldout", "metrics": ["pointing_game"]}, "boxes are of images"),
        ({"dataset": "heldout", "model": "digits", "metrics": ["pointing_game"]}, "`boxes` has for each"),
        ({"instances": [{}], "boxes": [[{"top": 1, "left": 0, "bottom": 1, "right": 2}]]}, "a box ends behind"),
        ({"dataset": "heldout", "parameters": {"when": "label = denied"}}, "no `when`"),
    ],
)
async def test_what_cannot_be_evaluated_is_refused(bank: httpx.AsyncClient, body: dict[str, Any], said: str) -> None:
    response = await bank.post("/v1/jobs", json={"model": "loan", "version": "1", "kind": "evaluate", **body})
    assert response.status_code in (400, 422), response.text
    assert said in response.text


async def test_a_key_that_must_not_see_outputs_cannot_have_figures_of_them(service: Service, make_key: MakeKey) -> None:
    async with service.client(make_key(policy=Policy(digits=2))) as client:
        body = {"model": "loan", "kind": "evaluate", "dataset": "heldout"}
        response = await client.post("/v1/jobs", json=body)
        assert response.status_code == 403
        assert "figures are made of those" in response.text


async def test_a_log_with_evaluations_holds(service: Service, bank: httpx.AsyncClient) -> None:
    """Rows of an evaluation are done without an explanation."""
    result = await found(bank, dataset="heldout", rows=2, metrics=["gini"])
    verdict = await asyncio.to_thread(verify_ledger, service.database, service.services.vault)
    assert result["id"] not in str(verdict)
