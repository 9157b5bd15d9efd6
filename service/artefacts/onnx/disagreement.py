"""Which operator makes a twin differ from its artefact: each is given what ONNX Runtime gave the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from torch import Tensor, fx

from service.artefacts.onnx.graph_parts import open_part
from service.artefacts.onnx.twins import converted, relative_difference
from service.artefacts.onnx.undifferentiable import described

Array = NDArray[Any]


def worst_operator(
    model: ModelProto, input_tensor: str, logit_tensor: str, shape: tuple[int, ...] | None, rows: Array
) -> str:
    """The operator between two tensors whose counterpart differs most when given the same, and by how much.

    `rows` are of the graph's own input. Raises CatalogError where the graph has no twin.
    """
    graph, part, module = converted(model, input_tensor, logit_tensor, shape)
    outputs = {node.name: node for node in part.graph.node}
    names = [input_tensor, *dict.fromkeys(name for node in graph.nodes for name in node.output if name)]
    session = open_part(graph.model, names)
    known = dict(zip(names, session.run(names, {graph.input.name: rows}), strict=True))
    watched = _Watched(module, outputs, known)
    with torch.no_grad():
        watched.run(_in_float32(torch.from_numpy(known[input_tensor])))
    if not watched.differences:
        return "no operator on its own"
    worst = max(watched.differences, key=lambda name: watched.differences[name])
    return f"{described(outputs[worst])}, by {watched.differences[worst]:.2g}"


def _in_float32(tensor: Tensor) -> Tensor:
    """Half precision as the twin has it."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


class _Watched(fx.Interpreter):
    """Runs a converted graph; compares what each node answers, and passes on what ONNX Runtime answered."""

    def __init__(self, module: fx.GraphModule, nodes: Mapping[str, NodeProto], known: Mapping[str, Array]) -> None:
        super().__init__(module)
        self._nodes = nodes
        self._known = known
        self.differences: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        node = self._nodes.get(str(n.target)) if n.op == "call_module" else None
        if node is None:
            return result
        if isinstance(result, tuple):
            return tuple(self._compared(node, at, value) for at, value in enumerate(result))
        return self._compared(node, 0, result)

    def _compared(self, node: NodeProto, at: int, value: Any) -> Any:
        name = node.output[at] if at < len(node.output) else ""
        if not isinstance(value, Tensor) or name not in self._known:
            return value
        expected = _in_float32(torch.from_numpy(np.ascontiguousarray(self._known[name])))
        if value.is_floating_point() and expected.is_floating_point() and value.shape == expected.shape:
            difference = relative_difference(value, expected)
            own = self.differences.get(node.name, 0.0)
            self.differences[node.name] = np.inf if np.isnan(difference) else max(own, difference)
        return expected if value.shape == expected.shape and value.dtype == expected.dtype else value
