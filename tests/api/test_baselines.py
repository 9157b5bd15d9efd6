"""Baseline sets over the wire: kept, listed, used at once, and refused where they are stale."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from service.ledger.erasing import erase

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import MakeKey, Service, Until

PATH = "/v1/models/loan/baselines"
EXPLAIN = "/v1/models/loan/versions/1:explain"


@pytest.fixture
async def client(service: Service, make_key: MakeKey) -> AsyncIterator[httpx.AsyncClient]:
    """Of a tenant of its own: other tests look at what sets there are."""
    async with service.client(make_key(tenant=f"tenant-{uuid.uuid4()}")) as client:
        yield client


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

    engine = service.engine
    workers = engine.separation.shared.supervisor.workers
    (worker,) = workers.values()
    os.kill(worker.process.pid, 9)
    await until(lambda: worker not in workers.values())
    await until(lambda: engine.stats().is_complete)
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


class Tenant:
    """A tenant of its own, with what it asks of the loan model and its sets."""

    def __init__(self, client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
        self.client = client
        self.instance = instance
        self.rows = [{**instance, "loan_amount": amount} for amount in (50, 150, 700)]

    async def explain(self, baseline: str) -> httpx.Response:
        parameters = {"baseline": baseline, "method": "expected_gradients", "target": 1}
        return await self.client.post(EXPLAIN, json={"instances": [self.instance], "parameters": parameters})

    async def explained(self, baseline: str) -> dict[str, Any]:
        reply = await self.explain(baseline)
        assert reply.status_code == 200, reply.text
        return dict(reply.json()["explanations"][0])

    async def replayed(self, explanation: dict[str, Any]) -> dict[str, Any]:
        reply = await self.client.post(f"/v1/explanations/{explanation['id']}:replay")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def listed(self, name: str) -> dict[str, Any]:
        found = (await self.client.get(PATH)).json()["baselines"]
        return next(one for one in found if f"{one['name']}@{one['version']}" == name)

    async def mean_output(self, rows: list[dict[str, Any]]) -> float:
        reply = (await self.client.post("/v1/models/loan/versions/1:predict", json={"instances": rows})).json()
        return float(np.mean([one["outputs"][1] for one in reply["predictions"]]))


@pytest.fixture
def tenant(client: httpx.AsyncClient, fresh: dict[str, Any]) -> Tenant:
    return Tenant(client, fresh)


def attached(service: Service) -> set[str]:
    """The digests of the sets that the workers were given, beside the manifests'."""
    return {digest for group in service.engine.separation.groups for digest in group.versions.attached}


def erased_files(service: Service, digest: str) -> list[Path]:
    """What the data folder has of a set: its rows, and the model's answers to them."""
    sha256 = digest.removeprefix("sha256:")
    return [path for path in service.data.rglob(f"{sha256[:32]}*") if path.is_file()]


async def test_rows_of_an_erased_person_are_removed_from_a_set_that_goes_on_with_the_others(
    service: Service, tenant: Tenant, assert_problem: AssertProblem
) -> None:
    person = f"Ada {uuid.uuid4().hex}"
    kept = await keep(tenant.client, tenant.rows, description="three amounts", subjects=[person, None, None])
    assert person not in str(kept)
    before = await tenant.explained("mine@1")
    assert (await tenant.replayed(before))["verdict"] == "bit_exact"
    assert len(erased_files(service, kept["digest"])) == 2
    assert kept["digest"] in attached(service)

    erased = (await tenant.client.post(f"/v1/subjects/{person}:erase")).json()

    assert (erased["records"], erased["set_rows"]) == (0, 1)
    listed = await tenant.listed("mine@1")
    assert (listed["size"], listed["erased"]) == (2, [kept["digest"]])
    assert erased_files(service, kept["digest"]) == []
    assert attached(service) & {kept["digest"], listed["digest"]} == {listed["digest"]}
    after = await tenant.explained("mine@1")
    assert after["baseline"] == {key: listed[key] for key in ("name", "version", "digest", "size")}
    assert after["baseline_output"] == pytest.approx(await tenant.mean_output(tenant.rows[1:]), abs=1e-6)
    assert (await tenant.replayed(after))["verdict"] == "bit_exact"
    replayed = await tenant.replayed(before)
    assert replayed["verdict"] == "environment_differs"
    assert {"what": "baseline", "recorded": kept["digest"], "now": "erased"} in replayed["differences"]
    assert "numbers" not in replayed
    assert_problem(await tenant.client.post(f"/v1/subjects/{person}:erase"), 404)


async def test_an_erasure_by_another_process_is_noticed(service: Service, tenant: Tenant, until: Until) -> None:
    person, state = f"Ada {uuid.uuid4().hex}", service.services
    kept = await keep(tenant.client, tenant.rows, subjects=[person, None, None])
    sets = state.catalog.find("loan", "1").kept_sets
    (owner,) = (one.tenant for one in sets if kept["digest"] == f"sha256:{one.sha256}")
    assert owner is not None
    await asyncio.to_thread(erase, service.database, state.vault, owner, person, "operator")

    await until(lambda: kept["digest"] not in attached(service))
    assert erased_files(service, kept["digest"]) == []
    await until(lambda: any(one.erased == (kept["digest"],) for one in state.catalog.find("loan", "1").kept_sets))
    assert (await tenant.explained("mine@1"))["baseline"]["size"] == 2


async def test_a_set_that_is_removed_cannot_be_used_and_says_why(
    service: Service, tenant: Tenant, assert_problem: AssertProblem
) -> None:
    kept = await keep(tenant.client, tenant.rows, description="three amounts")
    before = await tenant.explained("mine")
    path = f"{PATH}/mine@1"
    assert_problem(await tenant.client.delete(f"{PATH}/mine@2"), 404)
    assert_problem(await tenant.client.delete(f"{PATH}/training@1"), 404)  # the manifest's

    removed = await tenant.client.delete(path)

    assert removed.status_code == 200, removed.text
    assert removed.json().items() >= {"size": 0, "erased": [kept["digest"]], "description": ""}.items()
    assert erased_files(service, kept["digest"]) == []
    assert kept["digest"] not in attached(service)
    assert "was erased" in assert_problem(await tenant.explain("mine@1"), 422)
    assert "was erased" in assert_problem(await tenant.explain("mine"), 422)
    assert (await tenant.listed("mine@1"))["stale"] == "its rows were erased"
    shown = (await tenant.client.get("/v1/models/loan/versions/1")).json()["baselines"]
    assert "mine" not in {one["name"] for one in shown}
    (difference,) = (await tenant.replayed(before))["differences"]
    assert difference == {"what": "baseline", "recorded": kept["digest"], "now": "erased"}
    events = (await tenant.client.get("/v1/events", params={"kind": "baseline_removed"})).json()["events"]
    assert [(one["about"], one["details"]) for one in events] == [
        ("loan/mine@1", {"digest": kept["digest"], "rows": 3})
    ]
    assert_problem(await tenant.client.delete(path), 410)
    assert (await keep(tenant.client, tenant.rows))["version"] == "2"
    assert (await tenant.explained("mine"))["baseline"]["version"] == "2"


async def test_a_hold_keeps_rows_of_a_person(tenant: Tenant, assert_problem: AssertProblem) -> None:
    person = f"Ada {uuid.uuid4().hex}"
    await keep(tenant.client, tenant.rows, subjects=[person, person, None])
    await tenant.client.post(f"/v1/subjects/{person}:hold", json={"reason": "a case"})
    assert "a case" in assert_problem(await tenant.client.post(f"/v1/subjects/{person}:erase"), 409)
    assert "a case" in assert_problem(await tenant.client.delete(f"{PATH}/mine@1"), 409)
    assert (await tenant.listed("mine@1"))["size"] == 3

    await tenant.client.post(f"/v1/subjects/{person}:release")
    assert (await tenant.client.post(f"/v1/subjects/{person}:erase")).json()["set_rows"] == 2
    assert (await tenant.listed("mine@1"))["size"] == 1


async def test_another_tenants_person_of_the_same_name_is_another(
    service: Service, make_key: MakeKey, tenant: Tenant, assert_problem: AssertProblem
) -> None:
    person = f"Ada {uuid.uuid4().hex}"
    kept = await keep(tenant.client, tenant.rows, subjects=[person, None, None])
    async with service.client(make_key(tenant=f"tenant-{uuid.uuid4()}")) as other:
        assert_problem(await other.post(f"/v1/subjects/{person}:erase"), 404)
        same = await keep(other, tenant.rows)  # the very same rows, which are nobody's here
        assert (await tenant.client.delete(f"{PATH}/mine@1")).status_code == 200
        body = {"instances": [tenant.instance], "parameters": {"baseline": "mine@1"}}
        found = (await other.post(EXPLAIN, json=body)).json()["explanations"][0]
        assert found["baseline"]["digest"] == same["digest"] != kept["digest"]


async def test_what_was_planned_before_an_erasure_is_refused_by_the_worker(service: Service, tenant: Tenant) -> None:
    """Between the plan and its chunk the set may go; the answer is the one that the next request gets, and no 500."""
    kept = await keep(tenant.client, tenant.rows)
    service.loop.call_soon_threadsafe(service.services.engine.detach, kept["digest"])
    reply = await tenant.explain("mine@1")
    assert (reply.status_code, reply.json()["type"]) == (422, "urn:answerable:problem:unknown-baseline")


@pytest.mark.parametrize("subjects", [["Ada"], ["Ada", None, None, None], ["", None, None], ["A\0", None, None]])
async def test_subjects_are_one_a_row(tenant: Tenant, assert_problem: AssertProblem, subjects: list[str]) -> None:
    body = {"name": "mine", "rows": tenant.rows, "model_version": "1", "subjects": subjects}
    reply = await tenant.client.post(PATH, json=body)
    assert "subject" in assert_problem(reply, reply.status_code)
    assert reply.status_code in (400, 422)


async def test_whose_rows_were_not_kept_is_not_known(tenant: Tenant, assert_problem: AssertProblem) -> None:
    person = f"Ada {uuid.uuid4().hex}"
    body = {"name": "zeros", "rows": tenant.rows, "model_version": "1", "subjects": [person, None, None]}
    assert_problem(await tenant.client.post(PATH, json=body), 422)
    assert_problem(await tenant.client.post(f"/v1/subjects/{person}:erase"), 404)
