"""The table of dependencies in CONTRIBUTING.md: `python -m tests.dependencies` renews it from the packages.

What a package is there for is written by hand, and kept; its licence and who maintains it are what it says of itself.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
MEANINGLESS = ("UNKNOWN", "LICENSE")
HEAD = "| package | what it is there for | licence | maintained by |\n| --- | --- | --- | --- |\n"


def declared() -> list[str]:
    """Every package that pyproject.toml asks for, each once, those of a plain installation first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = [found[0] for one in asked if (found := re.match(r"[\w.-]+", one))]
    return [name for name in dict.fromkeys(names) if name != project["name"]]


def table(page: str) -> dict[str, tuple[str, str, str]]:
    """Of each package in the table: what for, its licence, and who maintains it."""
    rows = page.partition(HEAD)[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name.strip("`"): (reason, licence, maintainer) for name, reason, licence, maintainer in cells}


def said(name: str) -> tuple[str, str]:
    """The licence and the maintainer that the installed package names, empty where it does not."""
    try:
        told = metadata(name)
    except PackageNotFoundError:
        return "", ""
    classifiers = [one.rpartition(" :: ")[2] for one in told.get_all("Classifier", []) if one.startswith("License ::")]
    licence = told["License-Expression"] or ", ".join(classifiers) or (told["License"] or "").partition("\n")[0]
    fields = ("Author", "Author-email", "Maintainer", "Maintainer-email")
    people = next((str(told[field]) for field in fields if told[field]), "")
    names = [one.strip() for one in re.sub(r"<[^>]*>?", "", people).replace('"', "").split(",") if "@" not in one]
    owner = re.search(r"github\.com/([\w-]+)/", " ".join(told.get_all("Project-URL", [])))
    if not people and owner:
        names = [f"{owner[1]} (owner of the repository)"]
    return "" if licence in MEANINGLESS else licence, ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def lines(known: dict[str, tuple[str, str, str]]) -> Iterator[str]:
    for name in declared():
        reason, *before = known.get(name, ("", "", ""))
        licence, maintainer = (new or old for new, old in zip(said(name), before, strict=True))
        yield f"| `{name}` | {reason} | {licence} | {maintainer} |\n"


def main() -> int:
    page = PAGE.read_text()
    before, head, rest = page.partition(HEAD)
    after = rest.partition("\n\n")[2]
    PAGE.write_text(before + head + "".join(lines(table(page))) + ("\n" + after if after else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
