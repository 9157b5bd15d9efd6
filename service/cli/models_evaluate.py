"""`answerable models evaluate`: what metrics of faithfulness say of a version's methods, as a table and as a report.

0: measured; 2: what was asked cannot be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
import typer

from service.cli.models_check import Format, Seed, Version, find_version, prepare_process
from service.cli.options import DataFolder, ModelsFolder, settings_with
from service.cli.printing import table
from service.errors import AnswerableError, CatalogError, UsageError
from service.ledger.ids import uuid7
from service.lifecycle.serving.registries.registry import folders_of, open_registry

if TYPE_CHECKING:
    from service.domain import Floats
    from service.faithfulness.summary import Figure
    from service.lifecycle.checking.trial import Trial

ROWS = 32
"""The usual number of inputs."""
HEADINGS = ("metric", "better", "method", "mean", "95% interval", "inputs", "replaced by")


def evaluate(
    version: Version,
    methods: Annotated[
        str | None, typer.Option(help="Methods, with commas between.", show_default="the manifest's default")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics, with commas between.", show_default="all that apply to the model")
    ] = None,
    replace: Annotated[
        str | None,
        typer.Option(help="What stands in the place of removed components.", show_default="the usual of its inputs"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a report, to this .md or .json.")
    ] = None,
    randomise: Annotated[
        Literal["cascading", "independent"] | None,
        typer.Option(help="Also print what is left of the explanations with random weights, layer by layer."),
    ] = None,
    data: DataFolder = None,
    models: ModelsFolder = None,
    rows: Annotated[int, typer.Option(min=1, help="Inputs: the example, then held-out ones.")] = ROWS,
    seed: Seed = 0,
    form: Format = "text",
) -> int:
    """Compare methods of a version by metrics of faithfulness, on held-out rows.

    Figures are means, with bootstrap intervals; they are kept in the data folder, and shown with the model.
    """
    if report is not None and report.suffix not in (".md", ".json"):
        raise UsageError("the report's name must end in .md or .json")
    settings = settings_with(data=data, models=models)
    folder = find_version(folders_of(open_registry(settings.models, settings.data).fetch()), version)
    prepare_process()
    from service.engine.worker.device import best_device
    from service.faithfulness.registry import BY_NAME
    from service.lifecycle.checking.evaluating import compare_methods
    from service.lifecycle.checking.trial import load_trial
    from service.lifecycle.serving.evaluations import EVALUATIONS, Evaluated, Evaluations
    from service.usecases.evaluating import read_measures

    try:
        trial = load_trial(folder, best_device())
        names = methods.split(",") if methods else [trial.manifest.defaults.method]
        asked = metrics.split(",") if metrics else [one.metric for one in read_measures(trial.version, None, {})]
        removing = [name for name in asked if name in BY_NAME and BY_NAME[name].removes]
        options = {} if replace is None else {name: {"replace": replace} for name in removing}
        sample = trial.sample(rows - 1, seed)
        figures, refused = compare_methods(trial, sample, names, asked, options, seed)
    except (AnswerableError, CatalogError) as error:
        raise UsageError(str(error)) from error
    key, manifest = trial.version.key, trial.version.manifest_digest
    kept = Evaluated(
        uuid7(), key.name, key.version, key.digest, manifest, None, "held-out rows", len(sample), tuple(figures)
    )
    text = _text(str(key), len(sample), figures, refused)
    try:
        Evaluations(settings.data / EVALUATIONS).keep(kept)
        if report is not None:
            report.write_text(_json(kept) if report.suffix == ".json" else _markdown(str(key), len(sample), figures))
    except OSError as error:
        raise UsageError(f"the result cannot be kept: {error}") from error
    print(_json(kept) if form == "json" else text)
    if randomise is not None:
        print(f"\n{_left(trial, sample, [name for name in names if name not in refused], randomise == 'cascading')}")
    return 0


def _left(trial: Trial, rows: Floats, methods: Sequence[str], is_cascading: bool) -> str:
    """What is left of explanations by layer, from the output."""
    from service.lifecycle.checking.randomisation import by_layer

    lines = [
        (one.layer, method, *(f"{value:.3f}" for value in one.similarities.values()))
        for method in methods
        for one in by_layer(trial, rows, method, cascading=is_cascading)
    ]
    headings = ("random from" if is_cascading else "random", "method", "spearman", "absolute", "ssim", "hog")
    return table(headings[: len(lines[0]) if lines else 4], lines, "the network has no layer with weights")


def _text(version: str, rows: int, figures: Sequence[Figure], refused: dict[str, str]) -> str:
    lines = [f"{version}, {rows} inputs", "", table(HEADINGS, _cells(figures), "nothing was measured")]
    lines += [f"{method}: {reason}" for method, reason in refused.items()]
    lines += [
        "",
        "Metrics disagree, and each hangs on what stands in for what is removed: none says which method is best.",
    ]
    return "\n".join(lines)


def _cells(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """By metric, so that methods stand below each other."""
    order = list(dict.fromkeys(figure.metric for figure in figures))
    return [
        (
            figure.metric,
            figure.better,
            figure.method,
            "-" if figure.mean is None else f"{figure.mean:.4g}",
            "-" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}",
            str(figure.explanations),
            figure.replaced or "-",
        )
        for figure in sorted(figures, key=lambda one: order.index(one.metric))
    ]


def _json(kept: Any) -> str:
    return orjson.dumps(kept, option=orjson.OPT_INDENT_2).decode()


def _markdown(version: str, rows: int, figures: Sequence[Figure]) -> str:
    """A report: what each metric is, what was replaced by what, and the figures."""
    from service.faithfulness.registry import BY_NAME

    lines = [
        f"# Faithfulness of explanations of {version}",
        "",
        f"Over {rows} inputs that the model was not trained on. Means, with 95% bootstrap intervals of the mean.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"| {' | '.join('---' for _ in HEADINGS)} |",
        *(f"| {' | '.join(row)} |" for row in _cells(figures)),
        "",
    ]
    for name in dict.fromkeys(figure.metric for figure in figures):
        of_metric = [figure for figure in figures if figure.metric == name]
        one = of_metric[0]
        said = f"{BY_NAME[name].description} ({BY_NAME[name].citation})"
        lines.append(f"- `{name}`: {said}.")
        if one.replaced_by is not None:
            lines.append(f"  Removed components are replaced by `{one.replaced}`: {one.replaced_by}.")
        if one.options:
            lines.append(f"  Options: {', '.join(f'{key} {value}' for key, value in one.options.items())}.")
        for figure in of_metric:
            lines += [f"  {figure.method}: {count} without a figure: {why}." for why, count in figure.skipped.items()]
    return "\n".join(lines) + "\n"
