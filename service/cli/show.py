"""`answerable show`: one stored explanation, drawn in the terminal, and whether its record is as it was written.

0: it is; 1: it is not, or there is none, or the service does not answer; 2: what was asked cannot be done.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from service.cli.connecting import AsJson, Server, connected, titles_of
from service.cli.explanation_text import explanation_lines, proof_lines, record_lines

commands = typer.Typer()


@commands.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of the explanation.", show_default=False)],
    server: Server = None,
    as_json: AsJson = None,
) -> int:
    """Show a stored explanation: prediction, reasons, attributions, errors, and the proof of its record.

    The look-up is on record, like every other. The exit code is 0 if the record is as it was written, 1 if it is not,
    if there is none or if the service does not answer, 2 for wrong usage.

    \b
    answerable show 01a20430-47fe-75dd-afdb-be0e0b43854f
    answerable show 01a20430-47fe-75dd-afdb-be0e0b43854f --json | jq .record.attributions
    """
    with connected(server) as client:
        record = client.explanation(id)
        verification = client.verify(record.id)
        if not sys.stdout.isatty() if as_json is None else as_json:
            print(json.dumps({"record": record.content, "proof": asdict(verification)}, ensure_ascii=False))
        else:
            model = record.model
            titles = {} if model is None else titles_of(client, model.name, model.version)
            heading = "A stored explanation" if model is None else f"{model.name}@{model.version}"
            lines = (*explanation_lines(record, titles), *record_lines(record), *proof_lines(verification))
            print("\n".join([heading, "", *lines]))
    return 0 if verification.valid else 1
