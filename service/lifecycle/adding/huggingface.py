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
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.kind import KnownOutputs, OutputKind
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Values
from service.errors import CatalogError
from service.lifecycle.adding.added_inputs import Ask, Prepared
from service.lifecycle.adding.causal import prepare_causal
from service.lifecycle.adding.exported import TOKENS
from service.lifecycle.adding.huggingface_folders import CONFIG, TOKENIZER, Folder, folder_of, read_folder, whole_number
from service.lifecycle.adding.manifests import DUMPER
from service.lifecycle.adding.rows import comma_separated

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import AddOptions

UNNAMED = re.compile(r"LABEL_\d+")
"""What the package calls labels that nobody named."""
EXAMPLE = "The film was not bad at all; I would watch it again with my friends."


def prepare_folder(options: AddOptions, named: Callable[[str], tuple[str, str]], ask: Ask) -> Prepared:
    """The version that the folder becomes; `named` makes its name and version of a default.

    Raises CatalogError, saying what to do.
    """
    _refuse_options(options)
    exported = folder_of(options.source)
    folder = read_folder(options.source) if exported is None else read_folder(exported, options.source)
    if is_causal(folder.config):
        if options.labels or options.values or options.units or options.adverse or options.are_several:
            raise CatalogError("a language model has no labels and no values: what follows a prompt is explained")
        return prepare_causal(folder, named, partial(_write, read=folder))
    labels = _labels(folder.config)
    kind = _kind_of(folder.config, len(labels), options)
    names = _names(labels, kind, options, ask)
    name, version = named(folder.source.resolve().name)
    adverse = options.adverse or ask(f"the {kind.noun} that is bad news for whoever is judged, if one is", "")
    try:
        tensors = {} if folder.graph is None else {kind.network_space.value: folder.graph.output}
        outputs = kind.declaration(KnownOutputs(names, options.units, adverse or None, tensors))
    except ValueError as error:
        raise CatalogError(str(error)) from None
    if not tensors:
        outputs = {field: value for field, value in outputs.items() if field != "tensors"}
    baseline = "the mask token" if folder.mask is not None else "padding, as its tokenizer has no mask"
    network = folder.config["architectures"][0] + ("" if folder.graph is None else ", exported to ONNX,")
    how = f"{network} of {folder.length} tokens; the baseline is {baseline}"
    manifest = {
        "name": name,
        "version": version,
        "title": name.replace("-", " ").replace("_", " "),
        "description": f"Added from a Hugging Face folder: {network.rstrip(',')}.",
        "inputs": _inputs(folder),
        "outputs": outputs,
        "defaults": {"method": "integrated_gradients", "baseline": "mask", "tolerance": 0.01},
        "example": {"text": EXAMPLE},
    }
    return Prepared(name, version, how, partial(_write, read=folder, manifest=manifest))


def _refuse_options(options: AddOptions) -> None:
    """Raises CatalogError for options that say what a folder says by itself."""
    of_graphs = ("data", "features", "output", "channels", "normalise", "is_logit")
    given = [name for name in of_graphs if getattr(options, name)]
    if given:
        option = "logits" if given[0] == "is_logit" else given[0]
        raise CatalogError(
            f"--{option} is for ONNX files of tables and images; a Hugging Face folder says it by itself"
        )


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


def _inputs(folder: Folder) -> dict[str, Any]:
    """The manifest's `inputs`. A network without a mask token has one token more: padding that it attends to."""
    mask = folder.vocabulary if folder.mask is None else folder.mask
    return {
        "kind": "tokens",
        **({} if folder.graph is None else {"tensor": TOKENS}),
        "length": folder.length,
        "vocabulary": max(folder.vocabulary, mask + 1),
        "padding": folder.padding,
        "mask": mask,
        "special": sorted(set(folder.added)),
        "side": {"attention_mask": "mask"} if folder.graph is None else dict(folder.graph.side),
        "tokenizer": {"file": TOKENIZER, "sha256": _sha256(folder.source / TOKENIZER), "truncate": True},
    }


def _write(version: Path, read: Folder, manifest: Mapping[str, Any]) -> None:
    """Copies the files and writes the manifest, which names each with its digest."""
    if read.graph is not None:
        shutil.copyfile(read.source / TOKENIZER, version / TOKENIZER)
        shutil.copyfile(read.graph.file, version / "model.onnx")
        artefact: dict[str, Any] = {"file": "model.onnx", "sha256": _sha256(version / "model.onnx")}
    else:
        for file in (CONFIG, *read.files):
            shutil.copyfile(read.source / file, version / file)
        artefact = {
            "file": CONFIG,
            "sha256": _sha256(version / CONFIG),
            "format": "transformers",
            "files": {file: _sha256(version / file) for file in read.files},
        }
    whole = {"name": manifest["name"], "version": manifest["version"], "artefact": artefact, **manifest}
    (version / "manifest.yaml").write_text(yaml.dump(whole, Dumper=DUMPER, sort_keys=False, width=120))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
