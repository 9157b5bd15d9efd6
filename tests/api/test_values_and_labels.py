"""Values and labels from the first request to the last metric, held against closed forms of linear models."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import torch
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.catalog.assessments import keep_beside
from service.lifecycle.checking.assessing import assess
from service.lifecycle.checking.limits import Limits
from service.monitoring.drift import MIN_EXPLANATIONS
from service.settings import Settings
from tests.conftest import PATIENCE_SECONDS
from tests.forked import fork_worker
from tests.linear_models import ALARMS, EXAMPLE, FEATURES, SCORES, SET, Linear, write_version

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 40
DASHBOARDS = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
ROUNDING = 1e-5
"""Of float32, relative to the largest number."""
Row = dict[str, float]
MODELS = {model.name: model for model in (SCORES, ALARMS)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with both models, which were checked; every explanation's stability is measured."""
    folder = tmp_path_factory.mktemp("kinds")
    torch.set_num_threads(1)
    for model in MODELS.values():
        version = write_version(folder / "models", model)
        _, assessment = assess(version, None, Limits(), 15, seed=0)
        assert assessment is not None
        keep_beside(version, assessment)
    app = create_app(
        Settings(
            _env_file=None,
            data=folder / "data",
            models=folder / "models",
            key=KEY,
            workers=1,
            logs="text",
            stability_share=1,
            ledger="required",
        ),
        [fork_worker(0)],
    )
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url="http://here", transport=transport, timeout=300, headers=headers) as one:
            yield one


async def explained(client: httpx.AsyncClient, model: Linear, row: Row, **parameters: Any) -> tuple[Any, Any]:
    """The prediction and the explanation of one instance."""
    body = {"instances": [row], "parameters": parameters}
    reply = await client.post(f"/v1/models/{model.name}:explain", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["predictions"][0], reply.json()["explanations"][0]


async def got(client: httpx.AsyncClient, path: str) -> Any:
    reply = await client.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def posted(client: httpx.AsyncClient, path: str, status: int = 200, body: Any = None) -> Any:
    reply = await client.post(path, json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


async def ended(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    """A job or an export once it is done."""
    made = await posted(client, path, 202, body)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = await got(client, f"{path}/{made['id']}")
            if "ended" in found:
                break
            await asyncio.sleep(0.02)
    assert found["state"] == "done", found
    return found


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


async def test_several_values_and_why_one_of_them(client: httpx.AsyncClient) -> None:
    prediction, explanation = await explained(client, SCORES, EXAMPLE, target="loss")
    score, loss = SCORES.numbers(EXAMPLE)
    assert prediction == {
        "values": {"score": pytest.approx(score), "loss": pytest.approx(loss)},
        "units": {"score": "points", "loss": "EUR"},
        "output_space": "value",
    }
    assert explanation["target"] == {"index": 1, "value": "loss", "unit": "EUR"}
    assert explanation["attributions"] == pytest.approx(SCORES.moved(EXAMPLE, 1), abs=ROUNDING * loss)
    _, explanation = await explained(client, SCORES, EXAMPLE)
    assert explanation["target"] == {"index": 0, "value": "score", "unit": "points"}, "the adverse one"


@pytest.mark.parametrize("target", [None, "churn", 0])
@pytest.mark.parametrize("space", ["probability", "logit"])
async def test_several_labels_and_why_one_of_them(client: httpx.AsyncClient, target: Any, space: str) -> None:
    """On a straight line through a linear logit, each feature has its share of the logit's change."""
    asked = {} if target is None else {"target": target}
    prediction, explanation = await explained(client, ALARMS, EXAMPLE, output_space=space, **asked)
    logits = ALARMS.numbers(EXAMPLE)
    outputs = sigmoid(logits) if space == "probability" else logits
    assert prediction["outputs"] == pytest.approx(outputs, rel=ROUNDING)
    assert prediction["labels"] == ["arrears", "churn"]  # fraud is likelier than churn, and under its threshold
    assert sigmoid(logits[0]) > sigmoid(logits[2])
    assert prediction["label"] == "arrears"

    index = {None: 1, "churn": 2, 0: 0}[target]
    assert explanation["target"] == {"index": index, "label": ["fraud", "arrears", "churn"][index]}
    moved = ALARMS.moved(EXAMPLE, index)
    before = logits[index] - sum(moved.values())
    change = sigmoid(logits[index]) - sigmoid(before) if space == "probability" else logits[index] - before
    shares = {name: value / sum(moved.values()) * change for name, value in moved.items()}
    assert explanation["attributions"] == pytest.approx(shares, abs=ROUNDING * sum(map(abs, shares.values())))
    assert (explanation["completeness"], explanation["converged"]) == ("exact", True)


@pytest.mark.parametrize(("name", "target"), [("scores", "loss"), ("alarms", "churn"), ("alarms", "predicted")])
async def test_what_is_recorded_is_found_verified_and_replayed(
    client: httpx.AsyncClient, name: str, target: str
) -> None:
    prediction, explanation = await explained(client, MODELS[name], {**EXAMPLE, "age": 41.0}, target=target)
    path = f"/v1/explanations/{explanation['id']}"
    record = await got(client, path)
    assert record["prediction"] == prediction
    assert {key: record[key] for key in ("target", "attributions", "output", "flags")} == {
        key: explanation[key] for key in ("target", "attributions", "output", "flags")
    }
    assert (await posted(client, f"{path}:verify"))["valid"] is True
    assert (await posted(client, f"{path}:replay"))["verdict"] == "bit_exact"
    for asked in ("label=arrears", "label=churn") if name == "alarms" else ("model=scores",):
        found = (await got(client, f"/v1/explanations?{asked}"))["explanations"]
        assert explanation["id"] in {one["id"] for one in found}, asked
    under_its_threshold = (await got(client, "/v1/explanations?label=fraud"))["explanations"]
    assert explanation["id"] not in {one["id"] for one in under_its_threshold}
    _, other = await explained(client, MODELS[name], {**EXAMPLE, "age": 41.0}, target=target)
    assert other["cached"] is True
    assert other["attributions"] == explanation["attributions"]


async def test_reasons_of_a_value_beyond_its_bound_and_a_way_back(client: httpx.AsyncClient) -> None:
    """`adverse: {below: 600}`: what lowers the score is a reason, and the hint ends where it is 600."""
    _, explanation = await explained(client, SCORES, EXAMPLE, target="score")
    moved = SCORES.moved(EXAMPLE, 0)
    told = await got(client, f"/v1/explanations/{explanation['id']}/reasons")
    expected = sorted((name for name in FEATURES if moved[name] < 0), key=moved.__getitem__)
    assert [reason["feature"] for reason in told["reasons"]] == expected
    assert [one["contribution"] for one in told["reasons"]] == pytest.approx([-moved[name] for name in expected])
    hint = told["counterfactual"]
    assert (hint["found"], hint["label"]) == (True, "score not below 600")
    (change,) = hint["changes"]
    assert change["feature"] == "income"
    there = SCORES.numbers({**EXAMPLE, "income": change["to"]})[0]
    assert 600 <= there < 600.05

    fine = {**EXAMPLE, "income": 90.0, "missed_payments": 0.0}
    assert SCORES.numbers(fine)[0] > 600
    _, good = await explained(client, SCORES, fine, target="score")
    told = await got(client, f"/v1/explanations/{good['id']}/reasons")
    assert told["counterfactual"]["why"] == "the prediction is score not below 600, which is not the adverse value"

    near = {**EXAMPLE, "income": 21.0}
    _, stuck = await explained(client, SCORES, EXAMPLE, target="score", baseline=near)
    told = await got(client, f"/v1/explanations/{stuck['id']}/reasons")
    assert "the prediction is still score below 600" in told["counterfactual"]["why"]

    _, other = await explained(client, SCORES, EXAMPLE, target="loss")
    refused = await client.get(f"/v1/explanations/{other['id']}/reasons")
    assert refused.status_code == 404
    assert "its target, loss, does not tell of the adverse value" in refused.json()["detail"]


async def test_reasons_of_a_label_and_a_way_to_where_it_is_not_predicted(client: httpx.AsyncClient) -> None:
    _, explanation = await explained(client, ALARMS, EXAMPLE)
    told = await got(client, f"/v1/explanations/{explanation['id']}/reasons")
    moved = ALARMS.moved(EXAMPLE, 1)
    expected = sorted((name for name in FEATURES if moved[name] > 0), key=lambda name: -moved[name])
    assert [reason["feature"] for reason in told["reasons"]] == expected
    hint = told["counterfactual"]
    there = {**EXAMPLE, **{change["feature"]: change["to"] for change in hint["changes"]}}
    reply = await posted(client, "/v1/models/alarms:predict", body={"instances": [there]})
    assert "arrears" not in reply["predictions"][0]["labels"]
    assert hint["label"] == ", ".join(reply["predictions"][0]["labels"])
    assert 0 < 0.5 - reply["predictions"][0]["outputs"][1] < 1e-3


async def test_review_rules_read_values_and_labels(client: httpx.AsyncClient) -> None:
    cases: list[tuple[Linear, Row, list[str]]] = [
        (SCORES, EXAMPLE, ["dear"]),
        (SCORES, {**EXAMPLE, "missed_payments": 9.0}, ["dear", "low"]),
        (SCORES, {**EXAMPLE, "income": 90.0}, []),
        (ALARMS, EXAMPLE, ["behind"]),
        (ALARMS, {**EXAMPLE, "age": 90.0}, ["behind", "stays"]),
        (ALARMS, {**EXAMPLE, "missed_payments": 9.0, "age": 20.0}, ["behind", "stays", "sure"]),
    ]
    for model, row, flags in cases:
        target = {"target": "score"} if model is SCORES else {}
        _, explanation = await explained(client, model, row, **target)
        assert sorted(explanation["flags"]) == flags, row
        if "sure" in flags or "low" in flags:
            queue = f"/v1/explanations?model={model.name}&flag={flags[-1]}&reviewed=false"
            assert [one["id"] for one in (await got(client, queue))["explanations"]] == [explanation["id"]]
            await posted(client, f"/v1/explanations/{explanation['id']}:review", body={"verdict": "accepted"})
            assert (await got(client, queue))["explanations"] == []


@pytest.mark.parametrize(("name", "target", "again"), [("scores", "score", "loss"), ("alarms", "fraud", "churn")])
async def test_jobs_and_exports(client: httpx.AsyncClient, name: str, target: str, again: str) -> None:
    model, tag = MODELS[name], {"batch": f"{name}-{target}"}
    rows = [{**EXAMPLE, "debt": float(debt)} for debt in (5, 35, 95)]
    body = {"instances": rows, "parameters": {"target": target}, "context": {"cohort": tag}}
    job = await ended(client, "/v1/jobs", model=name, **body)
    first = [await got(client, f"/v1/explanations/{one['explanation']}") for one in job["results"]]
    names = list(model.outputs["labels"]) if model is ALARMS else ["score", "loss"]
    for row, record in zip(rows, first, strict=True):
        number = model.numbers(row)[names.index(target)]
        wanted = sigmoid(number) if model is ALARMS else number
        assert record["output"] == pytest.approx(wanted, rel=ROUNDING)
    filters = {"model": name, "cohort": tag}
    job = await ended(client, "/v1/jobs", model=name, explanations=filters, parameters={"target": again})
    second = [await got(client, f"/v1/explanations/{one['explanation']}") for one in job["results"]]
    assert {record["target"]["index"] for record in second} == {names.index(again)}
    assert sorted(record["input"]["debt"] for record in second) == [5, 35, 95]

    records = {record["id"]: record for record in (*first, *second)}
    tables = {}
    for form in ("csv", "parquet"):
        export = await ended(client, "/v1/exports", format=form, explanations={"model": name})
        tables[form] = (await client.get(f"/v1/exports/{export['id']}/file")).content
    read = {
        "csv": list(csv.DictReader(io.StringIO(tables["csv"].decode()))),
        "parquet": pq.read_table(io.BytesIO(tables["parquet"])).to_pylist(),
    }
    for table in read.values():
        own = [row for row in table if row["id"] in records]
        assert len(own) == len(records) == 6
        for row in own:
            record = records[row["id"]]
            assert row["target"] == (target if record in first else again)
            assert float(row["output"]) == record["output"]
            assert orjson.loads(row["prediction"]) == record["prediction"]
            assert orjson.loads(row["attributions"]) == record["attributions"]
            assert (row["label"] or None) == record["prediction"].get("label")


@pytest.mark.parametrize(("name", "target"), [("scores", "score"), ("alarms", "arrears")])
async def test_drift_and_what_the_dashboards_show(client: httpx.AsyncClient, name: str, target: str) -> None:
    """Explanations of the adverse value or label are held against the check's profile; others are not."""
    model = MODELS[name]
    generator = np.random.default_rng(1)
    drawn = [
        {**EXAMPLE, "income": float(x), "debt": float(y)}
        for x, y in generator.uniform(0, 100, (MIN_EXPLANATIONS + 10, 2))
    ]
    others = {"instances": drawn, "parameters": {"target": "loss" if model is SCORES else "fraud"}}
    await posted(client, f"/v1/models/{name}:explain", body=others)
    await posted(client, f"/v1/models/{name}:explain", body={"instances": drawn, "parameters": {"target": target}})

    async def figures() -> dict[str, float]:
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        samples = [sample for family in families for sample in family.samples]
        return {one.name: one.value for one in samples if one.labels.get("model") == name}

    shown: dict[str, float] = {}
    for age in range(
        10 * MIN_EXPLANATIONS
    ):  # an explanation that comes while another's stability is measured is not looked at
        await explained(client, model, {**EXAMPLE, "age": 20 + age / 10}, target=target)
        if age >= MIN_EXPLANATIONS and "answerable_attribution_stability_near_by" in (shown := await figures()):
            break
    assert -1 <= shown["answerable_attribution_stability"] <= 1
    assert 0.5 < shown["answerable_attribution_ndcg"] <= 1
    assert 0 <= shown["answerable_protected_share"] < 0.5
    expressions = [
        target["expr"]
        for file in DASHBOARDS.glob("*.json")
        for panel in json.loads(file.read_bytes())["panels"]
        for target in panel.get("targets", [])
    ]
    by_model = {
        metric
        for text in expressions
        for metric, chosen in re.findall(r"(answerable_\w+)\{([^}]*)\}", text)
        if "model=~" in chosen
    }
    assert len(by_model) > 15
    of_texts = {"answerable_segment_share_sum", "answerable_segment_share_count"}
    assert by_model - of_texts <= shown.keys()
    assert (await got(client, f"/v1/models/{name}"))["defaults"]["baseline"] == SET
