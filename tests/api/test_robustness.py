"""The sensitivity table of a stored explanation: in closed form, and against explanations asked for one by one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest_asyncio

from service.access.callers import Caller
from service.access.permissions import Policy, Quota
from service.answers.robustness import Shown, statements
from service.catalog.review_rules import Review
from service.domain import Context, Explanation, Timings
from service.engine.protocol import Engine
from service.monitoring.health import Health
from service.monitoring.metrics import Metrics
from service.monitoring.near_duplicates import FLAG
from service.usecases.explaining import Explaining, Request
from service.usecases.planning import Parameters
from tests.engine.stand_in import StandIn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import MakeKey, Service

EXPLAIN = "/v1/models/loan/versions/1:explain"


async def table(client: httpx.AsyncClient, explanation: str) -> dict[str, Any]:
    response = await client.get(f"/v1/explanations/{explanation}/robustness")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_statements_of_a_linear_model() -> None:
    """Of w = (3, 2, -1) at x = (1, 1, 1), attributions are w (x - c). From c = 0 they are (3, 2, -1); c = (0, 3, 0)
    turns the sign of b and makes it count for more than a; c = (0.9, 0, 0) leaves all signs and turns that order."""
    weights, at = np.array([3.0, 2, -1]), np.ones(3)
    shown = [
        Shown(dict(enumerate((weights * (at - np.array(baseline))).tolist())))
        for baseline in ([0, 0, 0], [0, 3, 0], [0.9, 0, 0])
    ]
    stated = statements(("a", "b", "c"), shown[0], dict(enumerate(shown)))
    assert {one.text: one.fails for one in stated} == {
        "a moves the output up": (),
        "b moves the output up": (1,),
        "c moves the output down": (),
        "a counts for more than b": (1, 2),
        "b counts for more than c": (),
    }
    assert [one.survives for one in stated] == [True, False, True, False, True]
    unsure = Shown(shown[0].values, errors=(0.0, 0.6, 1.0))
    assert [one.fails for one in statements(("a", "b", "c"), shown[0], {0: shown[0], 1: unsure})] == [
        (), (), (1,), (), (1,),
    ]  # fmt: skip


@pytest_asyncio.fixture
async def asking(service: Service, make_key: MakeKey) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a tenant that has no baseline sets of its own, whatever other tests have added."""
    async with service.client(make_key(tenant="robust")) as client:
        yield client


async def test_each_choice_is_what_an_explanation_with_it_says(
    explain: Explain, asking: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    asked = {"method": "expected_gradients", "seed": 4, "max_evaluations": 1024}
    (first,) = (await explain([fresh], by=asking, **asked))["explanations"]
    found = await table(asking, first["id"])

    record, *others = found["choices"]
    assert record["changed"] == "nothing"
    assert record["rank_correlation"] == 1
    changed = [choice["changed"] for choice in others]
    assert changed == ["baseline"] * 2 + ["seed"] * 3 + ["tolerance"] * 2 + ["noise"] * 2
    assert [choice.get("baseline") for choice in others[:2]] == ["approved@1", "zeros"]
    values = {0: first["attributions"]}
    for at, choice in enumerate(others, 1):
        with_choice = {name: choice[name] for name in ("baseline", "seed", "tolerance", "noise") if name in choice}
        if "why" in choice:  # the noisy copies have too small a budget
            body = {"instances": [fresh], "parameters": {**asked, **with_choice}}
            assert assert_problem(await asking.post(EXPLAIN, json=body), 422)
            continue
        (own,) = (await explain([fresh], by=asking, **{**asked, **with_choice}))["explanations"]
        assert choice["attributions"] == {name: own["attributions"][name] for name in choice["attributions"]}
        assert choice["converged"] == own["converged"]
        values[at] = own["attributions"]
    assert [at for at, choice in enumerate(others, 1) if "why" in choice] == [8, 9]

    by_size = sorted(first["attributions"], key=lambda name: -abs(first["attributions"][name]))
    signs = [one for one in found["statements"] if one["kind"] == "sign"]
    assert [one["components"] for one in signs] == [[name] for name in by_size[:5]]
    for one in signs:
        (name,) = one["components"]
        turned = {at for at, each in values.items() if each[name] * first["attributions"][name] <= 0}
        assert turned <= {*one["fails"]}, "a sign that is not the record's cannot hold"
        assert one["survives"] is (not one["fails"])
    assert any(one["survives"] for one in signs)
    reasons = [one["components"][0] for one in found["statements"] if one["kind"] == "reason"]
    assert reasons == [reason["code"] for reason in first["reasons"]]


async def test_a_policy_limits_what_the_table_says(
    explain: Explain,
    asking: httpx.AsyncClient,
    service: Service,
    make_key: MakeKey,
    fresh: dict[str, Any],
    assert_problem: AssertProblem,
) -> None:
    """Every choice counts as a request, and nothing is said of what the key is not shown."""
    limited = make_key(tenant="robust", policy=Policy(top=2, digits=1))
    other_methods = make_key(tenant="robust", policy=Policy(methods=frozenset({"saliency"})))
    spent = make_key(tenant="robust", quota=Quota(7, None, "day"))
    (first,) = (await explain([fresh], by=asking))["explanations"]
    whole = await table(asking, first["id"])
    async with service.client(limited) as client:
        found = await table(client, first["id"])
        (own,) = (await explain([fresh], by=client, stability=True))["explanations"]
    assert "stability" in whole
    assert "stability" not in {*found, *own}
    assert found["disclosure"] == {"top": 2, "digits": 1}
    assert all(len(choice["attributions"]) <= 2 and "rank_correlation" not in choice for choice in found["choices"])
    values = [*found["choices"][0]["attributions"].values()]
    step = 10 ** np.floor(np.log10(np.abs(values).max()))
    assert np.allclose(values / step, np.round(values / step)), "one digit of the largest"
    named = {name for one in found["statements"] if one["kind"] != "reason" for name in one["components"]}
    assert named == {name for one in whole["statements"][:2] for name in one["components"]}
    async with service.client(other_methods) as client:
        assert_problem(await client.get(f"/v1/explanations/{first['id']}/robustness"), 403)
    async with service.client(spent) as client:
        assert "quota" in assert_problem(await client.get(f"/v1/explanations/{first['id']}/robustness"), 429)


async def test_stability_on_request_is_answered_recorded_and_raises_flags(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    """The figure is the metric's own, of the same plan; a review rule may name it."""
    (answer,) = (await explain([fresh], stability=True))["explanations"]
    record = (await client.get(f"/v1/explanations/{answer['id']}")).json()
    found = answer["stability"]
    assert found == record["stability"] == (await table(client, answer["id"]))["stability"]
    assert 0 < found["rank_correlation"] < 1
    assert 0 <= found["top_share"] <= 1
    refused = {"instances": [fresh], "parameters": {"stability": True, "deadline_ms": 9000}}
    assert "deadline" in assert_problem(await client.post(EXPLAIN, json=refused), 422)

    listed = service.services.catalog.find("loan", "1")
    review = Review.model_validate({"rules": {"fragile": "rank_stability < 1", "steady": "rank_stability >= 1"}})
    version = replace(listed, manifest=listed.manifest.model_copy(update={"review": review}))
    row, caller = version.manifest.inputs.read(fresh), Caller("robust", "key")

    async def flags(*, stability: bool) -> tuple[str, ...]:
        asked = Parameters(stability=stability)
        request = Request(version, [row], asked, [Context()], caller, use_cache=True, received=time.monotonic())
        (explained,) = await service.services.explaining.explain(request)
        return explained.explanation.flags

    assert await asyncio.to_thread(service.call, flags(stability=True)) == ("fragile",)
    assert await asyncio.to_thread(service.call, flags(stability=False)) == ()


@dataclass(slots=True)
class Turning(StandIn):
    """The service's engine, whose attributions are given backwards once it `turns`."""

    engine: Engine
    turns: bool = False

    async def explain(self, *asked: Any) -> tuple[Explanation, Timings]:
        explanation, timings = await self.engine.explain(*asked)
        values = np.array(explanation.attributions)
        by_size = np.argsort(np.abs(values))
        values[by_size] = values[by_size[::-1]]
        turned = replace(explanation, attributions=tuple(values.tolist()))
        return (turned if self.turns else explanation), timings


async def test_an_unlike_explanation_of_nearly_the_same_input_is_flagged_on_record(
    service: Service, make_key: MakeKey, fresh: dict[str, Any]
) -> None:
    """It waits for review as those of rules do; after an erasure nothing is known to compare with."""
    key, version, state = make_key(tenant="gamed"), service.services.catalog.find("loan", "1"), service.services
    engine, caller = Turning(state.engine), Caller(key.tenant, key.id)
    explaining = Explaining(
        engine, state.cache, state.ledger, "required", Metrics(), Health(engine, 0.0), max_points=200_000
    )

    async def flags(income: float, *, turned: bool = False) -> tuple[str, ...]:
        engine.turns = turned
        row = version.manifest.inputs.read({**fresh, "applicant_income": fresh["applicant_income"] + income})
        request = Request(version, [row], Parameters(), [Context()], caller, use_cache=False, received=time.monotonic())
        (answer,) = await explaining.explain(request)
        return answer.explanation.flags

    assert await asyncio.to_thread(service.call, flags(0)) == ()
    assert await asyncio.to_thread(service.call, flags(1)) == ()
    assert FLAG in await asyncio.to_thread(service.call, flags(2, turned=True))
    async with service.client(key) as client:
        queue = await client.get("/v1/explanations", params={"flag": FLAG, "reviewed": False})
    assert len(queue.json()["explanations"]) == 1
    await asyncio.to_thread(service.call, state.cache.forget_results())
    assert FLAG not in await asyncio.to_thread(service.call, flags(3, turned=True))
