"""`answerable models add`: its options, its questions, and what it prints.

0: the model is in its place; 1: it cannot be served, or its check failed; 2: what was asked cannot be done.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from service.catalog.assessments import ASSESSMENTS, Assessments
from service.engine.client.worker_processes import worker_environment
from service.errors import CatalogError
from service.lifecycle.checking.limits import ROWS
from service.settings import Settings

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import Added

LOG = logging.getLogger("answerable.adding")
MOST_SHOWN = 5


def add_command(actions: Any) -> None:
    """Adds the command to the actions of `answerable models`."""
    command = actions.add_parser("add", help="write the manifest of an ONNX file, try it, and put it with the others")
    command.set_defaults(run=_add)
    command.add_argument("source", type=Path, metavar="FILE|FOLDER", help="an ONNX file, or a folder with one")
    command.add_argument(
        "--data", dest="rows", type=Path, help="rows it was trained on: .csv, .npy, .npz, .safetensors"
    )
    command.add_argument(
        "--drop", action="append", default=[], metavar="COLUMN", help="of the CSV, no input; repeatable"
    )
    command.add_argument("--name", help="of the model; default: the file's name")
    command.add_argument("--version", help="default: the next number")
    command.add_argument("--labels", type=_names, help="in the order of the scores, separated by commas")
    command.add_argument(
        "--values", type=_names, help="the scores are values, as of a regression: their names, separated by commas"
    )
    command.add_argument("--units", type=_names, default=(), help="of the values, separated by commas; 1 for none")
    command.add_argument("--several", action="store_true", help="several labels may be right at once: a sigmoid each")
    command.add_argument(
        "--adverse", help="the label that is bad news, to which reasons and explanations refer; of a value: 'above 0.5'"
    )
    command.add_argument("--features", type=_names, help="names of the inputs; default: the CSV's header")
    command.add_argument("--output", help="the tensor with the scores, where it is not clear which")
    command.add_argument("--logits", action="store_true", help="the scores are logits: those before the softmax")
    command.add_argument(
        "--channels", choices=("first", "last"), help="of an image, where the file does not say which axis they are"
    )
    command.add_argument(
        "--normalise",
        metavar="MEANS/DEVIATIONS",
        help="of pixels / 255, a number a channel: 0.5,0.5,0.5/0.25,0.25,0.25",
    )
    command.add_argument("--yes", action="store_true", help="ask nothing, take what is usual")
    command.add_argument("--models", type=Path, default=argparse.SUPPRESS, help="the folder of models")


def _add(settings: Settings, options: argparse.Namespace) -> int:
    os.environ.update(worker_environment(0))  # numerics as in a worker; libraries read it when they are first used
    from service.lifecycle.adding.adding import Asked, add_model

    asked = Asked(
        options.source,
        options.rows,
        options.name,
        options.version,
        options.labels,
        options.adverse,
        options.features,
        tuple(options.drop),
        options.output,
        options.logits,
        options.channels,
        options.normalise,
        options.values,
        options.units,
        options.several,
    )
    try:
        ask = _take if options.yes or not sys.stdin.isatty() else _ask
        added = add_model(asked, settings.models, ask, ROWS, Assessments(settings.data / ASSESSMENTS))
    except CatalogError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or options.source}: {error.strerror}", file=sys.stderr)
        return 2
    except (EOFError, KeyboardInterrupt):
        print("\nnothing was added", file=sys.stderr)
        return 2
    except Exception as error:  # whatever a library makes of a file that nobody has seen before
        LOG.debug("a file could not be added", exc_info=True)
        what = next(iter(str(error).splitlines()), "")
        print(
            f"{options.source.name} cannot be added: something in it is not understood ({type(error).__name__}: "
            f"{what}). Export it in another way, or write its manifest by hand, as README's section Models says",
            file=sys.stderr,
        )
        return 1
    print(_told(added, settings))
    return 1 if added.report.failed else 0


def _take(_question: str, default: str) -> str:
    return default


def _ask(question: str, default: str) -> str:
    shown = f" [{default}]" if default else ""
    return input(f"{question}{shown}: ").strip() or default


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _told(added: Added, settings: Settings) -> str:
    manifest, explanation, trial = added.trial.manifest, added.explanation, added.trial
    attributions = dict(zip(trial.features, trial.by_feature(explanation).tolist(), strict=True))
    most = sorted(attributions.items(), key=lambda item: -abs(item[1]))[:MOST_SHOWN]
    baseline = manifest.baselines[0]
    failed = added.report.failed
    verdict = "passed" if not failed else f"FAILED: {', '.join(failed)}; it answers only when its version is named"

    context = {"subject": "the-person", "decision_id": "the-decision"}  # else nobody can find, hold or erase it by them
    parameters = {"target": manifest.outputs.usual_target}
    body = {"instances": [manifest.example], "parameters": parameters, "context": context}
    asked = orjson.dumps(body).decode() if len(attributions) <= 100 else '{"instances": [...], "context": {...}}'
    explained = manifest.outputs.target_item(explanation.target).text
    space = ", as a logit, since the probability hardly changes" if added.is_in_logits else ""
    change = f"{explanation.baseline_output:.3f} -> {explanation.output:.3f}"
    return "\n".join(
        [
            f"{trial.version.key} is in {added.folder}: {added.found.how}",
            f"  {manifest.outputs.noun + 's':<10} {', '.join(manifest.outputs.names)}",
            f"  baseline   {baseline.name}@{baseline.version}: {baseline.description}",
            f"  its check  {verdict}",
            f"  example    {explained}{space}: {change}; " + ", ".join(f"{name} {value:+.3f}" for name, value in most),
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
            f"    -H 'Content-Type: application/json' -d '{asked}'",
        ]
    )
