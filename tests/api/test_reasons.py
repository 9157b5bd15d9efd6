"""Principal reasons, against a slow oracle and over HTTP; and the counterfactual hint, checked by asking the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from service.access.permissions import Policy
from service.answers.reasons import principal_reasons, texts_digest, why_no_reasons
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import Manifest, Reason, read_manifest
from service.domain import Completeness, Explanation
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service

LOAN = read_manifest(MODELS / "loan" / "1")[0]
PREDICT = "/v1/models/loan/versions/1:predict"
DENIED = 1


def explained(values: Sequence[float], target: int = DENIED) -> Explanation:
    """An explanation with these attributions."""
    return Explanation(
        outputs=(0.2, 0.8), target=target, output=0.8, baseline_output=0.2, attributions=tuple(values), shape=(38,),
        standard_error=None, completeness=Completeness.EXACT, completeness_error=0.0, attribution_error=0.0,
        converged=True, reason=None, evaluations=1, rule="exact", small_difference=False, chunk_rows="1+1",
    )  # fmt: skip


def with_codes(codes: Sequence[str | None]) -> Manifest:
    """The loan model with these reason codes; None for a feature without a reason text."""
    inputs = LOAN.inputs
    assert isinstance(inputs, TabularInputs)
    features = tuple(
        feature.model_copy(update={"reason": None if code is None else Reason(code=code, text=f"text {code}")})
        for feature, code in zip(inputs.features, codes, strict=True)
    )
    return LOAN.model_copy(
        update={
            "inputs": TabularInputs(
                **{name: getattr(inputs, name) for name in TabularInputs.model_fields} | {"features": features}
            )
        }
    )


values = st.sampled_from([-0.5, -0.25, 0.0, 0.125, 0.25, 0.5])  # exact in binary, with many ties
codes = st.sampled_from([None, "A", "B", "C", "D"])


@given(st.lists(values, min_size=38, max_size=38), st.lists(codes, min_size=38, max_size=38), st.sampled_from([0, 1]))
def test_reasons_are_what_a_slow_oracle_says(numbers: list[float], given_codes: list[str | None], target: int) -> None:
    given_codes[0] = "A"
    manifest = with_codes(given_codes)
    assert isinstance(manifest.inputs, TabularInputs)
    names, sign = manifest.inputs.names, 1 if target == DENIED else -1

    expected: list[tuple[float, int, str, str | None, set[str], str]] = []
    for at, (name, code) in enumerate(zip(names, given_codes, strict=True)):
        members = [i for i, other in enumerate(given_codes) if other == code] if code is not None else [at]
        if members[0] != at:
            continue
        total = sum(sign * numbers[i] for i in members)
        if total > 0:
            strongest = max(members, key=lambda i: (sign * numbers[i], -i))
            expected.append((-total, at, names[strongest], code, {names[i] for i in members}, name))
    found = principal_reasons(manifest, explained(numbers, target))

    assert found is not None
    assert [(-r.contribution, r.feature, r.code) for r in found] == [
        (total, strongest, code) for total, _, strongest, code, _, _ in sorted(expected)[:4]
    ]
    for reason, (_, at, _, code, members_of, _) in zip(found, sorted(expected), strict=False):
        assert set(reason.features or [reason.feature]) == members_of
        title = manifest.inputs.features[at].title
        assert reason.text == (title if code is None else f"text {code}")


def test_the_version_of_the_texts_changes_with_any_of_them() -> None:
    first, again = with_codes(["A"] * 38), with_codes(["A"] * 38)
    assert texts_digest(first) == texts_digest(again) != texts_digest(with_codes([None] + ["A"] * 37))
    assert str(texts_digest(LOAN)).startswith("sha256:")


async def test_the_reply_the_record_and_the_route_say_the_same(
    explain: Explain, client: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    (explanation,) = (await explain([instance]))["explanations"]
    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    shown = (await client.get(f"/v1/explanations/{explanation['id']}/reasons")).json()

    assert len(explanation["reasons"]) == 4
    assert explanation["reasons"] == record["reasons"] == shown["reasons"]
    assert record["reason_texts"] == shown["reason_texts"] == texts_digest(LOAN)


async def hint(client: httpx.AsyncClient, explanation: str, **query: Any) -> dict[str, Any]:
    response = await client.get(f"/v1/explanations/{explanation}/reasons", params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["counterfactual"]
    return found


async def label(client: httpx.AsyncClient, instance: dict[str, Any]) -> str:
    response = await client.post(PREDICT, json={"instances": [instance]})
    assert response.status_code == 200, response.text
    return str(response.json()["predictions"][0]["label"])


@pytest.mark.parametrize("parameters", [{}, {"method": "expected_gradients", "baseline": "approved"}])
async def test_a_hint_is_what_the_model_answers_there(
    explain: Explain, client: httpx.AsyncClient, loan: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """Of held-out denials: every hint flips the label, nothing on the way to it does, and only reasons were moved."""
    names = [feature["name"] for feature in loan["inputs"]["features"]]
    by_name = {feature["name"]: feature for feature in loan["inputs"]["features"]}
    rows = load_file(MODELS / "loan" / "1" / "heldout.safetensors")["rows"].astype(float)
    instances = [dict(zip(names, row.tolist(), strict=True)) for row in rows[:120]]
    reply = await explain(instances, target="denied", **parameters)
    denied = [
        (instance, explanation)
        for instance, explanation, prediction in zip(
            instances, reply["explanations"], reply["predictions"], strict=True
        )
        if prediction["label"] == "denied" and "reasons" in explanation
    ]
    assert len(denied) >= 5

    found = 0
    for instance, explanation in denied[:12]:
        told = await hint(client, explanation["id"])
        if not told["found"]:
            assert told["why"]
            continue
        found += 1
        reasons = {name for reason in explanation["reasons"] for name in reason.get("features", [reason["feature"]])}
        assert {change["feature"] for change in told["changes"]} <= reasons
        assert "no advice" in told["note"]
        changed = dict(instance)
        for change in told["changes"]:
            feature = by_name[change["feature"]]
            assert not feature.get("protected")
            assert change["from"] == instance[change["feature"]] != change["to"]
            assert feature["range"][0] <= change["to"] <= feature["range"][1]
            if feature["unit"] == "yes/no":
                assert change["to"] in (0, 1)
            changed[change["feature"]] = change["to"]
        assert await label(client, changed) == told["label"] == "approved"
        # A little less of what is continuous is not enough.
        before = dict(changed)
        for change in told["changes"]:
            if change["to"] % 1:
                before[change["feature"]] = change["from"] + 0.99 * (change["to"] - change["from"])
        if before != changed and all(change["to"] % 1 for change in told["changes"]):
            assert await label(client, before) == "denied"
    assert found >= 3


async def test_no_hint_and_why(
    explain: Explain, client: httpx.AsyncClient, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    (accepted,) = (await explain([approved], target="denied"))["explanations"]
    near = {**instance, "obligations_ratio": instance["obligations_ratio"] - 1}
    (stuck,) = (await explain([instance], baseline=near, options={"rule": "auto"}))["explanations"]

    assert "is not the adverse label" in (await hint(client, accepted["id"]))["why"]
    assert [reason["feature"] for reason in stuck["reasons"]] == ["obligations_ratio"]
    told = await hint(client, stuck["id"])
    assert told["found"] is False
    assert "the prediction is still denied" in str(told["why"])


async def test_a_hint_towards_a_set_that_was_uploaded(
    explain: Explain, client: httpx.AsyncClient, instance: dict[str, Any], approved: dict[str, Any]
) -> None:
    rows = [approved, {**approved, "loan_amount": 90}]
    body = {"name": "accepted", "rows": rows, "model_version": "1"}
    kept = (await client.post("/v1/models/loan/baselines", json=body)).json()
    (explanation,) = (await explain([instance], baseline=f"accepted@{kept['version']}"))["explanations"]

    told = await hint(client, explanation["id"])

    changed = {**instance, **{change["feature"]: change["to"] for change in told["changes"]}}
    assert await label(client, changed) == told["label"] == "approved"


async def test_fewer_reasons_make_fewer_changes(
    explain: Explain, client: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    (explanation,) = (await explain([instance], baseline="approved"))["explanations"]
    for most in (1, 2, 3, 4):
        told = await hint(client, explanation["id"], max=most)
        if told["found"]:
            assert len(told["changes"]) <= most


async def test_a_key_that_sees_rounded_values_gets_no_hint(
    service: Service, make_key: MakeKey, explain: Explain, instance: dict[str, Any]
) -> None:
    """Each hint would be an exact point of the decision boundary."""
    async with service.client(make_key(policy=Policy(digits=2))) as narrow:
        (explanation,) = (await explain([instance], by=narrow))["explanations"]
        shown = (await narrow.get(f"/v1/explanations/{explanation['id']}/reasons")).json()

    assert shown["reasons"]
    assert "counterfactual" not in shown


def test_reasons_whose_order_or_sign_is_open_say_so_or_are_none() -> None:
    inputs = LOAN.inputs
    assert isinstance(inputs, TabularInputs)
    moved, errors = [0.0] * 38, [0.001] * 38
    groups = [group for group in inputs.reason_groups if len(group.places) == 1]
    first, second, third, open_sign = (group.places[0] for group in groups[:4])
    moved[first], moved[second], moved[third], moved[open_sign] = 0.5, 0.4, 0.399, 0.0005
    found = principal_reasons(LOAN, replace(explained(moved), attribution_errors=tuple(errors)))
    assert found is not None
    names = inputs.component_names
    assert [(reason.feature, reason.tied or False) for reason in found] == [
        (names[first], False),
        (names[second], True),
        (names[third], True),
    ]


async def test_errors_and_what_a_tolerance_is_of_are_asked_for(
    explain: Explain, client: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    asked = {"errors": True, "tolerance_of": "completeness", "tolerance": 0.02, "options": {"rule": "midpoint"}}
    (explanation,) = (await explain([instance], **asked))["explanations"]
    errors, values = explanation["attribution_errors"], explanation["attributions"]
    assert errors.keys() == values.keys()
    assert all(error >= 0 for error in errors.values())
    assert 0 < sum(errors.values()) < 3 * explanation["attribution_error"] * sum(map(abs, values.values()))
    assert explanation["completeness_error"] <= 0.02
    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    assert record["attribution_errors"] == errors
    assert (record["parameters"]["tolerance_of"], record["parameters"]["errors"]) == ("completeness", True)
    replay = (await client.post(f"/v1/explanations/{explanation['id']}:replay")).json()
    assert replay["verdict"] == "bit_exact"


def test_why_there_are_no_reasons() -> None:
    outputs = LOAN.outputs
    silent = LOAN.model_copy(update={"outputs": outputs.model_copy(update={"adverse": None})})
    for manifest, has_attributions, why in (
        (LOAN, True, "its target, approved, does not tell of the adverse label"),
        (LOAN, False, "it has no attributions"),
        (silent, True, "its model names no adverse label"),
        (with_codes([None] * 38), True, "its model has no reason texts"),
    ):
        assert why_no_reasons(manifest, "approved", has_attributions=has_attributions).startswith(why)


async def test_a_record_without_reasons_says_why(
    explain: Explain, client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    image = load_file(MODELS / "digits" / "1" / "heldout.safetensors")["rows"][0].reshape(8, 8).tolist()
    (explanation,) = (await explain([image], path="/v1/models/digits:explain"))["explanations"]
    response = await client.get(f"/v1/explanations/{explanation['id']}/reasons")
    said = assert_problem(response, 404)
    assert said == "the explanation has no reasons: its model names no adverse label"
