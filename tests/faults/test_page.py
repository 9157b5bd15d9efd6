"""The table of faults names tests that there are, for `make faults` to run."""

from __future__ import annotations

import re

from tests.faults.__main__ import BY_HAND, PAGE, TESTS, rows


def test_every_row_names_its_tests_or_says_that_it_is_measured_by_hand() -> None:
    page = PAGE.read_text()
    table = list(rows(page))
    assert len(table) > 35
    for row in table:
        assert row.promise
        assert row.tests or f"| {row.fault} | {row.promise} | {BY_HAND} |" in page, row.fault
        for test in row.tests:
            file, _, name = test.partition("::")
            text = (TESTS.parent / file).read_text()
            assert re.search(rf"^(async )?def {name.partition('[')[0] or 'test_'}", text, re.MULTILINE), test
