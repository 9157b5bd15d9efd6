"""Which folders say that they take pairs of texts: those of cross-encoders, rerankers and models of entailment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.artefacts.huggingface.library import transformers
from service.artefacts.loading import load_model
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.manifest import read_manifest
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Values
from service.domain import OutputSpace
from service.errors import CatalogError
from service.lifecycle.adding.adding import AddOptions, add_model
from service.lifecycle.adding.huggingface import EXAMPLE, QUERY
from tests.huggingface_folders import added, save_folder
from tests.lifecycle.adding.test_huggingface_folders import declared

PAIRS = [["A debate?", "The committee approved the proposal."], ["a queue", ""]]
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def in_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def with_card(heading: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "README.md").write_text(f"---\n{heading}\n---\n\n# A model\n")


SAYING: dict[str, Callable[[Path], object]] = {
    "sentence-transformers before 4": in_config(sbert_ce_default_activation_function=SIGMOID),
    "sentence-transformers 4": in_config(sentence_transformers={"version": "4.1", "activation_fn": SIGMOID}),
    "its card": with_card("pipeline_tag: text-ranking\ntags: [reranker]"),
    "its labels": in_config(id2label={"0": "ENTAILMENT", "1": "not_entailment"}, label2id={}),
}
SILENT: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "another task": with_card("pipeline_tag: text-classification"),
    "a card that is none": with_card("pipeline_tag: [text-ranking\n"),
    "a card without a heading": lambda folder: (folder / "README.md").write_text("pipeline_tag: text-ranking"),
    "a text encoder": lambda folder: edit(
        folder / "config_sentence_transformers.json", model_type="SentenceTransformer"
    ),
}


@pytest.mark.parametrize("name", [*SAYING, *SILENT])
def test_a_folder_that_says_so_takes_pairs(name: str, tmp_path: Path) -> None:
    save_folder(tmp_path / "one", "bert", num_labels=1)
    (SAYING | SILENT)[name](tmp_path / "one")
    manifest, inputs = declared(added(tmp_path / "one", tmp_path / "models"))
    assert inputs.separator == (3 if name in SAYING else None)
    assert manifest.example == {"text": (QUERY, EXAMPLE) if name in SAYING else EXAMPLE}
    if name in SILENT:
        _, inputs = declared(added(tmp_path / "one", tmp_path / "told", are_pairs=True))
        assert (inputs.separator, inputs.special) == (3, (2, 3))


def test_types_are_those_that_the_tokenizer_gives(tmp_path: Path) -> None:
    sides = []
    for name, changes in (("any", {}), ("berts", {"tokenizer_class": "BertTokenizer"})):
        save_folder(tmp_path / name, "bert", num_labels=1)
        edit(tmp_path / name / "tokenizer_config.json", **changes)
        _, inputs = declared(added(tmp_path / name, tmp_path / "models", are_pairs=True))
        given = transformers().AutoTokenizer.from_pretrained(tmp_path / name)("a", "b")
        assert ("token_type_ids" in inputs.side) == ("token_type_ids" in given)
        sides.append(inputs.side)
    assert sides == [{"attention_mask": "mask"}, {"attention_mask": "mask", "token_type_ids": "parts"}]


@pytest.mark.parametrize("activation", [torch.nn.Sigmoid(), torch.nn.Identity()], ids=["sigmoid", "identity"])
def test_a_cross_encoder_is_added_as_its_package_saved_it(
    activation: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And answers what it answers there."""
    transformers()
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(1)
    save_folder(tmp_path / "made", "bert", num_labels=1)
    edit(tmp_path / "made" / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    encoder = CrossEncoder(str(tmp_path / "made"), device="cpu", activation_fn=activation)
    encoder.save_pretrained(str(tmp_path / "reranker"))

    version = added(tmp_path / "reranker", tmp_path / "models")
    manifest, inputs = declared(version)
    is_value = isinstance(activation, torch.nn.Identity)
    assert isinstance(manifest.outputs, Values if is_value else Labels)
    model = load_model(version, torch.device("cpu"))
    pairs = PAIRS
    rows = np.array([inputs.read({"text": one}, version).values for one in pairs], dtype=np.float32)
    answers = model.deployed.outputs(rows)[OutputSpace.VALUE if is_value else OutputSpace.PROBABILITY]
    np.testing.assert_allclose(answers[:, -1], encoder.predict(pairs), atol=2e-5)


def test_pairs_are_said_of_folders_only(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    options = AddOptions(tmp_path / "model.onnx", are_pairs=True)
    with pytest.raises(CatalogError, match="--pairs is for Hugging Face folders"):
        add_model(options, tmp_path / "models", lambda _, usual: usual, 8, None)  # type: ignore[arg-type]


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "one", "bert", num_labels=1)
    version = added(tmp_path / "one", tmp_path / "models", are_pairs=True)
    inputs = read_manifest(version)[0].inputs.model_dump()
    for change, sentence in (
        ({"separator": None, "side": {"attention_mask": "mask", "token_type_ids": "parts"}}, "name the `separator`"),
        ({"separator": 9}, "the separator must be among the special tokens"),
        ({"separator": 999}, "below the vocabulary's size"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TokenInputs.model_validate(inputs | change)
    other = TokenInputs.model_validate(inputs | {"separator": 2})  # which the tokenizer puts before the first text
    with pytest.raises(CatalogError, match="puts no token 2, the `separator`, between the texts of a pair"):
        other.check_files(version)
