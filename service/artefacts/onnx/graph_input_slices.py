"""ONNX graphs with several inputs, or with inputs that are not real numbers, rewritten as graphs of one float input.

The twin takes one row of real numbers, so the graph is rewritten for it: its inputs, and the tensors into which its own
encoders turn categories, become slices of that row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

ROW = "answerable.row"
IS_SECOND = f"{ROW}.is second"


@dataclass(frozen=True, slots=True)
class GraphInputSlice:
    """A tensor of the graph that is a slice of the row: its `columns`, in the `shape` of one row of the tensor."""

    tensor: str
    columns: Sequence[int]
    shape: tuple[int, ...]
    element_type: int = TensorProto.FLOAT


def with_one_input(
    model: ModelProto, slices: Sequence[GraphInputSlice], columns: int, element_type: int = TensorProto.FLOAT
) -> ModelProto:
    """The graph with the input `ROW` [rows, columns] of this element type, of which all `slices` are taken."""
    nodes, constants = [], []
    for number, input_slice in enumerate(slices):
        own, known = _nodes_of_slice(input_slice, f"{ROW}.{number}")
        nodes += own
        constants += known
    replaced = {input_slice.tensor for input_slice in slices}
    row = helper.make_tensor_value_info(ROW, element_type, ["rows", columns])
    return _rewritten(model, replaced, [row], nodes, constants)


def with_tokens_embedded(
    model: ModelProto, embedded: str, length: int, width: int, side: Mapping[str, tuple[str, int]]
) -> ModelProto:
    """The graph with the input `ROW` [rows, length, width + 1]: the tokens' embeddings, and the mask behind them; of a
    pair, whose parts the graph is told, another dimension with those.

    `embedded` is the tensor of the embeddings; `side` the graph's other inputs, each with its kind and element type.
    """
    told = ["mask", *(["parts"] if any(kind == "parts" for kind, _ in side.values()) else [])]
    constants = [
        numpy_helper.from_array(np.arange(width), f"{ROW}.places"),
        numpy_helper.from_array(np.array([-1, length]), f"{ROW}.flat"),
    ]
    nodes = [_node("Gather", [ROW, f"{ROW}.places"], embedded, axis=2)]
    for place, name in enumerate(told, start=width):
        constants.append(numpy_helper.from_array(np.array([place]), f"{ROW}.place of {name}"))
        nodes += [
            _node("Gather", [ROW, f"{ROW}.place of {name}"], f"{ROW}.taken {name}", axis=2),
            _node("Reshape", [f"{ROW}.taken {name}", f"{ROW}.flat"], f"{ROW}.flat {name}"),
            # No gradient goes this way: nobody asks for it, and that of a logarithm of the mask is infinite.
            _node("Cast", [f"{ROW}.flat {name}"], f"{ROW}.{name}", to=TensorProto.INT64),
        ]
    nodes.append(_node("Shape", [f"{ROW}.mask"], f"{ROW}.shape"))
    for name, (kind, element_type) in side.items():
        dtype = helper.tensor_dtype_to_np_dtype(element_type)
        if kind in told:
            nodes.append(_node("Cast", [f"{ROW}.{kind}"], name, to=element_type))
            continue
        values = np.zeros((1, length), dtype) if kind == "zeros" else np.arange(length, dtype=dtype)[None]
        constants.append(numpy_helper.from_array(values, f"{name}.once"))
        nodes.append(_node("Expand", [f"{name}.once", f"{ROW}.shape"], name))
    if "parts" in told:
        nodes.append(_node("Cast", [f"{ROW}.taken parts"], IS_SECOND, to=TensorProto.BOOL))
    row = helper.make_tensor_value_info(ROW, TensorProto.FLOAT, ["rows", length, width + len(told)])
    result = _rewritten(model, {embedded, *side}, [row], nodes, constants)
    _choose_by_part(result, {name for name, (kind, _) in side.items() if kind == "parts"})
    return result


def _choose_by_part(model: ModelProto, parts: set[str]) -> None:
    """Writes the look-up of the parts in a table of types, which has no gradient, as the choice between its first two
    rows, which needs none."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in parts:
            parts.update(node.output)
        is_looked_up = node.op_type == "Gather" and node.input[1] in parts and node.input[0] in tables
        if not is_looked_up or any(option.name == "axis" and option.i for option in node.attribute):
            continue
        rows, names = numpy_helper.to_array(tables[node.input[0]])[:2], [f"{node.input[0]}.{at}" for at in (0, 1)]
        if len(rows) == len(names):
            model.graph.initializer.extend(
                numpy_helper.from_array(one, name) for one, name in zip(rows, names, strict=True) if name not in tables
            )
            tables |= {tensor.name: tensor for tensor in model.graph.initializer}
            node.CopyFrom(_node("Where", [IS_SECOND, names[1], names[0]], node.output[0]))


def _node(operator: str, inputs: Sequence[str], output: str, **options: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{operator} of {output}", **options)


def _nodes_of_slice(input_slice: GraphInputSlice, name: str) -> tuple[list[NodeProto], list[TensorProto]]:
    columns, shape = np.array(input_slice.columns), np.array([-1, *input_slice.shape])
    constants = [numpy_helper.from_array(columns, f"{name}.columns"), numpy_helper.from_array(shape, f"{name}.shape")]
    nodes = [
        _node("Gather", [ROW, f"{name}.columns"], f"{name}.taken", axis=1),
        _node("Reshape", [f"{name}.taken", f"{name}.shape"], f"{name}.laid"),
        _node("Cast", [f"{name}.laid"], input_slice.tensor, to=input_slice.element_type),
    ]
    return nodes, constants


def _rewritten(
    model: ModelProto,
    replaced: set[str],
    inputs: Sequence[ValueInfoProto],
    nodes: Sequence[NodeProto],
    constants: Sequence[TensorProto],
) -> ModelProto:
    """The model with other inputs, and with `nodes` in the place of those that gave the tensors `replaced`."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    kept = [*nodes]
    for node in graph.node:
        own = NodeProto()
        own.CopyFrom(node)
        own.output[:] = [f"{ROW}.unused.{name}" if name in replaced else name for name in node.output]
        kept.append(own)
    others = [value for value in graph.input if value.name not in replaced]
    del graph.node[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend([*inputs, *others])
    graph.initializer.extend(constants)
    return result
