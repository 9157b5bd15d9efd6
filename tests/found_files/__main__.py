"""Tries every file and writes the table, `models/FOUND.md`. Ends with 1 where one ended in neither a served model nor a
sentence of ours: `make found-files`."""

from __future__ import annotations

import logging
import multiprocessing
import re
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from service.catalog.assessments import Assessments
from service.errors import AnswerableError, CatalogError
from service.lifecycle.adding.adding import AddOptions, add_model
from tests.found_files.sources import Found, found_files

TABLE = Path(__file__).parents[2] / "models" / "FOUND.md"
SECONDS = 240
BROKEN = "BROKEN"
HEAD = """# Files that nobody here made

What `answerable models add` says of files from public packages and exporters, with no rows and no questions answered;
`make found-files` tries them again and writes this page. "served" is a version in its folder whose example is explained
(and whose check passed or failed, as it says); everything else is the sentence that a user reads.

| file | from | options | what came of it |
| --- | --- | --- | --- |
"""


def tried(found: Found, folder: Path, answer: Connection) -> None:
    """Sends what came of a file, as a sentence."""
    logging.disable()
    try:
        options = AddOptions(found.path, name="found", **found.options)
        models = folder / re.sub(r"\W+", "-", f"{found.origin}-{found.name}")
        added = add_model(options, models, lambda _question, default: default, 2, Assessments(folder / "assessments"))
        failed = added.report.failed
        verdict = "its check passed" if not failed else f"its check failed: {', '.join(failed)}"
        answer.send(f"served: {added.how}; {verdict}")
    except (AnswerableError, CatalogError) as error:
        answer.send(str(error))
    except BaseException:  # noqa: BLE001 - whatever it is, the table has it
        answer.send(f"{BROKEN}: {traceback.format_exc(limit=-2)}")


def main(folder: Path) -> int:
    """Tries all in processes of their own, since a file may end one."""
    context, lines, broken = multiprocessing.get_context("fork"), [], 0
    for found in found_files(folder):
        with tempfile.TemporaryDirectory() as temporary:
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=tried, args=(found, Path(temporary), sending))
            process.start()
            sending.close()
            try:
                said = receiving.recv() if receiving.poll(SECONDS) else f"{BROKEN}: no answer in {SECONDS} s"
            except EOFError:
                said = f"{BROKEN}: the process ended"
            process.kill()
            process.join()
        broken += said.startswith(BROKEN)
        options = ", ".join(f"{name}={value}" for name, value in found.options.items())
        said = " ".join(said.split()).replace("|", "\\|")
        lines.append(f"| {found.name} | {found.origin} | {options} | {said} |")
        print(lines[-1], flush=True)
    TABLE.write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{len(lines)} files, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())))
