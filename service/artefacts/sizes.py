"""What a twin takes and how large it is: the type of its rows, the sizes of all tensors from one row to its logits."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from service.domain import DOUBLE, SINGLE, RowType

SIZE = "size"
ROW_TYPE = "row_type"


def set_row_type(twin: fx.GraphModule, row_type: RowType) -> None:
    """Notes on the twin's input node which type of rows the twin takes."""
    for node in twin.graph.find_nodes(op="placeholder"):
        node.meta[ROW_TYPE] = row_type


def row_type_of(twin: fx.GraphModule) -> RowType:
    """The type of the rows that the twin takes: the one that was noted, else that of its weights."""
    placeholder = next(iter(twin.graph.find_nodes(op="placeholder")))
    dtype = next((weight.dtype for weight in twin.parameters()), torch.float32)
    row_type: RowType = placeholder.meta.get(ROW_TYPE, DOUBLE if dtype == torch.float64 else SINGLE)
    return row_type


def no_rows(twin: fx.GraphModule, count: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """So many rows of zeros, of the type that the twin takes."""
    return torch.from_numpy(np.zeros((count, *shape), row_type_of(twin))).to(device)


class _Sizes(fx.Interpreter):
    """Notes sizes of what it computes. torch's own ShapeProp imports sympy for it, which takes a second."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta[SIZE] = result.shape
        return result


def propagate(twin: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Notes in every node the size of its tensor for one row."""
    device = next((tensor.device for tensor in (*twin.parameters(), *twin.buffers())), torch.device("cpu"))
    with torch.no_grad():
        _Sizes(twin).run(no_rows(twin, 1, shape, device))


def size_of(node: fx.Node) -> torch.Size | None:
    """The size that was noted on a node; None where its value is not a tensor."""
    size: torch.Size | None = node.meta.get(SIZE)
    return size


def layer_sizes(twin: fx.GraphModule, shape: tuple[int, ...]) -> list[int]:
    """The numbers of values, for one row, of all tensors on the way."""
    propagate(twin, shape)
    sizes = [size_of(node) for node in twin.graph.nodes if node.op != "get_attr"]
    return [prod(size) for size in sizes if size is not None]
