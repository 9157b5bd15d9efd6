"""Hugging Face folders: the network predicts as the package itself does, and its gradients are those at its word
embeddings."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from service.artefacts.huggingface.library import transformers
from service.artefacts.huggingface.transformers_format import open_transformers
from service.artefacts.loading import LoadedModel, load_model
from service.catalog.calibrations import Calibration
from service.catalog.inputs.tokens import TokenAttribution, TokenInputs
from service.catalog.manifest import read_manifest
from service.catalog.version_files import read_artefact
from service.domain import Explanation, Floats, OutputSpace
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import DeployedKernel, Segment
from service.engine.kernels.network import Network
from service.engine.protocol import Source
from service.engine.worker.device_models import DeviceModels
from service.engine.worker.environment import environment_of, libraries_of
from service.errors import CatalogError
from service.lifecycle.checking.trial import SHAPES, Trial, load_trial
from service.methods.questions import Deployed, Points, Readout
from service.numerics.links import SOFTMAX
from service.usecases.planning import Parameters, make_plan
from tests.engine.conftest import ref_of
from tests.huggingface_folders import CONFIGURATIONS, LENGTH, added, save_folder
from tests.methods.conftest import run_in_process

CPU = torch.device("cpu")
TEXT = "The actors were brilliant, but nobody likes a queue."
LABELS = {0: "bad", 1: "mixed", 2: "good"}
STEPS, TARGET = 12, 1


@dataclass(frozen=True, slots=True)
class Pair:
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

    def rows(self, *texts: str) -> Floats:
        read = self.inputs.read
        return np.array([read({"text": text}, self.folder).values for text in texts])


IN_THE_GATE = {"bert", "deberta-v2", "gpt2"}
"""Embeddings with positions of their own, relative positions, and no mask token; the others are built of the same."""
FOLDERS = [name if name in IN_THE_GATE else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGURATIONS]


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    source = tmp_path_factory.mktemp("folders") / request.param
    save_folder(source, request.param, id2label=LABELS)
    version = added(source, tmp_path_factory.mktemp("models"))
    package = transformers()
    network = package.AutoModelForSequenceClassification.from_pretrained(source, attn_implementation="eager").eval()
    return Pair(network, package.AutoTokenizer.from_pretrained(source), load_model(version, CPU), version)


def test_it_predicts_what_the_package_predicts(pair: Pair) -> None:
    for text in (TEXT, "a", "Waiting for hours broke the product; what a wonderful debate!"):
        answers = pair.model.deployed.outputs(pair.rows(text).astype(np.float32))
        with torch.no_grad():
            logits = pair.network(**pair.tokenizer(text, return_tensors="pt")).logits
        np.testing.assert_allclose(answers[OutputSpace.LOGIT], logits.numpy(), atol=2e-5)
        np.testing.assert_allclose(answers[OutputSpace.PROBABILITY], torch.softmax(logits, 1).numpy(), atol=1e-5)


def test_at_the_same_points_it_agrees_with_captum_at_the_embedding_layer(pair: Pair) -> None:
    from captum.attr import LayerIntegratedGradients

    inputs, row = pair.inputs, pair.rows(TEXT)
    baseline = np.array([inputs.own_baseline_for(tuple(row[0].tolist()))])
    start, end = pair.model.seen(baseline), pair.model.seen(row)
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    alphas, lines = (nodes + 1) / 2, np.zeros(STEPS, dtype=np.intp)
    question = Points(start, end[0], lines, alphas, Readout.PROBABILITY, TARGET)
    kernel = GradientKernel(Network(pair.model.twin, CPU, pair.model.shape, len(LABELS), SOFTMAX), STEPS, trace=False)
    (evaluated,) = kernel.run([Segment(question, 0, STEPS)])
    assert isinstance(evaluated, EvaluatedPoints)
    ours = (weights / 2 @ evaluated.contributions).reshape(pair.model.shape).sum(axis=-1)

    count = len(pair.tokenizer(TEXT)["input_ids"])
    ids, masked = (torch.from_numpy(tokens[:, :count]).long() for tokens in (row, baseline))
    masked[masked == pair.network.config.vocab_size] = inputs.padding

    def probabilities(tokens: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(tokens)
        return torch.softmax(pair.network(input_ids=tokens, attention_mask=mask).logits, dim=1)

    pair.network.config.pad_token_id = inputs.padding
    layer = LayerIntegratedGradients(probabilities, pair.network.get_input_embeddings())
    theirs = layer.attribute(ids, masked, target=TARGET, n_steps=STEPS, method="gausslegendre").sum(-1)[0]
    np.testing.assert_allclose(ours[:count], theirs.detach().numpy(), atol=1e-5)
    assert not ours[count:].any()
    assert np.abs(ours).sum() > 0.05


def test_a_row_has_the_same_bits_alone_and_amid_others(pair: Pair) -> None:
    """Predictions and gradients, at a fixed number of rows: whatever stands beside it, and wherever it stands."""
    texts = [TEXT, "a", "What a film! " * 3, "Letters were moved", "queue"]
    rows, order = pair.rows(*texts), [3, 0, 4, 1, 2]
    deployed = DeployedKernel(pair.model.deployed, 8, pair.model.row_type)
    together = deployed.join(deployed.run([Segment(Deployed(rows[order]), 0, len(order))]))
    for place, number in enumerate(order):
        by_itself = deployed.join(deployed.run([Segment(Deployed(rows[number][None]), 0, 1)]))
        for space, values in by_itself.items():
            assert np.array_equal(values[0], together[space][place])

    seen, baselines = (
        pair.model.seen(each) for each in (rows, np.array([pair.inputs.own_baseline_for(tuple(row)) for row in rows]))
    )
    alphas = np.array([0.2, 0.7])
    questions = [
        Points(start[None], end, np.zeros(2, dtype=np.intp), alphas, Readout.PROBABILITY, TARGET)
        for start, end in zip(baselines, seen, strict=True)
    ]
    kernel = GradientKernel(Network(pair.model.twin, CPU, pair.model.shape, len(LABELS), SOFTMAX), 16, trace=False)
    answers = kernel.run([Segment(questions[number], 0, 2) for number in order])
    for answer, number in zip(answers, order, strict=True):
        (alone,) = kernel.run([Segment(questions[number], 0, 2)])
        assert isinstance(alone, EvaluatedPoints)
        assert isinstance(answer, EvaluatedPoints)
        assert np.array_equal(alone.contributions, answer.contributions)
        assert np.array_equal(alone.outputs, answer.outputs)


def test_it_takes_rows_that_are_cut(pair: Pair) -> None:
    """What is cut off is padding, so that both the network and its twin answer the same."""
    manifest = pair.model.manifest
    opened = open_transformers(read_artefact(pair.folder, manifest.artefact), manifest, CPU)
    rows = pair.rows("Nobody likes waiting").astype(np.float32)
    inputs = pair.inputs.model_copy(update={"length": int((rows != pair.inputs.padding).sum())})
    assert opened.cut_to is not None
    cut = opened.cut_to(inputs)
    assert cut.encoding is not None
    short = rows[:, : inputs.shape[0]]
    seen = cut.encoding(short.astype(np.float64)).astype(np.float32)
    expected = pair.model.deployed.outputs(rows)[OutputSpace.LOGIT]
    np.testing.assert_allclose(cut.deployed.outputs(short)[OutputSpace.LOGIT], expected, atol=1e-5)
    np.testing.assert_allclose(cut.forwards.outputs(seen)[OutputSpace.LOGIT], expected, atol=1e-5)
    shared = {weight.data_ptr() for weight in opened.twin.parameters()}
    assert {weight.data_ptr() for weight in cut.twin.parameters()} == shared


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in shards."""
    folder = tmp_path_factory.mktemp("folders") / "bert"
    save_folder(folder, "bert", id2label=LABELS, shards="20KB")
    return folder


@pytest.fixture(scope="module")
def trial(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    torch.set_num_threads(1)
    return load_trial(added(bert, tmp_path_factory.mktemp("models")), CPU)


def explained(trial: Trial, *texts: str, **parameters: Any) -> list[Explanation]:
    rows = [trial.manifest.inputs.read({"text": text}, trial.version.folder).values for text in texts]
    plans = [make_plan(trial.version, row, Parameters(target="good", **parameters)) for row in rows]
    return run_in_process(trial.model, plans)


def test_a_text_is_explained_by_its_tokens(trial: Trial) -> None:
    row = trial.manifest.inputs.read({"text": TEXT}, trial.version.folder)
    count = len([token for token in row.values if token != 0])
    plan = make_plan(trial.version, row.values, Parameters(target="good"))
    baseline = plan.baseline.row
    assert baseline is not None
    assert (baseline[0], baseline[count - 1], {*baseline[1 : count - 1]}) == (2, 3, {4})
    explanation = trial.explained(plan)
    assert explanation.converged
    values = np.array(explanation.attributions)
    assert values.shape == (LENGTH,)
    assert values[1 : count - 1].all()
    assert not values[[0, *range(count - 1, LENGTH)]].any()
    told = TypeAdapter(list[TokenAttribution]).validate_python(
        trial.manifest.inputs.attributions(explanation.attributions or (), (LENGTH,), row).to_json()
    )
    words = [str(token["token"]).removeprefix("##") for token in told]
    assert words[0] == "[CLS]"
    assert [TEXT[token["start"] : token["end"]].lower() for token in told[1:-1]] == words[1:-1]
    assert [token["attribution"] for token in told] == values[:count].tolist()


def test_an_explanation_is_the_same_alone_and_amid_others(trial: Trial) -> None:
    texts = [TEXT, "What a wonderful film", "a", "Nobody answers my letters; the seller broke it."]
    together = explained(trial, *texts)
    for text, amid in zip(texts, together, strict=True):
        (alone,) = explained(trial, text)
        assert (alone.attributions, alone.outputs, alone.evaluations) == (
            amid.attributions,
            amid.outputs,
            amid.evaluations,
        )


def test_all_files_are_in_the_digest(bert: Path, tmp_path: Path) -> None:
    version = added(bert, tmp_path)
    manifest, key, _ = read_manifest(version)
    names = {path.name for path in bert.iterdir()}
    assert {*manifest.artefact.sha256_by_file} == names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    last = sorted(manifest.artefact.files)[-1]
    (version / last).write_bytes((version / last).read_bytes() + b" ")
    with pytest.raises(CatalogError, match=f"{last} has the sha256"):
        load_model(version, CPU)
    other = manifest.artefact.model_copy(update={"files": {**manifest.artefact.files, last: "0" * 64}})
    assert other.digest != key.digest


def test_a_replay_needs_the_same_version_of_the_package(bert: Path, tmp_path: Path) -> None:
    version = added(bert, tmp_path)
    models = DeviceModels(torch.device("cpu"))
    loaded = models.load(ref_of(version), Source(version, version), {}, Calibration(SHAPES))
    assert loaded.environment == {"dtype": "float32", "transformers": transformers().__version__}
    assert "transformers" not in environment_of(torch.device("cpu")), "of other formats it computes nothing"
    assert not libraries_of("onnx")


def test_nothing_is_fetched(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = added(bert, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_model(version, CPU).parity < 1e-6


def test_a_configuration_may_ask_for_tuples(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "tuples"
    save_folder(source, "bert", id2label=LABELS, return_dict=False)
    assert load_model(added(source, tmp_path), CPU).parity < 1e-6


def test_half_precision_is_computed_with_in_single(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "half"
    network = save_folder(source, "bert", id2label=LABELS)
    network.half().save_pretrained(source)
    model = load_model(added(source, tmp_path), CPU)
    row = np.array([model.manifest.inputs.read({"text": TEXT}, tmp_path / "half" / "1").values])
    with torch.no_grad():
        expected = network.float()(torch.from_numpy(row).long(), torch.from_numpy(row != 0).long()).logits.numpy()
    np.testing.assert_allclose(model.deployed.outputs(row.astype(np.float32))[OutputSpace.LOGIT], expected, atol=1e-5)


Change = Callable[[Path], None]


def without_the_head(version: Path) -> None:
    (file,) = version.glob("*.safetensors")
    save_file({name: one for name, one in load_file(file).items() if name != "classifier.weight"}, file)


def with_another_head(version: Path) -> None:
    (file,) = version.glob("*.safetensors")
    save_file({**load_file(file), "classifier.bias": torch.zeros(5)}, file)


def of_inputs(**changes: Any) -> Change:
    def change(version: Path) -> None:
        manifest = yaml.safe_load((version / "manifest.yaml").read_text())
        manifest["inputs"].update(changes)
        (version / "manifest.yaml").write_text(yaml.safe_dump(manifest))

    return change


def of_artefact(**changes: Any) -> Change:
    def change(version: Path) -> None:
        manifest = yaml.safe_load((version / "manifest.yaml").read_text())
        manifest["artefact"].update(changes)
        (version / "manifest.yaml").write_text(yaml.safe_dump(manifest))

    return change


def of_a_table(version: Path) -> None:
    manifest = yaml.safe_load((version / "manifest.yaml").read_text())
    manifest["inputs"] = {"kind": "tabular", "features": [{"name": "age", "title": "Age", "range": [0, 1]}]}
    manifest |= {"defaults": {"baseline": "zeros"}, "example": {"age": 0}}
    (version / "manifest.yaml").write_text(yaml.safe_dump(manifest))


WRONG: dict[str, tuple[Change, str]] = {
    "a weight is missing": (without_the_head, "the weights lack classifier.weight, which BertForSequenceClass"),
    "a weight has another size": (with_another_head, r"classifier.bias has the shape \[5\], .* has \[3\]"),
    "a larger vocabulary": (of_inputs(vocabulary=1000), "the network has 150 tokens, the manifest's vocabulary 1000"),
    "another padding": (of_inputs(padding=1), "the network pads with the token 0, the manifest says 1"),
    "more tokens than places": (of_inputs(length=LENGTH + 1), "does not take a row of 25 tokens"),
    "no such argument": (
        of_inputs(side={"attention_mask": "mask", "places": "positions"}),
        "inputs.side names 'places', which BertForSequenceClassification does not take",
    ),
    "no mask": (of_inputs(side={}), "inputs.side names no mask"),
    "the name of a tensor": (of_inputs(tensor="input_ids"), "inputs.tensor is for ONNX"),
    "a pickle": (of_artefact(files={"pytorch_model.bin": "0" * 64}), "a .bin file is a pickle"),
    "no weights": (of_artefact(files={}), "files names no .safetensors"),
    "files of another format": (of_artefact(format="pt2"), "files are those of a Hugging Face folder"),
    "a table": (of_a_table, "takes texts: its inputs are of kind tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    change, sentence = WRONG[name]
    source = tmp_path / "bert"
    save_folder(source, "bert", id2label=LABELS)
    version = added(source, tmp_path / "models")
    change(version)
    manifest = yaml.safe_load((version / "manifest.yaml").read_text())
    for file in [file for file in manifest["artefact"]["files"] if (version / file).exists()]:
        manifest["artefact"]["files"][file] = hashlib.sha256((version / file).read_bytes()).hexdigest()
    (version / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(CatalogError, match=f"(?s){sentence}"):
        load_model(version, CPU)
