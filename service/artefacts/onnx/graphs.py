"""An ONNX graph as far as one of its tensors needs it, and which of its tensors depend on the input's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from service.errors import CatalogError

OF_SHAPES = {"Shape", "Size", "EyeLike"}
"""Operators that ask for a tensor's shape and not for its values."""
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes by which the tensor `end` is computed from one `input`, whose rows have `shape`.

    `constants` are the tensors that come with the graph, `varying` those that depend on the values of its input.
    """

    model: ModelProto
    input: ValueInfoProto
    end: str
    shape: tuple[int, ...]
    nodes: Sequence[NodeProto]
    constants: Mapping[str, TensorProto]
    varying: frozenset[str]


def read_graph(model: ModelProto, end: str, shape: tuple[int, ...] | None) -> Graph:
    """The graph behind the tensor `end`. Without a `shape` the input must declare its own.

    Raises CatalogError where there are several inputs, or one that does not take rows of a fixed shape.
    """
    nodes = ancestors(model.graph.node, end)
    if not nodes:
        raise CatalogError(f"the graph computes no tensor {end!r}")
    read = {name for node in nodes for name in reads(node)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in read}
    inputs = [value for value in model.graph.input if value.name in read - constants.keys()]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise CatalogError(f"{end!r} must be computed from one input of the graph; its inputs are: {names}")
    (graph_input,) = inputs
    count, *sizes = [dimension.dim_value for dimension in graph_input.type.tensor_type.shape.dim] or [0]
    if count > 0:
        raise CatalogError(f"the graph takes {count} rows at a time, no more: export it with a dynamic first dimension")
    if shape is None and 0 in sizes:
        raise CatalogError(f"dimension {sizes.index(0) + 1} of {graph_input.name!r} has no fixed size")
    varying = _varying(nodes, graph_input.name)
    return Graph(model, graph_input, end, tuple(sizes) if shape is None else shape, nodes, constants, varying)


def network(graph: Graph, start: str) -> list[NodeProto]:
    """The nodes by which the graph's end is computed from `start`, and which depend on the values of its input.

    Raises CatalogError where the end depends on the graph's input other than through `start`, or not on `start`.
    """
    nodes = [node for node in ancestors(graph.nodes, graph.end, start) if not graph.varying.isdisjoint(node.output)]
    read = {name for node in nodes for name in reads(node)}
    made = {start, *(name for node in nodes for name in node.output)}
    others = sorted(read & graph.varying - made)
    if others:
        raise CatalogError(f"{graph.end!r} depends on {others[0]!r} by another way than through {start!r}")
    if start not in read:
        raise CatalogError(f"{graph.end!r} does not depend on {start!r}")
    return nodes


def ancestors(nodes: Iterable[NodeProto], end: str, start: str = "") -> list[NodeProto]:
    """The nodes that `end` is computed by, in the graph's order, back to `start`."""
    needed, nodes_behind = {end}, []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(set(node.output) - {start}):
            nodes_behind.append(node)
            needed.update(name for name in reads(node) if name)
    return nodes_behind[::-1]


def reads(node: NodeProto) -> Iterator[str]:
    """The names of the tensors that a node reads, also inside of its branches."""
    yield from node.input
    for branch in _branches(node):
        yield from (output.name for output in branch.output)
        for inner in branch.node:
            yield from reads(inner)


def _branches(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]


def _varying(nodes: Iterable[NodeProto], input_name: str) -> frozenset[str]:
    varying = {input_name}
    for node in nodes:
        is_read = node.op_type not in OF_SHAPES and not varying.isdisjoint(reads(node))
        if is_read or node.op_type in RANDOM:
            varying.update(name for name in node.output if name)
    return frozenset(varying)


def open_choices(graph: Graph) -> dict[str, str]:
    """The conditions of the network's Ifs that do not depend on the input's values, by the If's first output."""
    ifs = [node for node in graph.nodes if node.op_type == "If" and not graph.varying.isdisjoint(node.output)]
    return {node.output[0]: node.input[0] for node in ifs if node.input[0] not in graph.varying}


def with_branches(graph: Graph, chosen: Mapping[str, bool]) -> Graph:
    """The graph with one of its branches in the place of every If whose first output is in `chosen`."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:]
    for node in graph.nodes:
        if node.output[0] in chosen:
            name = "then_branch" if chosen[node.output[0]] else "else_branch"
            (branch,) = (attribute.g for attribute in node.attribute if attribute.name == name)
            _inline(model.graph, branch, node)
        else:
            model.graph.node.append(node)
    return read_graph(model, graph.end, graph.shape)


def _inline(graph: GraphProto, branch: GraphProto, choice: NodeProto) -> None:
    """Appends a branch's nodes, under names that are not in the graph yet."""
    inner = [*(name for node in branch.node for name in node.output if name), *(t.name for t in branch.initializer)]
    names = {name: f"{choice.output[0]}/{name}" for name in inner}
    for tensor in branch.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    graph.node.extend(_renamed(node, names) for node in branch.node)
    for inside, outside in zip(branch.output, choice.output, strict=True):
        graph.node.add(op_type="Identity", input=[names.get(inside.name, inside.name)], output=[outside])


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    result.input[:] = [names.get(name, name) for name in node.input]
    result.output[:] = [names.get(name, name) for name in node.output]
    for branch in _branches(result):
        nodes = [_renamed(inner, names) for inner in branch.node]
        del branch.node[:]
        branch.node.extend(nodes)
        for output in branch.output:
            output.name = names.get(output.name, output.name)
    return result
