"""Embeddings from the first request to the last record, held against closed forms of a linear model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch

from service.access.permissions import Policy
from service.app import create_app
from service.catalog.assessments import keep_beside
from service.client import AsyncClient, PredictedEmbedding
from service.domain import Floats
from service.lifecycle.checking.assessing import assess
from service.lifecycle.checking.limits import Limits
from service.settings import Settings
from tests.api.test_values_and_labels import ended, got, posted
from tests.huggingface_folders import added
from tests.lifecycle.adding.test_sentence_folders import save_sentences
from tests.linear_models import EXAMPLE, FEATURES, Linear, baselines, write_version

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 40
OTHER = {"income": 70.0, "debt": 10.0, "missed_payments": 0.0, "age": 61.0}
GIVEN = [0.3, -1.0, 0.5]
ROUNDING = 1e-5
CUSTOMERS = Linear(
    "customers",
    {"kind": "embedding", "dimensions": 3},
    {"alike": "output > 0.99"},
    np.array([[0.02, -0.01, 0.1, 0.0], [-0.03, 0.02, 0.4, 0.01], [0.01, 0.03, -0.1, -0.02]]),
    np.array([0.5, -0.2, 0.1]),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """A service with the model, which was checked."""
    folder = tmp_path_factory.mktemp("similarities")
    torch.set_num_threads(1)
    _, assessment = assess(write_version(folder / "models", CUSTOMERS), None, Limits(), 15, seed=0)
    assert assessment is not None
    assert assessment.passed, assessment.failed
    assert assessment.profile is not None
    assert assessment.profile.target == "similarity to the example"
    keep_beside(folder / "models" / "customers" / "1", assessment)
    save_sentences(folder / "sentences", "bert", ("mean",), normalised=True)
    added(folder / "sentences", folder / "models")
    app = create_app(
        Settings(
            _env_file=None,
            data=folder / "data",
            models=folder / "models",
            key=KEY,
            workers=1,
            logs="text",
            ledger="required",
        )
    )
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(base_url="http://here", transport=transport, timeout=300, headers=headers) as one:
        yield one


async def explained(client: httpx.AsyncClient, row: object, **parameters: Any) -> dict[str, Any]:
    body = {"instances": [row], "parameters": parameters}
    reply: dict[str, Any] = await posted(client, "/v1/models/customers:explain", body=body)
    return reply


def cosine(one: Any, other: Any) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def integrated(row: dict[str, float], reference: Floats) -> dict[str, float]:
    """Integrated gradients of the cosine on the line from the mean baseline, by 2,000 midpoints in float64."""
    start = baselines().mean(axis=0)
    way = np.array([row[name] for name in FEATURES]) - start
    alphas = (np.arange(2000) + 0.5) / 2000
    at = (start + alphas[:, None] * way) @ CUSTOMERS.weight.T + CUSTOMERS.bias
    unit, length = reference / np.linalg.norm(reference), np.linalg.norm(at, axis=1, keepdims=True)
    slopes = (unit - at * (at @ unit)[:, None] / length**2) / length
    return dict(zip(FEATURES, (way * (slopes @ CUSTOMERS.weight).mean(axis=0)).tolist(), strict=True))


async def test_a_prediction_is_the_embedding_unless_it_is_left_out(client: httpx.AsyncClient) -> None:
    reply = await posted(client, "/v1/models/customers:predict", body={"instances": [EXAMPLE]})
    whole = {"dimensions": 3, "output_space": "similarity"}
    numbers = pytest.approx(CUSTOMERS.numbers(EXAMPLE), rel=ROUNDING)
    assert reply["predictions"] == [{"embedding": numbers, **whole}]
    brief = {"instances": [EXAMPLE], "parameters": {"embedding": False}}
    reply = await posted(client, "/v1/models/customers:predict", body=brief)
    assert reply["predictions"] == [whole]
    described = await got(client, "/v1/models/customers")
    assert (described["outputs"]["kind"], described["outputs"]["dimensions"]) == ("embedding", 3)
    assert described["outputs"]["spaces"] == ["similarity"]


@pytest.mark.parametrize("reference", [OTHER, GIVEN], ids=["an instance", "numbers"])
@pytest.mark.parametrize("measure", ["cosine", "dot"])
async def test_what_makes_both_similar(client: httpx.AsyncClient, reference: Any, measure: str) -> None:
    target = {"similar_to": reference, "measure": measure}
    reply = await explained(client, EXAMPLE, target=target, embedding=False)
    (explanation,) = reply["explanations"]
    to = CUSTOMERS.numbers(OTHER) if reference is OTHER else np.array(GIVEN)
    own, start = CUSTOMERS.numbers(EXAMPLE), CUSTOMERS.weight @ baselines().mean(axis=0) + CUSTOMERS.bias
    of = cosine if measure == "cosine" else np.dot
    assert reply["predictions"] == [{"dimensions": 3, "output_space": "similarity"}]
    assert explanation["target"] == {"measure": measure}
    assert explanation["output"] == pytest.approx(of(own, to), abs=ROUNDING)
    assert explanation["baseline_output"] == pytest.approx(of(start, to), abs=ROUNDING)
    moved = [CUSTOMERS.moved(EXAMPLE, at) for at in range(3)]
    products = {name: sum(r * one[name] for r, one in zip(to, moved, strict=True)) for name in FEATURES}
    expected = integrated(EXAMPLE, to) if measure == "cosine" else products
    scale = sum(map(abs, expected.values()))
    assert explanation["attributions"] == pytest.approx(expected, abs=2 * ROUNDING * scale)
    assert (explanation["completeness"], explanation["converged"]) == ("exact", True)


async def test_records_hold_what_it_takes_to_replay_them(client: httpx.AsyncClient) -> None:
    target = {"similar_to": OTHER}
    reply = await explained(client, {**EXAMPLE, "age": 41.0}, target=target)
    (explanation,), (prediction,) = reply["explanations"], reply["predictions"]
    path = f"/v1/explanations/{explanation['id']}"
    record = await got(client, path)
    assert record["prediction"] == prediction
    assert record["parameters"]["target"] == {"measure": "cosine"}
    assert "reference" not in record
    assert (await posted(client, f"{path}:verify"))["valid"] is True
    assert (await posted(client, f"{path}:replay"))["verdict"] == "bit_exact"
    again = (await explained(client, {**EXAMPLE, "age": 41.0}, target=target))["explanations"][0]
    assert (again["cached"], again["attributions"], again["target"]) == (
        True,
        explanation["attributions"],
        explanation["target"],
    )
    others = [{"similar_to": OTHER, "measure": "dot"}, {"similar_to": EXAMPLE}]
    for one in others:
        (other,) = (await explained(client, {**EXAMPLE, "age": 41.0}, target=one))["explanations"]
        assert other["cached"] is False
    assert explanation["flags"] == []
    assert other["flags"] == ["alike"]


async def test_both_sides(client: httpx.AsyncClient) -> None:
    """Each is what it is when it is asked for alone, with the other as its reference."""
    both = {"similar_to": OTHER, "both": True}
    reply = await explained(client, EXAMPLE, target=both)
    first, second = reply["explanations"]
    assert reply["predictions"][0]["embedding"] == pytest.approx(CUSTOMERS.numbers(EXAMPLE), rel=ROUNDING)
    assert first["output"] == pytest.approx(second["output"], abs=ROUNDING)
    (alone,) = (await explained(client, OTHER, target={"similar_to": EXAMPLE}))["explanations"]
    assert (alone["cached"], alone["attributions"]) == (True, second["attributions"])
    record = await got(client, f"/v1/explanations/{second['id']}")
    assert record["input"] == OTHER
    assert (await posted(client, f"/v1/explanations/{second['id']}:replay"))["verdict"] == "bit_exact"

    targets = [{"similar_to": GIVEN, "measure": "dot"}, both]
    several = (await explained(client, EXAMPLE, targets=targets))["explanations"]
    assert [one["target"]["measure"] for one in several] == ["dot", "cosine", "cosine"]
    assert [one["attributions"] for one in several[1:]] == [first["attributions"], second["attributions"]]


@pytest.mark.parametrize(
    ("target", "pointer", "says"),
    [
        (None, "", "say what the instance is to be similar to"),
        ("age", "", "'age' is none of an embedding"),
        ({"similar_to": [0.0, 0.0, 0.0]}, "/similar_to", "zeros, which has no direction"),
        ({"similar_to": {**OTHER, "age": "old"}}, "/similar_to/age", "age"),
        ({"similar_to": [1.0, 2.0]}, "/similar_to", "similar_to"),
        ({"similar_to": GIVEN, "both": True}, "/similar_to", "both sides are explained where"),
        ({"similar_to": GIVEN, "measure": "cosin"}, "/measure", "cosine"),
        ({"similar_to": GIVEN, "than": 1}, "", "nothing else"),
        ({"similar_to": OTHER, "both": 1}, "", "true or false"),
        ({"label": "a", "rather_than": "b"}, "", "is none of an embedding"),
    ],
    ids=str,
)
async def test_targets_that_cannot_be(client: httpx.AsyncClient, target: object, pointer: str, says: str) -> None:
    parameters = {} if target is None else {"target": target}
    for path, body in (
        ("/v1/models/customers:explain", {"instances": [EXAMPLE], "parameters": parameters}),
        ("/v1/jobs", {"model": "customers", "instances": [EXAMPLE], "parameters": parameters}),
    ):
        reply = await client.post(path, json=body)
        assert reply.status_code == 422, reply.text
        assert says in reply.json()["detail"]
        assert reply.json()["errors"][0]["pointer"].startswith(f"/parameters/target{pointer}")


async def test_a_job_explains_both_sides_of_every_row(client: httpx.AsyncClient) -> None:
    rows = [{**EXAMPLE, "debt": float(debt)} for debt in (5, 35)]
    parameters = {"target": {"similar_to": OTHER, "both": True}}
    job = await ended(client, "/v1/jobs", model="customers", instances=rows, parameters=parameters)
    records = [await got(client, f"/v1/explanations/{one['explanation']}") for one in job["results"]]
    assert [record["input"] for record in records] == [rows[0], OTHER, rows[1], OTHER]
    to = CUSTOMERS.numbers(OTHER)
    assert records[2]["attributions"] == pytest.approx(integrated(rows[1], to), abs=ROUNDING)
    export = await ended(client, "/v1/exports", format="csv", explanations={"model": "customers"})
    table = (await client.get(f"/v1/exports/{export['id']}/file")).text
    assert "cosine similarity" in table


async def test_both_of_two_texts_of_different_lengths(client: httpx.AsyncClient) -> None:
    short, long = {"text": "a queue"}, {"text": "Nobody likes waiting in a queue for hours without being told why."}
    path = "/v1/models/sentences"
    embedded = (await posted(client, f"{path}:predict", body={"instances": [short, long]}))["predictions"]
    strictly = {"tolerance_of": "completeness"}
    parameters = {"target": {"similar_to": long, "both": True}, "embedding": False, **strictly}
    reply = await posted(client, f"{path}:explain", body={"instances": [short], "parameters": parameters})
    alike = cosine(*(one["embedding"] for one in embedded))
    first, second = reply["explanations"]
    for explanation, text in ((first, short["text"]), (second, long["text"])):
        assert explanation["output"] == pytest.approx(alike, abs=ROUNDING)
        assert explanation["converged"]
        tokens = explanation["attributions"]
        change = explanation["output"] - explanation["baseline_output"]
        assert sum(token["attribution"] for token in tokens) == pytest.approx(change, abs=0.02 * abs(change) + 1e-4)
        words = {text[token["start"] : token["end"]].lower() for token in tokens}
        assert "queue" in "".join(words) or words >= {"a"}
        assert max(token["end"] for token in tokens) == len(text)
        replayed = await posted(client, f"/v1/explanations/{explanation['id']}:replay")
        assert replayed["verdict"] == "bit_exact"
    assert len(second["attributions"]) > len(first["attributions"])
    parameters = {"target": {"similar_to": short}, **strictly}
    reply = await posted(client, f"{path}:explain", body={"instances": [long], "parameters": parameters})
    (alone,) = reply["explanations"]
    assert (alone["cached"], alone["attributions"]) == (True, second["attributions"])


async def test_a_policy_withholds_and_rounds_embeddings(app: Any) -> None:
    keys = app.state.services.keys
    for policy, shown in ((Policy(outputs=False), []), (Policy(digits=1), None)):
        _, token = keys.create("test", "default", ["explain"], None, None, policy)
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url="http://here", transport=transport, headers=headers) as limited:
            reply = await explained(limited, EXAMPLE, target={"similar_to": OTHER})
        embedding = reply["predictions"][0]["embedding"]
        assert embedding == shown if shown is not None else embedding != pytest.approx(CUSTOMERS.numbers(EXAMPLE))


async def test_the_client_reads_similarities(app: Any) -> None:
    async with AsyncClient("http://here", KEY, transport=httpx.ASGITransport(app)) as service:
        model = service.model("customers")
        (prediction,) = await model.predict([EXAMPLE])
        assert isinstance(prediction, PredictedEmbedding)
        assert prediction.embedding == pytest.approx(CUSTOMERS.numbers(EXAMPLE), rel=ROUNDING)
        first, second = await model.explain_targets(EXAMPLE, [{"similar_to": OTHER, "both": True}])
        assert first.target is not None
        assert first.target.text == "cosine similarity"
        assert second.attributions is not None
        assert set(second.attributions.names) == set(FEATURES)
        record = await service.explanation(second.id)
        assert isinstance(record.prediction, PredictedEmbedding)
        assert record.prediction.text == "an embedding of 3 numbers"
        assert (await model.describe()).outputs.dimensions == 3


async def test_methods_are_judged_by_what_removing_features_does_to_the_similarity(client: httpx.AsyncClient) -> None:
    """The end of the curve is the mean of the similarities of the rows that stand in, not of their mean vector."""
    body = {
        "model": "customers",
        "kind": "evaluate",
        "instances": [EXAMPLE],
        "metrics": ["deletion"],
        "options": {"deletion": {"replace": "marginal", "steps": 4}},
        "parameters": {"target": {"similar_to": OTHER}},
    }
    made = await ended(client, "/v1/jobs", **body)
    (figure,) = (await got(client, f"/v1/jobs/{made['id']}/result"))["figures"]
    drawn = baselines()[np.random.default_rng(0).permutation(16)[:8]]
    stood_in = [cosine(row @ CUSTOMERS.weight.T + CUSTOMERS.bias, CUSTOMERS.numbers(OTHER)) for row in drawn]
    assert figure["curve"][0] == pytest.approx(
        cosine(CUSTOMERS.numbers(EXAMPLE), CUSTOMERS.numbers(OTHER)), abs=ROUNDING
    )
    assert figure["curve"][-1] == pytest.approx(np.mean(stood_in), abs=ROUNDING)
    refused = {**body, "parameters": {"target": {"similar_to": OTHER, "both": True}}}
    assert "one target" in (await client.post("/v1/jobs", json=refused)).json()["detail"]
