"""From rows of a model to the inputs of an ONNX Runtime session, in the types that the graph declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from service.errors import CatalogError

Array = NDArray[Any]
SessionInputs = Callable[[Array], dict[str, Array]]
"""From rows [n, columns], flat, to the array for each input of the graph, by its name."""

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

    @property
    def element_type(self) -> int:
        """The type of its elements, as ONNX numbers types."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

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


def read_graph_inputs(session: onnxruntime.InferenceSession) -> dict[str, GraphInput]:
    """The inputs of the graph by name. Raises CatalogError for one of another type than tensors of numbers and text."""
    inputs = {}
    for own in session.get_inputs():
        if own.type not in TYPES:
            raise CatalogError(f"the graph's input {own.name!r} is a {own.type}, which no instance can be read into")
        sizes = tuple(size if isinstance(size, int) else None for size in own.shape[1:])
        inputs[own.name] = GraphInput(own.name, TYPES[own.type], sizes)
    return inputs


def columns_of(features: Iterable[int], widths: Sequence[int]) -> list[int]:
    """The columns that these features have, by their numbers."""
    ends = np.cumsum([0, *widths]).tolist()
    return [column for feature in features for column in range(ends[feature], ends[feature + 1])]


def compare_names(named: Iterable[str], graph_inputs: Mapping[str, GraphInput]) -> None:
    """Raises CatalogError where the manifest names other inputs than the graph has, or leaves one out."""
    names = list(named)
    absent = [name for name in names if name not in graph_inputs]
    others = [name for name in graph_inputs if name not in names]
    if absent:
        raise CatalogError(f"the graph has no input {absent[0]!r}; its inputs are {', '.join(graph_inputs)}")
    if others:
        raise CatalogError(f"the manifest does not say what the graph's input {others[0]!r} is given")
