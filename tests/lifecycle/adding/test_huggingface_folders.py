"""Hugging Face folders added: what a folder says is asked of nobody, and what it lacks is said in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.__main__ import main
from service.artefacts.huggingface.library import transformers
from service.artefacts.loading import load_model
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.manifest import Manifest, read_manifest
from service.catalog.outputs.values import Values
from service.errors import CatalogError
from service.lifecycle.adding.huggingface import EXAMPLE
from service.lifecycle.adding.huggingface_folders import read_folder
from service.lifecycle.checking.trial import load_trial
from service.usecases.planning import Parameters, make_plan
from tests.huggingface_folders import LENGTH, added, export_beside, save_folder

TEXT = "This product broke after two days."


def declared(version: Path) -> tuple[Manifest, TokenInputs]:
    manifest, _, _ = read_manifest(version)
    assert isinstance(manifest.inputs, TokenInputs)
    return manifest, manifest.inputs


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "bert"
    save_folder(folder, "bert", id2label={0: "bad", 1: "mixed", 2: "good"})
    return folder


KINDS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "classes": ({"id2label": {0: "bad", 1: "mixed", 2: "good"}}, "classes", ("bad", "mixed", "good")),
    "several labels": (
        {"id2label": {0: "toxic", 1: "threat"}, "problem_type": "multi_label_classification"},
        "labels",
        ("toxic", "threat"),
    ),
    "one label": ({"id2label": {0: "relevant"}}, "labels", ("relevant",)),
    "a regression": ({"num_labels": 1, "problem_type": "regression"}, "values", ("value",)),
    "two regressions": (
        {"id2label": {0: "valence", 1: "arousal"}, "problem_type": "regression"},
        "values",
        ("valence", "arousal"),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_outputs_are_those_of_the_packages_pipeline(name: str, tmp_path: Path) -> None:
    settings, kind, names = KINDS[name]
    torch.set_num_threads(1)
    save_folder(tmp_path / "mine", "distilbert", **settings)
    version = added(tmp_path / "mine", tmp_path / "models")
    manifest, inputs = declared(version)
    assert (manifest.outputs.kind, manifest.outputs.names) == (kind, names)
    row = np.array([inputs.read({"text": TEXT}, version).values], dtype=np.float32)
    ours = load_model(version, torch.device("cpu")).deployed.outputs(row)[manifest.outputs.default_space][0]

    package = transformers()
    pipeline = package.pipeline("text-classification", model=str(tmp_path / "mine"), top_k=None, device="cpu")
    theirs = {answer["label"]: answer["score"] for answer in pipeline([TEXT])[0]}
    labels = ["LABEL_0"] if names == ("value",) else names
    # A value is a sum of float32 numbers of size one or so, which may nearly cancel.
    np.testing.assert_allclose(ours, [theirs[label] for label in labels], rtol=1e-4, atol=5e-6)


def test_the_tokens_are_those_of_the_folder(bert: Path, tmp_path: Path) -> None:
    version = added(bert, tmp_path)
    manifest, inputs = declared(version)
    assert (inputs.length, inputs.vocabulary, inputs.padding, inputs.mask, inputs.special) == (
        LENGTH,
        150,
        0,
        4,
        (2, 3),
    )
    assert inputs.side == {"attention_mask": "mask"}
    tokenizer = transformers().AutoTokenizer.from_pretrained(bert)
    for text in (TEXT, EXAMPLE, "Ünïcode, 🙂 and  spaces"):
        expected = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        assert inputs.read({"text": text}, version).values == tuple(map(float, expected))
    assert inputs.read({"text": TEXT * 9}, version).truncated
    assert manifest.example == {"text": EXAMPLE}


def test_a_length_is_what_tokenizer_and_places_allow(tmp_path: Path) -> None:
    """RoBERTa's places begin behind the padding's; a tokenizer without a limit says 1e30."""
    save_folder(tmp_path / "roberta", "roberta")
    assert read_folder(tmp_path / "roberta").length == LENGTH
    edit(tmp_path / "roberta" / "tokenizer_config.json", lambda file: file.pop("model_max_length"))
    assert read_folder(tmp_path / "roberta").length == LENGTH
    edit(tmp_path / "roberta" / "tokenizer_config.json", lambda file: file.update(model_max_length=1e30))
    edit(tmp_path / "roberta" / "config.json", lambda file: file.update(max_position_embeddings=8192))
    assert read_folder(tmp_path / "roberta").length == 512


def test_without_a_mask_token_the_baseline_is_padding_that_is_attended_to(tmp_path: Path) -> None:
    save_folder(tmp_path / "gpt2", "gpt2", num_labels=2)
    version = added(tmp_path / "gpt2", tmp_path / "models")
    _, inputs = declared(version)
    assert (inputs.padding, inputs.mask, inputs.vocabulary, inputs.special) == (0, 400, 401, ())
    row = inputs.read({"text": "a queue"}, version).values
    assert inputs.own_baseline_for(row) == tuple(400.0 if token else 0.0 for token in row)
    model = load_model(version, torch.device("cpu"))
    masked, padding = model.seen(np.array([[400.0] * LENGTH, [0.0] * LENGTH])).reshape(2, *model.shape)
    assert np.array_equal(masked[:, :-1], padding[:, :-1])
    assert (masked[:, -1].all(), padding[:, -1].any()) == (True, False)


def _updated(changes: dict[str, Any], file: dict[str, Any]) -> None:
    file.update(changes)


def test_a_cross_encoders_score_is_a_value_where_it_says_so(tmp_path: Path) -> None:
    identity = "torch.nn.modules.linear.Identity"
    ways: list[dict[str, Any]] = [
        {"sentence_transformers": {"activation_fn": identity, "version": "5.0"}},
        {"sbert_ce_default_activation_function": identity},
    ]
    for at, named in enumerate(ways):
        save_folder(tmp_path / f"reranker-{at}", "bert", num_labels=1)
        edit(tmp_path / f"reranker-{at}" / "config.json", partial(_updated, named))
        manifest, _ = declared(added(tmp_path / f"reranker-{at}", tmp_path / "models"))
        assert isinstance(manifest.outputs, Values)
        assert manifest.outputs.names == ("value",)


def test_names_can_be_others_and_are_asked_for_where_there_are_none(bert: Path, tmp_path: Path) -> None:
    named = added(bert, tmp_path / "named", labels=("a", "b", "c"), adverse="c")
    assert declared(named)[0].outputs.names == ("a", "b", "c")
    assert declared(named)[0].outputs.usual_target == "c"
    unnamed = tmp_path / "unnamed"
    shutil.copytree(bert, unnamed)
    edit(unnamed / "config.json", lambda file: [file.pop("id2label"), file.pop("label2id")])
    asked = added(unnamed, tmp_path / "asked", {"the 2 labels": "x, y"})
    assert declared(asked)[0].outputs.names == ("x", "y")
    with pytest.raises(CatalogError, match=r"bias has the shape \[3\], .* has \[2\]; config.json has no id2label"):
        load_model(asked, torch.device("cpu"))
    with pytest.raises(CatalogError, match="answers for 3 labels, 2 are named; give all with --labels"):
        added(bert, tmp_path / "two", labels=("a", "b"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network's weights, and its export where optimum puts it."""
    folder = tmp_path_factory.mktemp("exported") / "bert"
    network = save_folder(folder, "bert", id2label={0: "bad", 1: "mixed", 2: "good"})
    export_beside(network, "logits", folder)
    return folder


def test_an_export_has_the_answers_and_explanations_of_the_network(exported: Path, tmp_path: Path) -> None:
    """The file that is named is the artefact; in a folder it is the export where there are no weights."""
    torch.set_num_threads(1)
    graph = added(exported / "onnx" / "model.onnx", tmp_path / "named")
    manifest, inputs = declared(graph)
    assert (manifest.artefact.format, inputs.tensor, manifest.outputs.names) == (
        "onnx",
        "input_ids",
        ("bad", "mixed", "good"),
    )
    assert inputs.side == {"attention_mask": "mask", "token_type_ids": "zeros"}
    network = added(exported, tmp_path / "whole")
    assert declared(network)[0].artefact.format == "transformers"

    trials = [load_trial(version, torch.device("cpu")) for version in (graph, network)]
    row = inputs.read({"text": TEXT}, graph).values
    by_graph, by_network = (
        trial.explained(make_plan(trial.version, row, Parameters(target="good", tolerance=0.001))) for trial in trials
    )
    np.testing.assert_allclose(np.array(by_graph.outputs), np.array(by_network.outputs), atol=1e-5)
    values, others = (np.array(one.attributions) for one in (by_graph, by_network))
    np.testing.assert_allclose(values, others, atol=1e-5)
    assert np.abs(values).sum() > 0.01

    alone = tmp_path / "alone"
    shutil.copytree(exported, alone)
    (alone / "model.safetensors").unlink()
    assert declared(added(alone, tmp_path / "models"))[0].artefact == manifest.artefact


@pytest.mark.parametrize("option", [{"data": Path("rows.csv")}, {"output": "logits"}, {"is_logit": True}])
def test_options_of_other_files_are_refused(option: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"--(data|output|logits) is for ONNX files of tables and images"):
        added(bert, tmp_path, **option)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def in_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", change)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def in_shards(*files: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        weights = {f"weight {at}": file for at, file in enumerate(files)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))

    return change


def with_another_tokenizer(folder: Path) -> None:
    edit(folder / "config.json", lambda file: file.update(vocab_size=100))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle alone": (pickled, "weights in pytorch_model.bin, a pickle, which is never opened; save them with"),
    "weights of TensorFlow": (
        lambda folder: (folder / "model.safetensors").rename(folder / "tf_model.h5"),
        "its weights in tf_model.h5, where model.safetensors is needed",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    "a shard is missing": (
        in_shards("model-1.safetensors", "model-2.safetensors"),
        "model-2.safetensors, which model.safetensors.index.json names, is not in the folder",
    ),
    "a shard elsewhere": (in_shards("../model-1.safetensors"), "names '../model-1.safetensors', which is no file of"),
    "an index of nothing": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "has no weight_map",
    ),
    "code of its own": (
        in_config(lambda file: file.update(auto_map={"AutoModel": "modeling.Own"})),
        "auto_map: the network is code in the folder, which is never run",
    ),
    "quantised": (
        in_config(lambda file: file.update(quantization_config={"quant_method": "gptq"})),
        r"quantised \(gptq\)",
    ),
    "another task": (
        in_config(lambda file: file.update(architectures=["BertForMaskedLM"])),
        "names the network BertForMaskedLM; of the networks of transformers those are served that classify",
    ),
    "no architecture": (in_config(lambda file: file.pop("architectures")), "names no one network in `architectures`"),
    "names with a gap": (in_config(lambda file: file["id2label"].pop("0")), "does not name each score from 0 on"),
    "an unknown problem": (in_config(lambda file: file.update(problem_type="ranking")), "problem_type 'ranking'"),
    "another vocabulary": (with_another_tokenizer, "150 tokens and the network 100: they do not belong together"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json, by which texts"),
    "a spoilt tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "tokenizer.json is no tokenizer",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no JSON object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_added_says_what_to_do(name: str, bert: Path, tmp_path: Path) -> None:
    change, sentence = WRONG[name]
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    change(folder)
    with pytest.raises(CatalogError, match=sentence):
        added(folder, tmp_path / "models")


UNLOADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an architecture nobody knows": (
        in_config(lambda file: file.update(model_type="nobody")),
        r"not the configuration of a classifier of transformers [\d.]+ \(nobody\)",
    ),
    "settings that do not fit": (
        in_config(lambda file: file.update(num_attention_heads=5)),
        "transformers cannot make a BertForSequenceClassification: The hidden size",
    ),
    "spoilt weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"spoilt"),
        "model.safetensors is not a valid safetensors file",
    ),
}


@pytest.mark.parametrize("name", UNLOADABLE)
def test_what_cannot_be_loaded_says_what_to_do(name: str, bert: Path, tmp_path: Path) -> None:
    change, sentence = UNLOADABLE[name]
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    change(folder)
    with pytest.raises(CatalogError, match=sentence):
        load_model(added(folder, tmp_path / "models"), torch.device("cpu"))


@pytest.fixture
def environment() -> Iterator[None]:
    """As it was, after a command has set what a worker's is."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("environment")
def test_a_folder_is_added_by_one_command(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "add", str(bert), "--models", str(tmp_path / "models"), "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "bert@1 is in" in shown
    assert "BertForSequenceClassification of 24 tokens; the baseline is the mask token" in shown
    assert "baseline   mask" in shown
    assert "passed" in shown
    assert EXAMPLE in shown
    assert (tmp_path / "models" / "bert" / "1" / "check.json").exists()
