"""How large a twin is: the sizes of all tensors on the way from one row to its logits."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

SIZE = "size"


class _Sizes(fx.Interpreter):
    """Notes the sizes of what it computes. torch's own ShapeProp imports sympy for it, which takes a second."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta[SIZE] = result.shape
        return result


def propagate(twin: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Notes in every node the size of its tensor for one row."""
    device = next((tensor.device for tensor in (*twin.parameters(), *twin.buffers())), torch.device("cpu"))
    with torch.no_grad():
        _Sizes(twin).run(torch.zeros(1, *shape, device=device))


def size_of(node: fx.Node) -> torch.Size | None:
    """What was noted of a node; None where it is no tensor."""
    size: torch.Size | None = node.meta.get(SIZE)
    return size


def layer_sizes(twin: fx.GraphModule, shape: tuple[int, ...]) -> list[int]:
    """The numbers of values, for one row, of all tensors on the way."""
    propagate(twin, shape)
    sizes = [size_of(node) for node in twin.graph.nodes if node.op != "get_attr"]
    return [prod(size) for size in sizes if size is not None]
