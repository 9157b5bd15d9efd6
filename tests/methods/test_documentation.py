"""The page for choosing a method names each of them, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import service.methods
from service.methods.registry import METHODS

PAGE = (Path(service.methods.__file__).parent / "README.md").read_text()


def test_every_method_is_in_the_table_of_costs() -> None:
    table = PAGE.partition("| method | points |")[2].partition("\n\n")[0]
    named = re.findall(r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert sorted(named) == sorted(entry.name for entry in METHODS)


def test_every_method_says_what_it_is_costs_and_comes_from() -> None:
    for entry in METHODS:
        assert entry.description, entry.name
        assert entry.citation, entry.name
        assert entry.cost, entry.name
        assert all(option.description for option in entry.options), entry.name
