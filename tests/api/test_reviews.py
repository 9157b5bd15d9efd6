"""The review queue: what a rule flagged, until a person has looked at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from service.ledger import EventSearch

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain, Figures
    from tests.conftest import MakeKey, Service

QUEUE = {"flag": "protected_share", "reviewed": "false"}


async def ids(client: httpx.AsyncClient, **conditions: str) -> list[str]:
    response = await client.get("/v1/explanations", params=conditions)
    assert response.status_code == 200, response.text
    return [explanation["id"] for explanation in response.json()["explanations"]]


async def test_a_flagged_explanation_is_in_the_queue_until_it_is_reviewed(
    explain: Explain, figures: Figures, service: Service, make_key: MakeKey, instance: dict[str, Any]
) -> None:
    flagged = {**instance, "consumer_credit_grade": 1, "public_record": 0, "obligations_ratio": 33}
    reader, writer = (make_key(scope, "explain", tenant="reviewed") for scope in ("ledger:read", "ledger:write"))
    async with service.client(make_key(tenant="reviewed")) as theirs:
        (first,) = (await explain([flagged], by=theirs))["explanations"]
        (second,) = (await explain([flagged], by=theirs))["explanations"]
        assert first["flags"] == second["flags"] == ["protected_share"]
        assert await ids(theirs, **QUEUE) == [second["id"], first["id"]]
        before = await figures()

        async with service.client(reader) as reading, service.client(writer) as writing:
            body = {"verdict": "accepted", "note": "the share is that of a small effect"}
            assert (await reading.post(f"/v1/explanations/{first['id']}:review", json=body)).status_code == 403
            assert (await writing.get(f"/v1/explanations/{first['id']}/reviews")).status_code == 403
            reply = await writing.post(f"/v1/explanations/{first['id']}:review", json=body)
            assert reply.status_code == 200, reply.text
            again = {"verdict": "escalated"}
            await writing.post(f"/v1/explanations/{first['id']}:review", json=again)
            reviews = (await reading.get(f"/v1/explanations/{first['id']}/reviews")).json()["reviews"]

        assert await ids(theirs, **QUEUE) == [second["id"]]
        assert await ids(theirs, flag="protected_share", reviewed="true") == [first["id"]]
        assert await ids(theirs, flag="protected_share") == [second["id"], first["id"]]
        assert (await theirs.get(f"/v1/explanations/{second['id']}/reviews")).json()["reviews"] == []
    assert [(review["verdict"], review["note"]) for review in reviews] == [("escalated", ""), tuple(body.values())]
    assert {review["key_id"] for review in reviews} == {writer.id}
    events = service.call(service.with_ledger.ledger.events("reviewed", EventSearch(about=first["id"], kind="review")))
    assert body["note"] not in str(events)
    assert reviews[0]["sequence"] > reviews[1]["sequence"]
    after = await figures()
    for verdict in ("accepted", "escalated"):
        name = ("answerable_reviews_total", frozenset({("verdict", verdict)}))
        assert after[name] == before[name] + 1


async def test_what_is_no_review_is_refused(
    client: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    (explanation,) = (await explain([instance]))["explanations"]
    path = f"/v1/explanations/{explanation['id']}:review"

    for body, status in (
        ({}, 400),
        ({"verdict": "fine"}, 422),
        ({"verdict": "accepted", "note": 3}, 422),
        ({"verdict": "accepted", "note": "x" * 501}, 422),
        ({"verdict": "accepted", "notes": "x"}, 400),
    ):
        assert_problem(await client.post(path, json=body), status)
    assert (await client.get(f"/v1/explanations/{explanation['id']}/reviews")).json()["reviews"] == []
