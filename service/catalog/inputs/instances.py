"""From an instance, as a request brings it, to the model's input row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from service.catalog.inputs.declaration import ImageInputs, TokenInputs
from service.catalog.inputs.images import decode
from service.catalog.inputs.sequences import Spans, TextTokenizer, read_sequence
from service.catalog.inputs.table_rows import read_row
from service.catalog.inputs.tables import Category, TabularInputs
from service.catalog.manifest import Manifest
from service.catalog.nearest import Searches
from service.errors import MOST_FAULTS, Fault, InvalidRequest, Kind, invalid, pointer_to

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
    manifest: Manifest,
    instance: object,
    tokenizer: TextTokenizer | None = None,
    searches: Searches | None = None,
) -> tuple[Row, Spans | None]:
    """As `read_instance`, and where in a text or a file the tokens are.

    `searches` are those for names that were meant, which all instances of a request share.
    """
    match manifest.inputs:
        case TabularInputs():
            return read_row(manifest.inputs, instance, searches or Searches()), None
        case ImageInputs():
            return _pixels(manifest.inputs, instance), None
        case TokenInputs():
            read = read_sequence(manifest.inputs, instance, tokenizer)
            return read.tokens, read.spans


def read_instances(
    manifest: Manifest,
    instances: Sequence[object],
    tokenizer: TextTokenizer | None = None,
    *,
    called: str = "instance",
    pointer: str = "/instances",
) -> Iterator[tuple[Row, Spans | None]]:
    """The rows of a list of instances, and their spans, as far as all are right.

    After the last raises InvalidRequest with the faults of all that are wrong, `MOST_FAULTS` at most; the list is at
    `pointer` in the body, and each of it is `called` so and numbered, where it is.
    """
    refusals: list[InvalidRequest] = []
    searches = Searches()
    told = 0
    for number, instance in enumerate(instances):
        try:
            read = read_with_spans(manifest, instance, tokenizer, searches)
        except InvalidRequest as error:
            named = f"{called} {number}" if called else ""
            refusals.append(error.under(f"{pointer}/{number}", named))
            told += len(refusals[-1].faults)
            if told >= MOST_FAULTS:
                break
        else:
            if not refusals:
                yield read
    if not refusals:
        return
    others = told - len(refusals[0].faults)
    also = f"; {others} more faults are listed in `errors`" if others else ""
    raise InvalidRequest(f"{refusals[0]}{also}", *[fault for one in refusals for fault in one.faults][:MOST_FAULTS])


def shown_row(manifest: Manifest, row: Row) -> dict[str, Category | float] | Row:
    """A row as an instance has it: of a table by name, categories as they are called; else as it is."""
    inputs = manifest.inputs
    if not isinstance(inputs, TabularInputs):
        return row
    if not inputs.has_categories:
        return dict(zip(inputs.names, row, strict=True))
    return {feature.name: feature.shown(value) for feature, value in zip(inputs.features, row, strict=True)}


def _pixels(inputs: ImageInputs, instance: object) -> Row:
    channels, height, width = inputs.shape
    shape: tuple[int, ...] = inputs.shape
    nested = instance
    if isinstance(instance, Mapping) and set(instance) == {"image"} and isinstance(instance["image"], str):
        nested = decode(inputs, instance["image"]).tolist()
    if channels == 1 and isinstance(nested, Sequence) and len(nested) == height and height != 1:
        shape = (height, width)
    values = tuple(_leaves(nested, shape))
    low, high = inputs.range
    if min(values) >= low and max(values) <= high:
        return values
    wrong = (
        Fault(Kind.OUT_OF_RANGE, *_pixel(at, shape, value, low, high))
        for at, value in enumerate(values)
        if not low <= value <= high
    )
    faults = [*islice(wrong, MOST_FAULTS)]
    raise InvalidRequest(faults[0].detail, *faults)


def _pixel(at: int, shape: tuple[int, ...], value: float, low: float, high: float) -> tuple[str, str]:
    """Where the value at place `at` stands in nested lists, and why it is refused."""
    row, column = divmod(at % (shape[-2] * shape[-1]), shape[-1])
    channel = (at // (shape[-2] * shape[-1]),) if len(shape) == 3 else ()
    detail = f"the pixel in row {row}, column {column} is {value:g}, outside the range from {low:g} to {high:g}"
    return pointer_to(*channel, row, column), detail


def _leaves(nested: object, shape: tuple[int, ...], place: tuple[int, ...] = ()) -> Iterator[float]:
    if not isinstance(nested, Sequence) or isinstance(nested, str) or len(nested) != shape[0]:
        detail = "an image is nested lists by channel, row and column, as the model's shape says, or a file in `image`"
        raise invalid(Kind.WRONG_INSTANCE, pointer_to(*place), detail)
    for at, item in enumerate(nested):
        if len(shape) > 1:
            yield from _leaves(item, shape[1:], (*place, at))
        elif type(item) is float or type(item) is int:
            yield float(item)
        else:
            raise invalid(Kind.NOT_A_NUMBER, pointer_to(*place, at), "every pixel must be a number")
