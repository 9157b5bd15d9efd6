"""What a section found, and how it is shown: figures against their aims, tables, JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.rounds import Run, median

BEGIN, END = "<!-- last run: begin -->", "<!-- last run: end -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure against its aim: `value` over all rounds, `low` and `high` of single rounds.

    `aim` is the bound that the value must reach (`at_least`) or keep (`at_most`); without one it is for information.
    `not_run` says why there is no value.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    not_run: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met; None where there is none or nothing was run."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        return self.value >= self.at_least if self.at_least is not None else self.value <= (self.at_most or 0.0)

    def cells(self) -> list[str]:
        """Name, value, spread, aim, verdict."""
        aim = "for information"
        if self.at_least is not None:
            aim = f"at least {self.at_least:g}{self.unit}"
        elif self.at_most is not None:
            aim = f"at most {self.at_most:g}{self.unit}"
        if self.value is None:
            return [self.name, "not run", self.not_run, aim, ""]
        spread = "" if self.low is None or self.high is None else f"{_number(self.low)} to {_number(self.high)}"
        verdict = {True: "met", False: "**not met**", None: ""}[self.is_met]
        return [self.name, _number(self.value) + self.unit, spread, aim, verdict]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a sentence above it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """What one section of the benchmark found. `raw` is what its figures and tables were made of."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)


def ratio(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """The ratio of the medians, with the smallest and largest ratio of one round."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    value = statistics.median(ours) / statistics.median(theirs)
    return Figure(name, value, min(each), max(each), at_least, at_most)


def of(runs: list[Run], figure: str) -> list[float]:
    """One figure of every run."""
    return [float(getattr(run, figure)) for run in runs]


def loads_table(caption: str, runs: dict[str, list[Run]]) -> Table:
    """Medians and spreads of every load of a section."""
    head = ["load", "answers/s", "over the rounds", "p50 ms", "p99 ms", "points/s", "load's CPU"]
    rows = []
    for name, each in runs.items():
        rates = of(each, "rate")
        if not any(rates):
            rows.append([name, "", "", "", "", _number(median(each, "points")), ""])
            continue
        points = median(each, "points")
        rows.append(
            [
                name,
                _number(median(each, "rate")),
                f"{_number(min(rates))} to {_number(max(rates))}",
                f"{median(each, 'p50'):.1f}",
                f"{median(each, 'p99'):.1f}",
                _number(points) if points else "",
                f"{median(each, 'cpu'):.0%}",
            ]
        )
    return Table(caption, head, rows)


def raw_runs(runs: dict[str, list[Run]]) -> dict[str, list[dict[str, float]]]:
    """Every run, for the JSON file."""
    return {name: [asdict(run) for run in each] for name, each in runs.items()}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text_of(sections: dict[str, Section], command: str, seconds: float) -> str:
    """The whole report in Markdown."""
    figures = [figure.cells() for section in sections.values() for figure in section.figures]
    parts = [
        f"`{command}` on {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes; {machine()}.",
        markdown(["figure", "value", "over the rounds", "aim", ""], figures),
    ]
    for section in sections.values():
        parts += [f"{table.caption}\n\n{markdown(table.head, table.rows)}" for table in section.tables]
    return "\n\n".join(parts)


def machine() -> str:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {name}, Python {platform.python_version()}"


def put_into_readme(readme: Path, text: str) -> None:
    """Replaces what stands between the markers."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _number(value: float) -> str:
    if value != value or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:.2g}" if value else "0"
