"""Folders whose network embeds texts: those of sentence-transformers, which say how, and encoders, of which it is
asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.artefacts.huggingface.configs import CAUSAL, CLASSIFIER, Config, read_object
from service.artefacts.huggingface.sentence_modules import MODES, MODULES, Pooling, modules_of, read_modules
from service.catalog.outputs.embedding import Embedding
from service.catalog.outputs.kind import KnownOutputs
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask

CONFIG, LIMITS, PROMPTS = "config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")
"""Names that configurations have for the numbers of a token's embedding."""
ENCODER = "Model"
"""How the names of networks end that answer an embedding for each token, and nothing else."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """How a folder makes embeddings of texts.

    `network` is the folder of its network, and `files` are what the version holds beside the network's: the modules,
    and the pooling's configuration. `length` is the most tokens that it embeds, where it says so, and `lowers` whether
    texts are put in small letters. `prompt` is what the package puts before every text.
    """

    network: Path
    pooling: Pooling
    files: Mapping[str, bytes]
    length: int | None = None
    lowers: bool = False
    prompt: str = ""

    def outputs(self, config: Config, tensors: Mapping[str, str]) -> dict[str, Any]:
        """The manifest's. Raises CatalogError."""
        width = next((config[name] for name in WIDTHS if type(config.get(name)) is int), None)
        if width is None:
            raise CatalogError(f"{CONFIG} does not say how many numbers an embedding has: set hidden_size")
        names = Embedding.usual_names(width * len(self.pooling.modes))
        return Embedding.declaration(KnownOutputs(names, (), None, tensors))

    @property
    def note(self) -> str:
        """What else users of the version have to know."""
        return f"; the package puts {self.prompt!r} before every text: send it with yours" if self.prompt else ""


def read_sentences(source: Path, ask: Ask) -> Sentences | None:
    """What the folder says; None where its network does not embed texts. Raises CatalogError."""
    architecture = _architecture(source)
    if architecture is not None and architecture.endswith(CLASSIFIER):
        return None
    if (source / MODULES).is_file():
        return _of_package(source)
    if architecture is None or architecture.endswith(CAUSAL) or not architecture.endswith(ENCODER):
        return None
    question = "how the embeddings of a text's tokens become its own: mean, cls or max"
    mode = ask(question, "mean")
    if mode not in MODES:
        raise CatalogError(f"{mode!r} is no pooling of tokens; there are {', '.join(MODES)}")
    pooling = Pooling((mode,), is_normalised=False)
    return Sentences(source, pooling, modules_of(pooling))


def _architecture(source: Path) -> str | None:
    if not (source / CONFIG).is_file():
        return None
    names = read_object((source / CONFIG).read_bytes(), CONFIG).get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def _of_package(source: Path) -> Sentences:
    configs = [path for path in source.glob("*/config.json") if path.is_file()]
    contents = {str(path.relative_to(source)): path.read_bytes() for path in (source / MODULES, *configs)}
    modules = read_modules(contents)
    limits, prompts = (_settings(source, file) for file in (LIMITS, PROMPTS))
    length, own = limits.get("max_seq_length"), prompts.get("prompts")
    prompt = own.get(prompts.get("default_prompt_name")) if isinstance(own, Mapping) else None
    network = source / modules.network
    if not network.resolve().is_relative_to(source.resolve()):
        raise CatalogError(f"{MODULES} names {modules.network!r}, which is no folder of its own")
    return Sentences(
        network,
        modules.pooling,
        {name: contents[name] for name in (MODULES, modules.pooling_config)},
        length if type(length) is int else None,
        limits.get("do_lower_case") is True,
        prompt if isinstance(prompt, str) else "",
    )


def _settings(source: Path, file: str) -> Config:
    return read_object((source / file).read_bytes(), file) if (source / file).is_file() else {}
