"""Stored explanations: every answer can be found again; by its own tenant only, see `test_tenants`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from service.background.exporting import ExportSpec
from service.ledger import Entry, Event, Ledger
from service.ledger.clock import WrittenTimes

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400_000_000
NOT_CONVERGED = {"options": {"rule": "midpoint"}, "tolerance": 1e-9, "max_evaluations": 2}


def moment(microseconds: int) -> str:
    return (EPOCH + timedelta(microseconds=microseconds)).isoformat()


@pytest.fixture
async def bank(service: Service, make_key: MakeKey) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has nothing stored yet."""
    async with service.client(make_key(tenant=f"bank-{uuid.uuid4()}")) as client:
        yield client


async def found(client: httpx.AsyncClient, **conditions: Any) -> list[str]:
    """The ids of one page."""
    response = await client.get("/v1/explanations", params=conditions)
    assert response.status_code == 200, response.text
    return [record["id"] for record in response.json()["explanations"]]


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients"])
async def test_a_record_holds_the_answer_and_what_it_takes_to_repeat_it(
    explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any], method: str
) -> None:
    context = {"decision_id": "d-1", "subject": "Ada", "cohort": {"channel": "web"}}

    reply = await explain([fresh], method=method, target="denied", seed=7, tolerance=0.02, context=context)
    (explanation,) = reply["explanations"]
    response = await client.get(f"/v1/explanations/{explanation['id']}")

    assert response.status_code == 200
    record = response.json()
    answered = {name: value for name, value in explanation.items() if name != "timings_ms"}
    assert {name: record.get(name) for name in answered} == answered
    assert record["prediction"] == reply["predictions"][0]
    assert record["input"] == fresh
    assert (record["decision_id"], record["subject"], record["cohort"]) == ("d-1", "Ada", {"channel": "web"})
    parameters = record["parameters"]
    seed = 7 if method == "expected_gradients" else 0  # integrated gradients draw nothing
    assert (parameters["target"], parameters["seed"], parameters["tolerance"]) == (1, seed, 0.02)
    assert {"max_evaluations", "floor", "options"} <= set(parameters)
    assert record["environment"]
    assert "plan_digest" not in record  # a guess of the input could be tried against it
    assert record["manifest"].startswith("sha256:")
    assert len(record["personal_commitment"]) == len(record["ledger"]["leaf"]) == 64
    assert record["ledger"]["sequence"] > 0


async def test_every_instance_of_a_request_has_its_record(
    explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any], approved: dict[str, Any]
) -> None:
    contexts = [{"subject": "Ada"}, {"subject": "Grace", "decision_id": "d-2"}]

    reply = await explain([fresh, approved], context=contexts)

    for explanation, instance, context in zip(reply["explanations"], (fresh, approved), contexts, strict=True):
        record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
        assert record["input"] == instance
        assert record["subject"] == context["subject"]
        assert record["decision_id"] == context.get("decision_id")


async def test_one_context_stands_for_all_instances(
    explain: Explain, bank: httpx.AsyncClient, fresh: dict[str, Any], approved: dict[str, Any]
) -> None:
    reply = await explain([fresh, approved], context={"subject": "Ada"}, by=bank)

    assert set(await found(bank, subject="Ada")) == {one["id"] for one in reply["explanations"]}


async def test_search_by_every_condition(
    explain: Explain, bank: httpx.AsyncClient, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    first = await explain([instance], by=bank, context={"decision_id": "d-1", "cohort": {"channel": "web"}})
    second = await explain([approved], by=bank, context={"subject": "Ada", "cohort": {"channel": "branch"}})
    third = await explain([instance], by=bank, **NOT_CONVERGED)
    fourth = await explain([instance], by=bank, baseline={**instance, "black": 0})
    answers = [reply["explanations"][0] for reply in (fourth, third, second, first)]
    flagged, unsure, accepted, denied = [answer["id"] for answer in answers]
    with_flag = [answer["id"] for answer in answers if "protected_share" in answer["flags"]]
    assert flagged in with_flag
    assert denied not in with_flag

    assert await found(bank) == [flagged, unsure, accepted, denied]
    assert await found(bank, model="loan") == [flagged, unsure, accepted, denied]
    assert await found(bank, model="loan", version="1") == [flagged, unsure, accepted, denied]
    assert await found(bank, model="loan", version="2") == []
    assert await found(bank, model="other") == []
    assert await found(bank, subject="Ada") == [accepted]
    assert await found(bank, decision_id="d-1") == [denied]
    assert await found(bank, converged="false") == [unsure]
    assert await found(bank, converged="true") == [flagged, accepted, denied]
    assert await found(bank, flag="protected_share") == with_flag
    assert await found(bank, label="approved") == [accepted]
    assert await found(bank, label="denied") == [flagged, unsure, denied]
    assert await found(bank, **{"cohort.channel": "web"}) == [denied]
    assert await found(bank, **{"cohort.channel": "branch", "label": "approved"}) == [accepted]
    assert await found(bank, **{"cohort.channel": "branch", "label": "denied"}) == []
    created = [(await bank.get(f"/v1/explanations/{one}")).json()["created"] for one in (denied, accepted)]
    assert await found(bank, to=moment(created[1])) == [denied]
    assert await found(bank, **{"from": moment(created[1])}) == [flagged, unsure, accepted]
    assert await found(bank, **{"from": moment(created[0]), "to": moment(created[0] + 1)}) == [denied]


async def test_a_day_is_a_whole_day_wherever_it_is_asked_for(
    service: Service, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = f"days-{uuid.uuid4()}"
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=30)
    the_day, before, after = (str((midnight + timedelta(days=days)).date()) for days in (0, -1, 1))
    start = (midnight - EPOCH) // timedelta(microseconds=1)
    ids = [str(uuid.uuid4()) for _ in range(4)]
    entries = [
        Entry(
            id=ids[number], tenant=tenant, created=start + offset, model="loan", version="1", method="m",
            converged=True, key_id="k", record=orjson.dumps({"id": ids[number]}), personal=b'{"input": []}',
        )
        for number, offset in enumerate((-1, 0, DAY - 1, DAY))
    ]  # fmt: skip
    event = Event(kind="seen", tenant=tenant, key_id="k", created=entries[2].created)
    past = Ledger(service.database, service.services.vault)
    with monkeypatch.context() as before_anything_was_signed:  # what is recorded later is of no earlier time
        before_anything_was_signed.setattr(WrittenTimes, "timely", lambda _self, entries: entries)
        await past.append([*entries, event])
    await past.close()
    day = {"from": the_day, "to": the_day}
    async with service.client(make_key(tenant=tenant)) as client:
        for period, expected in (
            (day, [ids[2], ids[1]]),
            ({"to": before}, [ids[0]]),
            ({"from": after}, [ids[3]]),
            ({"to": f"{the_day}T00:00:00Z"}, [ids[0]]),
            ({"from": f"{after}T02:00:00+02:00"}, [ids[3]]),
            ({"from": "0001-01-01", "to": "9999-12-31"}, ids[::-1]),
        ):
            assert await found(client, **period) == expected, period
            events = (await client.get("/v1/events", params={"kind": "seen", **period})).json()["events"]
            assert len(events) == (ids[2] in expected), period
        made = (await client.post("/v1/exports", json={"format": "csv", "explanations": day})).json()
        job = service.with_ledger.jobs.get(tenant, made["id"], ["export"])
    assert job is not None
    asked = ExportSpec.of(service.services.vault, job).search
    assert asked is not None
    assert (asked.created_from, asked.created_to) == (start, start + DAY)


async def test_pages_follow_each_other(explain: Explain, bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    reply = await explain([instance] * 5, by=bank)
    expected = {one["id"] for one in reply["explanations"]}

    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    while not pages or cursor:
        response = await bank.get("/v1/explanations", params={"limit": 2, **cursor})
        page = response.json()
        pages.append([record["id"] for record in page["explanations"]])
        cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}

    assert [len(page) for page in pages] == [2, 2, 1]
    assert {one for page in pages for one in page} == expected


async def test_reasons_of_a_record(explain: Explain, client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    (explanation,) = (await explain([instance]))["explanations"]
    path = f"/v1/explanations/{explanation['id']}/reasons"

    everything, two = await client.get(path), await client.get(path, params={"max": 2})

    assert everything.json()["id"] == explanation["id"]
    assert everything.json()["reasons"] == explanation["reasons"]
    assert two.json()["reasons"] == explanation["reasons"][:2]


@pytest.mark.parametrize(
    ("most", "sentence"),
    [
        ("0", "at least 1"),
        ("5", "at most 4"),
        ("-1", "at least 1"),
        ("many", "a whole number"),
        ("1.5", "a whole number"),
    ],
)
async def test_an_impossible_number_of_reasons(
    explain: Explain,
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    most: str,
    sentence: str,
) -> None:
    (explanation,) = (await explain([instance]))["explanations"]

    response = await client.get(f"/v1/explanations/{explanation['id']}/reasons", params={"max": most})

    assert assert_problem(response, 422) == f"max must be {sentence}"


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        ({"modell": "loan"}, "'modell' is not a condition; known are"),
        ({"tenant": "default"}, "'tenant' is not a condition"),
        ({"cohort": "web"}, "'cohort' is not a condition"),
        ({"limit": "0"}, "limit must be at least 1"),
        ({"limit": "201"}, "limit must be at most 200"),
        ({"limit": "many"}, "limit must be a whole number"),
        ({"from": "yesterday"}, "from: 'yesterday' is not a day or a time; write a day as 2026-11-30"),
        ({"from": "30.11.2026"}, "did you mean 2026-11-30?"),
        ({"to": "31.11.2026"}, "to: '31.11.2026' is not a day or a time"),
        ({"from": "2026-11-30T12:00:00 01:00"}, "write it as %2B"),
        ({"from": "2026-11-30", "to": "2026-11-29T23:00:00Z"}, "the period ends before it begins"),
        ({"from": "2026-01-31T12:00:00"}, "from: needs a time zone"),
        ({"to": "2026-01-31T12:00:00"}, "to: needs a time zone"),
        ({"converged": "perhaps"}, "converged must be true or false"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"version": "1"}, "together with its model"),
        ({"subject": "x" * 201}, "subject is longer than 200 characters"),
        ({"subject": "\0"}, "subject holds a character that cannot be stored"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
async def test_conditions_that_cannot_be_met_are_refused(
    client: httpx.AsyncClient, assert_problem: AssertProblem, conditions: dict[str, str], sentence: str
) -> None:
    response = await client.get("/v1/explanations", params=conditions)

    assert sentence in assert_problem(response, 422)


async def test_a_strict_refusal_leaves_no_record(
    bank: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    body = {"instances": [instance], "parameters": {**NOT_CONVERGED, "strict": True}}

    assert_problem(await bank.post("/v1/models/loan/versions/1:explain", json=body), 422)

    assert await found(bank) == []


async def test_a_prediction_leaves_no_record(bank: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    response = await bank.post("/v1/models/loan/versions/1:predict", json={"instances": [instance]})

    assert response.status_code == 200
    assert await found(bank) == []


async def test_too_many_conditions_are_refused(bank: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    few, many = ({f"cohort.t{at}": "x" for at in range(count)} for count in (8, 9))

    assert await found(bank, **few) == []
    assert "at most 8" in assert_problem(await bank.get("/v1/explanations", params=many), 422)
