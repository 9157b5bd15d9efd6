"""How a metric is announced: its name, its options with their bounds, which way is better, and where it does not
apply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from service.domain import OptionValue
from service.faithfulness.subject import Measure, Measuring, Subject
from service.methods.spec import Choice, Facts, Number, everywhere

STEPS = Number("steps", 20, 1, 1000, "how often a part of the components is removed; at most as often as there are any")


class Better(StrEnum):
    """Which way a figure is better."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


Rows = Callable[[Facts], int]
"""How many rows the model is asked for, for one explanation."""


def no_rows(facts: Facts) -> int:  # noqa: ARG001
    """The rows of a metric that reads attributions alone."""
    return 0


def one_curve(facts: Facts) -> int:
    """The rows of one curve, for each row that stands in."""
    return int(facts.number("steps"))


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric by its wire name.

    `removes` says that components are removed, so that what stands in their place is part of the figure. `rows` is how
    many rows the model is asked for, to reckon with when work is admitted; `explains` that so many of them are
    explained anew. With `takes_boxes` it compares a map with boxes that come with the image. `not_applicable` gives the
    reason why it says nothing of a model; None where it does.
    """

    name: str
    measure: Callable[[Subject], Measuring]
    better: Better
    description: str
    citation: str
    removes: bool = False
    takes_boxes: bool = False
    options: tuple[Choice | Number, ...] = ()
    rows: Rows = no_rows
    explains: Callable[[Facts], int] = no_rows
    not_applicable: Callable[[Facts], str | None] = everywhere

    def defaults(self) -> dict[str, OptionValue]:
        """The options where none is named, by name."""
        return {option.name: option.default for option in self.options}

    def expected_points(self, facts: Facts, of_explanation: int) -> int:
        """What a figure is expected to cost where one explanation costs so many points."""
        return self.rows(facts) + of_explanation * self.explains(facts)

    def asked(self, **options: OptionValue) -> Measure:
        """What asks for it, with these options and the usual ones; of a metric that removes nothing."""
        return Measure(self.name, None, tuple(sorted({**self.defaults(), **options}.items())))
