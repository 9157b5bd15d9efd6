"""What every kind of input does for the rest of the service, one row in and the same row out."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import ValidationError

from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.kind import Inputs, Row
from service.catalog.inputs.sequences import Spans
from service.catalog.inputs.series import SeriesInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.manifest import Manifest
from service.catalog.traits import PARTS
from service.domain import SINGLE
from service.errors import InvalidRequest

FEATURES: list[dict[str, Any]] = [
    {"name": "age", "title": "Age", "range": [18, 90], "whole": True, "missing": 40},
    {"name": "purpose", "title": "Purpose", "categories": ["car", "house", "boat"], "missing": "boat"},
    {"name": "ratio", "title": "Ratio", "range": [0, 1]},
]
PLAIN = TabularInputs.model_validate({"kind": "tabular", "features": [FEATURES[0], FEATURES[2]]})
TABLE = TabularInputs.model_validate({"kind": "tabular", "features": FEATURES})
IMAGE = ImageInputs.model_validate({"kind": "image", "shape": [2, 2, 3], "range": [-1, 1]})
TOKENS = TokenInputs.model_validate(
    {"kind": "tokens", "tensor": "ids", "length": 4, "vocabulary": 300, "padding": 0, "mask": 1, "special": [2]}
)
SERIES = SeriesInputs.model_validate(
    {"kind": "series", "steps": 3, "features": [FEATURES[2], {**FEATURES[0], "whole": False}]}
)
FILES = TokenInputs.model_validate(
    {
        **TOKENS.model_dump(exclude_none=True),
        "padding": 256,
        "mask": 256,
        "bytes": {"first": 2, "last": 2, "block": 9},
    }
)
INSTANCES: dict[str, tuple[Inputs, Any, tuple[float, ...]]] = {
    "table": (PLAIN, {"age": 30, "ratio": 0.25}, (30, 0.25)),
    "categories": (TABLE, {"age": None, "purpose": "house", "ratio": 1}, (40, 1, 1)),
    "image": (IMAGE, [[[0, 0.5, -1]] * 2, [[1, 0, 0]] * 2], (0, 0.5, -1, 0, 0.5, -1, 1, 0, 0, 1, 0, 0)),
    "tokens": (TOKENS, [2, 299], (2, 299, 0, 0)),
    "series": (SERIES, [[0.5, 20], [1, 30], [0, 40]], (0.5, 20, 1, 30, 0, 40)),
    "series, features first": (
        SERIES.model_copy(update={"order": "features first"}),
        [[0.5, 20], [1, 30], [0, 40]],
        (0.5, 1, 0, 20, 30, 40),
    ),
    "file": (FILES, {"bytes": "YWI="}, (97, 98, 97, 98)),
}
each = pytest.mark.parametrize(("inputs", "instance", "values"), INSTANCES.values(), ids=INSTANCES.keys())


@each
def test_a_record_gives_the_row_back(inputs: Inputs, instance: Any, values: tuple[float, ...]) -> None:
    """With its places in what was sent, bit for bit: a replay computes with it."""
    row = inputs.read(instance)
    assert row.values == values
    personal = orjson.loads(orjson.dumps(inputs.to_record(row)))
    read = inputs.of_record(personal)
    assert read.values == row.values
    assert orjson.dumps(inputs.to_record(read)) == orjson.dumps(inputs.to_record(row))
    assert inputs.of_other_version(personal).values == row.values


@each
def test_a_row_is_an_instance_again(inputs: Inputs, instance: Any, values: tuple[float, ...]) -> None:
    assert inputs.read(inputs.as_instance(values)).values == values
    assert inputs.of_numbers(values).values == values


@each
def test_random_rows_are_instances(inputs: Inputs, instance: Any, values: tuple[float, ...]) -> None:
    """Of a table with names and categories, too; and there are as many attributions as there are labels of them."""
    rows = inputs.random_rows(8, SINGLE)
    assert rows.dtype == SINGLE
    for row in rows.astype(float).tolist():
        assert inputs.of_numbers(row).values == tuple(row)
    assert len(inputs.component_labels) == inputs.component_count
    np.testing.assert_array_equal(rows, inputs.random_rows(8, SINGLE))


@each
def test_the_row_nearest_to_a_mean_is_a_row_where_means_are_none(
    inputs: Inputs, instance: Any, values: tuple[float, ...]
) -> None:
    rows = inputs.random_rows(9, SINGLE).astype(float)
    nearest = inputs.nearest_row(rows.mean(axis=0), rows)
    if inputs.mean_is_row or inputs.names:
        assert inputs.of_numbers(nearest.tolist()).values == tuple(nearest.tolist())


def test_records_of_before_name_their_places_spans() -> None:
    spans = {"positions": [0, 1], "tokens": [97, 98], "starts": [0, 1], "ends": [1, 2], "truncated": True}
    read = FILES.of_record({"input": [97, 98, 256, 256], "spans": spans})
    places = Spans(positions=[0, 1], tokens=[97, 98], starts=[0, 1], ends=[1, 2], truncated=True)  # type: ignore[arg-type]
    assert read == Row((97, 98, 256, 256), places)
    assert TOKENS.read([2]).places is None


def test_a_stored_input_of_another_kind_or_size_is_refused() -> None:
    table = TABLE.to_record(Row((30.0, 1.0, 0.5)))
    with pytest.raises(InvalidRequest, match="another kind"):
        IMAGE.of_other_version(table)
    with pytest.raises(InvalidRequest, match="another size"):
        IMAGE.of_other_version({"input": [0.5]})
    with pytest.raises(InvalidRequest, match="missing: purpose"):
        TABLE.of_other_version(PLAIN.to_record(Row((30.0, 0.5))))
    assert PLAIN.of_other_version(table).values == (30, 0.5)


def test_baselines_that_need_no_file() -> None:
    assert (PLAIN.own_baseline, PLAIN.own_baseline_for((1.0, 2.0))) == ("zeros", (0, 0))
    assert TABLE.own_baseline is None
    assert (TOKENS.own_baseline, TOKENS.own_baseline_for((2.0, 9.0, 0.0, 0.0))) == ("mask", (2, 1, 0, 0))
    assert TOKENS.depends_on_row("mask")
    assert not TOKENS.depends_on_row("inline")
    assert not IMAGE.depends_on_row("zeros")


def test_the_axes_are_those_of_the_shape() -> None:
    """But of tokens, whose embeddings only the network knows."""
    for inputs in (PLAIN, TABLE, IMAGE, SERIES):
        assert len(inputs.axes) == len(inputs.shape)
    sizes = dict(zip(IMAGE.axes, IMAGE.shape, strict=True))
    assert np.prod([size for axis, size in sizes.items() if axis not in PARTS]) == IMAGE.component_count


def test_a_manifests_word_finds_the_kind() -> None:
    with pytest.raises(ValidationError, match="'tabular', 'image', 'tokens', 'series'"):
        Manifest.model_validate({"inputs": {"kind": "graph"}})
