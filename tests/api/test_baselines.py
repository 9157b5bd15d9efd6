"""Baseline sets over the wire: kept, listed, used at once, and refused where they are stale."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import MakeKey, Service, Until

PATH = "/v1/models/loan/baselines"
EXPLAIN = "/v1/models/loan/versions/1:explain"


async def keep(client: httpx.AsyncClient, rows: list[Any], **fields: Any) -> dict[str, Any]:
    reply = await client.post(PATH, json={"name": "mine", "rows": rows, "model_version": "1", **fields})
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_a_set_is_used_from_the_answer_on_and_by_a_worker_that_comes_later(
    service: Service, client: httpx.AsyncClient, instance: dict[str, Any], until: Until
) -> None:
    rows = [{**instance, "loan_amount": amount} for amount in (50, 150, 700)]
    kept = await keep(client, rows, description="three amounts")
    assert {"name": "mine", "size": 3, "source": "kept", "model_version": "1"}.items() <= kept.items()
    name = f"mine@{kept['version']}"

    async def explained() -> dict[str, Any]:
        body = {"instances": [instance], "parameters": {"baseline": name, "method": "expected_gradients", "target": 1}}
        reply = await client.post(EXPLAIN, json=body, headers={"Cache-Control": "no-cache"})
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()["explanations"][0]
        return found

    explanation = await explained()
    assert explanation["baseline"] == {key: kept[key] for key in ("name", "version", "digest", "size")}
    predicted = (await client.post("/v1/models/loan/versions/1:predict", json={"instances": rows})).json()
    mean = np.mean([one["outputs"][1] for one in predicted["predictions"]])
    assert explanation["baseline_output"] == pytest.approx(mean, abs=1e-6)
    moved = {feature for feature, value in explanation["attributions"].items() if abs(value) > 1e-12}
    assert moved == {"loan_amount"}
    replayed = (await client.post(f"/v1/explanations/{explanation['id']}:replay")).json()
    assert replayed["verdict"] == "bit_exact"

    engine = service.app.state.engine
    (worker,) = engine._workers.values()
    os.kill(worker.process.pid, 9)
    await until(lambda: worker not in engine._workers.values())
    await until(lambda: engine.is_complete)
    assert (await explained())["attributions"] == explanation["attributions"]


async def test_what_is_kept_is_listed(client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    first, second = [await keep(client, [instance], name="listed") for _ in range(2)]
    found = (await client.get(PATH)).json()["baselines"]

    assert [one["version"] for one in (first, second)] == ["1", "2"]
    kept = [one for one in found if one["name"] == "listed"]
    assert [{**one, "age_seconds": 0} for one in kept] == [{**one, "age_seconds": 0} for one in (first, second)]
    assert all(one["age_seconds"] >= 0 for one in found)
    assert {one["source"] for one in found if one["name"] == "training"} == {"manifest"}
    shown = (await client.get("/v1/models/loan")).json()["baselines"]
    assert "listed" not in {one["name"] for one in shown}  # of version 2, which the set is not for


async def test_a_set_of_another_version_is_refused_with_the_reason(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    await keep(client, [instance], name="old")
    newest = (await client.get("/v1/models/loan")).json()["example"]
    body = {"instances": [newest], "parameters": {"baseline": "old@1"}}
    reply = await client.post("/v1/models/loan/versions/2:explain", json=body)

    assert "old@1 is not for loan@2: it was made for the inputs of loan@1" in assert_problem(reply, 422)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"name": "mine"}, 400, "rows"),
        ({"name": "mine", "rows": []}, 422, "rows"),
        ({"name": "zeros", "rows": [1]}, 422, "baseline of its own"),
        ({"name": "../mine", "rows": [1]}, 422, "small letters"),
        ({"name": "mine", "rows": [{"loan_amount": 1}]}, 422, "row 0: missing"),
        ({"name": "mine", "rows": ["x"]}, 422, "row 0"),
        ({"name": "mine", "rows": [1], "model_version": "99"}, 404, "version"),
    ],
)
async def test_what_cannot_be_kept(
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    body: dict[str, Any],
    status: int,
    sentence: str,
) -> None:
    given = {"model_version": "1", **body}
    if given.get("rows") == [1]:
        given["rows"] = [instance]
    assert sentence in assert_problem(await client.post(PATH, json=given), status)


async def test_it_takes_its_own_scope(service: Service, make_key: MakeKey, assert_problem: AssertProblem) -> None:
    async with service.client(make_key("explain")) as client:
        assert (await client.get(PATH)).status_code == 200
        assert_problem(await client.post(PATH, json={}), 403)
