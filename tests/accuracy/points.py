"""How many gradient points an explanation takes of the models that come with the service: `python -m
tests.accuracy.points`.

The mean over a few inputs of each, from the model's usual baseline. Models without an artefact are left out; `make
models` makes those of packages. A row for another model is a line of `SUBJECTS`.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from skimage import data

from service.catalog.inputs.instances import read_instance
from service.domain import OutputSpace
from service.lifecycle.checking.trial import Trial, load_trial
from service.usecases.planning import MAX_CONTRIBUTIONS, MAX_EVALUATIONS, Parameters, make_plan
from tests.accuracy.engine import with_gelu

MODELS = Path(__file__).parents[2] / "models"
TOLERANCES = (0.05, 0.01, 0.001)
SPACES = (OutputSpace.PROBABILITY, OutputSpace.LOGIT)
LOANS, DIGITS, TEXTS_A_LABEL = 25, 20, 2

Row = tuple[float, ...]
Rows = Callable[[Trial], Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Method:
    """What is asked for; `name` is that of the table."""

    name: str
    method: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the inputs that are explained, and by what, of at most `most` points; `baseline` None is the model's
    default."""

    model: str
    rows: Rows
    methods: tuple[Method, ...]
    baseline: str | None = None
    tolerances: tuple[float, ...] = TOLERANCES
    has_gelu: bool = False
    most: int = MAX_EVALUATIONS


def held_out(count: int, step: int) -> Rows:
    """Of the rows that the model was not trained on, every `step`th, so many."""

    def rows(trial: Trial) -> list[Row]:
        known = load_file(trial.version.folder / "heldout.safetensors")["rows"].astype(np.float64)
        return [tuple(row.ravel().tolist()) for row in known[::step][:count]]

    return rows


def texts(trial: Trial) -> list[Row]:
    """The first of the texts that the model was not trained on, of each label."""
    listed = yaml.safe_load((trial.version.folder / "texts.yaml").read_text())["held_out"]
    chosen = [text for of_label in listed.values() for text in of_label[:TEXTS_A_LABEL]]
    return [read_instance(trial.manifest, {"text": text}, trial.version.folder) for text in chosen]


def photographs(trial: Trial) -> list[Row]:
    """The model's example, and a cup of coffee."""
    file = io.BytesIO()
    Image.fromarray(data.coffee()).save(file, "PNG")
    coffee = {"image": base64.b64encode(file.getvalue()).decode()}
    instances = [trial.manifest.example, coffee]
    return [read_instance(trial.manifest, instance, trial.version.folder) for instance in instances]


IG, EG = Method("integrated_gradients", "integrated_gradients"), Method("expected_gradients", "expected_gradients")
MIDPOINT = Method("integrated_gradients, midpoint", "integrated_gradients", (("rule", "midpoint"),))
SUBJECTS = {
    "loan": Subject("loan", held_out(LOANS, 16), (IG, MIDPOINT, EG)),
    "loan, GELU twin": Subject("loan", held_out(LOANS, 16), (IG, EG), has_gelu=True),
    "digits": Subject("digits", held_out(DIGITS, 1), (IG,)),
    "digits from blank": Subject("digits", held_out(DIGITS, 1), (IG,), "blank"),
    "minilm-guard": Subject("minilm-guard", texts, (IG,)),
    "efficientnet-lite0": Subject("efficientnet-lite0", photographs, (IG,), tolerances=(0.05, 0.01)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table as it grows."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.points", description="Gradient points a row.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(SUBJECTS)}; all")
    chosen = parser.parse_args(arguments).models or list(SUBJECTS)
    print("| model | method, rule | space | 0.05 | 0.01 | 0.001 |\n|---|---|---|---|---|---|")
    for name in chosen:
        subject = SUBJECTS[name]
        if not (MODELS / subject.model / "1" / "manifest.yaml").exists():
            continue
        for method in subject.methods:
            for space in SPACES:
                points = [points_of(subject, method, space, tolerance) for tolerance in subject.tolerances]
                cells = [*points, *[""] * (len(TOLERANCES) - len(points))]
                print("|", " | ".join([name, method.name, space.value, *cells]), "|", flush=True)


def points_of(subject: Subject, method: Method, space: OutputSpace, tolerance: float) -> str:
    """The mean number of points a row; with how many of the rows converged, where not all did."""
    trial, rows = loaded(subject)
    parameters = Parameters(
        method=method.method,
        output_space=space.value,
        baseline=subject.baseline,
        tolerance=tolerance,
        max_evaluations=min(subject.most, MAX_CONTRIBUTIONS // prod(trial.model.traits.shape)),
        options=dict(method.options),
    )
    found = [trial.explained(make_plan(trial.version, row, parameters)) for row in rows]
    converged = sum(each.converged for each in found)
    mean = f"{np.mean([each.evaluations for each in found]):.0f}"
    return mean if converged == len(found) else f"{mean} ({converged} of {len(found)} converged)"


@cache
def loaded(subject: Subject) -> tuple[Trial, Sequence[Row]]:
    """The model and the rows."""
    trial = load_trial(MODELS / subject.model / "1", torch.device("cpu"))
    rows = subject.rows(trial)
    if not subject.has_gelu:
        return trial, rows
    model = with_gelu(trial.model)
    return Trial(replace(trial.version, traits=model.traits), model), rows


if __name__ == "__main__":
    main()
