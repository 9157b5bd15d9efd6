"""Whatever is installed is in CONTRIBUTING.md: what it is there for, its licence, and who maintains it."""

from __future__ import annotations

from tests.dependencies import PAGE, declared, table


def test_every_dependency_is_accounted_for() -> None:
    known = table(PAGE.read_text())
    assert list(known) == declared(), "`python -m tests.dependencies` renews the table"
    for name, told in known.items():
        assert all(told), name
