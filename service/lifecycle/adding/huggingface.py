"""Hugging Face folders: what a folder says of its texts and its outputs becomes a manifest, and nothing else is asked.

The network's files are copied as they are, and each is in the digest of the artefact.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tokenizers import Tokenizer

from service.artefacts.huggingface.configs import Config, read_config, read_object
from service.artefacts.reported import reported
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.kind import KnownOutputs, OutputKind
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Values
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask, Prepared
from service.lifecycle.adding.manifests import DUMPER
from service.lifecycle.adding.rows import comma_separated

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import AddOptions

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
BESIDE = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OTHER_WEIGHTS = ("*.h5", "*.msgpack", "*.ot")
MAX_LENGTH = 512
"""In tokens; some networks take 100,000. Their attention costs the square of the length, and a row costs the same
whatever its text."""
NAMES_OF_LENGTH = ("max_position_embeddings", "n_positions", "max_seq_len")
BEHIND_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""Networks that count places from behind that of their padding: RoBERTa's has 514 places, for 512 tokens."""
SPECIAL = ("mask_token", "pad_token", "eos_token")
UNNAMED = re.compile(r"LABEL_\d+")
"""What the package calls labels that nobody named."""
EXAMPLE = "The film was not bad at all; I would watch it again with my friends."


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds: its configuration, its `files` besides that, and what they say of the tokens.

    `length` is what the network takes at most, `padding` the token that rows are filled up with, `mask` that of the
    baseline, and `added` are the tokens that the tokenizer adds to every text.
    """

    source: Path
    config: Config
    files: Sequence[str]
    vocabulary: int
    length: int
    padding: int
    mask: int | None
    added: Sequence[int]


def is_huggingface(source: Path) -> bool:
    """Whether this is a folder with the configuration of a network of transformers."""
    return source.is_dir() and (source / CONFIG).is_file()


def prepare_folder(options: AddOptions, named: Callable[[str], tuple[str, str]], ask: Ask) -> Prepared:
    """The version that the folder becomes; `named` makes its name and version of a default.

    Raises CatalogError, saying what to do.
    """
    folder = read_folder(options.source)
    labels = _labels(folder.config)
    kind = _kind_of(folder.config, len(labels), options)
    names = _names(labels, kind, options, ask)
    name, version = named(folder.source.resolve().name)
    adverse = options.adverse or ask(f"the {kind.noun} that is bad news for whoever is judged, if one is", "")
    try:
        outputs = kind.declaration(KnownOutputs(names, options.units, adverse or None, {}))
    except ValueError as error:
        raise CatalogError(str(error)) from None
    baseline = "the mask token" if folder.mask is not None else "padding, as its tokenizer has no mask"
    how = f"{folder.config['architectures'][0]} of {folder.length} tokens; the baseline is {baseline}"
    manifest = {
        "name": name,
        "version": version,
        "title": name.replace("-", " ").replace("_", " "),
        "description": f"Added from a Hugging Face folder: {folder.config['architectures'][0]}.",
        "inputs": _inputs(folder),
        "outputs": {field: value for field, value in outputs.items() if field != "tensors"},
        "defaults": {"method": "integrated_gradients", "baseline": "mask", "tolerance": 0.01},
        "example": {"text": EXAMPLE},
    }
    return Prepared(name, version, how, partial(_write, source=folder.source, files=folder.files, manifest=manifest))


def read_folder(source: Path) -> Folder:
    """What the folder says. Raises CatalogError, saying what to do, where something is missing or does not fit."""
    config = read_config(_read(source, CONFIG), CONFIG)
    weights = _weights(source)
    if not (source / TOKENIZER).is_file():
        raise CatalogError(
            f"the folder has no {TOKENIZER}, by which texts become tokens; save it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    try:
        tokenizer = Tokenizer.from_str(_read(source, TOKENIZER).decode())
    except Exception as error:  # the package raises plain exceptions
        raise CatalogError(f"{TOKENIZER} is no tokenizer: {reported(error)}") from error
    declared = read_object(_read(source, TOKENIZER_CONFIG), TOKENIZER_CONFIG) if _has(source, TOKENIZER_CONFIG) else {}
    size = _whole(config, "vocab_size")
    if size is None:
        raise CatalogError(f"{CONFIG} has no vocab_size, the number of the network's tokens")
    if tokenizer.get_vocab_size() > size:
        raise CatalogError(
            f"{TOKENIZER} has {tokenizer.get_vocab_size()} tokens and the network {size}: they do not belong together"
        )
    mask, pad, end = (_token(tokenizer, declared, name) for name in SPECIAL)
    own = _whole(config, "pad_token_id")
    padding = next((one for one in (own, pad, end, _whole(config, "eos_token_id")) if one is not None), None)
    if padding is None or not 0 <= padding < size:
        raise CatalogError(
            f"neither {CONFIG} nor {TOKENIZER_CONFIG} names a padding token; set pad_token_id in {CONFIG}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    files = (*weights, *(file for file in BESIDE if _has(source, file)))
    return Folder(source, config, files, size, _length(config, declared), padding, mask, tokenizer.encode("").ids)


def _has(source: Path, file: str) -> bool:
    return (source / file).is_file()


def _read(source: Path, file: str) -> bytes:
    return (source / file).read_bytes()


def _weights(source: Path) -> list[str]:
    """The files of weights, and their index. Raises CatalogError."""
    if _has(source, INDEX):
        shards = read_object(_read(source, INDEX), INDEX).get("weight_map")
        if not isinstance(shards, Mapping) or not all(isinstance(file, str) for file in shards.values()):
            raise CatalogError(f"{INDEX} has no weight_map from weights to files")
        files = sorted(set(shards.values()))
        outside = [file for file in files if Path(file).name != file]
        if outside:
            raise CatalogError(f"{INDEX} names {outside[0]!r}, which is no file of its folder")
        missing = [file for file in files if not _has(source, file)]
        if missing:
            raise CatalogError(f"{missing[0]}, which {INDEX} names, is not in the folder; fetch all files of the model")
        return [*files, INDEX]
    if _has(source, WEIGHTS):
        return [WEIGHTS]
    pickled = next((path for pattern in PICKLED for path in sorted(source.glob(pattern))), None)
    if pickled is not None:
        raise CatalogError(
            f"the folder holds its weights in {pickled.name}, a pickle, which is never opened; save them with "
            "model.save_pretrained(folder), which writes .safetensors"
        )
    other = next((path for pattern in OTHER_WEIGHTS for path in sorted(source.glob(pattern))), None)
    what = "no weights" if other is None else f"its weights in {other.name}"
    raise CatalogError(
        f"the folder holds {what}, where {WEIGHTS} is needed; save it with model.save_pretrained(folder)"
    )


def _whole(settings: Config, name: str) -> int | None:
    value = settings.get(name)
    return value if type(value) is int else None


def _token(tokenizer: Tokenizer, declared: Config, name: str) -> int | None:
    """The number of a special token, by its name in tokenizer_config.json."""
    token = declared.get(name)
    text = token.get("content") if isinstance(token, Mapping) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _length(config: Config, declared: Config) -> int:
    """What both the tokenizer and the network's table of places allow, but no more than `MAX_LENGTH`."""
    places = next((value for value in (_whole(config, name) for name in NAMES_OF_LENGTH) if value), MAX_LENGTH)
    if config["model_type"] in BEHIND_PADDING:
        places -= (_whole(config, "pad_token_id") or 0) + 1
    limit = declared.get("model_max_length")
    stated = int(limit) if isinstance(limit, int | float) and 0 < limit < places else places
    return min(stated, MAX_LENGTH)


def _kind_of(config: Config, count: int, options: AddOptions) -> type[OutputKind]:
    """What the network's numbers are, as transformers' own pipeline takes them. Raises CatalogError."""
    problem = config.get("problem_type")
    if options.values is not None or problem == "regression" or (count == 1 and _is_unbounded(config)):
        return Values
    if options.are_several or problem == "multi_label_classification" or count == 1:
        return Labels
    if problem in (None, "single_label_classification"):
        return Classes
    raise CatalogError(f"{CONFIG} has the problem_type {problem!r}, which transformers does not know")


def _is_unbounded(config: Config) -> bool:
    """Whether a cross-encoder of sentence-transformers answers its score as it is."""
    own = config.get("sentence_transformers")
    function = (
        own.get("activation_fn") if isinstance(own, Mapping) else config.get("sbert_ce_default_activation_function")
    )
    return isinstance(function, str) and function.rpartition(".")[2] == "Identity"


def _names(folder_labels: Sequence[str], kind: type[OutputKind], options: AddOptions, ask: Ask) -> Sequence[str]:
    """The names of the outputs: those of the options, or the configuration's, or where those say nothing the user's."""
    given, count = options.values or options.labels, len(folder_labels)
    if given is None and all(UNNAMED.fullmatch(label) for label in folder_labels):
        default = folder_labels if kind is not Values else kind.usual_names(count) if count > 1 else ("score",)
        what = f"the {count} {kind.noun}s, in the order of the scores" if count > 1 else f"the {kind.noun}"
        given = comma_separated(ask(what, ",".join(default)))
    if given is not None and len(given) != count:
        raise CatalogError(
            f"the network answers for {count} {kind.noun}s, {len(given)} are named; give all with --{kind.noun}s"
        )
    return given or folder_labels


def _labels(config: Config) -> list[str]:
    """The names that the configuration has for the scores; `LABEL_0` and so on where it has none. Raises CatalogError.

    A configuration is saved without them where there are two, which is what the package takes then.
    """
    labels = config.get("id2label")
    if labels is None:
        return [f"LABEL_{place}" for place in range(_whole(config, "num_labels") or 2)]
    places = [str(place) for place in range(len(labels))] if isinstance(labels, Mapping) else []
    if not places or not all(isinstance(labels.get(place), str) for place in places):
        raise CatalogError(f"{CONFIG} has an id2label that does not name each score from 0 on; correct it")
    return [labels[place] for place in places]


def _inputs(folder: Folder) -> dict[str, Any]:
    """The manifest's `inputs`. A network without a mask token has one token more: padding that it attends to."""
    mask = folder.vocabulary if folder.mask is None else folder.mask
    return {
        "kind": "tokens",
        "length": folder.length,
        "vocabulary": max(folder.vocabulary, mask + 1),
        "padding": folder.padding,
        "mask": mask,
        "special": sorted(set(folder.added)),
        "side": {"attention_mask": "mask"},
        "tokenizer": {"file": TOKENIZER, "sha256": _sha256(folder.source / TOKENIZER), "truncate": True},
    }


def _write(version: Path, source: Path, files: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Copies the files and writes the manifest, which names each with its digest."""
    for file in (CONFIG, *files):
        shutil.copyfile(source / file, version / file)
    artefact = {
        "file": CONFIG,
        "sha256": _sha256(version / CONFIG),
        "format": "transformers",
        "files": {file: _sha256(version / file) for file in files},
    }
    whole = {"name": manifest["name"], "version": manifest["version"], "artefact": artefact, **manifest}
    (version / "manifest.yaml").write_text(yaml.dump(whole, Dumper=DUMPER, sort_keys=False, width=120))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
