"""`answerable models check` and `answerable models compare`.

0: fine; 1: a check failed, a version cannot be loaded, or two differ by more than the limits that were named; 2: what
was asked cannot be done. torch is imported when a command runs, and not before: other commands share this process's
command line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from service.catalog.assessments import ASSESSMENTS, Assessments, keep_beside, newest_before
from service.cli.options import DataFolder, ModelsFolder, settings_with
from service.engine.client.worker_processes import worker_environment
from service.errors import AnswerableError, UsageError
from service.lifecycle.checking.limits import ROWS, Limits
from service.lifecycle.serving.registries.registry import folders_of, open_registry

USUAL = Limits()

Version = Annotated[str, typer.Argument(help="NAME@VERSION, or NAME where it has one version.")]
Rows = Annotated[int, typer.Option(min=1, help="Rows in the sample.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sample and the halvings.")]
Format = Annotated[Literal["text", "json"], typer.Option("--format", help="What is printed.")]


def _exportable(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".csv", ".json"):
        raise typer.BadParameter("the file's name must end in .csv or .json")
    return path


def check(
    version: Version,
    against: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="NAME@VERSION.", show_default="the newest before it that has not failed"),
    ] = None,
    least_converged: Annotated[
        float, typer.Option(help="Share of rows explained within the tolerance.")
    ] = USUAL.least_converged,
    most_flagged: Annotated[
        float, typer.Option(help="Share of rows that the protected features' rule flags.")
    ] = USUAL.most_flagged,
    least_stability: Annotated[
        float, typer.Option(help="Rank correlation under other baselines.")
    ] = USUAL.least_stability,
    least_correlation: Annotated[
        float, typer.Option(help="Rank correlation with the earlier version.")
    ] = USUAL.least_correlation,
    most_flipped: Annotated[
        float, typer.Option(help="Share of rows predicted otherwise than before.")
    ] = USUAL.most_flipped,
    data: DataFolder = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="Also write it to check.json beside the version, to travel with it.")
    ] = False,
    models: ModelsFolder = None,
    rows: Rows = ROWS,
    seed: Seed = 0,
    form: Format = "text",
) -> int:
    """Say whether a version may be promoted, also by the exit code.

    The verdict is kept in the data folder.
    """
    settings = settings_with(data=data, models=models)
    registry = open_registry(settings.models, settings.data)
    if beside and registry.folder is None:
        raise UsageError(f"--beside writes into the folder of models, and {registry.shown} is none: leave it out")
    folders = folders_of(registry.fetch())
    folder = find_version(folders, version)
    earlier = (
        newest_before(folders, folder, Assessments(settings.data / ASSESSMENTS))
        if against is None
        else find_version(folders, against)
    )
    limits = Limits(
        least_converged=least_converged,
        most_flagged=most_flagged,
        least_stability=least_stability,
        least_correlation=least_correlation,
        most_flipped=most_flipped,
    )
    prepare_process()
    from service.lifecycle.checking.assessing import assess
    from service.lifecycle.checking.tables import report_json, report_text

    report, assessment = assess(folder, earlier, limits, rows, seed)
    print(report_json(report) if form == "json" else report_text(report))
    if assessment is not None:
        try:
            Assessments(settings.data / ASSESSMENTS).keep(assessment)
            if beside:
                keep_beside(folder, assessment)
        except OSError as error:
            raise UsageError(f"the verdict cannot be kept: {error}") from error
    return 1 if report.failed else 0


def compare(
    before: Version,
    after: Version,
    out: Annotated[
        Path | None,
        typer.Option(parser=_exportable, metavar="FILE", help="Also write the table to this .csv or .json."),
    ] = None,
    least_correlation: Annotated[
        float | None, typer.Option(help="Rank correlation of a row's attributions, the median.", show_default="any")
    ] = None,
    least_overlap: Annotated[
        float | None, typer.Option(help="Share of a row's largest attributions in common.", show_default="any")
    ] = None,
    most_flipped: Annotated[
        float | None, typer.Option(help="Share of rows predicted otherwise.", show_default="any")
    ] = None,
    models: ModelsFolder = None,
    rows: Rows = ROWS,
    seed: Seed = 0,
    form: Format = "text",
) -> int:
    """Compare two versions, or two models of the same inputs: did the explanations survive, and the predictions?

    The exit code is 1 where a limit that is named is missed, 2 where they cannot be compared, and else 0.
    """
    settings = settings_with(models=models)
    folders = folders_of(open_registry(settings.models, settings.data).fetch())
    earlier, later = find_version(folders, before), find_version(folders, after)
    prepare_process()
    from service.engine.worker.device import best_device
    from service.lifecycle.checking import comparison, tables
    from service.lifecycle.checking.trial import load_trial

    device = best_device()
    try:
        compared = comparison.compare(load_trial(earlier, device), load_trial(later, device), rows, seed)
        if out is not None:
            written = tables.comparison_csv if out.suffix == ".csv" else tables.comparison_json
            out.write_text(written(compared))
    except (AnswerableError, OSError) as error:
        raise UsageError(str(error)) from error
    print(tables.comparison_json(compared) if form == "json" else tables.comparison_text(compared))
    agreement = compared.agreement
    least = ((agreement.correlation, least_correlation), (agreement.overlap, least_overlap))
    is_kept = all(limit is None or figure >= limit for figure, limit in least)
    return 0 if is_kept and (most_flipped is None or compared.flipped <= most_flipped) else 1


def find_version(folders: list[Path], name: str) -> Path:
    """The folder of `NAME@VERSION`, or of a `NAME` with one version. Raises UsageError."""
    known = {f"{folder.parent.name}@{folder.name}": folder for folder in folders}
    of_name = [folder for folder in folders if folder.parent.name == name]
    if len(of_name) == 1:
        return of_name[0]
    if name not in known:
        raise UsageError(f"there is no version {name}; there are: {', '.join(known) or 'none'}")
    return known[name]


def prepare_process() -> None:
    """Numerics as in a worker; libraries read these settings when they are first used."""
    os.environ.update(worker_environment(0))
