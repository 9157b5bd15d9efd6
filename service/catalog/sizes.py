"""How large a twin is: the sizes of all tensors on the way from one row to its logits."""

from __future__ import annotations

from math import prod

import torch
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp


def propagate(twin: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Notes in every node the shape of its tensor for one row."""
    device = next((tensor.device for tensor in (*twin.parameters(), *twin.buffers())), torch.device("cpu"))
    with torch.no_grad():
        ShapeProp(twin).propagate(torch.zeros(1, *shape, device=device))


def size_of(node: fx.Node) -> torch.Size | None:
    """What was noted of a node; None where it is no tensor."""
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def layer_sizes(twin: fx.GraphModule, shape: tuple[int, ...]) -> list[int]:
    """The numbers of values, for one row, of all tensors on the way."""
    propagate(twin, shape)
    sizes = [size_of(node) for node in twin.graph.nodes if node.op != "get_attr"]
    return [prod(size) for size in sizes if size is not None]
