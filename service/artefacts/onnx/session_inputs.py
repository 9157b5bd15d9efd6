"""What the inputs of an ONNX graph are given for rows of a model, in the types that the graph asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.catalog.inputs.encodings import one_hot
from service.catalog.inputs.features import Feature
from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.kind import Inputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import SideInput, TokenInputs
from service.domain import DOUBLE, SINGLE, RowType
from service.errors import CatalogError

Array = NDArray[Any]
Feeds = Callable[[Array], dict[str, Array]]
"""From rows [n, columns], flat, to what each input of the graph is given."""

LARGEST_WHOLE = 2**24
"""Up to here float32 holds every whole number."""

TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input of a graph: the type of its elements and its shape but for the rows, None for a size that is open."""

    name: str
    dtype: Any
    shape: tuple[int | None, ...]

    @property
    def is_floating(self) -> bool:
        """Whether it takes any number."""
        return bool(np.issubdtype(self.dtype, np.floating))

    def row(self, columns: int) -> tuple[int, ...]:
        """The shape of a row of so many columns: the last size that is open takes what is left of them."""
        known = prod(size for size in self.shape if size is not None)
        sizes = [columns // known if at == self._open else size or 1 for at, size in enumerate(self.shape)]
        if prod(sizes) != columns:
            raise CatalogError(f"the graph's input {self.name!r} does not take {columns} columns")
        return tuple(sizes)

    @property
    def _open(self) -> int | None:
        return max((at for at, size in enumerate(self.shape) if size is None), default=None)


def graph_inputs(session: onnxruntime.InferenceSession) -> dict[str, GraphInput]:
    """The inputs of the graph by name. Raises CatalogError for one of another type than tensors of numbers and text."""
    found = {}
    for given in session.get_inputs():
        if given.type not in TYPES:
            raise CatalogError(
                f"the graph's input {given.name!r} is a {given.type}, which no instance can be read into"
            )
        sizes = tuple(size if isinstance(size, int) else None for size in given.shape[1:])
        found[given.name] = GraphInput(given.name, TYPES[given.type], sizes)
    return found


def feeds_of(inputs: Inputs, given: Mapping[str, GraphInput]) -> Feeds:
    """What the graph is given for rows of the model.

    Raises CatalogError where the manifest names other inputs than the graph has, or does not say what they take.
    """
    match inputs:
        case TabularInputs():
            _compare(inputs.tensors, given)
            feeds = _table_feeds(inputs, given)
            feeds(np.zeros((1, len(inputs.features)), np.float32))  # whether the graph takes so many columns
            return feeds
        case TokenInputs():
            _compare([inputs.tensor, *inputs.side], given)
            return _token_feeds(inputs, given)
    assert isinstance(inputs, ImageInputs)
    _compare([inputs.tensor], given)
    return _image_feeds(inputs, given[inputs.tensor])


def row_type(inputs: Inputs, given: Mapping[str, GraphInput]) -> RowType:
    """What holds the rows of a model as its graph takes them, exactly: float32, or float64 where that is too coarse.

    It is for doubles, and for whole numbers beyond 2^24, such as times and identifiers.
    """
    if not isinstance(inputs, TabularInputs):
        return DOUBLE if any(one.dtype is np.float64 for one in given.values()) else SINGLE
    for tensor, numbers in inputs.tensors.items():
        own = [inputs.features[number] for number in numbers if not inputs.features[number].categories]
        is_coarse = given[tensor].dtype is np.float64 or (
            not given[tensor].is_floating and any(max(map(abs, feature.range)) > LARGEST_WHOLE for feature in own)
        )
        if own and is_coarse:
            return DOUBLE
    return SINGLE


def column_feeds(inputs: TabularInputs, given: Mapping[str, GraphInput], widths: Sequence[int]) -> Feeds:
    """What the graph is given for rows of columns, of which each feature has so many as `widths` says."""
    columns = {tensor: columns_of(features, widths) for tensor, features in inputs.tensors.items()}
    shapes = {tensor: given[tensor].row(len(places)) for tensor, places in columns.items()}
    return lambda rows: {
        tensor: rows[:, places].astype(given[tensor].dtype).reshape(-1, *shapes[tensor])
        for tensor, places in columns.items()
    }


def columns_of(features: Iterable[int], widths: Sequence[int]) -> list[int]:
    """The numbers of the columns that these features have."""
    ends = np.cumsum([0, *widths]).tolist()
    return [column for feature in features for column in range(ends[feature], ends[feature + 1])]


def _compare(named: Iterable[str], given: Mapping[str, GraphInput]) -> None:
    names = list(named)
    absent = [name for name in names if name not in given]
    others = [name for name in given if name not in names]
    if absent:
        raise CatalogError(f"the graph has no input {absent[0]!r}; its inputs are {', '.join(given)}")
    if others:
        raise CatalogError(f"the manifest does not say what the graph's input {others[0]!r} is given")


def _image_feeds(inputs: ImageInputs, given: GraphInput) -> Feeds:
    expected = len(given.shape), *(own or size for own, size in zip(given.shape, inputs.shape, strict=False))
    if (len(inputs.shape), *inputs.shape) != expected:
        shape = [size or "any" for size in given.shape]
        raise CatalogError(f"the graph's input {given.name!r} takes {shape}, the manifest says {list(inputs.shape)}")
    return lambda rows: {inputs.tensor: rows.reshape(-1, *inputs.shape).astype(given.dtype, copy=False)}


def _token_feeds(inputs: TokenInputs, given: Mapping[str, GraphInput]) -> Feeds:
    dtype = given[inputs.tensor].dtype

    def feeds(rows: Array) -> dict[str, Array]:
        tokens = rows.astype(dtype)
        sides = {
            name: side_input(kind, tokens != inputs.padding, given[name].dtype) for name, kind in inputs.side.items()
        }
        return {inputs.tensor: tokens, **sides}

    return feeds


def side_input(kind: SideInput, is_token: NDArray[np.bool_], dtype: Any) -> Array:
    """What a graph of tokens is given besides them: [rows, length]."""
    match kind:
        case "mask":
            return is_token.astype(dtype)
        case "zeros":
            return np.zeros(is_token.shape, dtype)
    return np.tile(np.arange(is_token.shape[1], dtype=dtype), (len(is_token), 1))


def _table_feeds(inputs: TabularInputs, given: Mapping[str, GraphInput]) -> Feeds:
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
