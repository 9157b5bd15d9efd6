"""`answerable explain`: the instances of a file, explained by a running service.

0: all are explained; 1: the service refused, or does not answer; 2: what was asked cannot be done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from service.cli.connecting import AsJson, ModelName, Server, connected, described
from service.cli.explanation_text import explained, explanation_lines, summary
from service.cli.instances import Columns, Form, ReadInstances, read_file
from service.cli.printing import table
from service.client import Explanation, ModelDescription, Parameters

commands = typer.Typer()

HEADINGS = ("row", "prediction", "explained", "largest attributions", "error", "id")

ReadAs = Annotated[
    Form | None, typer.Option("--read-as", help="How the file is read.", show_default="as its name ends")
]
Drop = Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="A column that is no input; repeatable.")]


@commands.command()
def explain(
    model: ModelName,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Rows, a text or an image; - for standard input.", show_default=False)
    ],
    read_as: ReadAs = None,
    drop: Drop = None,
    subject_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Names the person of a row: by it the record is found, held and erased."),
    ] = None,
    decision_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Names the decision that a row belongs to.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A label or a value to explain.", show_default="what is predicted")
    ] = None,
    method: Annotated[str | None, typer.Option(help="The method.", show_default="the model's")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="A baseline set of the model, or zeros.", show_default="the model's")
    ] = None,
    output_space: Annotated[str | None, typer.Option(help="What is explained.", show_default="the model's")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="The largest error accepted.", show_default="the model's")
    ] = None,
    max_evaluations: Annotated[
        int | None, typer.Option(help="The budget, in gradient points.", show_default="the model's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of methods that draw.", show_default="0")] = None,
    units: Annotated[
        Literal["words", "sentences"] | None, typer.Option(help="What a text's tokens are summed to.")
    ] = None,
    server: Server = None,
    as_json: AsJson = None,
) -> int:
    """Explain the instances of a file by a running service, on record.

    A .csv has a heading with the names of the features, or of texts with `text`, and `text_pair` where the model takes
    two; a .json holds a list of instances, a .jsonl one a line; a .txt
    is one text, a .png or .jpg one image. JSON is printed a line for each instance, as the service answers it.
    The exit code is 0 if all are explained, 1 if the service refuses or does not answer, 2 for wrong usage.

    \b
    answerable explain loan rows.csv --target denied --subject-column applicant
    answerable explain loan@1 rows.jsonl --json > explanations.jsonl
    echo '{"loan_amount": 89, ...}' | answerable explain loan - --read-as json
    """
    asked: dict[str, Any] = {
        "target": target,
        "method": method,
        "baseline": baseline,
        "output_space": output_space,
        "tolerance": tolerance,
        "max_evaluations": max_evaluations,
        "seed": seed,
        "units": units,
    }
    parameters: Parameters = {name: value for name, value in asked.items() if value is not None}  # type: ignore[assignment]
    columns = Columns(subject_column, decision_column, drop or ())
    with connected(server) as client:
        description = described(client, model)
        read = read_file(file, read_as, description, columns)
        asked_version = client.model(description.name, description.version)
        explanations = asked_version.explain_many(read.instances, contexts=read.contexts, **parameters)
        if not sys.stdout.isatty() if as_json is None else as_json:
            for explanation in explanations:
                print(json.dumps(explanation.content, ensure_ascii=False))
        else:
            print(_to_text(explanations, description, read))
    return 0


def _to_text(explanations: Iterator[Explanation], model: ModelDescription, read: ReadInstances) -> str:
    """One explanation in full, several as a table."""
    if len(read.instances) == 1:
        only = next(explanations)
        title = f"{model.title} ({model.name}@{model.version})"
        return "\n".join([title, "", *explanation_lines(only, model.titles)])
    rows = []
    for number, explanation in enumerate(explanations, start=1):
        error = explanation.attribution_error
        rows.append(
            (
                str(number),
                "not shown" if explanation.prediction is None else explanation.prediction.text,
                explained(explanation),
                summary(explanation, model.titles),
                ("not shown" if error is None else f"{error:.0e}") + ("" if explanation.converged else " !"),
                explanation.id,
            )
        )
    left = sum(1 for row in rows if row[4].endswith("!"))
    note = f"\n\n! {left} did not meet the tolerance; `answerable show ID` says why" if left else ""
    return table(HEADINGS, rows, "nothing was explained") + note
