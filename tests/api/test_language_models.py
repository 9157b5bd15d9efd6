"""A language model from request to replay: what follows a prompt, and what in the prompt it rests on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import pytest_asyncio
import torch

from service.access.permissions import Policy
from service.answers.disclosure import limited
from service.answers.encoding import encode
from service.answers.explanation import Answered
from service.answers.reading import read
from service.app import create_app
from service.artefacts.huggingface.library import transformers
from service.catalog.outputs.tokens import Continuation
from service.client.answers import ByToken, read_explained
from service.client.outputs import PredictedTokens, Prediction
from service.domain import Explanation
from service.settings import Settings
from tests.api.test_values_and_labels import ended, got, posted
from tests.causal_folders import LENGTH, save_causal_folder
from tests.huggingface_folders import added

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 40
EXPLAIN = "/v1/models/writer:explain"
PROMPT = {"text": "Nobody likes waiting in"}
OWN, OTHER = " a queue", " hours without"
CLOSE = 2e-4
"""Sums of log-probabilities in float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("folders") / "writer"
    torch.set_num_threads(1)
    save_causal_folder(made, "gpt2")
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(
    folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    place = tmp_path_factory.mktemp("models")
    version = added(folder, place / "models")
    manifest = (version / "manifest.yaml").read_text() + "review: {rules: {unsure: probability < 0.9}}\n"
    (version / "manifest.yaml").write_text(manifest)
    settings = Settings(_env_file=None, data=data, models=place / "models", key=KEY, workers=1)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        transport, headers = httpx.ASGITransport(app), {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url="http://here", transport=transport, timeout=300, headers=headers) as one:
            yield one


async def explained(client: httpx.AsyncClient, target: Any = None, context: Any = None, **parameters: Any) -> Any:
    """The first explanation of the prompt."""
    given = {**parameters, **({} if target is None else {"target": target})}
    body = {"instances": [PROMPT], "parameters": given, **({} if context is None else {"context": context})}
    return (await posted(client, EXPLAIN, body=body))["explanations"][0]


@pytest.fixture(scope="module")
def package(folder: Path) -> tuple[Any, Any]:
    """The network and the tokenizer as the package reads them."""
    found = transformers()
    return found.AutoModelForCausalLM.from_pretrained(folder).eval(), found.AutoTokenizer.from_pretrained(folder)


def log_probability(package: tuple[Any, Any], text: str) -> float:
    network, tokenizer = package
    ids, tokens = tokenizer(PROMPT["text"])["input_ids"], tokenizer(text)["input_ids"]
    with torch.no_grad():
        logs = network(input_ids=torch.tensor([[*ids, *tokens]])).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(ids) - 1 + at, token]) for at, token in enumerate(tokens))


async def test_a_prediction_is_what_follows(client: httpx.AsyncClient, package: tuple[Any, Any]) -> None:
    (prediction,) = (await posted(client, "/v1/models/writer:predict", body={"instances": [PROMPT]}))["predictions"]
    assert set(prediction) == {"next", "output_space"}
    assert prediction["output_space"] == "log_probability"
    likeliest, *others = prediction["next"]
    assert len(others) == 9
    assert likeliest["log_probability"] == pytest.approx(log_probability(package, likeliest["token"]), abs=CLOSE)
    read_by_client = Prediction.from_json(prediction)
    assert isinstance(read_by_client, PredictedTokens)
    assert read_by_client.text == repr(likeliest["token"])


async def test_without_a_target_the_likeliest_token_is_explained(client: httpx.AsyncClient) -> None:
    reply = await posted(client, EXPLAIN, body={"instances": [PROMPT]})
    (prediction,), (explanation,) = reply["predictions"], reply["explanations"]
    likeliest = prediction["next"][0]
    assert explanation["target"] == {"continuation": likeliest["token"]}
    assert explanation["output"] == pytest.approx(likeliest["log_probability"], abs=CLOSE)
    assert explanation["continuation"] == [{**likeliest, "log_probability": pytest.approx(explanation["output"])}]
    assert explanation["flags"] == ["unsure"]
    assert explanation["converged"]


@pytest.mark.parametrize("other", [None, OTHER])
async def test_a_continuation_and_what_it_rests_on(
    client: httpx.AsyncClient, package: tuple[Any, Any], other: str | None
) -> None:
    """Its log-probability is the package's, the attributions sum to how it differs from the masked prompt's, and are of
    the prompt's tokens alone."""
    target = {"continuation": OWN, **({} if other is None else {"rather_than": other})}
    explanation = await explained(client, target)
    expected = log_probability(package, OWN) - (0 if other is None else log_probability(package, other))
    assert explanation["output"] == pytest.approx(expected, abs=CLOSE)
    assert explanation["target"] == target
    assert explanation["output_space"] == "log_probability"
    assert explanation["baseline"]["name"] == "mask"
    tokens = explanation["attributions"]
    assert "".join(PROMPT["text"][token["start"] : token["end"]] for token in tokens) == PROMPT["text"]
    change = explanation["output"] - explanation["baseline_output"]
    assert sum(token["attribution"] for token in tokens) == pytest.approx(change, rel=0.02, abs=0.01)
    signs = [-1 if token.get("rather_than") else 1 for token in explanation["continuation"]]
    summed = sum(
        sign * token["log_probability"] for sign, token in zip(signs, explanation["continuation"], strict=True)
    )
    assert summed == pytest.approx(explanation["output"], abs=CLOSE)
    assert explanation["converged"]


async def test_each_token_has_attributions_of_its_own(client: httpx.AsyncClient) -> None:
    """By linearity those of the whole are their sum, less those of the text that it is compared with."""
    whole = await explained(
        client, {"continuation": OWN, "rather_than": OTHER, "per_token": True}, tolerance=0.002, max_evaluations=16384
    )
    assert whole["converged"]
    total = [0.0] * len(whole["attributions"])
    for token in whole["continuation"]:
        sign = -1 if token.get("rather_than") else 1
        assert token["converged"]
        assert token["attribution_error"] <= 0.002
        total = [so_far + sign * part["attribution"] for so_far, part in zip(total, token["attributions"], strict=True)]
    values = [token["attribution"] for token in whole["attributions"]]
    assert total == pytest.approx(values, abs=0.02 * sum(map(abs, values)))
    assert len({token.get("rather_than", False) for token in whole["continuation"]}) == 2

    read_by_client = read_explained(whole, {"next": [], "output_space": "log_probability"})
    assert read_by_client.target is not None
    assert read_by_client.target.text == f"{OWN!r} rather than {OTHER!r}"
    assert isinstance(read_by_client.continuation[0].attributions, ByToken)


async def test_several_continuations_of_one_prompt(client: httpx.AsyncClient) -> None:
    targets = [{"continuation": OWN}, {"continuation": OTHER}, "predicted"]
    reply = await posted(client, EXPLAIN, body={"instances": [PROMPT], "parameters": {"targets": targets}})
    own, other, _ = reply["explanations"]
    contrast = await explained(client, {"continuation": OWN, "rather_than": OTHER})
    assert own["output"] - other["output"] == pytest.approx(contrast["output"], abs=CLOSE)


@pytest.mark.parametrize(
    "target", [None, {"continuation": OWN}, {"continuation": OWN, "rather_than": OTHER, "per_token": True}]
)
async def test_it_is_recorded_and_replayed_bit_for_bit(client: httpx.AsyncClient, target: Any) -> None:
    explanation = await explained(client, target, tolerance=0.03)
    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    for name in ("target", "output", "attributions", "continuation", "evaluations"):
        assert record[name] == explanation[name], name
    assert record["parameters"]["target"] is None
    replay = await posted(client, f"/v1/explanations/{explanation['id']}:replay", body={})
    assert replay["verdict"] == "bit_exact", replay
    again = await explained(client, target, tolerance=0.03)
    assert again["cached"]
    assert again["attributions"] == explanation["attributions"]
    assert again["continuation"] == explanation["continuation"]


async def test_another_continuation_is_another_explanation(client: httpx.AsyncClient) -> None:
    first = await explained(client, {"continuation": " films"}, tolerance=0.03)
    second = await explained(client, {"continuation": " letters"}, tolerance=0.03)
    assert not second["cached"]
    assert first["output"] != second["output"]


def files_with(folder: Path, *words: bytes) -> list[str]:
    """The files that hold one of the words, but for those of the models."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "tokenizer.json"]
    return [path.name for path in files if any(word in path.read_bytes() for word in words)]


async def test_what_is_erased_includes_the_continuation(client: httpx.AsyncClient, data: Path) -> None:
    """What somebody asked about is theirs as much as the prompt is."""
    secret = {"continuation": " brilliant", "rather_than": " a wonderful"}
    explanation = await explained(client, secret, context={"subject": "Ada"}, tolerance=0.03)
    await posted(client, "/v1/subjects/Ada:erase", body={})
    record = await client.get(f"/v1/explanations/{explanation['id']}")
    assert record.status_code == 410
    assert not files_with(data, b"brilliant", b"wonderful")


async def test_a_job_explains_prompts(client: httpx.AsyncClient) -> None:
    parameters = {"target": {"continuation": OWN}, "tolerance": 0.03}
    instances = [PROMPT, {"text": "The committee approved"}, {"tokens": [260, 270, 280]}]
    job = await ended(client, "/v1/jobs", model="writer", instances=instances, parameters=parameters)
    assert job["progress"]["failed"] == 0, job
    found = [await got(client, f"/v1/explanations/{row['explanation']}") for row in job["results"]]
    assert 3 in [len(one["attributions"]) for one in found]
    assert {one["target"]["continuation"] for one in found} == {OWN}


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("predict", "a language model explains a text"),
        (3, "a language model explains a text"),
        ({"label": "a", "rather_than": "b"}, "a language model explains a text"),
        ({"continuation": ""}, "it is empty"),
        ({"continuation": OWN, "rather_than": OWN}, "name another"),
        ({"continuation": OWN, "rather_then": OTHER}, "must hold a text as `continuation`"),
        ({"continuation": [1, 2]}, "must hold a text as `continuation`"),
        ({"continuation": " queue" * 40}, "tokens; at most"),
        ({"continuation": " committee approved" * 18}, f"the model takes {LENGTH} together"),
    ],
)
async def test_what_cannot_be_explained_is_refused(
    client: httpx.AsyncClient, assert_problem: AssertProblem, target: Any, sentence: str
) -> None:
    reply = await client.post(EXPLAIN, json={"instances": [PROMPT], "parameters": {"target": target}})
    assert sentence in assert_problem(reply, 422)


async def test_only_what_the_rule_holds_for_is_explained(client: httpx.AsyncClient) -> None:
    reply = await posted(client, EXPLAIN, body={"instances": [PROMPT], "parameters": {"when": "probability > 0.99"}})
    assert reply["explanations"] == [None]
    assert reply["predictions"][0]["next"]
    refused = await client.post(EXPLAIN, json={"instances": [PROMPT], "parameters": {"when": "label == a"}})
    assert "they have `probability` and `margin`" in refused.json()["detail"]


async def test_a_policy_holds_for_tokens_too(client: httpx.AsyncClient) -> None:
    explanation = await explained(client, {"continuation": OWN, "per_token": True}, tolerance=0.03)
    del explanation["timings_ms"]
    whole = read(Answered, explanation)
    narrow = orjson.loads(encode(limited(whole, Policy(top=2, outputs=False))))
    assert len(narrow["attributions"]) == 2
    for token in narrow["continuation"]:
        assert "log_probability" not in token
        assert [part["token"] for part in token["attributions"]] == [part["token"] for part in narrow["attributions"]]


async def test_the_model_says_what_it_answers(client: httpx.AsyncClient) -> None:
    described = (await client.get("/v1/models/writer")).json()
    assert described["outputs"]["kind"] == "tokens"
    assert described["outputs"]["spaces"] == ["log_probability"]
    assert "integrated_gradients" in {method["name"] for method in described["methods"]}


async def test_an_explanation_is_kept_with_its_target() -> None:
    """As the cache keeps it."""
    one: dict[str, Any] = {
        "outputs": None,
        "target": {"tokens": [1, 2], "rather_than": [3], "per_token": True},
        **dict.fromkeys(("output", "baseline_output", "attributions", "standard_error", "completeness_error")),
        **dict.fromkeys(("attribution_error", "reason")),
        "shape": [],
        "completeness": "none",
        "converged": True,
        "evaluations": 1,
        "rule": "none",
        "small_difference": False,
        "chunk_rows": "1+1",
    }
    kept = read(Explanation, {**one, "per_token": [{**one, "target": 1}]})
    assert kept.target == Continuation((1, 2), (3,), per_token=True)
    assert kept.per_token[0].target == 1


async def test_explanations_are_judged_by_taking_tokens_of_the_prompt_away(client: httpx.AsyncClient) -> None:
    """From the log-probability behind the prompt to that behind the masked one: nothing of what follows is removed.
    Recorded ones have the figures of those that are explained anew."""
    target = {"continuation": OWN, "per_token": True}
    explanation = await explained(client, target, {"decision_id": "judged"})
    of = {"model": "writer", "kind": "evaluate", "metrics": ["deletion", "infidelity"]}
    stored = await judged(client, **of, explanations={"decision_id": "judged"})
    anew = await judged(client, **of, instances=[PROMPT], parameters={"target": target})
    deletion, infidelity = anew
    assert deletion["replaced"] == "mask"
    assert deletion["curve"][0] == pytest.approx(explanation["output"], abs=CLOSE)
    assert deletion["curve"][-1] == pytest.approx(explanation["baseline_output"], abs=CLOSE)
    assert infidelity["explanations"] == 1
    assert stored == anew


async def judged(client: httpx.AsyncClient, **body: Any) -> Any:
    """The figures of a job, once it is done."""
    job = await ended(client, "/v1/jobs", **body)
    return (await got(client, f"/v1/jobs/{job['id']}/result"))["figures"]
