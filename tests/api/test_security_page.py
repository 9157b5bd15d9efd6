"""The page on security names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "service" / "SECURITY.md"
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_promise_names_a_test_that_is_there() -> None:
    _, _, section = PAGE.read_text().partition("\n## What is promised\n")
    promises = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")][2:]

    assert len(promises) > 10
    for promise in promises:
        references = REFERENCE.findall(promise)
        assert references, promise
        for file, name in references:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), name


def test_the_readme_leads_to_it() -> None:
    assert "(service/SECURITY.md)" in (ROOT / "README.md").read_text()
