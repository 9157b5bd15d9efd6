"""Review rules of a manifest: which explanations a person should look at.

A rule is one comparison, `quantity > threshold`, or a condition on the label; there is nothing else:

    rule       = quantity comparator threshold | "label" ("==" | "!=") label
    comparator = ">" | ">=" | "<" | "<="
    threshold  = number | [number "*"] quantity
    quantity   = name ["(" output ")"]

as in `protected_share > 0.2`, `completeness_error > tolerance`, `attribution_error > 2 * tolerance`, `margin < 0.1`,
`probability(denied) > 0.8`, `value(price) >= 1000000`, `segment_share(context) < 0.3`, `label == denied`. Which
quantities a model has depends on its kind of output, and which segments on its inputs.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

QUANTITIES = {
    "protected_share": "the share of the protected features in the sum of absolute attributions",
    "segment_share": "the share of the segment in brackets in the sum of absolute attributions",
    "rank_stability": "the lowest rank correlation near the input, of requests that ask for `stability`",
    "completeness_error": "the relative completeness error",
    "attribution_error": "the estimated relative error of the attributions",
    "tolerance": "the completeness error that the request accepted",
    "evaluations": "the gradient points spent",
    "output": "the explained output",
    "change": "the absolute difference between the output and the baseline's",
    "margin": "the largest output less the second largest",
    "probability": "the likeliest label's probability, or that of the label in brackets",
    "value": "the value, or the one in brackets",
}
OF_OUTPUTS = frozenset({"margin", "probability", "value"})
"""Quantities that the kind of output defines; those that a prediction alone has."""
COMPARATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
PROTECTED_SHARE = "protected_share"
SEGMENT_SHARE = "segment_share"
RANK_STABILITY = "rank_stability"
LABEL = "label"
NAME = r"^[a-z][a-z0-9_]{0,31}$"
MAX_RULES = 5
MAX_COHORTS = 8
"""Flags and cohorts become labels of metrics, so there may be only few."""
_QUANTITY = r"[a-z_]+(?:\([^()'\"]+\))?"
_RULE = re.compile(rf"\s*(?P<quantity>{_QUANTITY})\s*(?P<comparator>[<>]=?)\s*(?P<threshold>\S.*?)\s*")
_PRODUCT = re.compile(rf"(?:(?P<factor>[^*\s]+)\s*\*\s*)?(?P<quantity>{_QUANTITY})")
_CONDITION = re.compile(r"\s*label\s*(?P<comparator>[=!]=)\s*(?P<label>\S.*?)\s*")

Figure = float | frozenset[str] | None
"""The value of a quantity, or the predicted labels, for conditions; None where there is none."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether a `label` is predicted, or is not."""

    label: str
    is_wanted: bool

    def fires(self, figures: Mapping[str, Figure]) -> bool:
        """Whether it holds; never where nothing was predicted."""
        labels = figures[LABEL]
        return isinstance(labels, frozenset) and (self.label in labels) == self.is_wanted

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it is held against."""
        return (LABEL,)


@dataclass(frozen=True, slots=True)
class ReviewRule:
    """`quantity` compared with `factor`, or with `factor` times the quantity `of`."""

    quantity: str
    comparator: str
    factor: float
    of: str | None = None

    def fires(self, figures: Mapping[str, Figure]) -> bool:
        """Whether it holds; never where a figure that it names is missing."""
        value = figures[self.quantity]
        scale = 1.0 if self.of is None else figures[self.of]
        if not isinstance(value, float | int) or not isinstance(scale, float | int):
            return False
        return bool(COMPARATORS[self.comparator](value, self.factor * scale))

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that it names."""
        return (self.quantity,) if self.of is None else (self.quantity, self.of)


Rule = ReviewRule | Condition


def named_by(rule: Rule) -> list[tuple[str, str | None]]:
    """What a rule names of the outputs, for their kind to check: each quantity, and of which output."""
    if isinstance(rule, Condition):
        return [(LABEL, rule.label)]
    return [pair for pair in map(parts_of, rule.quantities) if pair[0] in OF_OUTPUTS]


def parts_of(quantity: str) -> tuple[str, str | None]:
    """A quantity's name, and the output in its brackets."""
    name, _, of = quantity.partition("(")
    return name, of.removesuffix(")").strip() or None


def parse(text: str) -> Rule:
    """The rule that a manifest spells. Raises ValueError, which says what is wrong."""
    condition = _CONDITION.fullmatch(text)
    if condition is not None:
        return Condition(condition["label"].strip("'\""), condition["comparator"] == "==")
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no rule; one looks like `protected_share > 0.2`")
    quantity, comparator, threshold = match["quantity"], match["comparator"], match["threshold"]
    _check_quantity(quantity)
    if (number := _number(threshold)) is not None:
        return ReviewRule(quantity, comparator, number)
    product = _PRODUCT.fullmatch(threshold)
    factor = 1.0 if product is None or product["factor"] is None else _number(product["factor"])
    if product is None or factor is None:
        raise ValueError(f"{threshold!r} is neither a number nor a quantity, nor a number times one")
    _check_quantity(product["quantity"])
    if product["quantity"] == quantity:
        raise ValueError(f"{text!r} compares {quantity} with itself")
    return ReviewRule(quantity, comparator, factor, product["quantity"])


def _check_quantity(quantity: str) -> None:
    name, of = parts_of(quantity)
    if name not in QUANTITIES:
        raise ValueError(f"{name!r} is not a quantity; the quantities are {', '.join(QUANTITIES)}")
    if name == SEGMENT_SHARE and of is None:
        raise ValueError(f"{quantity!r} is of a segment, whose name stands in brackets behind it")
    if of is not None and name not in {*OF_OUTPUTS, SEGMENT_SHARE}:
        raise ValueError(f"{quantity!r}: {name} is not of one output, so nothing stands in brackets behind it")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read(declared: Any) -> Any:
    return parse(declared) if isinstance(declared, str) else declared


SpelledRule = Annotated[Rule, BeforeValidator(_read)]
"""A rule as a manifest has it: one line of text."""


class Review(BaseModel):
    """What flags an explanation for review, and whose protected share is watched.

    Each of the `rules` has a name, which is the flag that it raises. `protected_share: 0.2` is short for the rule
    `protected_share: protected_share > 0.2`. `cohorts` are the values of cohort tags that dashboards show separately:
    tags are free text of the caller, and no others become labels of metrics.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protected_share: float | None = Field(default=None, ge=0, le=1)
    rules: Mapping[Annotated[str, Field(pattern=NAME)], SpelledRule] = {}
    cohorts: Mapping[Annotated[str, Field(pattern=NAME)], tuple[Annotated[str, Field(max_length=64)], ...]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Review:
        if self.protected_share is not None and PROTECTED_SHARE in self.rules:
            raise ValueError(f"{PROTECTED_SHARE} is given twice")
        if len(self.all_rules) > MAX_RULES:
            raise ValueError(f"there are {len(self.all_rules)} rules; {MAX_RULES} at most")
        if len(self.all_cohorts) > MAX_COHORTS:
            raise ValueError(f"there are {len(self.all_cohorts)} cohorts; {MAX_COHORTS} at most")
        if len(set(self.all_cohorts)) < len(self.all_cohorts):
            raise ValueError("a cohort is given twice")
        return self

    @cached_property
    def all_rules(self) -> dict[str, Rule]:
        """The rules by the flag that they raise."""
        if self.protected_share is None:
            return dict(self.rules)
        return {PROTECTED_SHARE: ReviewRule(PROTECTED_SHARE, ">", self.protected_share), **self.rules}

    @cached_property
    def all_cohorts(self) -> tuple[tuple[str, str], ...]:
        """(tag, value) of every cohort."""
        return tuple((tag, value) for tag, values in self.cohorts.items() for value in values)

    @cached_property
    def segments(self) -> frozenset[str]:
        """The segments whose shares the rules name."""
        named = map(parts_of, self.quantities)
        return frozenset(of for name, of in named if name == SEGMENT_SHARE and of is not None)

    @cached_property
    def quantities(self) -> frozenset[str]:
        """All that the rules name."""
        return frozenset(name for rule in self.all_rules.values() for name in rule.quantities)
