"""Tables as an ONNX graph takes them: in one tensor, or a feature each, with categories as it has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from service.artefacts.inputs.embeddings import Lookup, find_lookups
from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.onnx.graph_input_slices import ROW, Entrance, with_one_input
from service.artefacts.onnx.session_inputs import Array, Feeds, GraphInput, columns_of, compare_names
from service.artefacts.onnx.twin_source import TwinSource
from service.catalog.inputs.encodings import Encoding, TableEncoding, one_hot
from service.catalog.inputs.features import Feature
from service.catalog.inputs.tabular import TabularInputs
from service.domain import DOUBLE, SINGLE, Floats, RowType
from service.errors import CatalogError

MAX_WHOLE_FLOAT32 = 2**24
"""Up to here float32 holds every whole number."""


class OnnxTable(OnnxInputs):
    """A table of a graph; see `OnnxInputs`."""

    def __init__(self, inputs: TabularInputs, given: Mapping[str, GraphInput]) -> None:
        self.inputs = inputs
        self.given = given

    def feeds(self) -> Feeds:
        """Each input of the graph is given its features."""
        compare_names(self.inputs.tensors, self.given)
        feeds = _feeds(self.inputs, self.given)
        feeds(np.zeros((1, len(self.inputs.features)), np.float32))  # whether the graph takes so many columns
        return feeds

    def row_type(self) -> RowType:
        """It is float64 for doubles, and for whole numbers beyond 2^24, such as times and identifiers."""
        inputs, given = self.inputs, self.given
        for tensor, numbers in inputs.tensors.items():
            own = [inputs.features[number] for number in numbers if not inputs.features[number].categories]
            is_coarse = given[tensor].dtype is np.float64 or (
                not given[tensor].is_floating
                and any(max(map(abs, feature.range)) > MAX_WHOLE_FLOAT32 for feature in own)
            )
            if own and is_coarse:
                return DOUBLE
        return SINGLE

    def source(self, graph: ModelProto, feeds: Feeds, end: str) -> TwinSource:
        """The whole graph where it takes one tensor of plain numbers; else what follows its look-ups of categories.

        Raises CatalogError where categories are looked up otherwise than the manifest says.
        """
        inputs, given = self.inputs, self.given
        if not inputs.has_categories and len(given) == 1 and given[inputs.tensor].dtype is np.float32:
            return TwinSource(graph, inputs.tensor, inputs.shape, None)
        lookups = find_lookups(graph, inputs, feeds, end)
        encoding = inputs.encoding_by([_table(inputs, number, lookups) for number in range(len(inputs.features))])
        widths = encoding.widths
        element_type = int(helper.np_dtype_to_tensor_dtype(np.dtype(self.row_type())))
        entrances = [*_of_inputs(inputs, given, widths, element_type), *_of_lookups(lookups, widths)]
        whole = with_one_input(graph, entrances, sum(widths), element_type)
        return TwinSource(whole, ROW, None, encoding if inputs.has_categories else None)

    def encoded_feeds(self, encoding: Encoding | None) -> Feeds | None:
        """What the graph is given for rows of columns."""
        if not isinstance(encoding, TableEncoding):
            return None
        columns = {tensor: columns_of(features, encoding.widths) for tensor, features in self.inputs.tensors.items()}
        shapes = {tensor: self.given[tensor].row(len(places)) for tensor, places in columns.items()}
        return lambda rows: {
            tensor: rows[:, places].astype(self.given[tensor].dtype).reshape(-1, *shapes[tensor])
            for tensor, places in columns.items()
        }


def _table(inputs: TabularInputs, number: int, lookups: Sequence[Lookup]) -> Floats | None:
    """What a feature becomes: its one-hot columns, or what the graph itself makes of it."""
    feature = inputs.features[number]
    own = [lookup.columns for lookup in lookups if lookup.feature == number]
    if own:
        return np.concatenate(own, axis=1)
    return one_hot(feature) if feature.categories else None


def _of_inputs(
    inputs: TabularInputs, given: Mapping[str, GraphInput], widths: Sequence[int], of_row: int
) -> Iterator[Entrance]:
    """The graph's inputs that take numbers. Whole numbers are taken as real ones, of the row's element type, which the
    graph makes of them too."""
    for tensor, features in inputs.tensors.items():
        own = given[tensor]
        columns = columns_of(features, widths)
        if own.is_floating:
            yield Entrance(tensor, columns, own.row(len(columns)), own.element_type)
        elif not any(inputs.features[number].categories for number in features):
            yield Entrance(tensor, columns, own.row(len(columns)), of_row)


def _of_lookups(lookups: Sequence[Lookup], widths: Sequence[int]) -> list[Entrance]:
    used: dict[int, int] = {}
    entrances = []
    for lookup in lookups:
        places = columns_of([lookup.feature], widths)
        start = used.get(lookup.feature, 0)
        shape = lookup.table.shape[1:]
        used[lookup.feature] = start + prod(shape)
        entrances.append(Entrance(lookup.tensor, places[start : start + prod(shape)], shape))
    return entrances


def _feeds(inputs: TabularInputs, given: Mapping[str, GraphInput]) -> Feeds:
    parts = {tensor: _parts(inputs, numbers, given[tensor]) for tensor, numbers in inputs.tensors.items()}

    def feeds(rows: Array) -> dict[str, Array]:
        joined = {tensor: np.concatenate([part(rows) for part in own], axis=1) for tensor, own in parts.items()}
        return {tensor: columns.reshape(-1, *given[tensor].row(columns.shape[1])) for tensor, columns in joined.items()}

    return feeds


def _parts(inputs: TabularInputs, numbers: Sequence[int], given: GraphInput) -> list[Callable[[Array], Array]]:
    """From rows to what a graph's input is given, [rows, columns] each; plain numbers side by side are taken at once:
    38 of the loan model, one by one, took 90 us of the 180 of a forward pass."""

    def is_plain(number: int) -> bool:
        return given.is_floating and not inputs.features[number].categories

    found: list[Callable[[Array], Array]] = []
    for plain, own in groupby(numbers, is_plain):
        if plain:
            found.append(partial(_columns, list(own), given.dtype))
        else:
            found += [_part(inputs.features[number], number, given) for number in own]
    return found


def _columns(numbers: Sequence[int], dtype: Any, rows: Array) -> Array:
    return rows.take(numbers, axis=1).astype(dtype, copy=False)


def _part(feature: Feature, number: int, given: GraphInput) -> Callable[[Array], Array]:
    """From rows to the part of a graph's input that a feature has, [rows, columns], unless it is a plain number.

    A category is columns for numbers of any size, and itself for text and whole numbers: there the graph has its own
    encoder. Where it counts from 0, a category is its place.
    """
    if given.is_floating:
        table = one_hot(feature).astype(given.dtype)
        return lambda rows: table[rows[:, number].astype(np.intp)]
    if not feature.categories:
        if given.dtype is np.object_:
            raise CatalogError(f"the graph's input {given.name!r} is text: say which `categories` {feature.name} has")
        if not feature.whole:
            raise CatalogError(
                f"the graph's input {given.name!r} takes no fractions: say `whole: true` of {feature.name}"
            )
        _refuse_beyond(feature, given)
        return lambda rows: np.rint(rows[:, number, None]).astype(given.dtype)
    values = feature.categories
    is_text = given.dtype is np.object_
    if is_text:
        values = tuple(map(str, values))
    elif any(isinstance(value, str) for value in values):
        values = tuple(range(len(values)))
    known = np.array(values, dtype=given.dtype)
    return lambda rows: known[rows[:, number, None].astype(np.intp)]


def _refuse_beyond(feature: Feature, given: GraphInput) -> None:
    """Raises CatalogError where the range has numbers that the graph's type has not: they would wrap around."""
    low, high = (0, 1) if given.dtype is np.bool_ else (np.iinfo(given.dtype).min, np.iinfo(given.dtype).max)
    if not low <= feature.range[0] <= feature.range[1] <= high:
        name = np.dtype(given.dtype).name
        raise CatalogError(
            f"the graph's input {given.name!r} is {name}, from {low} to {high}, and the range of {feature.name} goes "
            "beyond"
        )
