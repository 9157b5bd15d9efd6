"""Adding a model: its file is read, a manifest written, and the version checked before it is moved to its folder."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from service.catalog.assessments import Assessment, Assessments, keep_beside, newest_before
from service.catalog.manifest import find_versions
from service.catalog.outputs.kind import KnownOutputs
from service.domain import Explanation, Floats, OutputSpace
from service.engine.worker.device import best_device
from service.errors import AnswerableError, CatalogError
from service.lifecycle.adding.added_inputs import AddedInputs, Ask, Prepared
from service.lifecycle.adding.equivalence import Meaning
from service.lifecycle.adding.files import read_model
from service.lifecycle.adding.graphs import ServableModel, make_servable
from service.lifecycle.adding.huggingface import prepare_folder
from service.lifecycle.adding.huggingface_folders import is_huggingface
from service.lifecycle.adding.inputs import single_input_of, taking_float32
from service.lifecycle.adding.kinds import added_inputs
from service.lifecycle.adding.manifests import ManifestChoices, say_parity, write_version
from service.lifecycle.adding.pictures import Layout
from service.lifecycle.adding.rows import SUFFIXES, Rows, comma_separated
from service.lifecycle.checking.assessing import assess
from service.lifecycle.checking.checks import Report
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.trial import Trial, load_trial
from service.processes.tuning import HOST_THREADS

EMBEDDINGS = re.compile("embed", re.IGNORECASE)
"""Exporters call them sentence_embedding, image_embeds, embeddings."""
MIN_VISIBLE_CHANGE = 5e-4
"""The smallest change that shows in three digits."""


@dataclass(frozen=True, slots=True)
class AddOptions:
    """The options of the command; None for those that the user left out."""

    source: Path
    data: Path | None = None
    name: str | None = None
    version: str | None = None
    labels: tuple[str, ...] | None = None
    adverse: str | None = None
    features: tuple[str, ...] | None = None
    dropped: tuple[str, ...] = ()
    output: str | None = None
    is_logit: bool = False
    channels: Layout | None = None
    normalise: str | None = None
    values: tuple[str, ...] | None = None
    units: tuple[str, ...] = ()
    are_several: bool = False
    are_pairs: bool = False
    is_embedding: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """A version in its folder, with the explanation of its example and the report of its check.

    `how` says, as a sentence to users, where its outputs come from. The logit is explained where the probability hardly
    changes.
    """

    folder: Path
    how: str
    trial: Trial
    explanation: Explanation
    report: Report
    assessment: Assessment | None
    is_in_logits: bool


def add_model(options: AddOptions, models: Path, ask: Ask, rows: int, kept: Assessments) -> Added:
    """Adds the model to `models`, compared with the newest earlier version that has not failed its check, by the
    assessments `kept`.

    Raises CatalogError, saying what to do; nothing is left behind then."""
    if is_huggingface(options.source):
        prepared = prepare_folder(options, lambda default: _name_and_version(options, default, models, ask), ask)
    else:
        prepared = _prepare_graph(options, models, ask)
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=models) as temporary:
        folder = Path(temporary) / prepared.name / prepared.version
        folder.mkdir(parents=True)
        prepared.write(folder)
        try:
            against = newest_before(find_versions(models), folder, kept)
            added = _explain_and_check(folder, prepared, against, rows)
        except CatalogError as error:
            raise CatalogError(f"{error}{prepared.hint}") from error
        place = models / prepared.name / prepared.version
        place.parent.mkdir(exist_ok=True)
        shutil.move(folder, place)
    return replace(added, folder=place)


def _prepare_graph(options: AddOptions, models: Path, ask: Ask) -> Prepared:
    """An ONNX file, read and rewritten. Raises CatalogError."""
    if options.are_pairs:
        raise CatalogError("--pairs is for Hugging Face folders, whose tokenizer says how two texts are put together")
    file, data = _files(options)
    model = taking_float32(read_model(file))
    graph_input = single_input_of(model)
    inputs = added_inputs(graph_input)
    inputs.check_graph(model, options, ask)
    data_rows = None if data is None else inputs.read(data, options, ask)
    complete = None if data_rows is None else _complete(data_rows)
    servable = _make_servable(options, model, complete, ask)
    if servable.meaning is Meaning.SCORES and not (options.is_logit or options.are_several):
        meant = _as_meant(options, servable, ask)
        if meant is not options:
            servable = _make_servable(replace(meant, output=servable.output), model, complete, ask)
    choices = _choices(options, servable, inputs, data_rows, file, models, ask)
    hint = "; ranges were guessed: bring rows that it was trained on with --data" if data_rows is None else ""
    write = partial(write_version, servable=servable, added=inputs, rows=data_rows, choices=choices)
    return Prepared(choices.name, choices.version, servable.how, write, hint, servable.is_quantised)


def _explain_and_check(folder: Path, prepared: Prepared, against: Path | None, rows: int) -> Added:
    torch.set_num_threads(HOST_THREADS)
    trial = load_trial(folder, best_device())
    if prepared.is_rounded:
        say_parity(folder, trial.model.parity)
        trial = load_trial(folder, best_device())
    try:
        example = trial.sample(0, seed=0)
        (explanation,) = trial.answers(example).explanations
        if explanation.attributions is None:
            raise CatalogError(_no_numbers(trial, example))
        is_in_logits = OutputSpace.LOGIT in trial.manifest.outputs.spaces and is_saturated(explanation)
        if is_in_logits:
            (explanation,) = trial.answers(example, space=OutputSpace.LOGIT).explanations
    except AnswerableError as error:
        raise CatalogError(f"the model loads, but its example cannot be explained: {error}") from error
    report, assessment = assess(folder, against, Limits(), rows, seed=0, trial=trial)
    if assessment is not None:
        keep_beside(folder, assessment)
    return Added(folder, prepared.how, trial, explanation, report, assessment, is_in_logits)


def _complete(data_rows: Rows) -> Floats:
    finite: Floats = data_rows.values[np.isfinite(data_rows.values).all(axis=1)]
    if not len(finite):
        raise CatalogError("every row of the data misses something; bring some rows that are complete")
    return finite


def _make_servable(options: AddOptions, model: ModelProto, rows: Floats | None, ask: Ask) -> ServableModel:
    return make_servable(
        model,
        options.output,
        options.is_logit,
        rows,
        are_values=options.values is not None,
        are_several=options.are_several,
        is_embedding=options.is_embedding,
        ask=ask,
    )


def _as_meant(options: AddOptions, servable: ServableModel, ask: Ask) -> AddOptions:
    """The options with what scores that look like no probabilities are: logits as they say already, values, or an
    embedding. Asks, unless the tensor's name says so. Raises CatalogError."""
    if EMBEDDINGS.search(servable.output) and servable.columns > 1:
        return replace(options, is_embedding=True)
    what = "one number" if servable.columns == 1 else f"{servable.columns} numbers"
    label = (
        "the score of the second of two labels before a sigmoid" if servable.columns == 1 else "a score for each label"
    )
    question = (
        f"{servable.output!r} holds {what} a row that are no probabilities; are they logits, {label}? "
        "(yes, no, values or embedding)"
    )
    answer = ask(question, "no").lower()
    if not answer.startswith(("y", "v", "e")):
        raise CatalogError(
            f"{servable.output!r} holds {what} a row that are no probabilities, and the file does not say what they "
            f"are. If they are logits ({label}), say so with --logits; a regression, with --values; an embedding, with "
            "--outputs embedding; a detector is not served"
        )
    if answer.startswith("y"):
        return options
    if answer.startswith("v"):
        return replace(options, values=())
    return replace(options, is_embedding=True)


def is_saturated(explanation: Explanation) -> bool:
    """Whether the change is too small to show in three digits, as between two probabilities close to one."""
    figures = (explanation.output, explanation.baseline_output, *(explanation.attributions or ()))
    change = (explanation.output or 0.0) - (explanation.baseline_output or 0.0)
    return None not in figures and max(abs(change), *map(abs, explanation.attributions or ())) < MIN_VISIBLE_CHANGE


def _no_numbers(trial: Trial, example: Floats) -> str:
    ends = {"example": example, "baseline": trial.baseline_rows().mean(axis=0, keepdims=True)}
    for name, row in ends.items():
        if not np.isfinite(trial.deployed(row.astype(np.float32))[trial.manifest.outputs.network_space]).all():
            return f"the model answers no finite numbers for its {name}; are inputs scaled as it expects them?"
    return (
        "the model answers numbers, but its gradient is no number: on the way there is a value, of a power or a "
        "logarithm of something negative perhaps, that is none and is replaced afterwards, as in scikit-learn's "
        "PowerTransformer (yeo-johnson). Export the model with another scaler"
    )


def _files(options: AddOptions) -> tuple[Path, Path | None]:
    """The ONNX file, and the file of rows, if there is one; in a folder there must be only one of each."""
    source = options.source
    if not source.exists():
        raise CatalogError(f"there is no {source.name}; name an ONNX file, or a folder with one")
    if source.is_file():
        return source, options.data
    models = sorted(source.glob("*.onnx"))
    if len(models) != 1:
        names = ", ".join(path.name for path in models) or "none"
        raise CatalogError(f"the folder holds {len(models)} ONNX files ({names}); name the one to add")
    rows = [path for path in sorted(source.iterdir()) if path.suffix.lower() in SUFFIXES]
    if options.data is None and len(rows) > 1:
        raise CatalogError(f"the folder holds several files of rows; name one of {_names_of(rows)} with --data")
    return models[0], options.data or next(iter(rows), None)


def _names_of(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _choices(
    options: AddOptions,
    servable: ServableModel,
    inputs: AddedInputs,
    rows: Rows | None,
    file: Path,
    models: Path,
    ask: Ask,
) -> ManifestChoices:
    name, version = _name_and_version(options, file.stem, models, ask)
    features, titles = inputs.name_features(options, rows, ask)
    names = _names(options, servable, ask)
    question = f"the {servable.outputs.noun} that is bad news for whoever is judged, if one is"
    adverse = options.adverse or (ask(question, "") if servable.outputs.is_named else "")
    try:
        known = KnownOutputs(names, options.units, adverse or None, servable.tensors, servable.has_one_logit)
        outputs = servable.outputs.declaration(known)
    except ValueError as error:
        raise CatalogError(str(error)) from None
    return ManifestChoices(name, version, features, titles, outputs, inputs.normalisation(options, rows, ask))


def _name_and_version(options: AddOptions, source: str, models: Path, ask: Ask) -> tuple[str, str]:
    """What the version is called, as it is named in the options or after its source. Raises CatalogError."""
    default = re.sub(r"[^a-z0-9._-]+", "-", source.lower()).strip("-._") or "model"
    name = options.name or ask("name of the model", default)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise CatalogError(
            f"{name!r} is no name for a model: small letters, digits, dots, dashes; give one with --name"
        )
    taken = {folder.name for folder in find_versions(models) if folder.parent.name == name}
    version = options.version or str(max((int(one) for one in taken if one.isdecimal()), default=0) + 1)
    if version in taken or (models / name / version).exists():
        raise CatalogError(f"there is a {name}@{version} already; leave --version out, or name another")
    return name, version


def _names(options: AddOptions, servable: ServableModel, ask: Ask) -> tuple[str, ...]:
    """The names of the labels or values."""
    count, noun = servable.count, servable.outputs.noun
    if not servable.outputs.is_named:
        return servable.outputs.usual_names(count)
    default = servable.labels if len(servable.labels) == count else servable.outputs.usual_names(count)
    what = f"the {count} {noun}s" if count > 1 else f"the {noun}"
    names = (
        options.values
        or options.labels
        or comma_separated(ask(f"{what}, in the order of the scores", ",".join(default)))
    )
    if len(names) != count:
        raise CatalogError(f"the model answers for {count} {noun}s, {len(names)} are named; give all with --{noun}s")
    return names
