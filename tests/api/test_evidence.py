"""Proofs and verification over HTTP, look-ups that leave a trace, and people whose data is erased."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from service.errors import LedgerUnavailable
from service.ledger.merkle import is_consistent, is_included
from service.ledger.signing import signed_by

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service


@pytest.fixture
async def bank(service: Service, make_key: MakeKey) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=f"bank-{uuid.uuid4()}")) as client:
        yield client


async def body_of(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> Any:
    response = await client.request(method, path, **options)
    assert response.status_code == 200, response.text
    return response.json()


async def lookups(client: httpx.AsyncClient) -> list[tuple[str, str | None]]:
    """What was looked up, the oldest first."""
    page = await body_of(client, "GET", "/v1/events", params={"kind": "lookup", "limit": 200})
    return [(event["details"]["action"], event["about"]) for event in reversed(page["events"])]


async def test_an_explanation_is_proved_and_verified(
    explain: Explain, bank: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    (explanation,) = (await explain([fresh], by=bank))["explanations"]
    proof = await body_of(bank, "GET", f"/v1/explanations/{explanation['id']}/proof")
    checkpoint = proof["checkpoint"]
    leaf = hashlib.sha256(b"\0" + proof["record"].encode()).digest()
    assert leaf.hex() == proof["leaf"]
    path = [bytes.fromhex(one) for one in proof["path"]]
    assert is_included(leaf, proof["leaf_index"], checkpoint["size"], path, bytes.fromhex(checkpoint["root"]))
    assert signed_by(checkpoint["key"], bytes.fromhex(checkpoint["signature"]), checkpoint["body"].encode())

    later = await body_of(bank, "GET", "/v1/checkpoint")
    assert later["size"] >= checkpoint["size"]
    found = await body_of(bank, "GET", f"/v1/consistency?from={checkpoint['size']}&to={later['size']}")
    hashes = [bytes.fromhex(one) for one in found["proof"]]
    roots = [bytes.fromhex(found[name]["root"]) for name in ("first", "second")]
    assert is_consistent(checkpoint["size"], later["size"], roots[0], roots[1], hashes)

    verdict = await body_of(bank, "POST", f"/v1/explanations/{explanation['id']}:verify")
    assert (verdict["valid"], verdict["erased"], verdict["faults"]) == (True, False, [])


@pytest.mark.parametrize("query", ["from=2&to=1", "from=0&to=1", "from=x&to=2"])
async def test_sizes_that_are_none(client: httpx.AsyncClient, assert_problem: AssertProblem, query: str) -> None:
    response = await client.get(f"/v1/consistency?{query}")
    assert_problem(response, 422)


async def test_a_size_without_a_checkpoint(client: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    assert_problem(await client.get("/v1/consistency?from=1&to=9007199254740990"), 404)


async def test_every_look_up_leaves_a_trace(explain: Explain, bank: httpx.AsyncClient, fresh: dict[str, Any]) -> None:
    context = {"subject": "Ada Traceable", "decision_id": "d-traceable"}
    (explanation,) = (await explain([fresh], by=bank, context=context))["explanations"]
    identifier = explanation["id"]
    path = f"/v1/explanations/{identifier}"
    await body_of(bank, "GET", path)
    await body_of(bank, "GET", f"{path}/reasons")
    await body_of(bank, "GET", f"{path}/proof")
    await body_of(bank, "POST", f"{path}:verify")
    await body_of(bank, "POST", f"{path}:replay")
    await body_of(bank, "GET", "/v1/explanations", params={"subject": "Ada Traceable", "decision_id": "d-traceable"})
    await body_of(bank, "GET", "/v1/explanations", params={"subject": "nobody"})
    actions = ["get", "reasons", "proof", "verify", "replay"]
    assert await lookups(bank) == [*((action, identifier) for action in actions), ("search", None), ("search", None)]
    newest = await body_of(bank, "GET", "/v1/events", params={"kind": "lookup", "limit": 2})
    unknown, known = (event["details"] for event in newest["events"])
    record = await body_of(bank, "GET", path)
    assert known["seen"] == [record["ledger"]["sequence"]]
    assert unknown["seen"] == []
    assert "Ada" not in str(newest)
    assert "d-traceable" not in str(newest)
    assert {event["key_id"] for event in newest["events"]} == {record["key_id"]}


async def test_a_look_up_that_cannot_be_recorded_is_not_answered(
    service: Service,
    explain: Explain,
    bank: httpx.AsyncClient,
    fresh: dict[str, Any],
    assert_problem: AssertProblem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (explanation,) = (await explain([fresh], by=bank))["explanations"]

    async def fail(*_: object, **__: object) -> None:
        raise LedgerUnavailable("the disk is full")

    monkeypatch.setattr(service.with_ledger.ledger, "append_event", fail)
    for path in (f"/v1/explanations/{explanation['id']}", "/v1/explanations"):
        assert "could not be recorded" in assert_problem(await bank.get(path), 503)
    with service.changed(ledger_mode="best_effort"):
        assert (await bank.get("/v1/explanations")).status_code == 200


async def test_an_erased_person(
    service: Service,
    explain: Explain,
    bank: httpx.AsyncClient,
    client: httpx.AsyncClient,
    fresh: dict[str, Any],
    assert_problem: AssertProblem,
) -> None:
    person = f"Ada/Lovelace: {uuid.uuid4()}"
    decision = f"d-{uuid.uuid4()}"
    context = {"subject": person, "decision_id": decision, "cohort": {"channel": "web"}}
    first = (await explain([fresh], by=bank, context=context))["explanations"][0]
    assert (await explain([fresh], by=bank, context=context))["explanations"][0]["cached"] is True
    other = (await explain([fresh], by=bank, context={"subject": "Bob"}))["explanations"][0]
    path = f"/v1/subjects/{httpx.URL('/').copy_with(path='/' + person).raw_path.decode()[1:]}"

    held = await body_of(bank, "POST", f"{path}:hold", json={"reason": "case 12"})
    assert held["reason"] == "case 12"
    refused = await bank.post(f"{path}:erase")
    assert "case 12" in assert_problem(refused, 409)
    await body_of(bank, "POST", f"{path}:release")
    assert (await client.post(f"{path}:erase")).status_code == 404  # another tenant has no such person
    erased = await body_of(bank, "POST", f"{path}:erase", json={"reason": "asked for"})
    assert erased["records"] == 2

    identifier = first["id"]
    for suffix in ("", "/reasons"):
        gone = await bank.get(f"/v1/explanations/{identifier}{suffix}")
        assert gone.status_code == 410
        assert gone.json()["tombstone"]["sequence"] == erased["tombstone"]
        assert gone.json()["tombstone"]["reason"] == "asked for"
    assert (await bank.post(f"/v1/explanations/{identifier}:replay")).status_code == 410
    verdict = await body_of(bank, "POST", f"/v1/explanations/{identifier}:verify")
    assert (verdict["valid"], verdict["erased"]) == (True, True)
    assert await body_of(bank, "GET", f"/v1/explanations/{identifier}/proof")
    assert (await body_of(bank, "GET", f"/v1/explanations/{other['id']}"))["subject"] == "Bob"
    listed = await body_of(bank, "GET", "/v1/explanations")
    (left,) = [one for one in listed["explanations"] if one["id"] == identifier]
    assert left["ledger"]["tombstone"] == erased["tombstone"]
    for word in (person, decision, str(first["output"]), str(fresh["applicant_income"])):
        assert word not in str(left)
    async with Redis.from_url(str(service.services.cache.url)) as redis:
        assert await redis.keys("answerable:result:*") == []
    assert (await explain([fresh], by=bank, context=context))["explanations"][0]["cached"] is False
    assert (await bank.post(f"{path}:erase")).status_code == 200


@pytest.mark.parametrize(
    ("action", "body", "status"),
    [
        ("erase", {"reason": "x" * 501}, 422),
        ("erase", {"why": "x"}, 400),
        ("hold", {}, 400),
        ("hold", {"reason": ""}, 422),
        ("release", {}, 404),
        ("erase", {}, 404),
    ],
)
async def test_what_cannot_be_done_with_a_person(
    bank: httpx.AsyncClient, assert_problem: AssertProblem, action: str, body: dict[str, str], status: int
) -> None:
    assert_problem(await bank.post(f"/v1/subjects/nobody:{action}", json=body), status)
    assert_problem(await bank.post(f"/v1/subjects/{'x' * 201}:erase"), 422)


async def test_events_are_seen_by_their_tenant_only(
    explain: Explain, bank: httpx.AsyncClient, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    (explanation,) = (await explain([fresh], by=bank))["explanations"]
    await body_of(bank, "GET", f"/v1/explanations/{explanation['id']}")
    for _ in range(3):
        await body_of(bank, "GET", "/v1/explanations")
    params: dict[str, Any] = {"about": explanation["id"]}
    assert len((await body_of(bank, "GET", "/v1/events", params=params))["events"]) == 1
    assert (await body_of(client, "GET", "/v1/events", params=params))["events"] == []
    first = await body_of(bank, "GET", "/v1/events", params={"kind": "lookup", "limit": 3})
    second = await body_of(
        bank, "GET", "/v1/events", params={"kind": "lookup", "limit": 3, "cursor": first["next_cursor"]}
    )
    assert (len(first["events"]), len(second["events"]), second["next_cursor"]) == (3, 1, None)
    tomorrow = {"from": time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(time.time() + 86_400))}
    assert (await body_of(bank, "GET", "/v1/events", params=tomorrow))["events"] == []


async def test_readiness_tells_what_a_start_found(service: Service, client: httpx.AsyncClient) -> None:
    """An older copy of the database, say; what can be served is served all the same."""
    assert service.services.ledger_notices == []
    assert "ledger" not in (await client.get("/v2/health/ready")).json()
    with service.changed(ledger_notices=["an older copy of the database was restored"]):
        ready = await client.get("/v2/health/ready")
    assert ready.json()["ledger"] == ["an older copy of the database was restored"]
