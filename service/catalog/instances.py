"""From an instance, as a request brings it, to the model's input row."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from service.catalog.images import decode
from service.catalog.inputs import ImageInputs, TokenInputs
from service.catalog.manifest import Manifest
from service.catalog.sequences import Spans, TextTokenizer, read_sequence
from service.catalog.tables import Category, Feature, TabularInputs
from service.errors import InvalidRequest

Row = tuple[float, ...]


def read_instance(manifest: Manifest, instance: object, tokenizer: TextTokenizer | None = None) -> Row:
    """The model's input row for one instance, in the artefact's own units, flat.

    A table row is an object by feature name or a list in feature order; an image nested lists by channel, row and
    column, of which one channel needs no list of its own, or an object with a file in `image`; tokens are a list, or an
    object with `tokens`, and where the manifest says so a `text`, which needs the `tokenizer`, or a file in `bytes`.
    Raises InvalidRequest, naming what is missing, unknown, not a number or out of its range.
    """
    return read_with_spans(manifest, instance, tokenizer)[0]


def read_with_spans(
    manifest: Manifest, instance: object, tokenizer: TextTokenizer | None = None
) -> tuple[Row, Spans | None]:
    """As `read_instance`, and where in a text or a file the tokens are."""
    match manifest.inputs:
        case TabularInputs():
            return _table_row(manifest.inputs, instance), None
        case ImageInputs():
            return _pixels(manifest.inputs, instance), None
        case TokenInputs():
            read = read_sequence(manifest.inputs, instance, tokenizer)
            return read.tokens, read.spans


def known(what: str, names: Iterable[object]) -> str:
    """What may be asked for, as an error says it."""
    listed_names = ", ".join(str(name) for name in names)
    return f"the {what} are {listed_names}" if listed_names else f"there are no {what}"


def _table_row(inputs: TabularInputs, instance: object) -> Row:
    features = inputs.features
    if isinstance(instance, Mapping):
        values: Sequence[object] = _by_name(inputs.names, instance)
    elif isinstance(instance, Sequence) and not isinstance(instance, str):
        if len(instance) != len(features):
            raise InvalidRequest(f"the instance has {len(instance)} values, the model has {len(features)} features")
        values = instance
    else:
        raise InvalidRequest("an instance is an object by feature name, or a list in feature order")
    known_ranges = zip(features, values, inputs.ranges_of_fractions, strict=True)
    return tuple(
        [
            value if type(value) is float and low <= value <= high else _number(feature, value)
            for feature, value, (low, high) in known_ranges
        ]
    )


def _by_name(names: Sequence[str], instance: Mapping[str, object]) -> list[object]:
    values = [instance[name] for name in names if name in instance]
    if len(values) == len(names) == len(instance):
        return values
    missing = [name for name in names if name not in instance]
    expected = set(names)
    unknown = [name for name in instance if name not in expected]
    hint = _did_you_mean(unknown, missing or names)
    if missing:
        also = f"; not known: {_listed(unknown)}" if unknown else ""
        raise InvalidRequest(f"missing: {_listed(missing)}{also}{hint}")
    raise InvalidRequest(f"the model has no feature {_listed(unknown)}{hint}")


def _number(feature: Feature, value: object) -> float:
    if value is None and feature.imputed is not None:
        return feature.imputed
    if feature.categories:
        return _place(feature, value)
    if type(value) is not float and type(value) is not int:
        wanted = "a number" if feature.missing is None else "a number or null"
        raise InvalidRequest(f"{feature.name} must be {wanted}")
    low, high = feature.range
    if not low <= value <= high:
        unit = "" if feature.unit == "1" else f" ({feature.unit})"
        least, most = _figure(low), _figure(high)
        raise InvalidRequest(f"{feature.name} is {_figure(value)}, outside its range from {least} to {most}{unit}")
    if feature.whole and value != int(value):
        raise InvalidRequest(f"{feature.name} is {_figure(value)}; it must be a whole number")
    if feature.whole and float(value) != value:
        raise InvalidRequest(
            f"{feature.name} is {value}, which double precision does not hold; the nearest that it does is "
            f"{int(float(value))}"
        )
    return float(value)


def _figure(value: float) -> str:
    """A number in few digits, or in all where few are not enough to tell it from its neighbours."""
    short = f"{value:g}"
    if float(short) == value or value != value:
        return short
    return str(int(value)) if value == int(value) else repr(value)


def _place(feature: Feature, value: object) -> float:
    """The place of a category; of text or a whole number, as the manifest has it."""
    if type(value) in (str, int) and value in feature.places:
        return float(feature.places[value])
    null = "" if feature.missing is None else ", or null"
    raise InvalidRequest(f"{feature.name} must be one of {_listed(feature.categories, most=20)}{null}")


def shown_row(manifest: Manifest, row: Row) -> dict[str, Category | float] | Row:
    """A row as an instance has it: of a table by name, categories as they are called; else as it is."""
    inputs = manifest.inputs
    if not isinstance(inputs, TabularInputs):
        return row
    if not inputs.has_categories:
        return dict(zip(inputs.names, row, strict=True))
    return {feature.name: feature.shown(value) for feature, value in zip(inputs.features, row, strict=True)}


def _did_you_mean(unknown: Sequence[str], names: Iterable[str]) -> str:
    close = difflib.get_close_matches(unknown[0][:64], list(names), 1) if unknown else []
    return f"; did you mean {close[0]}?" if close else ""


def _listed(names: Sequence[str | int], most: int = 5) -> str:
    shown = ", ".join(str(name)[:64] for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _pixels(inputs: ImageInputs, instance: object) -> Row:
    channels, height, width = inputs.shape
    nested = instance
    if isinstance(instance, Mapping) and set(instance) == {"image"} and isinstance(instance["image"], str):
        nested = decode(inputs, instance["image"]).tolist()
    if channels == 1 and isinstance(nested, Sequence) and len(nested) == height and height != 1:
        nested = [nested]
    values = tuple(_leaves(nested, inputs.shape))
    low, high = inputs.range
    for at, value in enumerate(values):
        if not low <= value <= high:
            row, column = divmod(at % (height * width), width)
            raise InvalidRequest(
                f"the pixel in row {row}, column {column} is {value:g}, outside the range from {low:g} to {high:g}"
            )
    return values


def _leaves(nested: object, shape: tuple[int, ...]) -> Iterator[float]:
    if not isinstance(nested, Sequence) or isinstance(nested, str) or len(nested) != shape[0]:
        raise InvalidRequest(
            "an image is nested lists by channel, row and column, as the model's shape says, or a file in `image`"
        )
    for item in nested:
        if len(shape) > 1:
            yield from _leaves(item, shape[1:])
        elif type(item) is float or type(item) is int:
            yield float(item)
        else:
            raise InvalidRequest("every pixel must be a number")
