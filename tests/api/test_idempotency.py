"""`Idempotency-Key`: what is sent again is done once, and answered as it was the first time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from sqlalchemy import update

from service.api.idempotency import HEADER, is_repeatable
from service.api.paths import routes_of
from service.api.turns import Turns
from service.app import create_app
from service.ledger import Ledger, Search, remembering
from service.ledger.entries import LOOKUP, REVIEW
from service.ledger.searches import EventSearch
from service.ledger.tables import remembered
from service.monitoring.health import Health
from service.settings import Settings
from service.usecases.explaining import Explaining
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import MakeKey, Service

EXPLAIN = "/v1/models/loan/versions/1:explain"
REUSED = "urn:answerable:problem:idempotency-key-reused"


@pytest.fixture
def tenant() -> str:
    return f"idempotency-{uuid.uuid4()}"


@pytest.fixture
async def bank(service: Service, make_key: MakeKey, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=tenant)) as client:
        yield client


def key() -> dict[str, str]:
    """The header with a key that nobody has sent."""
    return {HEADER: str(uuid.uuid4())}


async def stored(client: httpx.AsyncClient) -> list[str]:
    """The ids of every stored explanation."""
    page = (await client.get("/v1/explanations", params={"limit": 200})).json()
    return [one["id"] for one in page["explanations"]]


def kept_of(service: Service, reply: httpx.Response) -> list[Any]:
    """The rows of what is remembered of a reply with one explanation."""
    explanation = reply.json()["explanations"][0]["id"].encode()
    with service.database.connect() as connection:
        return [row for row in connection.execute(remembered.select()) if explanation in row.answer]


def make_over(service: Service, reply: httpx.Response) -> None:
    """Makes what is remembered of it a day old."""
    (row,) = kept_of(service, reply)
    with service.database.begin() as connection:
        mine = update(remembered).where(remembered.c.lookup == row.lookup)
        connection.execute(mine.values(created=remembering.expired_before() - 1))


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"baseline": "zeros", "output_space": "logit"},
    {"method": "expected_gradients"},
    {"method": "integrated_gradients", "noise": {"kind": "smoothgrad", "samples": 3}},
    {"method": "integrated_hessians", "options": {"smooth": "softplus"}},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
async def test_four_equal_sends_in_turn_are_one_record(
    service: Service, bank: httpx.AsyncClient, fresh: dict[str, Any], tenant: str, parameters: dict[str, Any]
) -> None:
    body = {"instances": [fresh], "parameters": parameters, "context": {"subject": "Ada"}}
    header = key()

    answers = [await bank.post(EXPLAIN, json=body, headers=header) for _ in range(3)]
    reordered = {name: body[name] for name in reversed(body)}
    last = await bank.post(EXPLAIN, json=reordered, headers={**header, "Cache-Control": "no-cache"})

    first, *others = [*answers, last]
    assert first.status_code == 200, first.text
    for other in others:
        assert other.status_code == 200, other.text
        assert other.json() == first.json()
        assert other.headers["server-timing"] == first.headers["server-timing"]
        assert "Answerable-Hint" not in other.headers
    assert await stored(bank) == [first.json()["explanations"][0]["id"]]
    found = service.call(service.with_ledger.ledger.events(tenant, EventSearch(kind=LOOKUP)))
    assert [event.details["action"] for event in found.events].count("repeat") == 3


async def test_four_equal_sends_at_once_are_one_record(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    body = {"instances": [{**instance, "net_worth": float(number)} for number in range(5)]}
    header = {**key(), "Cache-Control": "no-cache"}

    answers = await asyncio.gather(*(bank.post(EXPLAIN, json=body, headers=header) for _ in range(4)))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert all("context.subject" in answer.headers["Answerable-Hint"] for answer in answers)
    assert sorted(await stored(bank)) == sorted(one["id"] for one in answers[0].json()["explanations"])


async def test_another_request_with_the_key_is_refused(
    bank: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    header, body = key(), {"instances": [instance]}
    assert (await bank.post(EXPLAIN, json=body, headers=header)).status_code == 200

    others = [
        await bank.post(EXPLAIN, json={"instances": [{**instance, "net_worth": 1.0}]}, headers=header),
        await bank.post("/v1/models/loan/versions/2:explain", json=body, headers=header),
        await bank.post("/v1/jobs", json={"model": "loan", "version": "1", **body}, headers=header),
    ]

    for other in others:
        assert "send a new key with a new request" in assert_problem(other, 422)
        assert other.json()["type"] == REUSED
    assert len(await stored(bank)) == 1
    assert (await bank.get("/v1/jobs")).json()["jobs"] == []


async def test_another_tenants_key_is_another_key(
    service: Service, make_key: MakeKey, bank: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    header = key()
    async with service.client(make_key(tenant=f"other-{uuid.uuid4()}")) as other:
        here = await bank.post(EXPLAIN, json={"instances": [instance]}, headers=header)
        there = await other.post(EXPLAIN, json={"instances": [{**instance, "net_worth": 1.0}]}, headers=header)
        assert (here.status_code, there.status_code) == (200, 200)
        assert len(await stored(bank)) == len(await stored(other)) == 1
        assert await stored(bank) != await stored(other)


async def test_what_failed_is_done_when_it_is_sent_again(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    header = key()
    refused = {"instances": [{**instance, "net_worth": -1e12}]}
    assert (await bank.post(EXPLAIN, json=refused, headers=header)).status_code == 422
    assert (await bank.post(EXPLAIN, json={"instances": [instance]}, headers=header)).status_code == 200
    assert len(await stored(bank)) == 1


async def test_a_day_later_it_is_a_new_request(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    header, body = key(), {"instances": [instance]}
    first = await bank.post(EXPLAIN, json=body, headers=header)
    make_over(service, first)

    second = await bank.post(EXPLAIN, json={"instances": [{**instance, "net_worth": 1.0}]}, headers=header)

    assert second.status_code == 200
    assert len(await stored(bank)) == 2
    assert kept_of(service, first) == []
    make_over(service, second)
    assert remembering.sweep(service.database) == 1
    assert kept_of(service, second) == []


async def test_nothing_of_a_person_is_kept_and_an_erasure_reaches_it(
    service: Service, bank: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    header = {HEADER: f"ada-lovelace-{uuid.uuid4()}"}
    body = {"instances": [fresh], "context": {"subject": "Ada Lovelace", "decision_id": "loan-7"}}
    first = await bank.post(EXPLAIN, json=body, headers=header)
    explanation = first.json()["explanations"][0]
    (row,) = kept_of(service, first)
    for person in (str(fresh["applicant_income"]), "Ada", "ada-lovelace", "loan-7", str(explanation["output"])):
        assert person not in str(row)
    erase = "/v1/subjects/Ada Lovelace:erase"
    once = key()
    erasures = [await bank.post(erase, json={"reason": "asked for"}, headers=once) for _ in range(3)]

    again = await bank.post(EXPLAIN, json=body, headers=header)

    assert [answer.status_code for answer in erasures] == [200] * 3
    assert all(answer.json() == erasures[0].json() for answer in erasures)
    assert again.status_code == 410
    assert again.json()["tombstone"]["sequence"] == erasures[0].json()["tombstone"]
    assert (await bank.post(erase, headers=key())).status_code == 404


async def test_a_hold_and_its_release_are_put_once(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], tenant: str
) -> None:
    await bank.post(EXPLAIN, json={"instances": [instance], "context": {"subject": "Ada"}})
    for verb, body in (("hold", {"reason": "case 7"}), ("release", {"reason": "case 7 is closed"})):
        header = key()
        answers = await asyncio.gather(
            *(bank.post(f"/v1/subjects/Ada:{verb}", json=body, headers=header) for _ in range(4))
        )
        assert [answer.status_code for answer in answers] == [200] * 4
        assert all(answer.json() == answers[0].json() for answer in answers)
        page = service.call(service.with_ledger.ledger.events(tenant, EventSearch(kind=verb)))
        assert len(page.events) == 1


async def test_a_job_and_an_export_are_made_once(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    for path, body, listed in (
        ("/v1/jobs", {"model": "loan", "version": "1", "instances": [instance] * 3}, "jobs"),
        ("/v1/exports", {"format": "csv"}, "exports"),
    ):
        header = key()
        answers = await asyncio.gather(*(bank.post(path, json=body, headers=header) for _ in range(4)))
        assert [answer.status_code for answer in answers] == [202] * 4
        assert all(answer.json() == answers[0].json() for answer in answers)
        assert {answer.headers["location"] for answer in answers} == {f"{path}/{answers[0].json()['id']}"}
        assert [one["id"] for one in (await bank.get(path)).json()[listed]] == [answers[0].json()["id"]]


async def test_a_review_is_recorded_once_and_told_as_it_was(
    service: Service, bank: httpx.AsyncClient, instance: dict[str, Any], tenant: str
) -> None:
    reply = await bank.post(EXPLAIN, json={"instances": [instance]})
    review = f"/v1/explanations/{reply.json()['explanations'][0]['id']}:review"
    header, body = key(), {"verdict": "accepted"}
    first = await bank.post(review, json=body, headers=header)
    assert (await bank.post(review, json={"verdict": "rejected"}, headers=key())).status_code == 200

    again = await bank.post(review, json=body, headers=header)

    assert again.json() == first.json()
    assert len(service.call(service.with_ledger.ledger.events(tenant, EventSearch(kind=REVIEW))).events) == 2


async def test_two_hosts_with_one_database_record_once(
    service: Service, make_key: MakeKey, instance: dict[str, Any], tenant: str
) -> None:
    """The second computes too, and is about to record when the first has."""
    ours, header = make_key(tenant=tenant), key()
    body = {"instances": [instance, {**instance, "net_worth": 1.0}]}
    services = service.services

    async def both() -> tuple[list[httpx.Response], int]:
        ledger = Ledger(service.database, services.vault)
        other = create_app(Settings(_env_file=None, models=MODELS))
        health = Health(services.engine, 0)
        explaining = Explaining(services.engine, services.cache, ledger, "required", services.metrics, health, 200_000)
        with_ledger = replace(service.with_ledger, ledger=ledger)
        other.state.services = replace(services, turns=Turns(), explaining=explaining, with_ledger=with_ledger)
        computed, may_record, append = asyncio.Event(), asyncio.Event(), ledger.append

        async def held(*given: Any) -> None:
            if len(given[0]) == 2:
                computed.set()
                await may_record.wait()
            await append(*given)

        cast(Any, ledger).append = held
        hosts = [
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") for app in (service.app, other)
        ]
        headers = {**ours.headers, **header}
        try:
            late = asyncio.create_task(hosts[1].post(EXPLAIN, json=body, headers=headers))
            await computed.wait()
            first = await hosts[0].post(EXPLAIN, json=body, headers=headers)
            may_record.set()
            again = await hosts[1].post(EXPLAIN, json=body, headers=headers)
            return [first, await late, again], len((await ledger.search(tenant, Search())).entries)
        finally:
            await ledger.close()
            for host in hosts:
                await host.aclose()

    answers, records = service.call(both())

    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert records == 2


@pytest.mark.parametrize("wrong", [[""], ["k" * 201], ["a", "b"]], ids=["empty", "long", "two"])
async def test_a_wrong_key_is_refused(
    bank: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem, wrong: list[str]
) -> None:
    headers = [(HEADER, value) for value in wrong]
    answer = await bank.post(EXPLAIN, json={"instances": [instance]}, headers=headers)
    assert "1 to 200 visible characters" in assert_problem(answer, 422)
    assert await stored(bank) == []


async def test_the_routes_that_take_it_are_those_that_record(service: Service) -> None:
    schema = (await asyncio.to_thread(service.app.openapi))["paths"]
    documented = {
        (method, path)
        for path, operations in schema.items()
        for method, operation in operations.items()
        if any(one["name"] == HEADER for one in operation.get("parameters", []))
    }
    assert documented == {
        ("post", "/v1/models/{model}:explain"),
        ("post", "/v1/models/{model}/versions/{version}:explain"),
        ("post", "/v1/jobs"),
        ("post", "/v1/exports"),
        ("post", "/v1/explanations/{explanation}:review"),
        ("post", "/v1/subjects/{subject}:erase"),
        ("post", "/v1/subjects/{subject}:hold"),
        ("post", "/v1/subjects/{subject}:release"),
    }
    assert len(documented) == sum(is_repeatable(route.endpoint) for route in routes_of(service.app))
