"""`answerable models add`: its questions, and what it prints.

0: the model is in its place; 1: it cannot be served, or its check failed; 2: what was asked cannot be done.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer

from service.catalog.assessments import ASSESSMENTS, Assessments
from service.cli.options import ModelsFolder, settings_with
from service.engine.client.worker_processes import worker_environment
from service.errors import CatalogError, UsageError
from service.lifecycle.checking.limits import ROWS
from service.lifecycle.serving.registries.registry import open_registry
from service.settings import Settings

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import Added

LOG = logging.getLogger("answerable.adding")
MAX_SHOWN = 5
"""Attributions of the example that are printed, the largest."""


def add(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="An ONNX file, a folder with one, or a Hugging Face folder.")
    ],
    rows: Annotated[
        Path | None, typer.Option("--data", help="Rows it was trained on: .csv, .npy, .npz, .safetensors.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Of the CSV, no input; repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the model.", show_default="the file's name")] = None,
    version: Annotated[str | None, typer.Option(help="Of the model.", show_default="the next number")] = None,
    labels: Annotated[str | None, typer.Option(help="In the order of the scores, separated by commas.")] = None,
    values: Annotated[
        str | None,
        typer.Option(help="The scores are values, as of a regression: their names, separated by commas."),
    ] = None,
    units: Annotated[str | None, typer.Option(help="Of the values, separated by commas; 1 for none.")] = None,
    several: Annotated[
        bool, typer.Option("--several", help="Several labels may be right at once: a sigmoid each.")
    ] = False,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="A Hugging Face folder's network takes two texts; rerankers say so themselves."),
    ] = False,
    outputs: Annotated[
        Literal["embedding"] | None, typer.Option(help="The scores are an embedding: similarities are explained.")
    ] = None,
    adverse: Annotated[
        str | None,
        typer.Option(
            help="The label that is bad news, to which reasons and explanations refer; of a value: 'above 0.5'."
        ),
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Names of the inputs, separated by commas.", show_default="the CSV's header")
    ] = None,
    output: Annotated[str | None, typer.Option(help="The tensor with the scores, where it is not clear which.")] = None,
    logits: Annotated[bool, typer.Option("--logits", help="The scores are logits: those before the softmax.")] = False,
    channels: Annotated[
        Literal["first", "last"] | None,
        typer.Option(help="Of an image, or the features of a series, where the file does not say which axis they are."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="SIZES", help="Of a row, where the file leaves sizes open: 3,224,224."),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            metavar="MEANS/DEVIATIONS", help="Of pixels / 255, a number a channel: 0.5,0.5,0.5/0.25,0.25,0.25."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, take what is usual.")] = False,
    models: ModelsFolder = None,
) -> int:
    """Write the manifest of an ONNX file or a Hugging Face folder, try it, and add the model."""
    settings = settings_with(models=models)
    os.environ.update(worker_environment(0))  # numerics as in a worker; libraries read it when they are first used
    from service.lifecycle.adding.adding import AddOptions, add_model

    choices = AddOptions(
        source,
        rows,
        name,
        version,
        _names(labels),
        adverse,
        _names(features),
        tuple(drop or ()),
        output,
        logits,
        channels,
        normalise,
        _names(values),
        _names(units) or (),
        _sizes(shape),
        several,
        pairs,
        outputs == "embedding",
    )
    models_folder = open_registry(settings.models, settings.data).folder
    if models_folder is None:
        raise UsageError("a model is added to a folder: name one with --models, and publish it from there")
    try:
        ask = _take_default if yes or not sys.stdin.isatty() else _ask
        added = add_model(choices, models_folder, ask, ROWS, Assessments(settings.data / ASSESSMENTS))
    except CatalogError:
        raise
    except OSError as error:
        raise UsageError(f"{error.filename or source}: {error.strerror}") from error
    except (EOFError, KeyboardInterrupt):
        raise UsageError("\nnothing was added") from None
    except Exception as error:  # any error that a library raises for an unusual file
        LOG.debug("a file could not be added", exc_info=True)
        what = next(iter(str(error).splitlines()), "")
        raise CatalogError(
            f"{source.name} cannot be added: something in it is not understood ({type(error).__name__}: {what}). "
            "Export it in another way, or write its manifest by hand, as models/README.md says"
        ) from error
    print(_summary(added, settings))
    return 1 if added.report.failed else 0


def _take_default(_question: str, default: str) -> str:
    return default


def _ask(question: str, default: str) -> str:
    suggestion = f" [{default}]" if default else ""
    return input(f"{question}{suggestion}: ").strip() or default


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """Raises UsageError."""
    names = _names(text)
    if names is None:
        return None
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise UsageError(f"{text!r} is no shape; a row's sizes are whole numbers, as in --shape 3,224,224")
    return tuple(map(int, names))


def _summary(added: Added, settings: Settings) -> str:
    manifest, explanation, trial = added.trial.manifest, added.explanation, added.trial
    attributions = dict(zip(trial.features, trial.by_feature(explanation).tolist(), strict=True))
    largest = sorted(attributions.items(), key=lambda item: -abs(item[1]))[:MAX_SHOWN]
    baseline = trial.baseline
    failed = added.report.failed
    verdict = "passed" if not failed else f"FAILED: {', '.join(failed)}; it answers only when its version is named"

    context = {
        "subject": "the-person",
        "decision_id": "the-decision",
    }  # without these nobody can find, hold or erase it
    parameters = {"target": manifest.outputs.usual_request(manifest.example)}
    body = {"instances": [manifest.example], "parameters": parameters, "context": context}
    body_text = orjson.dumps(body).decode() if len(attributions) <= 100 else '{"instances": [...], "context": {...}}'
    explained = trial.version.outputs.target_item(explanation.target).text
    space = ", as a logit, since the probability hardly changes" if added.is_in_logits else ""
    change = f"{explanation.baseline_output:.3f} -> {explanation.output:.3f}"
    return "\n".join(
        [
            f"{trial.version.key} is in {added.folder}: {added.how}",
            f"  {manifest.outputs.noun + 's':<10} {manifest.outputs.listed}",
            "  baseline   "
            + (
                manifest.defaults.baseline
                if baseline is None
                else f"{baseline.name}@{baseline.version}: {baseline.description}"
            ),
            f"  its check  {verdict}",
            f"  example    {explained}{space}: {change}; "
            + ", ".join(f"{name} {value:+.3f}" for name, value in largest),
            *(f"  {note}" for note in added.report.notes),
            "Titles, units, ranges and reasons are in manifest.yaml, to be made better by hand; then check it again.",
            "",
            "Serve it: `answerable serve`; or, where the service runs already, with a key that may:",
            "",
            f"  curl -s -X POST localhost:{settings.port}/v2/repository/models/{manifest.name}/load "
            "-H 'Authorization: Bearer <key>'",
            "",
            "Ask it:",
            "",
            f"  curl -s localhost:{settings.port}/v1/models/{manifest.name}/versions/{manifest.version}:explain "
            "-H 'Authorization: Bearer <key>' \\",
            f"    -H 'Content-Type: application/json' -d '{body_text}'",
        ]
    )
