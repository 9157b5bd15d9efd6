"""The lines of a run in a file, so that one that was cut short goes on where it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import orjson

from tests.accuracy.measuring import Figures, Line


class Results:
    """What is measured by network and approach; with a `path`, what is in that file, and is added to it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.known: dict[tuple[str, str], list[Line]] = {}
        kept = path.read_bytes().splitlines() if path is not None and path.exists() else []
        for job, lines in map(orjson.loads, kept):
            self.known[tuple(job)] = [_line(line) for line in lines]

    def keep(self, job: tuple[str, str], lines: list[Line]) -> None:
        """Adds what was found of a network and approach."""
        self.known[job] = lines
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(orjson.dumps([job, [asdict(line) for line in lines]], option=orjson.OPT_APPEND_NEWLINE))


def _line(record: dict[str, object]) -> Line:
    figures = record.pop("figures")
    assert isinstance(figures, list)
    return Line(**record, figures=tuple(Figures(**one) for one in figures))  # type: ignore[arg-type]
