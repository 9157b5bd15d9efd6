"""Review rules: what they say, and what no rule is."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.catalog.review_rules import COMPARATORS, QUANTITIES, SEGMENT_SHARE, Review, ReviewRule, parse

quantities = st.sampled_from([f"{name}(context)" if name == SEGMENT_SHARE else name for name in QUANTITIES])
comparators = st.sampled_from(list(COMPARATORS))
numbers = st.floats(-1e9, 1e9)
spaces = st.sampled_from(["", " ", "  "])
figures = st.one_of(st.none(), numbers)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("protected_share > 0.2", ReviewRule("protected_share", ">", 0.2)),
        ("completeness_error>tolerance", ReviewRule("completeness_error", ">", 1.0, "tolerance")),
        ("attribution_error >= 2 * tolerance", ReviewRule("attribution_error", ">=", 2.0, "tolerance")),
        ("attribution_error >= .5*tolerance", ReviewRule("attribution_error", ">=", 0.5, "tolerance")),
        ("  margin < 1e-1 ", ReviewRule("margin", "<", 0.1)),
        ("output <= -0.5", ReviewRule("output", "<=", -0.5)),
        ("segment_share(context) < 0.3", ReviewRule("segment_share(context)", "<", 0.3)),
    ],
)
def test_a_rule_is_read(text: str, rule: ReviewRule) -> None:
    assert parse(text) == rule


@given(quantities, comparators, numbers, spaces, figures)
def test_a_rule_against_a_number_fires_when_the_comparison_holds(
    quantity: str, comparator: str, threshold: float, space: str, value: float | None
) -> None:
    compare = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}[comparator]

    fires = parse(f"{quantity}{space}{comparator}{space}{threshold!r}").fires({quantity: value})

    assert fires == (value is not None and compare(value, threshold))


@given(comparators, st.floats(-100, 100), figures, figures)
def test_a_rule_against_a_quantity_fires_when_the_comparison_holds(
    comparator: str, factor: float, value: float | None, unit: float | None
) -> None:
    compare = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}[comparator]

    fires = parse(f"completeness_error {comparator} {factor!r} * tolerance").fires(
        {"completeness_error": value, "tolerance": unit}
    )

    assert fires == (value is not None and unit is not None and compare(value, factor * unit))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no rule"),
        ("protected_share", "is no rule"),
        ("protected_share = 0.2", "is no rule"),
        ("protected_share > ", "is no rule"),
        ("0.2 < protected_share", "is no rule"),
        ("protected_share >> 0.2", "neither a number nor a quantity"),
        ("applicant_income > 3", "is not a quantity; the quantities are protected_share,"),
        ("protected_share > nan", "is not a quantity"),
        ("protected_share > inf", "is not a quantity"),
        ("protected_share > 1e999", "neither a number nor a quantity"),
        ("protected_share > x * tolerance", "neither a number nor a quantity"),
        ("protected_share > 2 * 3", "neither a number nor a quantity"),
        ("protected_share > protected_share", "with itself"),
        ("segment_share < 0.3", "is of a segment, whose name stands in brackets"),
        ("protected_share(context) < 0.3", "is not of one output"),
        ("output > 0.2 and margin < 0.1", "neither a number nor a quantity"),
        ("output > __import__('os')", "neither a number nor a quantity"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse(text)

    assert complaint in str(refusal.value)
    with pytest.raises(ValidationError):
        Review.model_validate({"rules": {"flag": text}})


def test_the_short_form_is_the_rule_of_the_same_name() -> None:
    short = Review.model_validate({"protected_share": 0.2})
    spelled = Review.model_validate({"rules": {"protected_share": "protected_share > 0.2"}})

    assert short.all_rules == spelled.all_rules
    assert short.quantities == {"protected_share"}


@pytest.mark.parametrize(
    "review",
    [
        {"protected_share": 0.2, "rules": {"protected_share": "protected_share > 0.1"}},
        {"rules": {f"rule{number}": "output > 0" for number in range(6)}},
        {"rules": {"Not A Flag": "output > 0"}},
        {"rules": {"flag": 3}},
        {"cohorts": {"channel": [str(number) for number in range(9)]}},
        {"cohorts": {"channel": ["web", "web"]}},
        {"cohorts": {"Channel!": ["web"]}},
        {"cohorts": {"channel": ["w" * 65]}},
        {"unknown": 1},
    ],
)
def test_what_would_be_too_much_or_twice_is_refused(review: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Review.model_validate(review)
