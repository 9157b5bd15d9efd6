"""Two states of one explanation compared: a record, and what is computed now.

They are equal when every bit is. A tolerance applies to values alone, field by field, in sum and relative to the sum of
their sizes; all else that an explanation says (a label, a shape, a token) must be equal. What the explanation cost and
how far it is off do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import orjson

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
    "interactions",
    "groups",
    "noise",
    "converged",
    "reason",
    "evaluations",
    "prediction",
    "rule",
)
"""Of an explanation, everything that was computed."""
COURSE = frozenset({"completeness_error", "attribution_error", "converged", "reason", "evaluations"})
"""How the numbers came about, not what they say."""
VALUES_OF_GROUPS = ("dividend", "value")


def compared(
    record: Mapping[str, Any], now: Mapping[str, Any], tolerance: float
) -> tuple[Numbers, float, tuple[str, ...]]:
    """How the numbers of both compare, the largest absolute difference, and the fields that differ."""
    fields = [name for name in COMPARED if _written(record.get(name)) != _written(now.get(name))]
    if not fields:
        return "equal", 0.0, ()
    differences = {name: _difference(name, record.get(name), now.get(name)) for name in fields if name not in COURSE}
    largest = max((found.largest for found in differences.values()), default=0.0)
    is_close = all(found.is_of_values and found.total <= tolerance * found.size for found in differences.values())
    return "within_tolerance" if is_close else "differ", largest, tuple(fields)


def _written(value: object) -> bytes:
    """As the record holds it, so that -0.0 is not 0.0, and 1 is not 1.0."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class _Distance:
    """Between two states of a field: the largest difference of two values, the sum of all, and the sum of the second's
    absolute values; `is_of_values` says that nothing but values differs."""

    largest: float
    total: float
    size: float
    is_of_values: bool


def _difference(name: str, recorded: Any, now: Any) -> _Distance:
    (before, kept), (after, same) = _values_and_rest(name, recorded), _values_and_rest(name, now)
    each = [abs(a - b) for a, b in zip(before, after, strict=False)]
    is_of_values = len(before) == len(after) and _written(kept) == _written(same)
    return _Distance(max(each, default=0.0), sum(each), sum(map(abs, after)), is_of_values)


def _values_and_rest(name: str, field: Any) -> tuple[list[float], object]:
    """The values of a field, which a tolerance applies to, and the rest of it, which must be equal."""
    try:
        values, rest = _parted(name, field)
    except (KeyError, TypeError, AttributeError):  # a record that was changed may hold anything
        return [], field
    return (values, rest) if all(type(value) in (int, float) for value in values) else ([], field)


def _parted(name: str, field: Any) -> tuple[list[Any], object]:
    match name:
        case "output" | "baseline_output":
            return [field], None
        case "attributions" | "standard_error" if isinstance(field, list):
            return [one["attribution"] for one in field], _without(field, "attribution")
        case "attributions" | "standard_error" if isinstance(field.get("values"), list):
            channels = [[value for row in channel for value in row] for channel in field.get("channels", ())]
            return [*field["values"], *chain(*channels)], [field["shape"], *map(len, channels)]
        case "attributions" | "standard_error":
            return [field[feature] for feature in sorted(field)], sorted(field)
        case "interactions":
            return [value for row in field for value in row], [len(row) for row in field]
        case "groups":
            return [group[of] for group in field for of in VALUES_OF_GROUPS], _without(field, *VALUES_OF_GROUPS)
        case "noise":
            return [field["output"]], _without([field], "output")
        case "prediction" if "values" in field:
            return [*field["values"].values()], [[*field["values"]], *_without([field], "values")]
        case "prediction":
            return field["outputs"], _without([field], "outputs")
    return [], field


def _without(items: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name not in names} for item in items]
