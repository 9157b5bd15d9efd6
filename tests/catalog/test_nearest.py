"""What was probably meant, at a bounded cost."""

from __future__ import annotations

import pytest

from service.catalog.nearest import MAX_COMPARED, MAX_SEARCHES, Searches, _compared, did_you_mean, listed


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("loan_amont", "; did you mean loan_amount?"),
        ("zodiac", ""),
        ("", ""),
        (5, ""),
        (None, ""),
        (["loan_amount"], ""),
        ("loan_amount" * 1_000_000, ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_nearest_name(given: object, hint: str) -> None:
    assert did_you_mean(given, ["age", "loan_amount", 7, "loan_term"]) == hint


def test_of_many_names_those_that_begin_alike_are_compared() -> None:
    names = [f"{letter}{number:04}" for letter in "abcdefghij" for number in range(1000)]

    assert did_you_mean("J0001x", names) == "; did you mean j0001?"
    assert len(_compared("a0001x", names)) == MAX_COMPARED
    assert _compared("z", names) == []
    assert "x" * 65 not in _compared("x", ["x" * 65, "x"])


def test_a_request_has_so_many_searches() -> None:
    searches = Searches()

    hints = [searches.hint("agee", ["age"]) for _ in range(MAX_SEARCHES + 5)]

    assert hints == ["; did you mean age?"] * MAX_SEARCHES + [""] * 5


def test_a_list_is_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(["x" * 100, *range(9)], most=2) == "x" * 64 + ", 0 and 8 more"
    assert listed(["a", "b"], most=2, count=7) == "a, b and 5 more"
