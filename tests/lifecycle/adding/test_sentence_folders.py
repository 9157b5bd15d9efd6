"""Folders of sentence-transformers and exported encoders: served as the package embeds, explained as Captum does."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from service.__main__ import main
from service.artefacts.huggingface.library import transformers
from service.artefacts.loading import LoadedModel, load_model
from service.catalog.outputs.embedding import Embedding, Measure, Similarity
from service.domain import Floats, OutputSpace
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Segment
from service.engine.kernels.network import Network
from service.errors import CatalogError
from service.lifecycle.adding.pooled_graphs import EMBEDDING
from service.lifecycle.checking.comparison import compare
from service.lifecycle.checking.trial import load_trial
from service.methods.questions import Points, Readout
from service.numerics.links import UNIT_LENGTH
from tests.huggingface_folders import CAUSAL, LENGTH, added, export_beside, save_folder
from tests.lifecycle.adding.test_huggingface_folders import declared, edit, environment  # noqa: F401

CPU = torch.device("cpu")
WIDTH = 32
TEXTS = (
    "The actors were brilliant, but nobody likes a queue.",
    "a",
    "Waiting for hours broke the product; what a wonderful debate! Nobody likes waiting in a queue for hours.",
)


def sentence_transformers() -> Any:
    transformers()  # it keeps torchvision out, whose binary need not be that of this torch
    import sentence_transformers as package

    return package


def save_sentences(folder: Path, kind: str, modes: tuple[str, ...], *, normalised: bool, length: int = LENGTH) -> None:
    """A folder as sentence-transformers saves it."""
    package, network = sentence_transformers(), folder.parent / f"{folder.name}-network"
    save_folder(network, kind, is_encoder=True)
    if kind in CAUSAL:  # the package has to pad with something
        edit(network / "tokenizer_config.json", lambda file: file.update(pad_token=file["eos_token"]))
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [Transformer(str(network), max_seq_length=length), Pooling(WIDTH, pooling_mode=modes)]
        whole = package.SentenceTransformer(modules=[*modules, *([Normalize()] if normalised else [])], device="cpu")
        whole.save_pretrained(str(folder), create_model_card=False)


def embedded_by_package(folder: Path, texts: tuple[str, ...]) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = sentence_transformers().SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        embeddings: Floats = np.array([whole.encode([text])[0] for text in texts], dtype=np.float64)
    return embeddings


def embedded(model: LoadedModel, version: Path, texts: tuple[str, ...]) -> Floats:
    rows = np.array([model.manifest.inputs.read({"text": text}, version).values for text in texts], dtype=np.float32)
    return model.deployed.outputs(rows)[OutputSpace.SIMILARITY].astype(np.float64)


def no_questions(question: str, _usual: str) -> str:
    raise AssertionError(f"asked: {question}")


WAYS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "a mean, normalised": ("bert", ("mean",), True),
    "the first token": ("mpnet", ("cls",), False),
    "the largest": ("distilbert", ("max",), True),
    "two of them": ("bert", ("mean", "max"), True),
    "a mean by the root of the length": ("bert", ("mean_sqrt_len_tokens",), False),
    "a mean with weights": ("gpt2", ("weightedmean",), False),
    "the last token": ("gpt2", ("lasttoken",), True),
}


IN_THE_GATE = {"a mean, normalised", "two of them", "the last token"}
FOLDERS = [way if way in IN_THE_GATE else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]


@pytest.mark.parametrize("way", FOLDERS)
def test_it_embeds_as_the_package_does(way: str, tmp_path: Path) -> None:
    kind, modes, normalised = WAYS[way]
    torch.set_num_threads(1)
    save_sentences(tmp_path / "mine", kind, modes, normalised=normalised)
    version = added(tmp_path / "mine", tmp_path / "models", ask=no_questions)
    manifest, inputs = declared(version)
    assert isinstance(manifest.outputs, Embedding)
    assert manifest.outputs.dimensions == WIDTH * len(modes)
    assert (inputs.length, manifest.artefact.format) == (LENGTH, "transformers")
    model = load_model(version, CPU)
    ours, theirs = embedded(model, version, TEXTS), embedded_by_package(tmp_path / "mine", TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert model.cut, "shorter texts have shapes of their own"


class Alike(nn.Module):
    """The cosine of the pooled embedding with a reference, written out around the package's network."""

    def __init__(self, network: Any, reference: Floats) -> None:
        super().__init__()
        self.network, self.reference = network, torch.tensor(reference, dtype=torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.ones_like(tokens)
        hidden = self.network(input_ids=tokens, attention_mask=mask).last_hidden_state
        return functional.cosine_similarity(hidden.mean(dim=1), self.reference[None], dim=1)[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a BERT whose tokens' mean is normalised."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sentences") / "mine"
    save_sentences(folder, "bert", ("mean",), normalised=True)
    return folder


def test_at_the_same_points_a_similarity_has_captums_values(folder: Path, tmp_path: Path) -> None:
    from captum.attr import LayerIntegratedGradients

    version = added(folder, tmp_path)
    model, (_, inputs) = load_model(version, CPU), declared(version)
    reference, steps = embedded(model, version, TEXTS[1:2])[0], 12
    row = np.array([inputs.read({"text": TEXTS[0]}, version).values])
    baseline = np.array([inputs.own_baseline_for(tuple(row[0].tolist()))])
    start, end = model.seen(baseline), model.seen(row)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    target = Similarity(tuple(reference.tolist()), Measure.COSINE)
    lines = np.zeros(steps, dtype=np.intp)
    question = Points(start, end[0], lines, (nodes + 1) / 2, Readout.PROBABILITY, target)
    kernel = GradientKernel(Network(model.twin, CPU, model.shape, WIDTH, UNIT_LENGTH), steps, trace=False)
    (evaluated,) = kernel.run([Segment(question, 0, steps)])
    assert isinstance(evaluated, EvaluatedPoints)
    ours = (weights / 2 @ evaluated.contributions).reshape(model.shape).sum(axis=-1)

    network = transformers().AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    count = int((row != inputs.padding).sum())
    ids, masked = (torch.from_numpy(tokens[:, :count]).long() for tokens in (row, baseline))
    layer = LayerIntegratedGradients(Alike(network, reference), network.get_input_embeddings())
    theirs = layer.attribute(ids, masked, target=0, n_steps=steps, method="gausslegendre").sum(-1)[0]
    np.testing.assert_allclose(ours[:count], theirs.detach().numpy(), atol=1e-5)
    assert not ours[count:].any()
    assert np.abs(ours).sum() > 0.05


def test_the_network_may_lie_in_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    """As the package saved folders before version 3, with one name a mode, and fewer tokens than the network takes."""
    moved = tmp_path / "old"
    shutil.copytree(folder, moved)
    (moved / "0_Transformer").mkdir()
    for path in [path for path in moved.iterdir() if path.is_file() and path.name != "modules.json"]:
        path.rename(moved / "0_Transformer" / path.name)
    (moved / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    old = [
        {"idx": at, "name": str(at), "path": f"{at}_{name}", "type": f"sentence_transformers.models.{name}"}
        for at, name in enumerate(["Transformer", "Pooling", "Normalize"])
    ]
    (moved / "modules.json").write_text(json.dumps(old))
    modes = {f"pooling_mode_{name}": name == "mean_tokens" for name in ("cls_token", "mean_tokens", "max_tokens")}
    (moved / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))
    version = added(moved, tmp_path / "models", ask=no_questions)
    assert declared(version)[1].length == 16
    short = ("The actors were brilliant.",)
    ours = embedded(load_model(version, CPU), version, short)
    np.testing.assert_allclose(ours, embedded_by_package(folder, short), atol=1e-5)


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The folder with the network's export where optimum puts it."""
    network = transformers().AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    whole = folder.parent / "exported"
    shutil.copytree(folder, whole)
    export_beside(network, "last_hidden_state", whole)
    return whole


@pytest.mark.parametrize(
    "mode", ["mean", "max", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("cls", "mean_sqrt_len_tokens"))]
)
def test_an_export_is_pooled_as_the_network_is(mode: str, exported: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = tmp_path / "mine"
    shutil.copytree(exported, source)
    edit(source / "1_Pooling" / "config.json", lambda file: file.update(pooling_mode=mode))
    graph = added(source / "onnx" / "model.onnx", tmp_path / "named", ask=no_questions)
    manifest, _ = declared(graph)
    assert (manifest.artefact.format, manifest.outputs.network_tensor) == ("onnx", EMBEDDING)
    ours = embedded(load_model(graph, CPU), graph, TEXTS)
    theirs = embedded_by_package(source, TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_an_export_is_compared_with_the_network(exported: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    graph, network = added(exported / "onnx" / "model.onnx", tmp_path / "a"), added(exported, tmp_path / "b")
    comparison = compare(load_trial(graph, CPU), load_trial(network, CPU), 15, 0)
    assert comparison.correlation == pytest.approx(1.0)
    assert comparison.agreement.apart < 1e-3
    assert not comparison.decides

    alone = tmp_path / "alone"
    shutil.copytree(exported, alone)
    (alone / "model.safetensors").unlink()
    assert declared(added(alone, tmp_path / "models"))[0].artefact == declared(graph)[0].artefact


def test_an_encoder_that_does_not_say_how_is_asked_for_its_pooling(exported: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(exported, plain)
    (plain / "modules.json").unlink()
    asked = {"how the embeddings of a text's tokens": "max"}
    for at, source in enumerate((plain, plain / "onnx" / "model.onnx")):
        version = added(source, tmp_path / str(at), asked)
        ours = embedded(load_model(version, CPU), version, TEXTS)
        edit(exported / "1_Pooling" / "config.json", lambda file: file.update(pooling_mode="max"))
        theirs = embedded_by_package(exported, TEXTS)  # normalised
        edit(exported / "1_Pooling" / "config.json", lambda file: file.update(pooling_mode="mean"))
        np.testing.assert_allclose(ours / np.linalg.norm(ours, axis=1, keepdims=True), theirs, atol=1e-5)
    with pytest.raises(CatalogError, match="'sum' is no pooling of tokens; there are cls, mean, max"):
        added(plain, tmp_path / "sum", {"how the embeddings": "sum"})


Change = Callable[[Path], object]


def in_modules(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    def edited(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        change(modules)
        (folder / "modules.json").write_text(json.dumps(modules))

    return edited


DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
WRONG: Mapping[str, tuple[Change, str]] = {
    "another module": (
        in_modules(lambda modules: modules.insert(2, DENSE)),
        "lists Transformer, Pooling, Dense, Normalize; served are",
    ),
    "code of its own": (
        in_modules(lambda modules: modules[0].update(type="custom_st.Transformer")),
        "names a module 'custom_st.Transformer', which is code of the folder's own and is never run",
    ),
    "code of the network": (
        lambda folder: edit(folder / "config.json", lambda file: file.update(auto_map={"AutoModel": "own.Own"})),
        "auto_map: the network is code in the folder, which is never run",
    ),
    "a network elsewhere": (
        in_modules(lambda modules: modules[0].update(path="..")),
        "which is no folder of its own",
    ),
    "no configuration of the pooling": (
        lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
        "the folder has no 1_Pooling/config.json, which modules.json names",
    ),
    "a pooling nobody knows": (
        lambda folder: edit(folder / "1_Pooling" / "config.json", lambda file: file.update(pooling_mode="median")),
        "has the pooling mode 'median'",
    ),
    "no list": (lambda folder: (folder / "modules.json").write_text("{}"), "modules.json is no list of modules"),
    "no JSON": (lambda folder: (folder / "modules.json").write_text("["), "modules.json is no JSON"),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "weights in pytorch_model.bin, a pickle, which is never opened",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_added_says_what_to_do(name: str, folder: Path, tmp_path: Path) -> None:
    change, sentence = WRONG[name]
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    change(mine)
    with pytest.raises(CatalogError, match=sentence):
        added(mine, tmp_path / "models")


@pytest.mark.parametrize("option", [{"labels": ("a", "b")}, {"adverse": "a"}, {"are_several": True}])
def test_options_of_classifiers_are_refused(option: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="is for classifiers and regressions; this network embeds texts"):
        added(folder, tmp_path, **option)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_a_folder_is_added_by_one_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "add", str(folder), "--models", str(tmp_path / "models"), "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "mine@1 is in" in shown
    assert "BertModel of 24 tokens, pooling mean, normalised; the baseline is the mask token" in shown
    assert "dimensions 32, of an embedding" in shown
    assert "example    cosine similarity: " in shown
    assert '{"target":{"similar_to":{"text":' in shown
    assert "passed" in shown
