"""Pairs of texts: rerankers and models of entailment from Hugging Face folders, and from their exports to ONNX."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from torch import Tensor, nn

from service.access.callers import Caller
from service.answers.encoding import encode
from service.answers.explanation import answered
from service.answers.reading import answer_of, personal_of
from service.answers.record import ledger_entry
from service.artefacts.huggingface.library import transformers
from service.artefacts.loading import LoadedModel, load_model
from service.catalog.inputs.pairs import is_second, part_of
from service.catalog.inputs.tokens import TokenInputs
from service.domain import Context, Floats, OutputSpace
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Segment
from service.engine.kernels.network import Network
from service.errors import CatalogError, InvalidRequest
from service.ledger.entries import Stored
from service.ledger.ids import uuid7
from service.lifecycle.checking.trial import Trial, load_trial
from service.methods.questions import Points, Readout
from service.numerics.links import SOFTMAX
from service.usecases.planning import Parameters, make_plan
from tests.artefacts.test_huggingface import CPU, STEPS, TARGET
from tests.huggingface_folders import LENGTH, added, save_folder

QUERY, DOCUMENT = "A wonderful film?", "The actors moved me."
LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}
FOLDERS = ["bert", "roberta", "onnx"]
"""With types of tokens, with two separators and no types, and the first one's export."""
SIDES = ["input_ids", "attention_mask", "token_type_ids"]


@dataclass(frozen=True, slots=True)
class PairModel:
    """A folder as the package itself reads it, and as a worker does."""

    network: Any
    tokenizer: Any
    model: LoadedModel
    folder: Path

    @property
    def inputs(self) -> TokenInputs:
        declared = self.model.manifest.inputs
        assert isinstance(declared, TokenInputs)
        return declared

    @property
    def separator(self) -> int:
        assert self.inputs.separator is not None
        return self.inputs.separator

    def row(self, first: str, second: str) -> Floats:
        return np.array([self.inputs.read({"text": [first, second]}, self.folder).values])

    def logits(self, first: str, second: str) -> Floats:
        given = self.tokenizer([first], [second], return_tensors="pt", truncation="only_second", max_length=LENGTH)
        with torch.no_grad():
            logits: Floats = self.network(**given).logits.numpy()
        return logits


def save_pairs(folder: Path, kind: str) -> Any:
    """A model of entailment, whose tokenizer gives types, as BERT's own class does and that for any tokenizer does not;
    returns the network."""
    network = save_folder(folder, kind, id2label=LABELS)
    path = folder / "tokenizer_config.json"
    names = [name for name in SIDES if kind == "bert" or name != "token_type_ids"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": names}))
    return network


class Logits(nn.Module):
    """A network of the package as exporters take it: tensors in, one out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        logits: Tensor = self.network(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits
        return logits


def export(network: Any, folder: Path) -> None:
    """In the place of its weights."""
    given = tuple(torch.ones(2, LENGTH, dtype=torch.int64) for _ in SIDES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=LENGTH)},) * len(SIDES)
        options: dict[str, Any] = {"input_names": SIDES, "output_names": ["logits"], "opset_version": 20}
        program = torch.onnx.export(
            Logits(network), given, dynamo=True, dynamic_shapes=shapes, verbose=False, **options
        )
    assert program is not None
    (folder / "model.onnx").write_bytes(program.model_proto.SerializeToString())
    (folder / "model.safetensors").unlink()


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PairModel:
    torch.set_num_threads(1)
    source = tmp_path_factory.mktemp("folders") / request.param
    network = save_pairs(source, "bert" if request.param == "onnx" else request.param)
    if request.param == "onnx":
        export(network, source)
    version = added(source, tmp_path_factory.mktemp("models"))
    tokenizer = transformers().AutoTokenizer.from_pretrained(source)
    return PairModel(network, tokenizer, load_model(version, CPU), version)


TEXTS = {
    "short": (QUERY, DOCUMENT),
    "no first": ("", "a queue"),
    "cut": (QUERY, DOCUMENT * 4),
    "no second": ("A short debate!", ""),
}


@pytest.mark.parametrize("name", TEXTS)
def test_it_predicts_what_the_package_predicts(pair: PairModel, name: str) -> None:
    first, second = TEXTS[name]
    row = pair.row(first, second)
    tokens = pair.tokenizer([first], [second], padding="max_length", truncation="only_second", max_length=LENGTH)
    assert row.tolist() == tokens["input_ids"]
    answers = pair.model.deployed.outputs(row.astype(np.float32))
    np.testing.assert_allclose(answers[OutputSpace.LOGIT], pair.logits(first, second), atol=2e-5)
    assert pair.model.manifest.inputs.read({"text": [first, second]}, pair.folder).truncated is (
        True if name == "cut" else None
    )


def test_its_pipeline_says_the_same(pair: PairModel) -> None:
    pipeline = transformers().TextClassificationPipeline(model=pair.network, tokenizer=pair.tokenizer, top_k=None)
    scores = {one["label"]: one["score"] for one in pipeline({"text": QUERY, "text_pair": DOCUMENT})}
    (own,) = pair.model.deployed.outputs(pair.row(QUERY, DOCUMENT).astype(np.float32))[OutputSpace.PROBABILITY]
    np.testing.assert_allclose(own, [scores[name] for name in LABELS.values()], atol=1e-5)


def test_at_the_same_points_it_agrees_with_captum_at_the_embedding_layer(pair: PairModel) -> None:
    from captum.attr import LayerIntegratedGradients

    row = pair.row(QUERY, DOCUMENT)
    baseline = np.array([pair.model.manifest.inputs.own_baseline_for(tuple(row[0].tolist()))])
    start, end = pair.model.seen(baseline), pair.model.seen(row)
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    question = Points(start, end[0], np.zeros(STEPS, dtype=np.intp), (nodes + 1) / 2, Readout.PROBABILITY, TARGET)
    kernel = GradientKernel(Network(pair.model.twin, CPU, pair.model.shape, len(LABELS), SOFTMAX), STEPS, trace=False)
    (evaluated,) = kernel.run([Segment(question, 0, STEPS)])
    assert isinstance(evaluated, EvaluatedPoints)
    ours = (weights / 2 @ evaluated.contributions).reshape(pair.model.shape).sum(axis=-1)

    given = pair.tokenizer(QUERY, DOCUMENT, return_tensors="pt")
    ids, count = given.pop("input_ids"), len(given["attention_mask"][0])
    masked = torch.from_numpy(baseline[:, :count]).long()
    assert [int(token) for token in masked[0] if int(token) in pair.tokenizer.all_special_ids] == masked[0].tolist()

    def probabilities(tokens: Tensor) -> Tensor:
        return torch.softmax(
            pair.network(input_ids=tokens, **{k: v.expand_as(tokens) for k, v in given.items()}).logits, 1
        )

    layer = LayerIntegratedGradients(probabilities, pair.network.get_input_embeddings())
    theirs = layer.attribute(ids, masked, target=TARGET, n_steps=STEPS, method="gausslegendre").sum(-1)[0]
    np.testing.assert_allclose(ours[:count], theirs.detach().numpy(), atol=1e-5)
    assert not ours[count:].any()
    second = is_second(row[0], pair.separator)[:count]
    assert np.abs(ours[:count][second]).sum() > 1e-4 < np.abs(ours[:count][~second]).sum()


def test_a_row_that_is_cut_has_the_same_answers(pair: PairModel) -> None:
    """The rows that every cut is held against hold both parts."""
    (cut,) = pair.model.cut
    row = pair.row("", "a queue").astype(np.float32)
    (length,) = cut.manifest.inputs.shape
    assert length == 16 > len(pair.tokenizer("", "a queue")["input_ids"])
    whole, short = pair.model.deployed.outputs(row), cut.deployed.outputs(row[:, :length])
    np.testing.assert_allclose(short[OutputSpace.LOGIT], whole[OutputSpace.LOGIT], atol=2e-5)
    twin = cut.forwards.outputs(cut.seen(row[:, :length].astype(np.float64)).astype(np.float32))
    np.testing.assert_allclose(twin[OutputSpace.LOGIT], whole[OutputSpace.LOGIT], atol=2e-5)
    drawn = pair.inputs.whole_rows(8)
    assert is_second(drawn, pair.separator).any(axis=1).sum() > 4


def test_every_token_has_its_part_and_its_place_in_it(pair: PairModel) -> None:
    row = pair.inputs.read({"text": [QUERY, DOCUMENT]}, pair.folder)
    tokens: Any = pair.inputs.attributions([float(at) for at in range(LENGTH)], (LENGTH,), row).to_json()
    encoded = pair.tokenizer(QUERY, DOCUMENT, return_offsets_mapping=True)
    for token, part, (start, end) in zip(tokens, encoded.sequence_ids(), encoded["offset_mapping"], strict=True):
        if part is None:
            assert token["start"] == token["end"]
        else:
            assert (token["part"], token["start"], token["end"]) == (part, start, end)
    second = [token["part"] for token in tokens].index(1)
    assert tokens[second - 1]["token"] == pair.tokenizer.sep_token
    assert tokens[second]["start"] == 0
    assert [token["attribution"] for token in tokens] == list(range(len(tokens)))


REFUSED: dict[str, tuple[Any, str]] = {
    "one text": ({"text": QUERY}, r"the model takes two texts"),
    "a list of one": ({"text": [QUERY]}, "a `text`, a list of two"),
    "three": ({"text": [QUERY, DOCUMENT, "a"]}, "a `text`, a list of two"),
    "a first that leaves no room": ({"text": ["queue " * 60, "a"]}, "the first text has .* tokens, the model takes 24"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_refused(pair: PairModel, name: str) -> None:
    instance, sentence = REFUSED[name]
    with pytest.raises(InvalidRequest, match=sentence):
        pair.model.manifest.inputs.read(instance, pair.folder)


def test_a_first_text_that_holds_the_separator_is_refused(pair: PairModel) -> None:
    token = pair.tokenizer.sep_token
    with pytest.raises(InvalidRequest, match=r"the first text holds .* by which"):
        pair.row(f"a {token} b", "c")
    pair.row("a", f"b {token} c")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    torch.set_num_threads(1)
    source = tmp_path_factory.mktemp("folders") / "entailment"
    save_pairs(source, "bert")
    return load_trial(added(source, tmp_path_factory.mktemp("models")), CPU)


def test_a_pair_is_explained_recorded_and_read_back(trial: Trial) -> None:
    inputs, outputs = trial.manifest.inputs, trial.manifest.outputs
    row = inputs.read({"text": [QUERY, DOCUMENT]}, trial.version.folder)
    plan = make_plan(trial.version, row.values, Parameters(target="entailment"))
    assert plan.baseline.row is not None
    assert part_of(plan.baseline.row, 3) == part_of(row.values, 3)
    explanation = trial.explained(plan)
    assert explanation.converged
    prediction = outputs.prediction_item(explanation.outputs, plan.output_space, truncated=row.truncated)
    answer = answered(trial.version, plan, explanation, row.places, id=uuid7(), cached=False)
    about = Caller("tenant", "key"), Context()
    entry = ledger_entry(trial.version, plan, "digest", explanation, prediction, answer, *about, row.places)
    stored = Stored(**vars(entry), seq=1, leaf=b"", logged=b"", opened=entry.personal)
    _, again = answer_of(stored)
    assert encode(again) == encode(answer)
    again_read = inputs.of_record(personal_of(stored).content)
    assert (again_read.values, encode(again_read.places)) == (row.values, encode(row.places))
    tokens = orjson.loads(encode(answer))["attributions"]
    assert {token["part"] for token in tokens} == {0, 1}
    assert sum(token["attribution"] for token in tokens) == pytest.approx(
        (answer.output or 0) - (answer.baseline_output or 0), abs=0.01
    )


def test_a_baseline_must_be_divided_where_the_pair_is(trial: Trial) -> None:
    row = trial.manifest.inputs.read({"text": ["a b", "c d"]}, trial.version.folder).values
    make_plan(trial.version, row, Parameters(baseline={"text": ["e f", "g h"]}))
    with pytest.raises(InvalidRequest, match="its first text has 3 tokens with the separator, and the instance's 4"):
        make_plan(trial.version, row, Parameters(baseline={"text": ["e", "g h i"]}))


def test_a_model_of_one_text_takes_no_pair(tmp_path: Path) -> None:
    save_folder(tmp_path / "one", "bert", id2label={0: "bad", 1: "good"})
    version = added(tmp_path / "one", tmp_path / "models")
    with pytest.raises(InvalidRequest, match=r"the model takes one text; .* name the `separator`"):
        load_model(version, CPU).manifest.inputs.read({"text": [QUERY, DOCUMENT]}, version)


def test_a_tokenizer_that_puts_nothing_between_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "gpt2", "gpt2", num_labels=1)
    with pytest.raises(CatalogError, match="puts no token between two texts"):
        added(tmp_path / "gpt2", tmp_path / "models", are_pairs=True)
