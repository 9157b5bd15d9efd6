"""Whether the network of a Hugging Face folder takes two texts at once, as rerankers and models of entailment do, and
how its tokenizer puts them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.artefacts.huggingface.configs import Config, read_object
from service.catalog.inputs.pairs import EMPTY, PROBE, part_of
from service.catalog.plain_yaml import read_yaml
from service.errors import CatalogError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SETTINGS, CARD = "config_sentence_transformers.json", "README.md"
CROSS_ENCODER = "CrossEncoder"
RANKING = "text-ranking"
ENTAILMENT = "entailment"
MAX_CARD = 2**20
TYPES = "token_type_ids"
WITHOUT_TYPES = "TokenizersBackend"
"""The package's class for any tokenizer.json; those of networks with types of tokens give them."""


@dataclass(frozen=True, slots=True)
class PairTokens:
    """How a tokenizer puts two texts together: the tokens that it adds to every pair, that which ends the first, and
    whether it gives those of the second another type."""

    added: Sequence[int]
    separator: int
    are_typed: bool


def cross_encoder_settings(source: Path, config: Config) -> Mapping[str, Any] | None:
    """What sentence-transformers says of a cross-encoder that it saved: in the configuration, or since its version 6
    beside it. None where it says nothing.

    Raises CatalogError for a file that is no JSON.
    """
    if (source / SETTINGS).is_file():
        settings = read_object((source / SETTINGS).read_bytes(), SETTINGS)
        if settings.get("model_type") == CROSS_ENCODER:
            return settings
    own, before_4 = config.get("sentence_transformers"), config.get("sbert_ce_default_activation_function")
    if isinstance(own, Mapping):
        return own
    return {"activation_fn": before_4} if before_4 is not None else None


def takes_pairs(source: Path, config: Config, labels: Sequence[str]) -> bool:
    """Whether the folder says that its network takes pairs: as a cross-encoder of sentence-transformers, by its card
    (`pipeline_tag: text-ranking`), or by a label for entailment. Raises CatalogError."""
    if cross_encoder_settings(source, config) is not None:
        return True
    return _card(source).get("pipeline_tag") == RANKING or ENTAILMENT in {label.lower() for label in labels}


def pair_tokens(tokenizer: Tokenizer, config: Config, declared: Config) -> PairTokens:
    """How the tokenizer puts pairs together; `declared` is its configuration. Raises CatalogError where it puts nothing
    between."""
    encoded = tokenizer.encode(*PROBE)
    behind = len(encoded) - encoded.sequence_ids[::-1].index(0)
    if behind == len(encoded) or encoded.sequence_ids[behind] is not None:
        raise CatalogError(
            "the tokenizer puts no token between two texts, so that where the second begins is not known: the model "
            "cannot be served as one of pairs"
        )
    separator = encoded.ids[behind]
    types = config.get("type_vocab_size")
    are_typed = _gives_types(declared) and type(types) is int and types > 1 and any(encoded.type_ids)
    if are_typed and encoded.type_ids != part_of(encoded.ids, separator):
        raise CatalogError(f"the tokenizer gives the tokens of a pair the types {encoded.type_ids}, not 0 and then 1")
    return PairTokens(tokenizer.encode(*EMPTY).ids, separator, are_typed)


def _gives_types(declared: Config) -> bool:
    """Whether the package's tokenizer gives types to the network: it says so, or is one of a network that has some."""
    names = declared.get("model_input_names")
    return TYPES in names if isinstance(names, list) else declared.get("tokenizer_class") != WITHOUT_TYPES


def _card(source: Path) -> Mapping[str, Any]:
    """What the model's card says in its heading; nothing where there is none, or it cannot be read."""
    path = source / CARD
    if not path.is_file() or path.stat().st_size > MAX_CARD:
        return {}
    begin, *heading = path.read_text(errors="replace").split("---\n", 2)
    if begin.strip() or len(heading) < 2:
        return {}
    try:
        said = read_yaml(heading[0].encode())
    except ValueError:
        return {}
    return said if isinstance(said, Mapping) else {}
