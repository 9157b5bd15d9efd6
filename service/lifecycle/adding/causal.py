"""Causal language models of Hugging Face folders, added: all that is asked of other models, the folder says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from service.catalog.outputs.kind import KnownOutputs
from service.catalog.outputs.tokens import Tokens
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Prepared
from service.lifecycle.adding.huggingface_folders import TOKENIZER, WEIGHTS, Folder

EXAMPLE = "The capital of France is the city of"
LONGEST = 64
SHORTEST = 8
LOGITS = 2**22
"""Of one row, at most: the last layer answers for the whole vocabulary at each token of a continuation. 16 MiB."""


def prepare_causal(folder: Folder, named: Callable[[str], tuple[str, str]], write: Callable[..., None]) -> Prepared:
    """The version that the folder becomes; `named` makes its name and version of a default, and `write` its files.

    Raises CatalogError, saying what to do.
    """
    if folder.graph is not None:
        raise CatalogError(
            "the language model is exported to ONNX; its continuations are explained in its own network: add the "
            f"folder with its weights, {WEIGHTS}"
        )
    name, version = named(folder.source.resolve().name)
    network, (baseline, called) = folder.config["architectures"][0], _baseline(folder)
    manifest = {
        "name": name,
        "version": version,
        "title": name.replace("-", " ").replace("_", " "),
        "description": f"Added from a Hugging Face folder: {network}.",
        "inputs": _inputs(folder, baseline),
        "outputs": {
            **Tokens.declaration(KnownOutputs((), (), None, {})),
            "longest": max(SHORTEST, min(LONGEST, folder.length - 1, LOGITS // folder.vocabulary)),
        },
        "defaults": {"method": "integrated_gradients", "baseline": "mask", "tolerance": 0.01},
        "example": {"text": EXAMPLE},
    }
    how = f"{network} of {folder.length} tokens; the baseline is {called}, at every token's own place"
    return Prepared(name, version, how, partial(write, manifest=manifest))


def _baseline(folder: Folder) -> tuple[int, str]:
    """The token that stands for none, and what it is: the tokenizer's mask, or what it pads with, which often ends a
    text too."""
    if folder.mask is not None:
        return folder.mask, "the mask token"
    return folder.padding, "the token that texts are padded with, or else end with, as its tokenizer has no mask"


def _inputs(folder: Folder, baseline: int) -> dict[str, Any]:
    """The manifest's `inputs`."""
    content = (folder.source / Path(TOKENIZER)).read_bytes()
    return {
        "kind": "prompt",
        "length": folder.length,
        "vocabulary": folder.vocabulary,
        "mask": baseline,
        "special": sorted(set(folder.added)),
        "tokenizer": {"file": TOKENIZER, "sha256": hashlib.sha256(content).hexdigest()},
    }
