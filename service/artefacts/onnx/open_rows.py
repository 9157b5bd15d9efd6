"""Graphs that were exported for one row at a time, rewritten to take any number.

Such a graph has the number of rows in the shapes that it reshapes to, and constants, as of a class token, that are
there once. The rows come first in nearly all of them. Where they do not, the rewritten graph answers something else or
cannot be run, which whoever uses it has to find out: twins are compared with the file itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper, shape_inference

from service.artefacts.onnx.weights import open_session, quiet_options, without_weights_in
from service.artefacts.reported import reported
from service.errors import CatalogError

COUNT = "answerable.count"
STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Which inputs are the states before the first step, [directions, rows, hidden]."""


def fixed_rows(model: ModelProto) -> int | None:
    """How many rows a graph takes at a time and no more, as its first input declares; None where that is open."""
    for value in inputs_of(model.graph):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_value > 0:
            return int(sizes[0].dim_value)
    return None


def inputs_of(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that are no constants."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def with_open_rows(model: ModelProto) -> ModelProto:
    """The graph, which takes one row, for any number of rows; the same graph where it takes another number."""
    if fixed_rows(model) != 1:
        return model
    shapes = _shapes(model)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes, varying = [*graph.node], {value.name for value in inputs_of(graph)}
    written = _Written(graph, inputs_of(graph)[0].name)
    del graph.node[:], graph.value_info[:]
    for node in nodes:
        if not varying.isdisjoint(node.input):
            varying.update(name for name in node.output if name)
            _open(node, shapes, varying, written)
        graph.node.append(node)
    for value in (*inputs_of(graph), *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_value == 1:
            sizes[0].dim_param = "rows"
    return result


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """The shapes of tensors for one row: those of a row of zeros, or else those that can be inferred."""
    try:
        return _measured(model)
    except CatalogError:
        return _inferred(model)


def _measured(model: ModelProto) -> dict[str, list[int]]:
    """Raises CatalogError where a size is left open, or a tensor is none."""
    names = [name for node in model.graph.node for name in node.output if name]
    try:
        zeros = {value.name: _zeros(value) for value in inputs_of(model.graph)}
        found = open_session(_model_of_shapes(model, names), quiet_options()).run(None, zeros)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise CatalogError(f"ONNX Runtime cannot run the graph with a row of zeros: {reported(error)}") from error
    constants = {tensor.name: [*tensor.dims] for tensor in model.graph.initializer}
    return constants | {name: shape.tolist() for name, shape in zip(names, found, strict=True)}


def _zeros(value: ValueInfoProto) -> NDArray[Any]:
    own = value.type.tensor_type
    sizes = [size.dim_value for size in own.shape.dim]
    if 0 in sizes:
        raise CatalogError(f"{value.name!r} leaves a size open")
    return np.zeros(sizes, helper.tensor_dtype_to_np_dtype(own.elem_type))


def _inferred(model: ModelProto) -> dict[str, list[int]]:
    inferred = without_weights_in(model, lambda part: shape_inference.infer_shapes(part, data_prop=True)).graph
    shapes = {tensor.name: [*tensor.dims] for tensor in inferred.initializer}
    for value in (*inferred.value_info, *inferred.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(one.HasField("dim_value") for one in dimensions):
            shapes[value.name] = [one.dim_value for one in dimensions]
    return shapes


def _model_of_shapes(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The graph with these tensors' shapes for its outputs."""
    shapes = {name: f"{COUNT}.shape of {name}" for name in names}
    nodes = [*model.graph.node, *(helper.make_node("Shape", [name], [shape]) for name, shape in shapes.items())]
    outputs = [ValueInfoProto(name=shape) for shape in shapes.values()]
    constants = list(model.graph.initializer)
    graph = helper.make_graph(nodes, "shapes", list(model.graph.input), outputs, constants)
    imports, functions = list(model.opset_import), list(model.functions)
    return helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version, functions=functions)


def _open(node: NodeProto, shapes: dict[str, list[int]], varying: set[str], written: _Written) -> None:
    """Rewrites a node that depends on the rows."""
    shape = shapes.get(node.output[0])
    if node.op_type == "Reshape" and shape and (len(node.input) < 2 or node.input[1] not in varying):
        written.reshape(node, shape)
    elif node.op_type == "Concat" and written.axis(node, shape) != 0:
        for at, name in enumerate(node.input):
            if name not in varying and shapes.get(name, [0])[:1] == [1]:
                node.input[at] = written.repeated(name, [None, *[1] * (len(shapes[name]) - 1)])
    for at in STATES.get(node.op_type, ()):
        name = node.input[at] if at < len(node.input) else ""
        if name and name not in varying and shapes.get(name, [0, 0])[1:2] == [1]:
            node.input[at] = written.repeated(name, [1, None, 1])


class _Written:
    """Nodes and constants that are added to a graph in the making."""

    def __init__(self, graph: GraphProto, rows: str) -> None:
        self._graph = graph
        self._rows = rows

    def axis(self, node: NodeProto, shape: list[int] | None) -> int:
        """The axis that a node joins along; the rows' where that is not known."""
        declared = next((one.i for one in node.attribute if one.name == "axis"), 0)
        return int(declared) % len(shape) if shape else int(declared)

    def reshape(self, node: NodeProto, shape: list[int]) -> None:
        """To the same sizes, but for the first."""
        target = np.array([-1, *shape[1:]], dtype=np.int64)
        if len(node.input) > 1:
            node.input[1] = self._constant(f"{node.output[0]}.open", target)
        for one in node.attribute:  # before opset 5
            if one.name == "shape":
                one.ints[:] = target.tolist()

    def repeated(self, name: str, sizes: list[int | None]) -> str:
        """A constant, along one dimension as often as there are rows: where the sizes have None."""
        output = f"{name}.for each row"
        if any(output in node.output for node in self._graph.node):
            return output
        if not any(COUNT in node.output for node in self._graph.node):
            shape = helper.make_node("Shape", [self._rows], [f"{COUNT}.shape"])
            place = self._constant(f"{COUNT}.place", np.array([0], dtype=np.int64))
            self._graph.node.extend([shape, helper.make_node("Gather", [f"{COUNT}.shape", place], [COUNT])])
        parts = [
            COUNT if size is None else self._constant(f"{COUNT}.{size}", np.array([size], dtype=np.int64))
            for size in sizes
        ]
        target = helper.make_node("Concat", parts, [f"{output}.shape"], axis=0)
        self._graph.node.extend([target, helper.make_node("Expand", [name, f"{output}.shape"], [output])])
        return output

    def _constant(self, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
        if not any(tensor.name == name for tensor in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name
