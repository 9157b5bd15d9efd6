"""The shapes in an ONNX graph, and the values that follow from them, measured with ONNX Runtime.

All of an input's shape is known but the number of rows. So the graph is run once with two rows and once with
three: what is the same both times is a constant, and a size that differs is the number of rows, or a multiple of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from service.artefacts.onnx.graphs import Graph
from service.artefacts.onnx.weights import open_session, quiet_options
from service.artefacts.reported import reported
from service.errors import CatalogError

Array = NDArray[Any]
Shape = tuple[int | None, ...]
"""A tensor's sizes; None for the number of rows, or a multiple of it."""

ROWS = (2, 3)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that does not depend on the input's values, for each number of rows."""

    arrays: tuple[Array, ...]

    @property
    def constant(self) -> Array | None:
        """The tensor, if it is the same for every number of rows."""
        first, *others = self.arrays
        return first if all(_is_same(first, second) for second in others) else None

    @property
    def repeated(self) -> tuple[Array, int] | None:
        """What is repeated as often as there are rows, and along which dimension; None if nothing is."""
        two, three = self.arrays
        axes = [axis for axis, sizes in enumerate(zip(two.shape, three.shape, strict=False)) if len({*sizes}) > 1]
        if two.ndim != three.ndim or len(axes) != 1 or two.shape[axes[0]] % 2:
            return None
        (axis,) = axes
        once = np.split(two, 2, axis)[0]
        again = [np.concatenate([once] * rows, axis) for rows in ROWS]
        return (once, axis) if all(map(_is_same, self.arrays, again)) else None

    @property
    def strided(self) -> tuple[Array, int] | None:
        """What the first row has, and by how much each row is more than the one before; None if it is not so."""
        two, three = self.arrays
        if two.dtype.kind != "i" or not two.size or (two.shape[:1], three.shape[:1]) != ((2,), (3,)):
            return None
        base, step = np.asarray(two[0]), int((two[1] - two[0]).flat[0])
        rows = [np.stack([base + step * row for row in range(count)]) for count in ROWS]
        return (base, step) if all(map(_is_same, self.arrays, rows)) else None

    @property
    def in_own_row(self) -> Array | None:
        """Of places [rows, ..., dimensions] that are each in the row's own: what follows the row's number, once."""
        two, three = self.arrays
        if two.dtype.kind != "i" or two.ndim < 2 or (two.shape[:1], three.shape[:1]) != ((2,), (3,)):
            return None
        once = np.asarray(two[0, ..., 1:])
        for array in self.arrays:
            rows = np.arange(len(array)).reshape(-1, *[1] * (array.ndim - 2))
            if (array[..., 0] != rows).any() or (array[..., 1:] != once).any():
                return None
        return once


def _is_same(first: Array, second: Array) -> bool:
    """Whether both are equal in every bit."""
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of some tensors and the shapes of others."""

    values: Mapping[str, Value]
    shapes: Mapping[str, Shape]


def measure(graph: Graph, valued: Collection[str], shaped: Collection[str] = ()) -> Measured:
    """The values of `valued`, which must not depend on those of the input, and the shapes of `shaped`.

    Raises CatalogError where ONNX Runtime cannot run the graph.
    """
    computed = [name for name in valued if name not in graph.constants]
    shapes = {f"shape of {name}": name for name in shaped}
    model = _answering(graph, computed, shapes)
    dtype = helper.tensor_dtype_to_np_dtype(graph.input.type.tensor_type.elem_type)
    inputs = [{graph.input.name: np.zeros((rows, *graph.shape), dtype)} for rows in ROWS]
    try:
        # All may be constants of the graph, and ONNX Runtime does not run without an output to compute.
        session = open_session(model, quiet_options())
        runs = [session.run([*computed, *shapes], zeros) for zeros in inputs] if computed or shapes else []
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(
            f"ONNX Runtime cannot run the graph with {ROWS[0]} rows of zeros: {reported(error)}"
        ) from error
    results = dict(zip((*computed, *shapes), zip(*runs, strict=True), strict=True))
    kept = {name: (numpy_helper.to_array(graph.constants[name]),) for name in valued if name in graph.constants}
    values = kept | {name: results[name] for name in computed}
    return Measured(
        {name: Value(arrays) for name, arrays in values.items()},
        {name: _shape(*results[shape]) for shape, name in shapes.items()},
    )


def _shape(two: Array, three: Array) -> Shape:
    return tuple(int(size) if size == second else None for size, second in zip(two, three, strict=True))


def _answering(graph: Graph, computed: Collection[str], shapes: Mapping[str, str]) -> ModelProto:
    """The graph with other outputs."""
    nodes = [*graph.nodes, *(helper.make_node("Shape", [name], [shape]) for shape, name in shapes.items())]
    outputs = [ValueInfoProto(name=name) for name in (*computed, *shapes)]
    part = helper.make_graph(nodes, "measured", [graph.input], outputs, list(graph.constants.values()))
    imports = list(graph.model.opset_import)
    return helper.make_model(part, opset_imports=imports, ir_version=graph.model.ir_version)
