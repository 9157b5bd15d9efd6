"""Values by feature, pixel and token: as they stand in replies and records, read back, limited and compared."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter

from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.kind import Attributions, Detail, Inputs, Over, Row
from service.catalog.inputs.registry import AnyAttributions, read_attributions
from service.catalog.inputs.sequences import Spans
from service.catalog.inputs.series import SeriesInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs

TABLE = TabularInputs.model_validate(
    {
        "kind": "tabular",
        "features": [{"name": name, "title": name, "range": [0, 1]} for name in ("values", "shape", "age")],
    }
)
IMAGE = ImageInputs.model_validate({"kind": "image", "shape": [2, 2, 3], "range": [0, 1]})
TOKENS = TokenInputs.model_validate(
    {"kind": "tokens", "tensor": "ids", "length": 4, "vocabulary": 9, "padding": 0, "mask": 1}
)
SERIES = SeriesInputs.model_validate(
    {
        "kind": "series",
        "steps": 2,
        "order": "features first",
        "features": [{"name": name, "title": name, "range": [0, 1]} for name in ("pulse", "pressure", "age")],
    }
)
ONE_A_PIXEL = (1.0, -2.0, 3.0, -4.0, 5.0, -6.0)
ONE_A_CHANNEL = (*ONE_A_PIXEL, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
SUMS = [1.1, -1.9, 3.1, -3.9, 5.1, -5.9]
TEXT = Spans(positions=(0, 1, 3), tokens=("[CLS]", "café", "!"), starts=(0, 0, 4), ends=(0, 4, 5))
ROW = (2.0, 5.0, 0.0, 7.0)


def attributions(inputs: Inputs, values: tuple[float, ...], shape: tuple[int, ...], row: Row, **options: Detail) -> Any:
    """As an explanation has them."""
    return inputs.attributions(values, shape, row, **options)


BY_FEATURE = attributions(TABLE, (0.5, -2.0, 1.0), (3,), Row((0, 0, 0)))
BY_PIXEL = attributions(IMAGE, ONE_A_CHANNEL, (2, 2, 3), Row((0.0,) * 12))
BY_CHANNEL = attributions(IMAGE, ONE_A_CHANNEL, (2, 2, 3), Row((0.0,) * 12), detail=Detail(channels=True))
BY_STEP = attributions(SERIES, (1.0, -4.0, -2.0, 5.0, 3.0, -6.0), (3, 2), Row((0.0,) * 6))
OVER_TIME, OVER_FEATURE = (
    attributions(SERIES, (1.0, -4.0, -2.0, 5.0, 3.0, -6.0), (3, 2), Row((0.0,) * 6), detail=Detail(over=over))
    for over in (Over.TIME, Over.FEATURE)
)
BY_TOKEN = attributions(TOKENS, (0.5, -2.0, 0.0, 1.0), (4,), Row(ROW))
BY_PLACE = attributions(TOKENS, (0.5, -2.0, 0.0, 1.0), (4,), Row(ROW, TEXT))

SERIES_WRITTEN = {"shape": [2, 3], "features": ["pulse", "pressure", "age"], "values": [*ONE_A_PIXEL]}
WRITTEN: dict[str, tuple[Attributions, Any]] = {
    "feature": (BY_FEATURE, {"values": 0.5, "shape": -2.0, "age": 1.0}),
    "pixel": (BY_PIXEL, {"shape": [2, 3], "values": SUMS}),
    "pixel alone": (
        attributions(IMAGE, ONE_A_PIXEL, (2, 3), Row((0.0,) * 12)),
        {"shape": [2, 3], "values": list(ONE_A_PIXEL)},
    ),
    "channel": (
        BY_CHANNEL,
        {"shape": [2, 3], "values": SUMS, "channels": [[[1, -2, 3], [-4, 5, -6]], [[0.1] * 3, [0.1] * 3]]},
    ),
    "step": (BY_STEP, SERIES_WRITTEN),
    "over time": (OVER_TIME, {**SERIES_WRITTEN, "over_time": [-3.0, 3.0, -3.0]}),
    "over feature": (OVER_FEATURE, {**SERIES_WRITTEN, "over_feature": [2.0, -5.0]}),
    "token": (
        BY_TOKEN,
        [
            {"token": 2, "attribution": 0.5},
            {"token": 5, "attribution": -2.0},
            {"token": 0, "attribution": 0.0},
            {"token": 7, "attribution": 1.0},
        ],
    ),
    "place": (
        BY_PLACE,
        [
            {"token": "[CLS]", "start": 0, "end": 0, "attribution": 0.5},
            {"token": "café", "start": 0, "end": 4, "attribution": -2.0},
            {"token": "!", "start": 4, "end": 5, "attribution": 1.0},
        ],
    ),
}
each = pytest.mark.parametrize(("values", "written"), WRITTEN.values(), ids=WRITTEN.keys())


@each
def test_they_stand_in_replies_as_their_schema_says(values: Any, written: Any) -> None:
    told = orjson.loads(orjson.dumps(values.to_json()))
    assert told == written
    assert orjson.loads(values.model_dump_json(exclude_none=True)) == told
    assert TypeAdapter[Any](AnyAttributions).validate_json(orjson.dumps(told)) == values


@each
def test_they_are_read_back_bit_for_bit(values: Any, written: Any) -> None:
    """Also those of a table with features called `shape` and `values`."""
    read = read_attributions(orjson.loads(orjson.dumps(values.to_json())))
    assert type(read) is type(values)
    assert orjson.dumps(read.to_json()) == orjson.dumps(values.to_json())


@pytest.mark.parametrize(
    "content",
    [None, 1.0, "text", {"age": "1"}, {"age": True}, {"age": None}, {"shape": [2, 3]}, [1.0], [{"token": 1}]],
    ids=str,
)
def test_what_holds_no_values_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="validation error"):
        read_attributions(content)


def test_values_are_in_the_order_of_the_units() -> None:
    assert list(BY_FEATURE.values) == [0.5, -2.0, 1.0]
    assert list(BY_CHANNEL.values) == SUMS
    assert list(BY_PLACE.values) == [0.5, -2.0, 1.0]


def test_units_that_are_not_kept_are_left_out_but_for_pixels() -> None:
    """A picture stays one; and what its channels had would tell what the pixel has."""
    assert BY_FEATURE.keeping({2, 1}).to_json() == {"shape": -2.0, "age": 1.0}
    written = orjson.loads(orjson.dumps(BY_CHANNEL.keeping({0, 4}).to_json()))
    assert written == {"shape": [2, 3], "values": [1.1, 0, 0, 0, 5.1, 0]}
    assert [one["token"] for one in BY_PLACE.keeping({1}).to_json()] == ["café"]


@each
def test_other_values_keep_the_structure(values: Any, written: Any) -> None:
    doubled = values.with_values([2 * value for value in values.values])
    assert list(doubled.values) == [2 * value for value in values.values]
    assert doubled.with_values(values.values).numbers == values.with_values(values.values).numbers
    if all(name not in written for name in ("channels", "over_time", "over_feature")):
        assert doubled.structure == values.structure
        assert doubled.numbers == type(values.numbers)(2 * value for value in values.numbers)


def test_the_structure_is_all_but_the_numbers() -> None:
    """Features in any order; what is shown of channels has numbers of its own."""
    turned = read_attributions({"age": 1.0, "values": 0.5, "shape": -2.0})
    assert (turned.structure, turned.numbers) == (BY_FEATURE.structure, BY_FEATURE.numbers)
    assert BY_CHANNEL.structure != BY_PIXEL.structure
    assert list(BY_CHANNEL.numbers) == [*SUMS, *ONE_A_CHANNEL]
    assert BY_PLACE.structure != BY_TOKEN.structure
    assert len({str(one.structure) for one in (BY_STEP, OVER_TIME, OVER_FEATURE)}) == 3
    assert list(OVER_FEATURE.numbers) == [*ONE_A_PIXEL, 2.0, -5.0]
    moved = [{**one, "start": one["start"] + 1} for one in BY_PLACE.to_json()]
    assert read_attributions(moved).structure != BY_PLACE.structure


def test_what_is_shown_can_be_shown_again() -> None:
    """A replay shows what its record shows."""
    assert [one.detail for one in (BY_FEATURE, BY_PIXEL, BY_STEP, BY_TOKEN)] == [Detail()] * 4
    assert BY_CHANNEL.detail == Detail(channels=True)
    assert (OVER_TIME.detail, OVER_FEATURE.detail) == (Detail(over=Over.TIME), Detail(over=Over.FEATURE))
    assert OVER_TIME.keeping({0}).detail == Detail()
