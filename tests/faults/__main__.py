"""Runs the tests of every row of the table in README.md at full size, and prints what each has shown.

`python -m tests.faults` takes them all, one after the other; `python -m tests.faults worker redis` those rows whose
fault has one of these words in it. Ends with 1 where one does not hold.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parent / "README.md"
TESTS = Path(__file__).parents[1]
BY_HAND = "by hand"
REFERENCE = re.compile(r"`(?:([\w/]+\.py))?(?:::(test_\w+)(?:\[([^\]`]+)\])?)?`")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table. `tests` are pytest's arguments; there are none where the figure is measured by hand."""

    fault: str
    promise: str
    tests: tuple[str, ...]


def rows(page: str) -> Iterator[Row]:
    """The rows of the first table; a test without a file is in the file of the one before it."""
    for line in page.partition("\n| fault |")[2].partition("\n\n")[0].splitlines()[2:]:
        fault, promise, told = (cell.strip() for cell in line.strip().strip("|").split(" | "))
        tests, file = [], ""
        for named, test, case in REFERENCE.findall(told):
            if named:
                file = named if "/" in named else f"faults/{named}"
            elif not test:
                continue
            tests.append(f"tests/{file}" + (f"::{test}" if test else "") + (f"[{case}]" if case else ""))
        yield Row(fault, promise, tuple(tests))


def run(row: Row) -> tuple[bool, str]:
    """Whether its tests pass, and what they say that they have seen."""
    if not row.tests:
        return True, f"not run: {BY_HAND}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "slow or not slow", "--timeout", "7200", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"--basetemp={folder}/tests", *row.tests],
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            return False, done.stdout[-500:]
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    count, bad = int(suite.get("tests", 0)), int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    seen = [f"{each.get('name')}: {each.get('value')}" for each in suite.iter("property")]
    told = f"{count - bad - skipped} of {count} tests pass" + (f", {skipped} are skipped" if skipped else "")
    return done.returncode == 0, "; ".join([told, *seen])


def main(words: Sequence[str]) -> int:
    holds = True
    print("| fault | what is promised | what was seen |\n| --- | --- | --- |")
    for row in rows(PAGE.read_text()):
        if words and not any(word.lower() in row.fault.lower() for word in words):
            continue
        passed, seen = run(row)
        holds &= passed
        print(f"| {row.fault} | {row.promise} | {'' if passed else '**fails**: '}{seen} |", flush=True)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
