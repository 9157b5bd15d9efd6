"""Extracts the network from an ONNX graph as a model of its own, with constants for all that does not depend on inputs.

Exporters write shapes, masks and positions as operators among those of the network, which cannot be traced.

The model is for `service.artefacts.onnx.conversion` alone. Its domains and names have no dots, which torch's names
cannot have, and its shapes are complete. Three kinds of operators are of a domain of our own: those that in ONNX
take the shape of their result as an input, and here do not; `ForEachRow`, which repeats a constant for every row; and
`GatherInRows` and `ScatterInRows`, which take or replace the same places of every row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper, numpy_helper, shape_inference

from service.artefacts.onnx.graphs import Graph, open_choices, with_branches
from service.artefacts.onnx.measuring import Array, Measured, Shape, measure
from service.errors import CatalogError

OWN_DOMAIN = "answerable"
FOR_EACH_ROW, GATHER_IN_ROWS, SCATTER_IN_ROWS = "ForEachRow", "GatherInRows", "ScatterInRows"
HALF_PRECISION = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
"""Twins compute in float32 where the artefact computes in these: gradients of three digits would explain nothing."""
IN_ROWS = {"Gather": GATHER_IN_ROWS, "GatherND": GATHER_IN_ROWS, "ScatterND": SCATTER_IN_ROWS}
TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Which input is the shape of the result; the number of rows may be part of it."""


def torch_domain(domain: str) -> str:
    """A domain's name in the folded model."""
    return "" if domain == "ai.onnx" else domain.replace(".", "_")


def versions(model: ModelProto) -> dict[str, int]:
    """The versions of the domains in a model, by their names in the folded one."""
    return {torch_domain(entry.domain): entry.version for entry in model.opset_import}


def choose_branches(graph: Graph) -> Graph:
    """The graph with the branch that is taken in the place of every If whose condition is a constant."""
    while choices := open_choices(graph):
        values = measure(graph, set(choices.values())).values
        chosen = {}
        for output, condition in choices.items():
            value = values[condition].constant
            if value is None:
                raise CatalogError(f"which branch gives {output!r} depends on how many rows there are")
            chosen[output] = bool(value)
        graph = with_branches(graph, chosen)
    return graph


def fold(graph: Graph, nodes: Sequence[NodeProto], start: str) -> ModelProto:
    """A model of `nodes`, those between the tensor `start` and the graph's end.

    Raises CatalogError where the number of rows differs between the two, or a constant depends on it.
    """
    read = {name for node in nodes for name in node.input if name}
    outputs = {name for node in nodes for name in node.output} & {*read, graph.end}
    measured = measure(graph, read - graph.varying, [start, *outputs])
    for name in (start, graph.end):
        if measured.shapes[name][:1] != (None,):
            raise CatalogError(f"the first dimension of {name!r} is not that of the rows")
    folded = _Folded(graph, start, measured, outputs)
    for node in nodes:
        folded.add(node)
    return folded.model()


@dataclass(frozen=True, slots=True)
class _Folded:
    """A model in the making. `outputs` are those of the nodes that are needed."""

    graph: Graph
    start: str
    measured: Measured
    outputs: Collection[str]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    repeated: dict[str, Shape] = field(default_factory=dict)

    def add(self, node: NodeProto) -> None:
        """Adds a node, and the constants that it reads."""
        result = NodeProto()
        result.CopyFrom(node)
        result.domain = torch_domain(node.domain)
        result.output[:] = self._needed(node)
        places = self._places_in_rows(result)
        if places is not None:
            self._in_rows(result, *places)
        else:
            if not result.domain and node.op_type in TARGETS:
                result.domain = OWN_DOMAIN
                del result.input[TARGETS[node.op_type] :]
            result.input[:] = [self._input(name) for name in result.input]
        self.nodes.append(result)

    def _needed(self, node: NodeProto) -> list[str]:
        """The outputs, with nothing in the place of those that nobody needs, and no optional ones at the end."""
        names = [name if name in self.outputs else "" for name in node.output]
        required = _required(node, self.graph.model)
        while not names[-1] and len(names) > required:
            names.pop()
        return names

    def _input(self, name: str) -> str:
        """The name of a constant's counterpart in the model, and any other name as it is."""
        if not name or name in self.graph.varying:
            return name
        value = self.measured.values[name]
        if value.constant is not None:
            return self._constant(name, value.constant)
        if value.repeated is None:
            raise CatalogError(f"{name!r} depends on how many rows there are")
        once, axis = value.repeated
        if not any(name in node.output for node in self.nodes):
            inputs = [self.start, self._constant(f"once {name}", once)]
            self.nodes.append(helper.make_node(FOR_EACH_ROW, inputs, [name], domain=OWN_DOMAIN, axis=axis))
            self.repeated[name] = tuple(None if at == axis else size for at, size in enumerate(once.shape))
        return name

    def _constant(self, name: str, value: Array) -> str:
        if name not in self.constants:
            is_half = helper.np_dtype_to_tensor_dtype(value.dtype) in HALF_PRECISION
            self.constants[name] = numpy_helper.from_array(value.astype(np.float32) if is_half else value, name)
        return name

    def _places_in_rows(self, node: NodeProto) -> tuple[Array, int] | None:
        """The places, and the width of a row, where a node takes the same places of every row.

        torch's exporter has such a Gather, out of all rows written one after the other, for a view of the memory, as of
        an average over images with the channels last; and such a GatherND for a mask that is looked up.
        """
        if node.domain or node.op_type not in IN_ROWS or node.input[1] in self.graph.varying:
            return None
        index, shape = self.measured.values[node.input[1]], self.measured.shapes.get(node.input[0])
        if index.constant is not None or shape is None:
            return None
        if node.op_type == "Gather":
            return index.strided if shape == (None,) else None
        sizes = [size for size in shape[1:] if size is not None]
        once = index.in_own_row
        if once is None or len(sizes) != len(shape) - 1:
            return None
        sizes = sizes[: once.shape[-1]]
        if node.op_type == "GatherND" and len(sizes) != len(shape) - 1:
            return None
        return np.ravel_multi_index(tuple(np.moveaxis(once, -1, 0)), sizes), prod(sizes)

    def _in_rows(self, node: NodeProto, places: Array, width: int) -> None:
        node.domain, node.op_type = OWN_DOMAIN, IN_ROWS[node.op_type]
        for option in [one for one in node.attribute if one.name != "reduction"]:
            node.attribute.remove(option)
        node.input[1] = self._constant(f"{node.input[1]} in rows", places)
        node.attribute.append(helper.make_attribute("width", width))

    def model(self) -> ModelProto:
        """The model, with the shapes of all tensors."""
        end = self.graph.end
        if len(self.nodes[-1].output) > 1:  # onnx2torch would return all of them
            end = f"{end} alone"
            self.nodes.append(helper.make_node("Identity", [self.graph.end], [end]))
        _name(self.nodes, {"initializers", *self.constants})
        types = _types(self.graph)
        values = {
            name: _value(name, types.get(name, TensorProto.FLOAT), shape)
            for name, shape in {**self.measured.shapes, **self.repeated}.items()
        }
        graph_input, result = (
            values.pop(self.start),
            _value(end, TensorProto.FLOAT, self.measured.shapes[self.graph.end]),
        )
        constants = list(self.constants.values())
        graph = helper.make_graph(
            self.nodes, "network", [graph_input], [result], constants, value_info=list(values.values())
        )
        source = self.graph.model
        imports = [helper.make_opsetid(*entry) for entry in (versions(source) | {OWN_DOMAIN: 1}).items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=source.ir_version)


def _required(node: NodeProto, model: ModelProto) -> int:
    """How many outputs a node must have."""
    try:
        schema = defs.get_schema(node.op_type, versions(model)[torch_domain(node.domain)], node.domain)
    except defs.SchemaError:
        return len(node.output)
    optional = [output.option == defs.OpSchema.FormalParameterOption.Optional for output in schema.outputs]
    return optional.index(True) if True in optional else len(node.output)


def _name(nodes: Iterable[NodeProto], taken: set[str]) -> None:
    """Gives each node a name of its own, also among the constants: onnx2torch mistakes one for the other."""
    for node in nodes:
        node.name = (node.name or next(name for name in node.output if name)).replace(".", "/")
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)


def _value(name: str, element_type: int, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, ["rows" if size is None else size for size in shape])


def _types(graph: Graph) -> dict[str, int]:
    """The element types of the tensors, as far as they can be inferred; the weights are left out, which takes time."""
    constants = [_value(name, tensor.data_type, tuple(tensor.dims)) for name, tensor in graph.constants.items()]
    part = helper.make_graph(graph.nodes, "types", [graph.input, *constants], [])
    imports = list(graph.model.opset_import)
    values = shape_inference.infer_shapes(helper.make_model(part, opset_imports=imports)).graph.value_info
    known = {value.name: value.type.tensor_type.elem_type for value in (graph.input, *values)}
    return {name: element_type for name, element_type in known.items() if element_type}
