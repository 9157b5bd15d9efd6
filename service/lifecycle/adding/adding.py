"""Adding a model: read, asked, written beside the others, tried, and only then put in its place."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from service.catalog.assessments import Assessment, Assessments, keep_beside, newest_before
from service.catalog.manifest import find_versions
from service.catalog.outputs.kind import KnownOutputs
from service.domain import Explanation, Floats, OutputSpace
from service.errors import AnswerableError, CatalogError
from service.lifecycle.adding.equivalence import Meaning
from service.lifecycle.adding.files import read_model
from service.lifecycle.adding.graphs import Found, read_classifier
from service.lifecycle.adding.inputs import given_of
from service.lifecycle.adding.kinds import added_inputs
from service.lifecycle.adding.manifests import Answers, write_version
from service.lifecycle.adding.pictures import Layout
from service.lifecycle.adding.rows import SUFFIXES, Rows, comma_separated
from service.lifecycle.checking.assessing import assess
from service.lifecycle.checking.checks import Report
from service.lifecycle.checking.limits import Limits
from service.lifecycle.checking.trial import Trial, load_trial
from service.processes.tuning import HOST_THREADS

MIN_VISIBLE_CHANGE = 5e-4
"""What three digits show."""
Ask = Callable[[str, str], str]
"""Asks a question and gives the answer, or the default that it is given."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was given; None where it was not."""

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


@dataclass(frozen=True, slots=True)
class Added:
    """A version in its place, with the explanation of its example and what its check said.

    The explanation is of the logit where the probability hardly changes.
    """

    folder: Path
    found: Found
    trial: Trial
    explanation: Explanation
    report: Report
    assessment: Assessment | None
    is_in_logits: bool


def add_model(asked: Asked, models: Path, ask: Ask, rows: int, kept: Assessments) -> Added:
    """Adds the model to `models`, checked against the newest version before it that has not failed, as `kept` says.

    Raises CatalogError, saying what to do; nothing is left behind then."""
    file, data = _files(asked)
    model = read_model(file)
    given = given_of(model)
    inputs = added_inputs(given)
    inputs.check_graph(model, asked, ask)
    brought = None if data is None else inputs.read(data, asked, ask)
    complete = None if brought is None else _complete(brought)
    found = _found(asked, model, complete, are_values=asked.values is not None)
    if (
        found.meaning is Meaning.SCORES
        and not (asked.is_logit or asked.are_several)
        and _are_values_rather_than_logits(found, ask)
    ):
        found = _found(asked, model, complete, are_values=True)
    answers = _answers(asked, found, brought, file, models, ask)
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=models) as room:
        folder = Path(room) / answers.name / answers.version
        folder.mkdir(parents=True)
        write_version(folder, found, brought, answers)
        try:
            against = newest_before(find_versions(models), folder, kept)
            tried = _tried(folder, found, against, rows)
        except CatalogError as error:
            hint = "; ranges were guessed: bring rows that it was trained on with --data" if brought is None else ""
            raise CatalogError(f"{error}{hint}") from error
        place = models / answers.name / answers.version
        place.parent.mkdir(exist_ok=True)
        shutil.move(folder, place)
    return replace(tried, folder=place)


def _tried(folder: Path, found: Found, against: Path | None, rows: int) -> Added:
    torch.set_num_threads(HOST_THREADS)
    trial = load_trial(folder, torch.device("cpu"))
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
    report, assessment = assess(folder, against, Limits(), rows, seed=0)
    if assessment is not None:
        keep_beside(folder, assessment)
    return Added(folder, found, trial, explanation, report, assessment, is_in_logits)


def _complete(brought: Rows) -> Floats:
    finite: Floats = brought.values[np.isfinite(brought.values).all(axis=1)]
    if not len(finite):
        raise CatalogError("every row of the data misses something; bring some rows that are complete")
    return finite


def _found(asked: Asked, model: ModelProto, rows: Floats | None, *, are_values: bool) -> Found:
    return read_classifier(
        model, asked.output, asked.is_logit, rows, are_values=are_values, are_several=asked.are_several
    )


def _are_values_rather_than_logits(found: Found, ask: Ask) -> bool:
    """The file does not say: an embedding and a regression look like scores of labels. Raises CatalogError."""
    what = "one number" if found.columns == 1 else f"{found.columns} numbers"
    label = "the score of the second of two labels before a sigmoid" if found.columns == 1 else "a score for each label"
    question = (
        f"{found.output!r} holds {what} a row that are no probabilities; are they logits, {label}? (yes, no, or values)"
    )
    answer = ask(question, "no").lower()
    if not answer.startswith(("y", "v")):
        raise CatalogError(
            f"{found.output!r} holds {what} a row that are no probabilities, and the file does not say what they are. "
            f"If they are logits ({label}), say so with --logits; a regression, with --values; an embedding or a "
            "detector is not served"
        )
    return answer.startswith("v")


def is_saturated(explanation: Explanation) -> bool:
    """Whether so little changes that three digits show nothing of it, as between probabilities that are all but one."""
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


def _files(asked: Asked) -> tuple[Path, Path | None]:
    """The ONNX file, and the file with rows, if there is one; of a folder, the only ones in it."""
    source = asked.source
    if not source.exists():
        raise CatalogError(f"there is no {source.name}; name an ONNX file, or a folder with one")
    if source.is_file():
        return source, asked.data
    models = sorted(source.glob("*.onnx"))
    if len(models) != 1:
        names = ", ".join(path.name for path in models) or "none"
        raise CatalogError(f"the folder holds {len(models)} ONNX files ({names}); name the one to add")
    rows = [path for path in sorted(source.iterdir()) if path.suffix.lower() in SUFFIXES]
    if asked.data is None and len(rows) > 1:
        raise CatalogError(f"the folder holds several files of rows; name one of {_listed(rows)} with --data")
    return models[0], asked.data or next(iter(rows), None)


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _answers(asked: Asked, found: Found, rows: Rows | None, file: Path, models: Path, ask: Ask) -> Answers:
    usual = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._") or "model"
    name = asked.name or ask("name of the model", usual)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise CatalogError(
            f"{name!r} is no name for a model: small letters, digits, dots, dashes; give one with --name"
        )
    taken = {folder.name for folder in find_versions(models) if folder.parent.name == name}
    version = asked.version or str(max((int(one) for one in taken if one.isdecimal()), default=0) + 1)
    if version in taken or (models / name / version).exists():
        raise CatalogError(f"there is a {name}@{version} already; leave --version out, or name another")
    inputs = added_inputs(found.given)
    features, titles = inputs.name_features(asked, rows, ask)
    names = _names(asked, found, ask)
    adverse = asked.adverse or ask(f"the {found.outputs.noun} that is bad news for whoever is judged, if one is", "")
    try:
        known = KnownOutputs(names, asked.units, adverse or None, found.tensors, found.has_one_logit)
        outputs = found.outputs.declaration(known)
    except ValueError as error:
        raise CatalogError(str(error)) from None
    return Answers(name, version, features, titles, outputs, inputs.normalisation(asked, rows, ask))


def _names(asked: Asked, found: Found, ask: Ask) -> tuple[str, ...]:
    """Of the labels or values."""
    count, noun = found.count, found.outputs.noun
    usual = found.labels if len(found.labels) == count else found.outputs.usual_names(count)
    what = f"the {count} {noun}s" if count > 1 else f"the {noun}"
    names = asked.values or asked.labels or comma_separated(ask(f"{what}, in the order of the scores", ",".join(usual)))
    if len(names) != count:
        raise CatalogError(f"the model answers for {count} {noun}s, {len(names)} are named; give all with --{noun}s")
    return names
