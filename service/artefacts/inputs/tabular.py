"""Tables as an ONNX graph takes them: in one tensor or several, with categories as the graph encodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from service.artefacts.inputs.embeddings import CategoryEmbedding, find_category_embeddings
from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.onnx.graph_input_slices import ROW, GraphInputSlice, with_one_input
from service.artefacts.onnx.session_inputs import Array, GraphInput, SessionInputs, columns_of, compare_names
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

    inputs: TabularInputs

    def __init__(self, inputs: TabularInputs, graph_inputs: Mapping[str, GraphInput]) -> None:
        self.inputs = inputs
        self.graph_inputs = graph_inputs

    def session_inputs(self) -> SessionInputs:
        """For each input of the graph the features that the manifest assigns to it."""
        compare_names(self.inputs.tensors, self.graph_inputs)
        session_inputs = _session_inputs(self.inputs, self.graph_inputs)
        session_inputs(np.zeros((1, len(self.inputs.features)), np.float32))  # whether the graph takes so many columns
        return session_inputs

    def row_type(self) -> RowType:
        """float64 where the graph takes doubles, or whole numbers beyond 2^24, such as times and identifiers."""
        inputs, graph_inputs = self.inputs, self.graph_inputs
        for tensor, numbers in inputs.tensors.items():
            own = [inputs.features[number] for number in numbers if not inputs.features[number].categories]
            is_coarse = graph_inputs[tensor].dtype is np.float64 or (
                not graph_inputs[tensor].is_floating
                and any(max(map(abs, feature.range)) > MAX_WHOLE_FLOAT32 for feature in own)
            )
            if own and is_coarse:
                return DOUBLE
        return SINGLE

    def source(self, graph: ModelProto, session_inputs: SessionInputs, end: str) -> TwinSource:
        """The whole graph where it takes one tensor of plain numbers; else the part behind its encoders of categories.

        Raises CatalogError where one tensor of the graph encodes several features.
        """
        inputs, graph_inputs = self.inputs, self.graph_inputs
        if not inputs.has_categories and len(graph_inputs) == 1 and graph_inputs[inputs.tensor].dtype is np.float32:
            return TwinSource(graph, inputs.tensor, inputs.shape, None)
        embeddings = find_category_embeddings(graph, inputs, session_inputs, end)
        encoding = inputs.encoding_by([_table(inputs, number, embeddings) for number in range(len(inputs.features))])
        widths = encoding.widths
        element_type = int(helper.np_dtype_to_tensor_dtype(np.dtype(self.row_type())))
        slices = [*_of_inputs(inputs, graph_inputs, widths, element_type), *_of_embeddings(embeddings, widths)]
        whole = with_one_input(graph, slices, sum(widths), element_type)
        return TwinSource(whole, ROW, None, encoding if inputs.has_categories else None)

    def encoded_session_inputs(self, encoding: Encoding | None) -> SessionInputs | None:
        """For rows of encoded columns; None where there is no encoding."""
        if not isinstance(encoding, TableEncoding):
            return None
        columns = {tensor: columns_of(features, encoding.widths) for tensor, features in self.inputs.tensors.items()}
        shapes = {tensor: self.graph_inputs[tensor].row(len(places)) for tensor, places in columns.items()}
        return lambda rows: {
            tensor: rows[:, places].astype(self.graph_inputs[tensor].dtype).reshape(-1, *shapes[tensor])
            for tensor, places in columns.items()
        }


def _table(inputs: TabularInputs, number: int, embeddings: Sequence[CategoryEmbedding]) -> Floats | None:
    """What a feature becomes: its one-hot columns, or what the graph itself makes of it."""
    feature = inputs.features[number]
    own = [embedding.columns for embedding in embeddings if embedding.feature == number]
    if own:
        return np.concatenate(own, axis=1)
    return one_hot(feature) if feature.categories else None


def _of_inputs(
    inputs: TabularInputs, graph_inputs: Mapping[str, GraphInput], widths: Sequence[int], of_row: int
) -> Iterator[GraphInputSlice]:
    """The slices for the graph's inputs that take numbers. Whole numbers are read as real ones of the row's type: the
    graph converts them itself."""
    for tensor, features in inputs.tensors.items():
        own = graph_inputs[tensor]
        columns = columns_of(features, widths)
        if own.is_floating:
            yield GraphInputSlice(tensor, columns, own.row(len(columns)), own.element_type)
        elif not any(inputs.features[number].categories for number in features):
            yield GraphInputSlice(tensor, columns, own.row(len(columns)), of_row)


def _of_embeddings(embeddings: Sequence[CategoryEmbedding], widths: Sequence[int]) -> list[GraphInputSlice]:
    used: dict[int, int] = {}
    slices = []
    for embedding in embeddings:
        places = columns_of([embedding.feature], widths)
        start = used.get(embedding.feature, 0)
        shape = embedding.table.shape[1:]
        used[embedding.feature] = start + prod(shape)
        slices.append(GraphInputSlice(embedding.tensor, places[start : start + prod(shape)], shape))
    return slices


def _session_inputs(inputs: TabularInputs, graph_inputs: Mapping[str, GraphInput]) -> SessionInputs:
    parts = {tensor: _parts(inputs, numbers, graph_inputs[tensor]) for tensor, numbers in inputs.tensors.items()}

    def session_inputs(rows: Array) -> dict[str, Array]:
        joined = {tensor: np.concatenate([part(rows) for part in own], axis=1) for tensor, own in parts.items()}
        return {
            tensor: columns.reshape(-1, *graph_inputs[tensor].row(columns.shape[1]))
            for tensor, columns in joined.items()
        }

    return session_inputs


def _parts(inputs: TabularInputs, numbers: Sequence[int], graph_input: GraphInput) -> list[Callable[[Array], Array]]:
    """From rows to the columns of a graph's input, [rows, columns] each; neighbouring plain numbers are taken at once:
    38 of the loan model, one by one, took 90 us of the 180 of a forward pass."""

    def is_plain(number: int) -> bool:
        return graph_input.is_floating and not inputs.features[number].categories

    parts: list[Callable[[Array], Array]] = []
    for plain, own in groupby(numbers, is_plain):
        if plain:
            parts.append(partial(_columns, list(own), graph_input.dtype))
        else:
            parts += [_part(inputs.features[number], number, graph_input) for number in own]
    return parts


def _columns(numbers: Sequence[int], dtype: Any, rows: Array) -> Array:
    return rows.take(numbers, axis=1).astype(dtype, copy=False)


def _part(feature: Feature, number: int, graph_input: GraphInput) -> Callable[[Array], Array]:
    """From rows to the part of a graph's input that a feature has, [rows, columns], unless it is a plain number.

    A category becomes one-hot columns where the input takes real numbers. Where it takes text or whole numbers the
    graph has an encoder of its own, and is given the category itself, or its index where categories are text and the
    input takes numbers.
    """
    if graph_input.is_floating:
        table = one_hot(feature).astype(graph_input.dtype)
        return lambda rows: table[rows[:, number].astype(np.intp)]
    if not feature.categories:
        if graph_input.dtype is np.object_:
            raise CatalogError(
                f"the graph's input {graph_input.name!r} is text: say which `categories` {feature.name} has"
            )
        if not feature.whole:
            raise CatalogError(
                f"the graph's input {graph_input.name!r} takes no fractions: say `whole: true` of {feature.name}"
            )
        _refuse_beyond(feature, graph_input)
        return lambda rows: np.rint(rows[:, number, None]).astype(graph_input.dtype)
    values = feature.categories
    is_text = graph_input.dtype is np.object_
    if is_text:
        values = tuple(map(str, values))
    elif any(isinstance(value, str) for value in values):
        values = tuple(range(len(values)))
    known = np.array(values, dtype=graph_input.dtype)
    return lambda rows: known[rows[:, number, None].astype(np.intp)]


def _refuse_beyond(feature: Feature, graph_input: GraphInput) -> None:
    """Raises CatalogError where the feature's range exceeds the graph's integer type: numbers would wrap around."""
    low, high = (
        (0, 1) if graph_input.dtype is np.bool_ else (np.iinfo(graph_input.dtype).min, np.iinfo(graph_input.dtype).max)
    )
    if not low <= feature.range[0] <= feature.range[1] <= high:
        name = np.dtype(graph_input.dtype).name
        raise CatalogError(
            f"the graph's input {graph_input.name!r} is {name}, from {low} to {high}, and the range of {feature.name} "
            "goes beyond"
        )
