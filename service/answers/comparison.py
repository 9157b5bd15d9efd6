"""Compares an explanation on record with the same explanation computed now.

They are equal when every bit is. A tolerance applies to measured figures only: in each field, the sum of the absolute
differences may be at most the tolerance times the sum of the absolute figures. All else (a label, a shape, a token)
must be equal. The cost of the explanation and its error estimates have no influence on whether it is within tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.access.visibility import Item, marks_of
from service.answers.encoding import encode
from service.answers.explanation import Explained
from service.answers.reading import UnreadableValues
from service.catalog.inputs.registry import AnyAttributions
from service.catalog.outputs.registry import AnyPrediction

Numbers = Literal["equal", "within_tolerance", "differ"]

COMPARED = (
    "target",
    "output",
    "baseline_output",
    "attributions",
    "completeness",
    "completeness_error",
    "attribution_error",
    "standard_error",
    "segments",
    "interactions",
    "groups",
    "continuation",
    "noise",
    "converged",
    "reason",
    "evaluations",
    "prediction",
    "rule",
)
"""Of an explanation, everything that was computed."""
COURSE = frozenset({"completeness_error", "attribution_error", "converged", "reason", "evaluations"})
"""How the computation went, not what it resulted in."""


@dataclass(frozen=True, slots=True)
class Computed:
    """One side of the comparison: an explanation, the prediction, and the quadrature rule."""

    explanation: Explained
    prediction: AnyPrediction | None
    rule: str | None

    def field(self, name: str) -> Any:
        """One of the fields that are compared."""
        return getattr(self if name in ("prediction", "rule") else self.explanation, name)


def compared(recorded: Computed, now: Computed, tolerance: float) -> tuple[Numbers, float, tuple[str, ...]]:
    """How the numbers of both compare, the largest absolute difference, and the fields that differ."""
    fields = [name for name in COMPARED if _as_recorded(recorded.field(name)) != _as_recorded(now.field(name))]
    if not fields:
        return "equal", 0.0, ()
    distances = [_distance(recorded.field(name), now.field(name)) for name in fields if name not in COURSE]
    largest = max((distance.largest for distance in distances), default=0.0)
    is_close = all(distance.is_of_figures and distance.total <= tolerance * distance.size for distance in distances)
    return "within_tolerance" if is_close else "differ", largest, tuple(fields)


def _as_recorded(value: object) -> bytes:
    """The bytes in a record, in which -0.0 is not 0.0, and 1 is not 1.0."""
    return encode(value, sorted_names=True)


@dataclass(frozen=True, slots=True)
class _Distance:
    """Between two states of a field: the largest difference of two figures, the sum of all, and the sum of the second's
    absolute figures; `is_of_figures` says that nothing but figures differs."""

    largest: float
    total: float
    size: float
    is_of_figures: bool


def _distance(recorded: object, now: object) -> _Distance:
    (before, rest_before), (after, rest_after) = _figures_and_rest(recorded), _figures_and_rest(now)
    each = [abs(a - b) for a, b in zip(before, after, strict=False)]
    is_of_figures = len(before) == len(after) and _as_recorded(rest_before) == _as_recorded(rest_after)
    return _Distance(max(each, default=0.0), sum(each), sum(map(abs, after)), is_of_figures)


def _figures_and_rest(field: Any) -> tuple[list[float], object]:
    """The figures of a field, which a tolerance applies to, and the rest of it, which must be equal."""
    figures, rest = _split(field)
    are_numbers = all(type(figure) in (int, float) for figure in figures)  # a record may have been changed
    return (figures, rest) if are_numbers else ([], field)


def _split(field: Any) -> tuple[list[Any], object]:
    if isinstance(field, AnyAttributions | UnreadableValues):
        return [*field.numbers], field.structure
    if isinstance(field, tuple):
        return _joined(map(_split, field))
    if isinstance(field, Mapping):
        figures, rests = _split(tuple(field.values()))
        return figures, [[*field], rests]
    if not isinstance(field, Item):
        return ([field], None) if isinstance(field, float | int) else ([], field)
    kind: Any = type(field)
    members, marks = {**vars(field)}, marks_of(kind)
    measured = [name for name in members if name in marks and marks[name].is_measured]
    figures, parts = _joined(_split(members.pop(name)) for name in measured)
    return figures, [members, parts]


def _joined(parts: Iterable[tuple[list[Any], object]]) -> tuple[list[Any], object]:
    """The figures of several parts one after another; and for each part how many figures it has, with its rest."""
    figures: list[Any] = []
    rests: list[object] = []
    for own, rest in parts:
        figures += own
        rests.append([len(own), rest])
    return figures, rests
