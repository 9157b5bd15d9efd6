"""Words, sentences and segments from request to replay: of texts, of pairs, and of a language model's prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import pytest_asyncio
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.access.permissions import Policy
from service.answers.disclosure import limited
from service.answers.encoding import encode
from service.answers.explanation import Answered
from service.answers.reading import read
from service.app import create_app
from service.client.answers import ByToken, read_explained, read_record
from service.settings import Settings
from tests.api.test_values_and_labels import posted
from tests.causal_folders import save_causal_folder
from tests.conftest import PATIENCE_SECONDS
from tests.huggingface_folders import added, save_folder, trained_tokenizer

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 40
REVIEW = {"rules": {"leans": "segment_share(context) > 0.001", "ignores": "segment_share(context) < 0.001"}}
FIRST, SECOND = "A wonderful film?", "The actors moved me. Nobody likes waiting."


def segment(name: str, within: str, text: str, **part: int) -> dict[str, Any]:
    start = within.index(text)
    return {"name": name, "start": start, "end": start + len(text), **part}


INSTANCES: dict[str, dict[str, Any]] = {
    "film": {
        "text": SECOND,
        "segments": [
            segment("context", SECOND, "The actors moved me."),
            segment("who", SECOND, "actors"),
            segment("nothing", SECOND, ""),
        ],
    },
    "ranker": {
        "text": [FIRST, SECOND],
        "segments": [
            segment("query", FIRST, FIRST, part=0),
            segment("context", SECOND, SECOND, part=1),
            segment("who", SECOND, "actors", part=1),
        ],
    },
    "writer": {"text": SECOND, "segments": [segment("context", SECOND, "The actors moved me.")]},
}
"""By model."""


def make_models(folder: Path) -> Path:
    """A classifier, a model of entailment and a language model, whose manifests want a segment `context`."""
    torch.set_num_threads(1)
    sources, models = folder / "sources", folder / "models"
    save_folder(sources / "film", "bert", id2label={0: "bad", 1: "good"})
    save_folder(sources / "ranker", "roberta", num_labels=1)
    save_causal_folder(sources / "writer", "gpt2")
    for name, instance in INSTANCES.items():
        version = added(sources / name, models, are_pairs=True) if name == "ranker" else added(sources / name, models)
        manifest = yaml.safe_load((version / "manifest.yaml").read_text())
        manifest["inputs"]["segments"] = ["context"]
        manifest |= {"review": REVIEW, "example": instance}
        (version / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return models


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    models = make_models(tmp_path_factory.mktemp("models"))
    settings = Settings(_env_file=None, data=tmp_path_factory.mktemp("data"), models=models, key=KEY, workers=1)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        transport, headers = httpx.ASGITransport(app), {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url="http://here", transport=transport, timeout=300, headers=headers) as one:
            yield one


async def explained(client: httpx.AsyncClient, model: str, instance: Any = None, **parameters: Any) -> Any:
    body = {"instances": [INSTANCES[model] if instance is None else instance], "parameters": parameters}
    return (await posted(client, f"/v1/models/{model}:explain", body=body))["explanations"][0]


def encoding_of(model: str) -> Any:
    """What the package tokenizers makes of the instance."""
    kind = {"film": "bert", "ranker": "roberta", "writer": "gpt2"}[model]
    texts = INSTANCES[model]["text"]
    return trained_tokenizer(kind).encode(*([texts] if isinstance(texts, str) else texts))


@pytest.mark.parametrize("model", INSTANCES)
async def test_a_segment_has_the_sum_and_the_share_of_its_tokens(client: httpx.AsyncClient, model: str) -> None:
    explanation = await explained(client, model, tolerance=0.05)
    tokens, mass = explanation["attributions"], sum(abs(one["attribution"]) for one in explanation["attributions"])
    encoded = encoding_of(model)
    assert [one["token"] for one in tokens] == encoded.tokens
    for found, sent in zip(explanation["segments"], INSTANCES[model]["segments"], strict=True):
        assert {name: found[name] for name in sent} == sent
        own = [
            tokens[at]["attribution"]
            for at, (part, (_, end)) in enumerate(zip(encoded.sequence_ids, encoded.offsets, strict=True))
            if part == sent.get("part", 0) and sent["start"] < end <= sent["end"]
        ]
        assert bool(own) == (sent["start"] < sent["end"])
        assert found["sum"] == pytest.approx(sum(own), abs=1e-12)
        assert found["share"] == pytest.approx(sum(map(abs, own)) / mass, abs=1e-12)
    shares = {one["name"]: one["share"] for one in explanation["segments"]}
    assert explanation["flags"] == ["leans" if shares["context"] > 0.001 else "ignores"]
    assert shares.get("who", 0) <= shares["context"] <= 1


def sums_of_words(model: str, plain: Any) -> list[float]:
    """By the tokenizer's own numbers."""
    encoded, values = encoding_of(model), [one["attribution"] for one in plain["attributions"]]
    words = [*zip(encoded.sequence_ids, encoded.word_ids, strict=True)]
    return [
        sum(value for value, other in zip(values, words, strict=True) if other == word)
        for word in dict.fromkeys(words)
        if word[1] is not None
    ]


def sums_of_sentences(model: str, plain: Any) -> list[float]:
    """Each but the last of these texts ends with the one full stop or question mark in it."""
    encoded, values = encoding_of(model), [one["attribution"] for one in plain["attributions"]]
    sums = [0.0]
    for value, part, token in zip(values, encoded.sequence_ids, encoded.tokens, strict=True):
        if part is not None:
            sums[-1] += value
            if token in {".", "?"}:
                sums.append(0.0)
    return sums[:-1]


@pytest.mark.parametrize("units", ["words", "sentences"])
@pytest.mark.parametrize("model", INSTANCES)
async def test_units_are_sums_on_record_and_in_replays(client: httpx.AsyncClient, model: str, units: str) -> None:
    plain = await explained(client, model, tolerance=0.05, errors=True)
    summed = await explained(client, model, tolerance=0.05, errors=True, units=units)
    name = units.removesuffix("s")
    assert summed["cached"]
    assert summed["segments"] == plain["segments"]
    for field in ("attributions", "attribution_errors"):
        by_token, by_unit = plain[field], summed[field]
        assert len(by_unit) < len(by_token)
        assert sum(one["attribution"] for one in by_unit) == pytest.approx(sum(one["attribution"] for one in by_token))
    texts = INSTANCES[model]["text"]
    own = [one for one in summed["attributions"] if name in one]
    for one in own:
        assert one[name] == (texts if isinstance(texts, str) else texts[one["part"]])[one["start"] : one["end"]]
    expected = sums_of_sentences(model, plain) if units == "sentences" else sums_of_words(model, plain)
    assert [one["attribution"] for one in own] == pytest.approx(expected, abs=1e-12)
    record = (await client.get(f"/v1/explanations/{summed['id']}")).json()
    assert (record["attributions"], record["segments"]) == (summed["attributions"], summed["segments"])
    replay = await posted(client, f"/v1/explanations/{summed['id']}:replay", body={})
    assert replay["verdict"] == "bit_exact", replay


async def test_the_client_reads_segments_and_words(client: httpx.AsyncClient) -> None:
    body = {"instances": [INSTANCES["ranker"]], "parameters": {"units": "words"}}
    reply = await posted(client, "/v1/models/ranker:explain", body=body)
    explanation = read_explained(reply["explanations"][0], reply["predictions"][0])
    assert [(one.name, one.part) for one in explanation.segments] == [("query", 0), ("context", 1), ("who", 1)]
    assert sum(one.share or 0 for one in explanation.segments[:2]) == pytest.approx(1)
    assert isinstance(explanation.attributions, ByToken)
    assert {"wonderful", "actors"} <= {*explanation.attributions.names}
    record = read_record((await client.get(f"/v1/explanations/{explanation.id}")).json())
    assert record.segments == explanation.segments


async def test_each_token_of_a_continuation_by_words(client: httpx.AsyncClient) -> None:
    explanation = await explained(
        client, "writer", target={"continuation": " a queue", "per_token": True}, units="words", tolerance=0.05
    )
    words = [one["word"] for one in explanation["attributions"]]
    assert words == ["The", "actors", "moved", "me", ".", "Nobody", "likes", "waiting", "."]
    for token in explanation["continuation"]:
        assert [one["word"] for one in token["attributions"]] == words


async def shares_in(client: httpx.AsyncClient) -> Mapping[tuple[str, str], float]:
    """How often the share of each segment was observed, by model and segment."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    (found,) = (family for family in families if family.name == "answerable_segment_share")
    return {
        (sample.labels["model"], sample.labels["segment"]): sample.value
        for sample in found.samples
        if sample.name.endswith("_count")
    }


async def test_shares_of_listed_segments_are_metrics(client: httpx.AsyncClient) -> None:
    """And of no other, whose names a caller makes up."""
    before = await shares_in(client)
    await explained(client, "film", tolerance=0.05)
    after = await shares_in(client)
    assert {*after} == {(model, "context") for model in INSTANCES}
    assert after["film", "context"] == before["film", "context"] + 1


async def test_a_text_without_a_listed_segment_is_predicted_but_not_explained(
    client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    bare = {"text": SECOND}
    await posted(client, "/v1/models/film:predict", body={"instances": [bare]})
    for path in ("/v1/models/film:explain", "/v1/jobs"):
        body = {"instances": [INSTANCES["film"], bare], **({"model": "film"} if path == "/v1/jobs" else {})}
        reply = await client.post(path, json=body)
        assert "no segment is called 'context'" in assert_problem(reply, 422)
        assert [one["pointer"] for one in reply.json()["errors"]] == ["/instances/1/segments"]
    when = {"when": "probability < 0"}
    reply = await posted(client, "/v1/models/film:explain", body={"instances": [bare], "parameters": when})
    assert reply["explanations"] == [None]


@pytest.mark.parametrize(
    ("model", "body", "pointer", "sentence"),
    [
        ("film", {"segments": [{"name": "context", "start": 0, "end": 99}]}, "/segments/0/end", "the text's length"),
        ("ranker", {"segments": [{"name": "context", "start": 0, "end": 3}]}, "/segments/0", "part 0 is the first"),
        (
            "writer",
            {"segments": [{"name": "context", "start": 0, "end": 5}, {"name": "b", "start": 3, "end": 9}]},
            "/segments/1",
            "cross",
        ),
    ],
)
async def test_wrong_segments_are_refused_with_their_place(
    client: httpx.AsyncClient, assert_problem: AssertProblem, model: str, body: Any, pointer: str, sentence: str
) -> None:
    reply = await client.post(f"/v1/models/{model}:explain", json={"instances": [{**INSTANCES[model], **body}]})
    assert sentence in assert_problem(reply, 422)
    assert [one["pointer"] for one in reply.json()["errors"]] == [f"/instances/0{pointer}"]


async def test_units_are_of_texts(client: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    body = {"instances": [INSTANCES["film"]], "parameters": {"units": "letters"}}
    assert "units" in assert_problem(await client.post("/v1/models/film:explain", json=body), 422)


async def test_a_job_explains_segments(client: httpx.AsyncClient) -> None:
    instances = [INSTANCES["writer"], {**INSTANCES["writer"], "text": SECOND.replace("actors", "movies")}]
    body = {"model": "writer", "instances": instances, "parameters": {"units": "sentences", "tolerance": 0.05}}
    made = await client.post("/v1/jobs", json=body)
    assert made.status_code == 202, made.text
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            job = (await client.get(f"/v1/jobs/{made.json()['id']}")).json()
            if "ended" in job:
                break
            await asyncio.sleep(0.02)
    assert (job["state"], job["progress"]["failed"]) == ("done", 0), job
    found = (await client.get("/v1/explanations?model=writer&limit=2")).json()["explanations"]
    for one in found:
        assert [segment["name"] for segment in one["segments"]] == ["context"]
        assert len(one["attributions"]) == 2
        assert one["segments"][0]["sum"] == pytest.approx(one["attributions"][0]["attribution"])


async def test_a_policy_holds_for_segments(client: httpx.AsyncClient) -> None:
    """A segment of one token would tell what a key that sees only the largest must not see."""
    explanation = await explained(client, "film", units="words", tolerance=0.05)
    del explanation["timings_ms"]
    whole = read(Answered, explanation)
    narrow = orjson.loads(encode(limited(whole, Policy(top=2))))
    assert "segments" not in narrow
    assert len(narrow["attributions"]) == 2
    rounded = orjson.loads(encode(limited(whole, Policy(digits=1))))
    assert [round(one["share"], 1) for one in rounded["segments"]] == [one["share"] for one in rounded["segments"]]
