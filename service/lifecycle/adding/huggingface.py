"""Hugging Face folders: what a folder says of its texts and its outputs becomes a manifest, and nothing else is asked.

The network's files are copied as they are, and each is in the digest of the artefact. Where there are no weights but
the network's export to ONNX, or that file is named, the artefact is the export.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from service.artefacts.huggingface.configs import Config, is_causal
from service.artefacts.onnx.weights import write_model
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.embedding import Embedding
from service.catalog.outputs.kind import KnownOutputs, OutputKind
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Values
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask, Prepared
from service.lifecycle.adding.causal import prepare_causal
from service.lifecycle.adding.exported import TOKENS, ExportedGraph
from service.lifecycle.adding.huggingface_folders import CONFIG, TOKENIZER, Folder, folder_of, read_folder, whole_number
from service.lifecycle.adding.huggingface_pairs import TYPES, PairTokens, cross_encoder_settings, takes_pairs
from service.lifecycle.adding.manifests import DUMPER
from service.lifecycle.adding.rows import comma_separated
from service.lifecycle.adding.sentences import read_sentences

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import AddOptions

UNNAMED = re.compile(r"LABEL_\d+")
"""What the package calls labels that nobody named."""
EXAMPLE = "The film was not bad at all; I would watch it again with my friends."
QUERY = "Is it worth watching?"


def prepare_folder(options: AddOptions, named: Callable[[str], tuple[str, str]], ask: Ask) -> Prepared:
    """The version that the folder becomes; `named` makes its name and version of a default.

    Raises CatalogError, saying what to do.
    """
    _refuse_options(options)
    exported = folder_of(options.source)
    source = options.source if exported is None else exported
    sentences = read_sentences(source, ask)
    folder = read_folder(
        source if sentences is None else sentences.network, None if exported is None else options.source, sentences
    )
    if sentences is None and is_causal(folder.config):
        _refuse_names(options, "continues texts")
        return prepare_causal(folder, named, partial(_write, read=folder, modules={}))
    name, version = named(source.resolve().name)
    pair: PairTokens | None = None
    if sentences is None:
        labels = _labels(folder.config)
        pair = folder.pair_tokens() if options.are_pairs or takes_pairs(folder.source, folder.config, labels) else None
        outputs = _outputs(folder, labels, options, ask)
    else:
        _refuse_names(options, "embeds texts")
        outputs = sentences.outputs(folder.config, _tensors(folder, Embedding))
    if folder.graph is None:
        outputs = {field: value for field, value in outputs.items() if field != "tensors"}
    baseline = "the mask token" if folder.mask is not None else "padding, as its tokenizer has no mask"
    network = folder.config["architectures"][0] + ("" if folder.graph is None else ", exported to ONNX,")
    takes = f"{folder.length} tokens" if pair is None else f"pairs of texts, {folder.length} tokens of both"
    how = f"{network} of {takes}; the baseline is {baseline}"
    if sentences is not None:
        how = f"{network} of {takes}, {sentences.pooling}; the baseline is {baseline}{sentences.note}"
    manifest = {
        "name": name,
        "version": version,
        "title": name.replace("-", " ").replace("_", " "),
        "description": f"Added from a Hugging Face folder: {network.rstrip(',')}.",
        "inputs": _inputs(folder, pair),
        "outputs": outputs,
        "defaults": {"method": "integrated_gradients", "baseline": "mask", "tolerance": 0.01},
        "example": {"text": EXAMPLE if pair is None else [QUERY, EXAMPLE]},
    }
    modules = {} if sentences is None or folder.graph is not None else sentences.files
    return Prepared(name, version, how, partial(_write, read=folder, modules=modules, manifest=manifest))


def _outputs(folder: Folder, labels: Sequence[str], options: AddOptions, ask: Ask) -> dict[str, Any]:
    """Those of a classifier, or of a regression. Raises CatalogError."""
    kind = _kind_of(folder, len(labels), options)
    names = _names(labels, kind, options, ask)
    adverse = options.adverse or ask(f"the {kind.noun} that is bad news for whoever is judged, if one is", "")
    try:
        return kind.declaration(KnownOutputs(names, options.units, adverse or None, _tensors(folder, kind)))
    except ValueError as error:
        raise CatalogError(str(error)) from None


def _tensors(folder: Folder, kind: type[OutputKind]) -> dict[str, str]:
    return {} if folder.graph is None else {kind.network_space.value: folder.graph.output}


def _refuse_names(options: AddOptions, does: str) -> None:
    """Raises CatalogError for options that say what labels and values are called, where the network `does` something
    else."""
    given = [
        name for name in ("labels", "values", "units", "adverse", "are_several", "are_pairs") if getattr(options, name)
    ]
    if given:
        option = given[0].removeprefix("are_")
        raise CatalogError(f"--{option} is for classifiers and regressions; this network {does}")


def _refuse_options(options: AddOptions) -> None:
    """Raises CatalogError for options that say what a folder says by itself."""
    of_graphs = ("data", "features", "output", "channels", "normalise", "is_logit", "is_embedding")
    given = [name for name in of_graphs if getattr(options, name)]
    if given:
        option = {"is_logit": "logits", "is_embedding": "outputs"}.get(given[0], given[0])
        raise CatalogError(
            f"--{option} is for ONNX files of tables and images; a Hugging Face folder says it by itself"
        )


def _kind_of(folder: Folder, count: int, options: AddOptions) -> type[OutputKind]:
    """What the network's numbers are, as transformers' own pipeline takes them. Raises CatalogError."""
    problem = folder.config.get("problem_type")
    if options.values is not None or problem == "regression" or (count == 1 and _is_unbounded(folder)):
        return Values
    if options.are_several or problem == "multi_label_classification" or count == 1:
        return Labels
    if problem in (None, "single_label_classification"):
        return Classes
    raise CatalogError(f"{CONFIG} has the problem_type {problem!r}, which transformers does not know")


def _is_unbounded(folder: Folder) -> bool:
    """Whether a cross-encoder of sentence-transformers answers its score as it is."""
    settings = cross_encoder_settings(folder.source, folder.config)
    function = None if settings is None else settings.get("activation_fn")
    return isinstance(function, str) and function.rpartition(".")[2] == "Identity"


def _names(folder_labels: Sequence[str], kind: type[OutputKind], options: AddOptions, ask: Ask) -> Sequence[str]:
    """The names of the outputs: those of the options, or the configuration's, or where those say nothing the user's."""
    given, count = options.values or options.labels, len(folder_labels)
    if given is None and all(UNNAMED.fullmatch(label) for label in folder_labels):
        default = kind.usual_names(count)
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
        return [f"LABEL_{place}" for place in range(whole_number(config, "num_labels") or 2)]
    places = [str(place) for place in range(len(labels))] if isinstance(labels, Mapping) else []
    if not places or not all(isinstance(labels.get(place), str) for place in places):
        raise CatalogError(f"{CONFIG} has an id2label that does not name each score from 0 on; correct it")
    return [labels[place] for place in places]


def _inputs(folder: Folder, pair: PairTokens | None) -> dict[str, Any]:
    """The manifest's `inputs`. A network without a mask token has one token more: padding that it attends to."""
    mask = folder.vocabulary if folder.mask is None else folder.mask
    return {
        "kind": "tokens",
        **({} if folder.graph is None else {"tensor": TOKENS}),
        "length": folder.length,
        "vocabulary": max(folder.vocabulary, mask + 1),
        "padding": folder.padding,
        "mask": mask,
        "special": sorted({*(folder.added if pair is None else pair.added)}),
        **({} if pair is None else {"separator": pair.separator}),
        "side": _side(folder, pair),
        "tokenizer": {"file": TOKENIZER, "sha256": _sha256(folder.source / TOKENIZER), "truncate": True},
    }


def _side(folder: Folder, pair: PairTokens | None) -> dict[str, str]:
    """What the network takes beside the tokens; a network that is told no types takes them for those of one text."""
    is_told = pair is not None and pair.are_typed
    if folder.graph is None:
        return {"attention_mask": "mask", **({TYPES: "parts"} if is_told else {})}
    return {name: "parts" if is_told and name == TYPES else kind for name, kind in folder.graph.side.items()}


def _write_graph(version: Path, graph: ExportedGraph) -> dict[str, Any]:
    """Copies the export with its weights, or writes what is served in its place; what the manifest says of them."""
    if graph.model is not None:
        return write_model(version, "model.onnx", graph.model)
    shutil.copyfile(graph.file, version / "model.onnx")
    for file in graph.beside:
        (version / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph.file.parent / file, version / file)
    files = {file: _sha256(version / file) for file in graph.beside}
    own = {"file": "model.onnx", "sha256": _sha256(version / "model.onnx")}
    return {**own, "files": files} if files else own


def _write(version: Path, read: Folder, modules: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Copies the files and writes the manifest, which names each with its digest."""
    if read.graph is not None:
        shutil.copyfile(read.source / TOKENIZER, version / TOKENIZER)
        artefact = _write_graph(version, read.graph)
    else:
        for file in (CONFIG, *read.files):
            shutil.copyfile(read.source / file, version / file)
        for file, content in modules.items():
            (version / file).parent.mkdir(exist_ok=True)
            (version / file).write_bytes(content)
        artefact = {
            "file": CONFIG,
            "sha256": _sha256(version / CONFIG),
            "format": "transformers",
            "files": {file: _sha256(version / file) for file in (*read.files, *modules)},
        }
    whole = {"name": manifest["name"], "version": manifest["version"], "artefact": artefact, **manifest}
    (version / "manifest.yaml").write_text(yaml.dump(whole, Dumper=DUMPER, sort_keys=False, width=120))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
