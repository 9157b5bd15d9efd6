"""Values and contrasts over HTTP: predicted, explained, recorded, replayed, described; and what is refused."""

from __future__ import annotations

import csv
import io
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import orjson
import pytest
import yaml
from safetensors.numpy import load_file

from service.access.permissions import Policy
from tests.api.conftest import EXPLAIN, AssertProblem, Explain
from tests.api.test_exports import exported
from tests.api.test_jobs import ended
from tests.conftest import REPOSITORY_MODELS, MakeKey, Service

HOUSE: Path = REPOSITORY_MODELS / "house-price" / "1"
PRICE = "/v1/models/house-price"
DIGITS = "/v1/models/digits:explain"
FEATURES = [feature["name"] for feature in yaml.safe_load((HOUSE / "manifest.yaml").read_text())["inputs"]["features"]]


@pytest.fixture
def tract() -> dict[str, float]:
    """A held-out tract, a little like no other, so that nobody has asked about it."""
    row = load_file(HOUSE / "heldout.safetensors")["rows"][3].astype(float)
    row[0] += uuid.uuid4().int % 10**6 / 1e7
    return dict(zip(FEATURES, row.tolist(), strict=True))


def price_of(*tracts: dict[str, float]) -> Any:
    """What the file itself answers in ONNX Runtime: [tracts]."""
    session = onnxruntime.InferenceSession(HOUSE / "model.onnx", providers=["CPUExecutionProvider"])
    rows = np.array([list(tract.values()) for tract in tracts], dtype=np.float32)
    return session.run(["price"], {"features": rows})[0][:, 0]


async def test_a_value_is_predicted_with_its_name_and_unit(client: httpx.AsyncClient, tract: dict[str, float]) -> None:
    reply = await client.post(f"{PRICE}:predict", json={"instances": [tract]})
    (prediction,) = reply.json()["predictions"]
    assert prediction == {
        "values": {"price": pytest.approx(price_of(tract)[0], rel=1e-6)},
        "units": {"price": "USD"},
        "output_space": "value",
    }


async def test_a_value_is_explained_in_its_unit_recorded_and_replayed(
    client: httpx.AsyncClient, explain: Explain, tract: dict[str, float]
) -> None:
    reply = await explain([tract], path=f"{PRICE}:explain")
    (explanation,) = reply["explanations"]
    baselines = load_file(HOUSE / "baselines" / "training.safetensors")["rows"]
    mean = dict(zip(FEATURES, baselines.mean(axis=0).tolist(), strict=True))

    assert explanation["target"] == {"index": 0, "value": "price", "unit": "USD"}
    assert (explanation["completeness"], explanation["converged"]) == ("exact", True)
    assert explanation["output"] == pytest.approx(price_of(tract)[0], rel=1e-6)
    assert explanation["baseline_output"] == pytest.approx(price_of(mean)[0], rel=1e-5)
    change = explanation["output"] - explanation["baseline_output"]
    assert sum(explanation["attributions"].values()) == pytest.approx(change, abs=1e-5 * abs(change) + 0.1)

    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    assert record["prediction"] == reply["predictions"][0]
    assert record["target"] == explanation["target"]
    assert record["parameters"]["target"] == 0
    replayed = (await client.post(f"/v1/explanations/{explanation['id']}:replay")).json()
    assert replayed["verdict"] == "bit_exact"
    again = await explain([tract], path=f"{PRICE}:explain", target="price")
    assert again["explanations"][0]["cached"] is False or again["explanations"][0]["output"] == explanation["output"]


async def test_a_review_rule_on_a_value_raises_its_flag(explain: Explain, tract: dict[str, float]) -> None:
    dear = tract | {"rooms": 9.5, "low_status": 1.0, "crime": 0.01, "nitrogen_oxides": 4.0, "pupils_per_teacher": 13.0}
    assert price_of(dear)[0] > 50_000 > price_of(tract)[0]
    flags = [one["flags"] for one in (await explain([dear, tract], path=f"{PRICE}:explain"))["explanations"]]
    assert flags == [["beyond_the_data"], []]


async def test_the_description_says_what_is_answered(client: httpx.AsyncClient) -> None:
    described = (await client.get(PRICE)).json()
    assert described["outputs"] == {
        "kind": "values",
        "values": [{"name": "price", "unit": "USD", "title": "Median price"}],
        "adverse": None,
        "spaces": ["value"],
        "default_space": "value",
    }
    unfit = {method["name"]: method["reason"] for method in described["unavailable_methods"]}
    assert {"agi", "boundary_ig", "boundary_saliency"} <= unfit.keys()
    assert "none gives way to another" in unfit["agi"]


async def test_a_policy_hides_values_as_it_does_outputs(
    service: Service, make_key: MakeKey, explain: Explain, tract: dict[str, float]
) -> None:
    key = make_key("explain", "ledger:read", policy=Policy(outputs=False))
    async with service.client(key) as caller:
        reply = await explain([tract], path=f"{PRICE}:explain", by=caller)
    assert reply["predictions"][0]["values"] == {}
    assert "output" not in reply["explanations"][0]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"output_space": "probability"}, "output_space 'probability' is not known; the spaces are value"),
        ({"target": "prize"}, "did you mean price?"),
        ({"target": {"label": "price", "rather_than": "price"}}, "these are values, so name one of them"),
        ({"method": "agi"}, "none gives way to another; use integrated_gradients"),
        ({"method": "boundary_ig"}, "none gives way to another; use integrated_gradients"),
        ({"method": "boundary_saliency"}, "none gives way to another; use integrated_gradients"),
    ],
)
async def test_what_cannot_be_asked_of_values_is_refused(
    client: httpx.AsyncClient,
    assert_problem: AssertProblem,
    tract: dict[str, float],
    parameters: dict[str, Any],
    sentence: str,
) -> None:
    reply = await client.post(f"{PRICE}:explain", json={"instances": [tract], "parameters": parameters})
    assert sentence in assert_problem(reply, 422)


@pytest.mark.parametrize("space", ["probability", "logit"])
async def test_a_contrast_is_the_difference_of_both_labels(
    client: httpx.AsyncClient, explain: Explain, space: str
) -> None:
    """Where integrals are exact, the attributions of the contrast are those of one label less those of the other."""
    image = yaml.safe_load((REPOSITORY_MODELS / "digits" / "1" / "manifest.yaml").read_text())["example"]
    targets: list[Any] = [{"label": "3", "rather_than": "8"}, "3", "8"]
    asked = {"method": "saliency", "output_space": space, "path": DIGITS}
    ig = {"options": {"rule": "gauss_legendre"}, "tolerance": 0.05, "output_space": space, "path": DIGITS}
    both, one, other = [(await explain([image], target=target, **ig))["explanations"][0] for target in targets]

    assert both["target"] == {"index": 3, "label": "3", "rather_than": "8"}
    assert both["output"] == pytest.approx(one["output"] - other["output"], abs=1e-12)
    assert both["baseline_output"] == pytest.approx(one["baseline_output"] - other["baseline_output"], abs=1e-12)
    record = (await client.get(f"/v1/explanations/{both['id']}")).json()
    assert record["parameters"]["target"] == {"index": 3, "rather_than": 8}
    replayed = (await client.post(f"/v1/explanations/{both['id']}:replay")).json()
    assert replayed["verdict"] == "bit_exact"
    saliency = (await explain([image], target=targets[0], **asked))["explanations"][0]
    assert saliency["converged"]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"label": "denied"}, "parameters.target must hold `label` and `rather_than`"),
        ({"label": "denied", "rather_than": "denied"}, "is the label itself"),
        ({"label": "denied", "rather_than": "approvd"}, "did you mean approved?"),
        ({"label": "denied", "rather_than": 1.5}, "parameters.target must hold `label` and `rather_than`"),
    ],
)
async def test_contrasts_that_cannot_be_are_refused(
    client: httpx.AsyncClient, assert_problem: AssertProblem, instance: dict[str, Any], target: object, sentence: str
) -> None:
    body = {"instances": [instance], "parameters": {"target": target}}
    assert sentence in assert_problem(await client.post(EXPLAIN, json=body), 422)


async def test_a_contrast_with_the_adverse_label_has_reasons(explain: Explain, fresh: dict[str, Any]) -> None:
    wanted = [{"label": "denied", "rather_than": "approved"}, {"label": "approved", "rather_than": "denied"}, "denied"]
    against, towards, plain = [(await explain([fresh], target=one))["explanations"][0] for one in wanted]
    assert against["output"] == pytest.approx(2 * plain["output"] - 1)
    texts = [[reason["text"] for reason in one["reasons"]] for one in (against, towards, plain)]
    assert texts[0] == texts[1] == texts[2]
    assert against["reasons"][0]["contribution"] == pytest.approx(2 * plain["reasons"][0]["contribution"], rel=1e-5)


async def test_a_contrast_is_kept_and_found_as_what_it_is(
    service: Service, make_key: MakeKey, explain: Explain, fresh: dict[str, Any]
) -> None:
    """In the cache, in jobs, for the same inputs once more, and in tables; and it is no measure of drift."""
    targets: list[Any] = [
        "approved",
        {"label": "approved", "rather_than": "denied"},
        {"label": "denied", "rather_than": "approved"},
    ]
    async with service.client(make_key(tenant=f"contrasts-{uuid.uuid4()}")) as bank:
        asked = {"by": bank, "path": EXPLAIN}
        first = [(await explain([fresh], target=target, **asked))["explanations"][0] for target in targets]
        again = [(await explain([fresh], target=target, **asked))["explanations"][0] for target in targets]
        assert [one["cached"] for one in first] == [False, False, False]
        assert [one["cached"] for one in again] == [True, True, True]
        for one, other in zip(first, again, strict=True):
            assert (one["target"], one["attributions"]) == (other["target"], other["attributions"])
        assert first[1]["output"] == -first[2]["output"] != 0
        told = (await bank.get(f"/v1/explanations/{again[2]['id']}/reasons")).json()
        assert told["counterfactual"]["label"] == "approved"
        replayed = (await bank.post(f"/v1/explanations/{again[2]['id']}:replay")).json()
        assert replayed["verdict"] == "bit_exact"

        stored = {"model": "loan", "version": "1"}
        body = {**stored, "explanations": {"label": "denied"}, "parameters": {"target": targets[1]}}
        made = (await bank.post("/v1/jobs", json=body)).json()
        job = await ended(bank, made["id"])
        assert job["state"] == "done", job
        records = [(await bank.get(f"/v1/explanations/{one['explanation']}")).json() for one in job["results"]]
        assert len(records) == 6
        for record in records:
            assert record["target"] == {"index": 0, "label": "approved", "rather_than": "denied"}
            assert record["parameters"]["target"] == {"index": 0, "rather_than": 1}
            assert record["output"] == first[1]["output"]
        table = list(csv.DictReader(io.StringIO((await exported(bank, format="csv")).decode())))
    counted = {text: sum(row["target"] == text for row in table) for text in {row["target"] for row in table}}
    assert counted == {"approved": 2, "approved rather than denied": 8, "denied rather than approved": 2}
    assert {orjson.loads(row["prediction"])["label"] for row in table} == {"denied"}
    loan = service.services.catalog.find("loan", "1").manifest.outputs
    assert loan.is_usual(loan.read_target("approved"))
    assert not loan.is_usual(loan.read_target(targets[2]))


async def test_the_examples_of_the_page(client: httpx.AsyncClient) -> None:
    """Of values and of a contrast: their commands are sent as they stand."""
    page = (REPOSITORY_MODELS.parent / "service" / "api" / "README.md").read_text()
    _, _, section = page.partition("\n## What a model answers\n")
    commands = re.findall(r"curl -s localhost:8080(\S+) .*?-d '(.*?)'", section.partition("\n## ")[0], re.DOTALL)
    assert [path for path, _ in commands] == [f"{PRICE}:explain"]
    for path, body in commands:
        reply = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 200, reply.text
        assert reply.json()["explanations"][0]["target"]["unit"] == "USD"
    (contrast,) = re.findall(r'`"target": (\{.*?\})`', section)
    body = {"instances": [(await client.get("/v1/models/loan")).json()["example"]]}
    reply = await client.post(
        "/v1/models/loan:explain", json={**body, "parameters": {"target": orjson.loads(contrast)}}
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["explanations"][0]["target"]["rather_than"] == orjson.loads(contrast)["rather_than"]
