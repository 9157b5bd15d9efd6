"""`answerable models check` and `answerable models compare`: their options, and what they end with.

0: fine; 1: a check failed, or a version cannot be loaded; 2: what was asked cannot be done. torch is imported when a
command runs, and not before: other commands share this process's command line.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from service.catalog.assessments import ASSESSMENTS, Assessments, keep_beside, newest_before
from service.catalog.manifest import find_versions
from service.engine.client.worker_processes import worker_environment
from service.errors import AnswerableError, CatalogError
from service.lifecycle.checking.limits import ROWS, Limits
from service.settings import Settings


def add_commands(actions: Any) -> None:
    """Adds both commands to the actions of `answerable models`."""
    check = actions.add_parser("check", help="whether a version may be promoted; the exit code says so")
    check.set_defaults(run=_check)
    check.add_argument("version", help="NAME@VERSION")
    check.add_argument(
        "--against", metavar="VERSION", help="NAME@VERSION; default: the newest before it that has not failed"
    )
    for limit in fields(Limits):
        option = "--" + limit.name.replace("_", "-")
        check.add_argument(option, type=float, default=limit.default, help=f"{limit.metadata['help']} (%(default)s)")
    check.add_argument(
        "--data", type=Path, default=argparse.SUPPRESS, help="the data folder, where the verdict is kept"
    )
    check.add_argument(
        "--beside", action="store_true", help="also write it to check.json beside the version, to travel with it"
    )
    compare = actions.add_parser("compare", help="two versions by what their features count for")
    compare.set_defaults(run=_compare)
    compare.add_argument("before", help="NAME@VERSION")
    compare.add_argument("after", help="NAME@VERSION")
    compare.add_argument("--out", type=_exportable, help="also write the table to this .csv or .json file")
    for command in (check, compare):
        command.add_argument("--models", type=Path, default=argparse.SUPPRESS, help="the folder of models")
        command.add_argument("--rows", type=_positive, default=ROWS, help="rows in the sample (%(default)s)")
        command.add_argument("--seed", type=_natural, default=0, help="of the sample and the halvings (%(default)s)")
        command.add_argument("--format", choices=("text", "json"), default="text")


def _check(settings: Settings, options: argparse.Namespace) -> int:
    folders = find_versions(settings.models)
    try:
        folder = _find(folders, options.version)
        against = (
            newest_before(folders, folder, Assessments(settings.data / ASSESSMENTS))
            if options.against is None
            else _find(folders, options.against)
        )
    except LookupError as error:
        return _refuse(error, 2)
    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    _prepare_process()
    from service.lifecycle.checking.assessing import assess
    from service.lifecycle.checking.tables import report_json, report_text

    report, assessment = assess(folder, against, limits, options.rows, options.seed)
    print(report_json(report) if options.format == "json" else report_text(report))
    if assessment is not None:
        try:
            Assessments(settings.data / ASSESSMENTS).keep(assessment)
            if options.beside:
                keep_beside(folder, assessment)
        except OSError as error:
            return _refuse(f"the verdict cannot be kept: {error}", 2)
    return 1 if report.failed else 0


def _compare(settings: Settings, options: argparse.Namespace) -> int:
    folders = find_versions(settings.models)
    try:
        before, after = (_find(folders, name) for name in (options.before, options.after))
    except LookupError as error:
        return _refuse(error, 2)
    _prepare_process()
    from service.engine.worker.device import best_device
    from service.lifecycle.checking import tables
    from service.lifecycle.checking.comparison import compare
    from service.lifecycle.checking.trial import load_trial

    device = best_device()
    try:
        comparison = compare(load_trial(before, device), load_trial(after, device), options.rows, options.seed)
        if options.out is not None:
            written = tables.comparison_csv if options.out.suffix == ".csv" else tables.comparison_json
            options.out.write_text(written(comparison))
    except CatalogError as error:
        return _refuse(error, 1)
    except (AnswerableError, OSError) as error:
        return _refuse(error, 2)
    print(tables.comparison_json(comparison) if options.format == "json" else tables.comparison_text(comparison))
    return 0


def _find(folders: list[Path], name: str) -> Path:
    """The folder of `NAME@VERSION`. Raises LookupError."""
    known = {f"{folder.parent.name}@{folder.name}": folder for folder in folders}
    if name not in known:
        raise LookupError(f"there is no version {name}; there are: {', '.join(known) or 'none'}")
    return known[name]


def _prepare_process() -> None:
    """Numerics as in a worker; libraries read these settings when they are first used."""
    os.environ.update(worker_environment(0))


def _refuse(error: Exception | str, code: int) -> int:
    print(error, file=sys.stderr)
    return code


def _exportable(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".csv", ".json"):
        raise argparse.ArgumentTypeError("the file's name must end in .csv or .json")
    return path


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def _positive(text: str) -> int:
    value = _natural(text)
    if not value:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
