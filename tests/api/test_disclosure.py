"""Quotas and policies of keys, as a client meets them."""

from __future__ import annotations

import asyncio
import copy
import pickle
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Annotated, Any, get_args

import httpx
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from service.access.permissions import OPEN, Policy, Quota
from service.access.visibility import ALWAYS, MIN_STEP, PARTS, Item, marks_of
from service.answers import items, record
from service.answers.disclosure import limited, limited_prediction
from service.answers.encoding import encode
from service.answers.explanation import Answered, ExplanationItem
from service.answers.items import ReasonItem
from service.answers.reading import read
from service.answers.record import Personal, RecordedRow, RecordItem
from service.catalog.outputs.classes import ClassPrediction
from service.catalog.outputs.registry import AnyPrediction, AnyRecordedTarget, AnyTarget
from service.ledger.tables import explanations, log

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service

EXPLAIN = "/v1/models/loan/versions/1:explain"
NARROW = Policy(frozenset({"integrated_gradients", "integrated_hessians"}), top=3, digits=2, outputs=False)

Client = Callable[..., "AbstractAsyncContextManager[httpx.AsyncClient]"]


@pytest.fixture
def client_with(service: Service, make_key: MakeKey) -> Client:
    """Clients of one tenant, whose keys have these permissions."""
    tenant = f"limited-{uuid.uuid4()}"

    @asynccontextmanager
    async def client(quota: Quota | None = None, policy: Policy = OPEN) -> AsyncIterator[httpx.AsyncClient]:
        async with service.client(make_key(tenant=tenant, quota=quota, policy=policy)) as client:
            yield client

    return client


async def test_a_spent_quota_of_requests(
    client_with: Client, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    async with client_with(Quota(5, None, "day")) as client:
        replies = [await client.post(EXPLAIN, json={"instances": [instance]}) for _ in range(4)]
        looked_up = await client.get("/v1/explanations")
        refused = await client.get("/v1/explanations")
        elsewhere = await client.get("/v1/models")

    assert [reply.status_code for reply in (*replies, looked_up)] == [200] * 5
    for response in (refused, elsewhere):
        assert assert_problem(response, 429) == "the key's quota of 5 requests a day is spent"
        assert 1 <= int(response.headers["retry-after"]) <= 86_400


async def test_a_spent_quota_of_points(
    client_with: Client, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    rule = {"method": "integrated_gradients", "options": {"rule": "midpoint"}, "max_evaluations": 60, "tolerance": 1e-6}
    body = {"instances": [fresh], "parameters": rule}
    async with client_with(Quota(None, 200, "day")) as client:
        spent, hits = 0, 0
        response = await client.post(EXPLAIN, json=body)
        while response.status_code == 200:
            (explanation,) = response.json()["explanations"]
            cached = explanation["cached"]
            spent += 0 if cached else explanation["evaluations"]
            hits += cached
            # What comes from the cache costs nothing, so that it goes on until something else is asked for.
            body = {**body, "instances": [{**fresh, "net_worth": spent}]} if cached else body
            response = await client.post(EXPLAIN, json=body)
        too_much = await client.post(EXPLAIN, json={"instances": [fresh] * 5, "parameters": rule})
        still = await client.get("/v1/explanations")

    assert assert_problem(response, 429) == "the key's quota of 200 gradient points a day is spent"
    assert hits
    assert 140 < spent <= 200
    assert "may cost 300 gradient points" in assert_problem(too_much, 422)
    assert still.status_code == 200


async def test_requests_at_once_do_not_exceed_the_quota(client_with: Client, fresh: dict[str, Any]) -> None:
    async with client_with(Quota(None, 1000, "day")) as client:

        async def ask(number: int) -> int:
            body = {
                "instances": [{**fresh, "net_worth": number}],
                "parameters": {"method": "expected_gradients", "max_evaluations": 300, "tolerance": 1e-6},
            }
            response = await client.post(EXPLAIN, json=body)
            return response.json()["explanations"][0]["evaluations"] if response.status_code == 200 else 0

        spent = await asyncio.gather(*(ask(number) for number in range(12)))

    assert 0 < sum(spent) <= 1000
    assert 0 in spent


async def test_every_instance_counts_against_a_quota_of_requests(
    client_with: Client, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    async with client_with(Quota(10, None, "day")) as client:
        seven = await client.post(EXPLAIN, json={"instances": [instance] * 7})
        two_short = await client.post(EXPLAIN, json={"instances": [instance] * 5})  # whose first counts
        too_many = await client.post(EXPLAIN.replace("explain", "predict"), json={"instances": [instance] * 11})
        last = await client.post(EXPLAIN.replace("explain", "predict"), json={"instances": [instance]})
        none = await client.get("/v1/models")

    assert [seven.status_code, last.status_code] == [200, 200]
    assert assert_problem(two_short, 429) == "the key's quota of 10 requests a day is spent"
    assert "send fewer instances" in assert_problem(too_many, 422)
    assert_problem(none, 429)


async def test_a_hint_counts_against_a_quota_of_requests(client_with: Client, instance: dict[str, Any]) -> None:
    async with client_with() as client:
        (explanation,) = (await client.post(EXPLAIN, json={"instances": [instance]})).json()["explanations"]
    async with client_with(Quota(3, None, "day")) as client:
        statuses = [
            (await client.get(f"/v1/explanations/{explanation['id']}/reasons")).status_code,
            (await client.get("/v1/models")).status_code,
            (await client.get("/v1/models")).status_code,
        ]

    assert statuses == [200, 200, 429]


async def test_a_replay_costs_points(client_with: Client, fresh: dict[str, Any], assert_problem: AssertProblem) -> None:
    rule = {"method": "integrated_gradients", "options": {"rule": "midpoint"}, "max_evaluations": 60, "tolerance": 1e-6}
    async with client_with() as client:
        reply = await client.post(EXPLAIN, json={"instances": [fresh], "parameters": rule})
    (explanation,) = reply.json()["explanations"]
    replay = f"/v1/explanations/{explanation['id']}:replay"
    async with client_with(Quota(None, 59, "day")) as client:
        never = await client.post(replay)
    async with client_with(Quota(None, 60, "day")) as client:
        answers = [await client.post(replay) for _ in range(2)]

    assert "may cost 60 gradient points" in assert_problem(never, 422)
    assert answers[0].json()["verdict"] == "bit_exact"
    assert_problem(answers[1], 429)


async def test_a_budget_is_reserved_in_full(client_with: Client, fresh: dict[str, Any]) -> None:
    """The usual cost of this is a fraction of the budget, and all of the budget is spent."""
    asked = {"method": "integrated_gradients", "options": {"rule": "midpoint"}, "tolerance": 1e-9}
    async with client_with(Quota(None, 1000, "day")) as client:

        async def ask(number: int) -> int:
            body = {"instances": [{**fresh, "net_worth": number}], "parameters": {**asked, "max_evaluations": 400}}
            response = await client.post(EXPLAIN, json=body)
            return response.json()["explanations"][0]["evaluations"] if response.status_code == 200 else 0

        spent = await asyncio.gather(*(ask(number) for number in range(8)))

    assert max(spent) > 200
    assert sum(spent) <= 1000


async def test_a_method_that_the_policy_does_not_allow(
    client_with: Client, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    async with client_with(policy=NARROW) as client:
        body = {"instances": [instance], "parameters": {"method": "saliency"}}
        sentence = assert_problem(await client.post(EXPLAIN, json=body), 403)

    assert sentence == "the key's policy allows the methods integrated_gradients, integrated_hessians"


async def test_a_policy_holds_for_the_reply_and_for_every_look_up(
    client_with: Client, explain: Explain, fresh: dict[str, Any]
) -> None:
    async with client_with() as whole, client_with(policy=NARROW) as narrow:
        smooth = {"method": "integrated_hessians", "options": {"smooth": "softplus"}}
        (matrix,) = (await explain([fresh], by=narrow, **smooth))["explanations"]
        whole_matrix = (await whole.get(f"/v1/explanations/{matrix['id']}")).json()["interactions"]
        reply = await explain([fresh], by=narrow)
        (told,) = reply["explanations"]
        path = f"/v1/explanations/{told['id']}"
        record = (await narrow.get(path)).json()
        found, also_found = (await narrow.get("/v1/explanations")).json()["explanations"]
        reasons = (await narrow.get(f"{path}/reasons")).json()["reasons"]
        predicted = (await narrow.post(EXPLAIN.replace("explain", "predict"), json={"instances": [fresh]})).json()
        everything = (await whole.get(path)).json()

    assert reply["predictions"] == predicted["predictions"]
    assert reply["predictions"][0]["outputs"] == []
    assert reply["predictions"][0]["label"] == everything["prediction"]["label"]
    for shown in (told, record, found):
        assert shown["disclosure"] == {"top": 3, "digits": 2, "outputs": False}
        assert not {"output", "baseline_output"} & set(shown)
        assert shown["attributions"] == told["attributions"]
        assert shown["reasons"] == told["reasons"] == reasons
    assert record["prediction"]["outputs"] == found["prediction"]["outputs"] == []
    ranked = sorted(everything["attributions"].items(), key=lambda item: -abs(item[1]))
    assert set(told["attributions"]) == {name for name, _ in ranked[:3]}
    step = 10.0 ** (int(f"{ranked[0][1]:e}".partition("e")[2]) - 1)
    for name, value in told["attributions"].items():
        assert abs(value - everything["attributions"][name]) <= step / 2 + 1e-12
        assert value / step == pytest.approx(round(value / step))
    assert len(whole_matrix) == 38
    assert "interactions" not in {**matrix, **also_found}
    assert everything["policy"] == {
        "methods": ["integrated_gradients", "integrated_hessians"],
        "top": 3,
        "digits": 2,
        "outputs": False,
    }
    assert "disclosure" not in everything


async def test_images_and_groups_are_limited_too(client_with: Client, explain: Explain) -> None:
    pixels = [[float(row * column % 17) for column in range(8)] for row in range(8)]
    digits = "/v1/models/digits/versions/1:explain"
    groups = {"groups": [[0], [1], [2, 3]]}
    async with client_with() as whole, client_with(policy=Policy(top=4, digits=1)) as narrow:
        told = (await explain([pixels], by=narrow, path=digits))["explanations"][0]
        everything = (await explain([pixels], by=whole, path=digits))["explanations"][0]
        grouped = (await explain([pixels], by=narrow, path=digits, method="directional_ig", options=groups))[
            "explanations"
        ][0]

    values, full = told["attributions"]["values"], everything["attributions"]["values"]
    kept = sorted(range(64), key=lambda at: -abs(full[at]))[:4]
    assert {at for at, value in enumerate(values) if value} <= set(kept)
    assert told["output"] == pytest.approx(everything["output"], rel=0.5)
    assert told["output"] != everything["output"]
    assert "groups" not in grouped


values = st.floats(-1e6, 1e6, allow_nan=False)

ANSWER = {
    "id": "1",
    "model": {"name": "loan", "version": "1", "digest": "sha256:0"},
    "method": "integrated_gradients",
    "target": {"index": 2, "label": "c"},
    "output_space": "probability",
    "converged": True,
    "evaluations": 1,
    "baseline": {"name": "training", "version": "1", "digest": "sha256:1", "size": 2},
    "flags": [],
    "cached": False,
}
RECORD = {
    "id": "1",
    "method": "integrated_gradients",
    "cohort": {"channel": "web"},
    "created": 1,
    "tenant": "bank",
    "key_id": "key",
    "retention": "standard",
    "ledger": {"sequence": 1, "leaf": "00", "tombstone": None},
}
PREDICTION = {"label": "c", "index": 2, "output_space": "probability"}


def answer(**fields: Any) -> Answered:
    """An answer that holds these fields beside what every answer does."""
    return read(Answered, ANSWER | fields)


def shown_of(answer: Answered, policy: Policy, prediction: ClassPrediction | None = None) -> dict[str, Any]:
    """What of it the policy shows, as JSON."""
    shown: dict[str, Any] = orjson.loads(encode(limited(answer, policy, prediction)))
    return shown


def test_all_outputs_are_on_one_grid() -> None:
    """A probability of 0.000123 would tell a logit of -9; and what an error says exactly, it says of the values."""
    outputs = [0.000123, 0.3567, 0.643177]
    fields = {
        "output": outputs[0],
        "baseline_output": 0.0456,
        "noise": {"kind": "smoothgrad", "samples": 2, "scale": 0.1, "output": 0.00789},
        "completeness_error": 0.0012345,
        "attribution_error": 0.0067891,
    }
    explanation = answer(**fields)
    policy = Policy(digits=2)
    prediction = read(ClassPrediction, {**PREDICTION, "outputs": outputs})

    shown = shown_of(explanation, policy, prediction)

    assert orjson.loads(encode(limited_prediction(prediction, policy)))["outputs"] == [0.0, 0.36, 0.64]
    assert (shown["output"], shown["baseline_output"], shown["noise"]["output"]) == (0.0, 0.05, 0.01)
    assert (shown["completeness_error"], shown["attribution_error"]) == (0.0013, 0.0068), "rounded up"
    recorded = orjson.loads(
        encode(limited(read(RecordItem, RECORD | fields | {"prediction": {**PREDICTION, "outputs": outputs}}), policy))
    )
    assert {name: recorded[name] for name in fields} == {name: shown[name] for name in fields}
    assert shown_of(explanation, Policy(outputs=False), prediction)["noise"]["output"] is None


async def test_a_proof_shows_a_limited_key_no_old_record(
    service: Service, client_with: Client, explain: Explain, instance: dict[str, Any]
) -> None:
    """The log's text of the oldest records is the whole answer; of later ones it holds nothing that a policy hides."""
    async with client_with() as whole, client_with(policy=NARROW) as narrow:
        (explanation,) = (await explain([instance], by=whole))["explanations"]
        path = f"/v1/explanations/{explanation['id']}/proof"
        shown = [(await client.get(path)).json()["record"] for client in (whole, narrow)]
        assert shown[0] == shown[1] is not None
        assert not {"attributions", "output", "attribution_error"} & orjson.loads(shown[0])["content"].keys()
        old = orjson.dumps({"id": explanation["id"], "attributions": explanation["attributions"]})
        with service.database.begin() as connection:
            sequence = select(explanations.c.seq).where(explanations.c.id == explanation["id"]).scalar_subquery()
            connection.execute(update(log).where(log.c.seq == sequence).values(record=old))
        shown = [(await client.get(path)).json()["record"] for client in (whole, narrow)]
    assert shown == [old.decode(), None]


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.floats(-1e6, 1e6), min_size=1, max_size=8),
    st.floats(0, 10),
    st.integers(1, 6),
)
@settings(deadline=None)  # the first reads annotations
@example({"a": 0.9, "b": 1e-7}, 1e-9, 2)
def test_an_error_is_never_rounded_to_nothing(values: dict[str, float], error: float, digits: int) -> None:
    """What is true is within the errors of what is shown, with what rounding adds."""
    errors = dict.fromkeys(values, error)
    explanation = answer(attributions=values, attribution_errors=errors, standard_error=errors)
    shown = shown_of(explanation, Policy(digits=digits))
    for name, value in values.items():
        told = shown["attribution_errors"][name]
        assert abs(shown["attributions"][name] - value) + error <= told * (1 + 1e-9)
        assert 0 < told == shown["standard_error"][name]
    first = shown_of(explanation, Policy(top=1))
    assert first["attribution_errors"] == dict.fromkeys(first["attributions"], error)


@pytest.mark.parametrize("tiny", [5e-324, 1e-322, 2e-308, 1e-200])
def test_numbers_on_the_grid_of_tiny_ones(tiny: float) -> None:
    interactions = [[0.0, 3e38], [3e38, 0.0]]
    shown = shown_of(answer(attributions={"a": tiny, "b": 0.0}, interactions=interactions), Policy(digits=6))
    assert shown["attributions"] == {"a": pytest.approx(tiny, abs=MIN_STEP), "b": 0.0}
    assert shown["interactions"] == interactions


@given(st.lists(values, min_size=1, max_size=12), st.integers(1, 12), st.integers(1, 6))
@example([5e-324], 1, 1)
def test_what_is_shown_is_near_and_no_more_than_allowed(numbers: list[float], top: int, digits: int) -> None:
    explanation = answer(attributions={str(at): value for at, value in enumerate(numbers)}, output=numbers[0])

    shown = shown_of(explanation, Policy(top=top, digits=digits))

    largest = max(map(abs, numbers))
    assert len(shown["attributions"]) == min(top, len(numbers))
    for name, value in shown["attributions"].items():
        assert abs(value - numbers[int(name)]) <= 0.5 * 10.0 ** (1 - digits) * largest * (1 + 1e-9) + MIN_STEP
    least_shown = min(abs(numbers[int(name)]) for name in shown["attributions"])
    assert all(abs(n) <= least_shown for at, n in enumerate(numbers) if str(at) not in shown["attributions"])
    assert limited(explanation, OPEN) == explanation


class Sentence(Item):
    """A part of an answer, of whose fields one says that it may be shown."""

    text: Annotated[str, ALWAYS]
    score: float


class WithSentence(Answered):
    """An answer of a later version, with fields of which no policy says anything yet, and one of which it does."""

    narrative: str
    weights: tuple[float, ...] = ()
    sentence: Annotated[Sentence, PARTS]


class RecordWithSentence(RecordItem):
    """A record of one."""

    narrative: str
    sentence: Annotated[Sentence, PARTS]


@pytest.mark.parametrize(
    "policy", [Policy(top=3), Policy(digits=2), Policy(outputs=False), NARROW], ids=["top", "digits", "outputs", "all"]
)
def test_a_field_of_which_no_policy_says_anything_is_hidden(policy: Policy) -> None:
    new = {"narrative": "it is the debt", "weights": [1.5, 2.5], "sentence": {"text": "why", "score": 0.75}}
    for kind, content in ((WithSentence, ANSWER), (RecordWithSentence, RECORD)):
        item = read(kind, content | new)
        whole, shown = (orjson.loads(encode(limited(item, one))) for one in (OPEN, policy))
        assert {"narrative", "sentence"} <= whole.keys()
        assert all(whole[name] == new[name] for name in new.keys() & whole.keys())
        assert {"narrative", "weights"}.isdisjoint(shown)
        assert shown["sentence"] == {"text": "why"}
        assert {name: shown[name] for name in content} == content


def test_every_field_of_an_answer_and_its_parts_says_what_a_policy_shows() -> None:
    parts = [kind for module in (items, record) for kind in vars(module).values() if isinstance(kind, type)]
    inner = {RecordedRow, Personal}  # of the sealed part, which is read and never answered
    kinds = {kind for kind in parts if issubclass(kind, Item)} - {Item} - inner
    kinds |= {ExplanationItem, RecordItem, *get_args(AnyPrediction), *get_args(AnyTarget)}
    kinds |= {kind for kind in get_args(AnyRecordedTarget) if kind is not int}
    for kind in kinds:
        declared: Any = kind
        assert {field.name for field in fields(declared)} == marks_of(declared).keys(), kind


def test_a_copy_of_an_item_is_equal_and_none_can_be_changed() -> None:
    item = ReasonItem(feature="income", text="Income", contribution=0.5, code=None)
    others = [pickle.loads(pickle.dumps(item)), copy.deepcopy(item), item.adding(tied=None)]
    assert others == [item] * 3
    assert item != item.adding(tied=True)
    assert [orjson.loads(encode(other)) for other in others] == [
        {"feature": "income", "text": "Income", "contribution": 0.5}
    ] * 3
    with pytest.raises(FrozenInstanceError):
        item.text = "Age"  # type: ignore[misc]
