"""Rewrites exported graphs with torch's public functions: `torch.relu` for `torch.ops.aten.relu.default`.

The engine knows operators by the names of torch's public functions and methods (`service.engine.graph.operators`), and
those of ATen have the same names and arguments.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar"}
"""Operators that check what was true at the export; the twin drops them, the artefact keeps them."""
NO_METHODS = {"index"}
"""Names that a method has too, of something else."""


def in_plain_torch(network: fx.GraphModule) -> fx.GraphModule:
    """Replaces ATen operators by public functions and methods, where there are any; changes the network in place."""
    for node in list(network.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, OpOverload) and node.target.namespace == "aten":
            _rewrite(node, node.target.overloadpacket.__name__)
    network.graph.lint()
    network.recompile()
    return network


def _rewrite(node: fx.Node, name: str) -> None:
    function = getattr(torch, name, None) or getattr(torch._C._nn, name, None)
    if name in CHECKS and not node.users:
        node.graph.erase_node(node)
    elif name == "sym_size":
        node.op, node.target = "call_method", "size"
    elif name == "slice":
        _rewrite_slice(node)
    elif name == "to":
        node.op, node.target = "call_method", name  # whose arguments are the operator's, but for the layout
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "layout"}
    elif function is not None:
        node.target = function
    elif hasattr(torch.Tensor, name) and name not in NO_METHODS:
        node.op, node.target = "call_method", name


def _rewrite_slice(node: fx.Node) -> None:
    """Turns a slice along a dimension counted from the front into an index; other slices stay as they are."""
    arguments: tuple[Any, ...] = node.args  # with their recursive type mypy takes eight minutes
    source, dim, start, stop, step = (*arguments, *(0, None, None, 1)[len(arguments) - 1 :])[:5]
    if isinstance(dim, int) and dim >= 0:
        part = slice(start or None, None if stop == sys.maxsize else stop, None if step == 1 else step)
        node.target, node.args = operator.getitem, (source, (*(slice(None),) * dim, part))
