"""What a Hugging Face folder holds: its files, and what they say of its texts. Nothing in it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from service.artefacts.huggingface.configs import Config, read_config, read_object
from service.artefacts.huggingface.sentence_modules import MODULES
from service.artefacts.reported import reported
from service.errors import CatalogError
from service.lifecycle.adding.exported import ExportedGraph, find_graph, read_graph
from service.lifecycle.adding.huggingface_pairs import PairTokens, pair_tokens
from service.lifecycle.adding.sentences import Sentences

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


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds: its configuration, its `files` besides that, and what they say of the tokens.

    `graph` is the export that is served, None where it is the network itself. `length` is what the network takes at
    most, `padding` the token that rows are filled up with, `mask` that of the baseline, and `added` are the tokens that
    the tokenizer adds to every text. `declared` is the tokenizer's configuration.
    """

    source: Path
    config: Config
    graph: ExportedGraph | None
    files: Sequence[str]
    vocabulary: int
    length: int
    padding: int
    mask: int | None
    added: Sequence[int]
    tokenizer: Tokenizer
    declared: Config

    def pair_tokens(self) -> PairTokens:
        """How two texts are put together. Raises CatalogError where nothing is put between them."""
        return pair_tokens(self.tokenizer, self.config, self.declared)


def is_huggingface(source: Path) -> bool:
    """Whether this is a folder with the configuration of a network of transformers, or an ONNX file in one."""
    if source.is_dir():
        return _has(source, CONFIG) or _has(source, MODULES)
    return folder_of(source) is not None


def folder_of(file: Path) -> Path | None:
    """The folder that an export belongs to: its own or, as optimum has it, that above `onnx`."""
    if file.suffix.lower() != ".onnx" or not file.is_file():
        return None
    above = [file.parent, *([file.parent.parent] if file.parent.name == "onnx" else [])]
    return next((folder for folder in above if _has(folder, CONFIG) and _names_network(folder)), None)


def _names_network(folder: Path) -> bool:
    try:
        return "architectures" in read_object(_read(folder, CONFIG), CONFIG)
    except CatalogError:
        return False


def read_folder(source: Path, exported: Path | None = None, sentences: Sentences | None = None) -> Folder:
    """What the folder says; `exported` is the graph to serve in the place of its network, and `sentences` how it makes
    embeddings of texts, if it does.

    Raises CatalogError, saying what to do, where something is missing or does not fit.
    """
    config = read_config(_read(source, CONFIG), CONFIG, is_encoder=sentences is not None)
    if exported is None and not (_has(source, WEIGHTS) or _has(source, INDEX)):
        exported = find_graph(source)
    graph = None if exported is None else read_graph(exported, None if sentences is None else sentences.pooling)
    weights = _weights(source) if graph is None else []
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
    size = whole_number(config, "vocab_size")
    if size is None:
        raise CatalogError(f"{CONFIG} has no vocab_size, the number of the network's tokens")
    if tokenizer.get_vocab_size() > size:
        raise CatalogError(
            f"{TOKENIZER} has {tokenizer.get_vocab_size()} tokens and the network {size}: they do not belong together"
        )
    mask, pad, end = (_token(tokenizer, declared, name) for name in SPECIAL)
    own = whole_number(config, "pad_token_id")
    padding = next((one for one in (own, pad, end, whole_number(config, "eos_token_id")) if one is not None), None)
    if padding is None or not 0 <= padding < size:
        raise CatalogError(
            f"neither {CONFIG} nor {TOKENIZER_CONFIG} names a padding token; set pad_token_id in {CONFIG}"
        )
    if mask is None and graph is not None:
        raise CatalogError(
            f"{TOKENIZER_CONFIG} names no mask_token, and the graph has none of its own: add the folder with its "
            f"weights, {WEIGHTS}, whose network can be given padding to attend to"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    length = _length(config, declared)
    if sentences is not None:
        length = min(length, sentences.length or length)
        if sentences.lowers and tokenizer.encode("A").ids != tokenizer.encode("a").ids:
            raise CatalogError(
                f"texts are put in small letters before they are tokens, and {TOKENIZER} does not: give it the "
                "normalizer Lowercase"
            )
    files = (*weights, *(file for file in BESIDE if _has(source, file)))
    added = tokenizer.encode("").ids
    return Folder(source, config, graph, files, size, length, padding, mask, added, tokenizer, declared)


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


def whole_number(settings: Config, name: str) -> int | None:
    value = settings.get(name)
    return value if type(value) is int else None


def _token(tokenizer: Tokenizer, declared: Config, name: str) -> int | None:
    """The number of a special token, by its name in tokenizer_config.json."""
    token = declared.get(name)
    text = token.get("content") if isinstance(token, Mapping) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _length(config: Config, declared: Config) -> int:
    """What both the tokenizer and the network's table of places allow, but no more than `MAX_LENGTH`."""
    places = next((value for value in (whole_number(config, name) for name in NAMES_OF_LENGTH) if value), MAX_LENGTH)
    if config["model_type"] in BEHIND_PADDING:
        places -= (whole_number(config, "pad_token_id") or 0) + 1
    limit = declared.get("model_max_length")
    stated = int(limit) if isinstance(limit, int | float) and 0 < limit < places else places
    return min(stated, MAX_LENGTH)
