"""The row of a table from an instance, or all that is wrong with it.

A correct instance is read in one pass over its values. Only a wrong one is read again, value by value, to find all
faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from reprlib import repr as abridged
from typing import TYPE_CHECKING

from service.catalog.inputs.features import Feature
from service.catalog.nearest import MAX_CHARACTERS_SHOWN, Searches, listed
from service.errors import MAX_FAULTS, Fault, InvalidRequest, Kind, invalid, pointer_to

if TYPE_CHECKING:
    from service.catalog.inputs.tabular import TabularInputs

MAX_FAULTS_NAMED = 3
"""The most values whose faults are in the error's sentence; its list of faults has all that are reported."""


def read_row(inputs: TabularInputs, instance: object, searches: Searches) -> tuple[float, ...]:
    """A number for each feature. Raises InvalidRequest with every fault of the instance, `MAX_FAULTS` at most."""
    names = inputs.names
    if isinstance(instance, Mapping):
        values: Sequence[object] = [instance[name] for name in names if name in instance]
        if not len(values) == len(names) == len(instance):
            raise _refusal(inputs, instance, searches)
    elif isinstance(instance, Sequence) and not isinstance(instance, str):
        if len(instance) != len(names):
            detail = f"the instance has {len(instance)} values, the model has {len(names)} features"
            raise invalid(Kind.WRONG_INSTANCE, "", detail)
        values = instance
    else:
        detail = "an instance is an object by feature name, or a list in feature order"
        raise invalid(Kind.WRONG_INSTANCE, "", detail)
    try:
        return tuple(
            [
                value if type(value) is float and low <= value <= high else read_number(feature, value)
                for feature, value, (low, high) in zip(inputs.features, values, inputs.ranges_of_fractions, strict=True)
            ]
        )
    except InvalidRequest:
        raise _refusal(inputs, instance, searches) from None


def _refusal(
    inputs: TabularInputs, instance: Mapping[str, object] | Sequence[object], searches: Searches
) -> InvalidRequest:
    """The error of an instance that is an object, or a list of the right length."""
    if not isinstance(instance, Mapping):
        numbered = zip(inputs.features, enumerate(instance), strict=True)
        in_order = ((feature, at, value) for feature, (at, value) in numbered)
        wrong = [*islice(_wrong_values(in_order, searches), MAX_FAULTS)]
        return InvalidRequest(_sentence_of(wrong), *wrong)
    expected = set(inputs.names)
    missing = [name for name in inputs.names if name not in instance]
    unknown = [*islice((name for name in instance if name not in expected), MAX_FAULTS)]
    hints = [searches.hint(name, missing or inputs.names) for name in unknown]
    there = ((feature, feature.name, instance[feature.name]) for feature in inputs.features if feature.name in instance)
    wrong = [*islice(_wrong_values(there, searches), MAX_FAULTS)]
    faults = [Fault(Kind.MISSING_FEATURE, pointer_to(name), f"{name} is missing") for name in missing[:MAX_FAULTS]]
    faults += [
        Fault(Kind.UNKNOWN_FEATURE, pointer_to(name), f"the model has no feature {name[:MAX_CHARACTERS_SHOWN]}{hint}")
        for name, hint in zip(unknown, hints, strict=True)
    ]
    unknown_names = listed(unknown, count=len(instance) - len(expected) + len(missing))
    parts = [f"missing: {listed(missing)}"] if missing else []
    if unknown:
        parts.append(f"{'not known:' if missing else 'the model has no feature'} {unknown_names}{hints[0]}")
    parts += [_sentence_of(wrong)] if wrong else []
    return InvalidRequest("; ".join(parts), *[*faults, *wrong][:MAX_FAULTS])


def _wrong_values(values: Iterator[tuple[Feature, str | int, object]], searches: Searches) -> Iterator[Fault]:
    """The faults of values, each with its feature and its place in the instance."""
    for feature, place, value in values:
        try:
            read_number(feature, value)
        except InvalidRequest as error:
            (fault,) = error.faults
            hint = searches.hint(value, feature.categories) if fault.kind is Kind.UNKNOWN_CATEGORY else ""
            yield Fault(fault.kind, pointer_to(place), fault.detail + hint)


def _sentence_of(wrong: Sequence[Fault]) -> str:
    """The first faults in one sentence."""
    return "; ".join(fault.detail for fault in wrong[:MAX_FAULTS_NAMED])


def read_number(feature: Feature, value: object) -> float:
    """The number of a value. Raises InvalidRequest with one fault, which does not say where the value stands."""
    if value is None and feature.imputed is not None:
        return feature.imputed
    if feature.categories:
        return _place(feature, value)
    if type(value) is not float and type(value) is not int:
        wanted = "a number" if feature.missing is None else "a number or null"
        raise invalid(Kind.NOT_A_NUMBER, "", f"{feature.name} must be {wanted}")
    low, high = feature.range
    if not low <= value <= high:
        unit = "" if feature.unit == "1" else f" ({feature.unit})"
        detail = f"{feature.name} is {_figure(value)}, outside its range from {_figure(low)} to {_figure(high)}{unit}"
        raise invalid(Kind.OUT_OF_RANGE, "", detail)
    if feature.whole and value != int(value):
        raise invalid(Kind.OUT_OF_RANGE, "", f"{feature.name} is {_figure(value)}; it must be a whole number")
    if feature.whole and float(value) != value:
        nearest = int(float(value))
        detail = (
            f"{feature.name} is {value}, which double precision does not hold; the nearest that it does is {nearest}"
        )
        raise invalid(Kind.OUT_OF_RANGE, "", detail)
    return float(value)


def _figure(value: float) -> str:
    """A number in six digits, or in all where six do not identify it."""
    short = f"{value:g}"
    if float(short) == value or value != value:
        return short
    return str(int(value)) if value == int(value) else repr(value)


def _place(feature: Feature, value: object) -> float:
    """The index of a category, given as text or a whole number like the manifest's."""
    if type(value) in (str, int) and value in feature.places:
        return float(feature.places[value])
    null = "" if feature.missing is None else ", or null"
    text = "null" if value is None else abridged(value)
    detail = f"{feature.name} is {text}; it must be one of {listed(feature.categories, most=20)}{null}"
    raise invalid(Kind.UNKNOWN_CATEGORY, "", detail)
