"""The pages: what they lead to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + [
    page for room in ("deploy", "models", "service", "tests") for page in sorted((ROOT / room).rglob("*.md"))
]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]

    assert not lost


def test_the_first_page_leads_to_every_room_with_a_page_for_users() -> None:
    links = {(ROOT / target).resolve() for target in LINK.findall((ROOT / "README.md").read_text())}

    for room in (
        "service/api",
        "service/access",
        "service/ledger",
        "service/methods",
        "service/numerics",
        "models",
        "deploy",
    ):
        assert ROOT / room / "README.md" in links, room


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:service|tests|deploy)/[\w./-]+\.\w+)(?:::\w+)?`", page.read_text())

    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_map_of_the_code_has_every_room() -> None:
    rows = "".join(re.findall(r"(?m)^\| (`.+?) \|", (ROOT / "CONTRIBUTING.md").read_text()))
    rooms = {f"{path.name}/" for path in (ROOT / "service").iterdir() if (path / "__init__.py").exists()}
    files = {path.name for path in (ROOT / "service").glob("*.py")} - {"__init__.py"}

    assert [name for name in sorted(rooms | files) if f"`{name}`" not in rows] == []
