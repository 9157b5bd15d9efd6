"""Hugging Face folders of causal language models, added: nothing is asked, and what is explained is what follows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from service.__main__ import main
from service.catalog.inputs.prompts import PromptInputs
from service.catalog.manifest import read_manifest
from service.catalog.outputs.tokens import Tokens
from service.errors import CatalogError
from service.lifecycle.adding.adding import AddOptions
from service.lifecycle.adding.causal import EXAMPLE
from service.lifecycle.adding.huggingface import prepare_folder
from tests.causal_folders import END, LENGTH, save_causal_folder


@pytest.fixture
def environment() -> Iterator[None]:
    """As it was, after a command has set what a worker's is."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("folders") / "writer"
    save_causal_folder(folder, "gpt2")
    return folder


def refused(question: str, usual: str) -> str:
    raise AssertionError(f"asked {question!r}, {usual!r}")


def prepared(source: Path, **options: Any) -> Any:
    return prepare_folder(AddOptions(source, **options), lambda name: (name, "1"), refused)


def copied(source: Path, to: Path, **changes: Any) -> Path:
    """The folder with other entries of tokenizer_config.json."""
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    declared = json.loads((to / "tokenizer_config.json").read_text())
    (to / "tokenizer_config.json").write_text(json.dumps({**declared, **changes}))
    return to


def test_what_the_folder_says_is_asked_of_nobody(writer: Path, tmp_path: Path) -> None:
    version = tmp_path / "writer" / "1"
    version.mkdir(parents=True)
    one = prepared(writer)
    one.write(version)
    manifest, _, _ = read_manifest(version)
    inputs, outputs = manifest.inputs, manifest.outputs
    assert isinstance(inputs, PromptInputs)
    assert isinstance(outputs, Tokens)
    assert (inputs.length, inputs.vocabulary, inputs.special) == (LENGTH, 400, ())
    assert inputs.mask == 0, f"{END}, as there is no mask token"
    assert outputs.longest == LENGTH - 1
    assert manifest.example == {"text": EXAMPLE}
    assert one.how == (
        f"GPT2LMHeadModel of {LENGTH} tokens; the baseline is the token that texts are padded with, or else end with, "
        "as its tokenizer has no mask, at every token's own place"
    )


def test_where_there_is_a_mask_token_it_is_the_baseline(writer: Path, tmp_path: Path) -> None:
    masked = prepared(copied(writer, tmp_path / "masked", mask_token="!"))
    assert "the baseline is the mask token" in masked.how


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": ("a", "b")}, "this network continues texts"),
        ({"adverse": "a"}, "this network continues texts"),
        ({"values": ("a",), "units": ("m",)}, "this network continues texts"),
    ],
)
def test_what_a_language_model_has_not_is_refused(writer: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CatalogError, match=sentence):
        prepared(writer, **options)


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_it_is_added_and_checked_by_one_command(
    writer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "add", str(writer), "--models", str(tmp_path / "models"), "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "writer@1 is in" in shown
    assert "GPT2LMHeadModel" in shown
    assert "its check  passed" in shown
    assert EXAMPLE in shown
    assert (tmp_path / "models" / "writer" / "1" / "check.json").exists()
