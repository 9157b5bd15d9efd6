"""Whoever can be recorded can be found, counted, held and erased, whatever they are called."""

from __future__ import annotations

import asyncio
import json
import unicodedata
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.ledger import Entry
from tests.conftest import NO_AUTHORITIES, PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain, Figures
    from tests.conftest import ApiKey, MakeKey, Service

EXPLAIN = "/v1/models/loan/versions/1:explain"
AWKWARD = "/%?#&=+.:;@\\\"'<> \n\r\t\0\x7f\x85\u0301\u0323\u2028\u202e\ufeff\ufffd"
NAMES = st.one_of(
    st.text(st.characters(), max_size=8),
    st.text(st.sampled_from(AWKWARD + "eA\u00e9\u212b\u0958\U0001d160"), max_size=12),
    st.sampled_from([".", "..", "a/../b", "//", "%2F", "x:erase", ":hold", "\u00e9" * 200, "e\u0301" * 200, "x" * 201]),
)


def is_refused(name: str) -> bool:
    """In words of the test's own: nothing, control characters, half a character, or too long."""
    points = map(ord, name)
    is_control = any(point < 32 or 127 <= point < 160 or 0xD800 <= point < 0xE000 for point in points)
    return not name or is_control or len(unicodedata.normalize("NFC", name)) > 200


def sent(client: httpx.Client, instance: dict[str, Any], context: dict[str, Any]) -> httpx.Response:
    content = json.dumps({"instances": [instance], "context": context})
    return client.post(EXPLAIN, content=content, headers={"Content-Type": "application/json"})


def path_of(name: str, action: str = "") -> str:
    return f"/v1/subjects/{quote(name, safe='')}{action}"


@pytest.fixture(scope="module")
def people(make_key: MakeKey) -> ApiKey:
    return make_key(tenant=f"people-{uuid.uuid4()}")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
@example("")
@example("line\nbreak")
@example("a/b%2Fc?d#e")
def test_whoever_is_recorded_is_found_and_erased(
    service: Service, people: ApiKey, instance: dict[str, Any], name: str
) -> None:
    with httpx.Client(
        base_url=service.url, headers=people.headers, timeout=PATIENCE_SECONDS, trust_env=False, verify=NO_AUTHORITIES
    ) as client:
        recorded = sent(client, instance, {"subject": name})
        if is_refused(name):
            assert recorded.status_code in (400, 422), recorded.text
            return
        assert recorded.status_code == 200, recorded.text
        (explanation,) = recorded.json()["explanations"]
        for spelt in {name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}:
            (found,) = client.get("/v1/explanations", params={"subject": spelt}).json()["explanations"]
            assert found["id"] == explanation["id"]
            assert found["subject"] == unicodedata.normalize("NFC", name)
            if len(unicodedata.normalize("NFC", spelt)) <= 200:
                counted = {"explanations": 1, "job_rows": 0, "set_rows": 0, "hold": None}
                assert client.get(path_of(spelt, ":count")).json() == counted
        erased = client.post(path_of(unicodedata.normalize("NFD", name), ":erase"))
        assert (erased.status_code, erased.json()["records"]) == (200, 1), erased.text
        gone = client.get(f"/v1/explanations/{explanation['id']}")
        assert (gone.status_code, gone.json()["tombstone"]["reason"]) == (410, "none was given")


@pytest.mark.parametrize("name", ["", "line\nbreak", "\t", "a\x7fb"])
async def test_who_was_recorded_before_such_names_were_refused_is_erased(
    service: Service, make_key: MakeKey, name: str, assert_problem: AssertProblem
) -> None:
    tenant = f"people-{uuid.uuid4()}"
    entry = Entry(
        id=str(uuid.uuid4()), tenant=tenant, created=1, model="loan", version="1", method="m", converged=True,
        key_id="k", record=b"{}", personal=b'{"input": []}', subject=name,
    )  # fmt: skip
    await asyncio.to_thread(service.call, service.with_ledger.ledger.append([entry]))
    async with service.client(make_key(tenant=tenant)) as client:
        assert (await client.get(path_of(name, ":count"))).json()["explanations"] == 1
        assert (await client.post(path_of(name, ":hold"), json={"reason": "case 12"})).status_code == 200
        assert (await client.post(path_of(name, ":release"))).status_code == 200
        assert (await client.post(path_of(name, ":erase"))).json()["records"] == 1
        refused = await client.post(path_of(name, ":hold"), json={"reason": "case 12"})
        assert "subject" in assert_problem(refused, 422)


async def test_a_hold_says_how_much_it_is_on(
    explain: Explain, service: Service, make_key: MakeKey, instance: dict[str, Any]
) -> None:
    async with service.client(make_key(tenant=f"people-{uuid.uuid4()}")) as client:
        held = (await client.post(path_of("Ada", ":hold"), json={"reason": "case 12"})).json()
        assert (held["explanations"], held["job_rows"]) == (0, 0)
        await explain([instance, instance], by=client, context={"subject": "Ada"})
        kept = (await client.get(path_of("Ada", ":count"))).json()
        hold = {name: held[name] for name in kept["hold"]}
        assert kept == {"explanations": 2, "job_rows": 0, "set_rows": 0, "hold": hold}
        again = (await client.post(path_of("Ada", ":hold"), json={"reason": "case 13"})).json()
        assert again["explanations"] == 2
        (look_up,) = (await client.get("/v1/events", params={"kind": "lookup"})).json()["events"]
        assert (look_up["about"], look_up["details"]) == (held["subject"], {"action": "subject"})


async def test_a_record_of_nobody_is_hinted_at_and_counted(
    explain: Explain, client: httpx.AsyncClient, figures: Figures, instance: dict[str, Any]
) -> None:
    name = ("answerable_records_without_subject_total", frozenset({("model", "loan")}))
    before = (await figures()).get(name, 0)
    for context, hinted in (({"subject": "Ada"}, False), ({"decision_id": "d"}, True), ({}, True)):
        body = {"instances": [instance], "context": context}
        response = await client.post(EXPLAIN, json=body)
        assert ("context.subject" in response.headers.get("Answerable-Hint", "")) is hinted
    assert (await figures())[name] == before + 2


async def test_a_decision_is_found_after_its_erasure(
    explain: Explain, service: Service, make_key: MakeKey, instance: dict[str, Any]
) -> None:
    async with service.client(make_key(tenant=f"people-{uuid.uuid4()}")) as client:
        context = {"subject": "Ada", "decision_id": "d-1"}
        (explanation,) = (await explain([instance], by=client, context=context))["explanations"]
        erased = (await client.post(path_of("Ada", ":erase"), json={"reason": "asked for"})).json()
        (found,) = (await client.get("/v1/explanations", params={"decision_id": "d-1"})).json()["explanations"]
        assert (found["id"], found["ledger"]["tombstone"]) == (explanation["id"], erased["tombstone"])
        assert "Ada" not in str(found)
        assert (await client.get("/v1/explanations", params={"subject": "Ada"})).json()["explanations"] == []
