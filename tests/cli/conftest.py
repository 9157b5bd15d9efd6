"""Commands run in this process, against the service of the session."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from tests.conftest import Service


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    output: str
    errors: str


RunCommand = Callable[..., Done]


@pytest.fixture
def run(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> RunCommand:
    """Runs a command that asks the service, with a key that has every scope."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSWERABLE_KEY", service.key.secret)
    monkeypatch.setenv("COLUMNS", "100")

    def run_it(*words: str, server: str | None = service.url) -> Done:
        capsys.readouterr()
        code = main([*words, *(() if server is None else ("--server", server))])
        output, errors = capsys.readouterr()
        return Done(code, output, errors)

    return run_it


@pytest.fixture
def csv_of(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as a CSV file and gives its path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.csv") -> str:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
        return str(tmp_path / name)

    return write
