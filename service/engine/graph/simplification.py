"""Normalises a traced network: no tuples, no integers in tensors, no dead code."""

from __future__ import annotations

import operator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from service.engine.graph.operators import (
    CASTS,
    DROPOUTS,
    EXTREMA_OF_ANYTHING,
    FACTS,
    PARTS,
    NotPiecewiseLinear,
    Operator,
    operator_of,
    part,
)

VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "expand", "squeeze", "unsqueeze", "getitem", "narrow", "select"),
    *("transpose", "swapdims", "swapaxes", "permute", "movedim", "moveaxis", "t", "contiguous", "identity"),
    *(PARTS | CASTS | DROPOUTS),
}
"""Operators whose result may share its argument's memory."""


def simplified(twin: fx.GraphModule) -> fx.GraphModule:
    """A copy on the host, not to be run, in which every operator has one result and its tensors come first.

    Raises NotPiecewiseLinear where a tensor is used after it was changed in place, or a tuple as a whole.
    """
    result = deepcopy(twin).cpu()
    _refuse_changed_tensors(result)
    result.graph.eliminate_dead_code()
    for node in list(result.graph.nodes):
        _put_tensors_first(node)
        _put_integers_for_tensors(result, node)
        if node.target is operator.getitem and isinstance(node.args[1], list):
            node.args = (node.args[0], _as_index(node.args[1]))
        called = operator_of(result, node)
        if called is not None and _gives_a_tuple(called):
            _replace_tuple(result, called)
    return result


def _put_tensors_first(node: fx.Node) -> None:
    first = node.kwargs.keys() & {"input", "tensors"}
    if not node.args and first:
        node.args = tuple(node.kwargs[name] for name in first)
        node.kwargs = {name: value for name, value in node.kwargs.items() if name not in first}


def _put_integers_for_tensors(twin: fx.GraphModule, node: fx.Node) -> None:
    """Converters leave dimensions and limits as tensors."""

    def replaced(used: fx.Node) -> fx.Node | int:
        if used.op != "get_attr":
            return used
        value = attribute(twin, used)
        return int(value) if value.dim() == 0 and not value.is_floating_point() else used

    node.args, node.kwargs = map_arg((node.args, node.kwargs), replaced)


def _as_index(index: list[Any]) -> list[Any] | tuple[Any, ...]:
    """A list of slices is one index a dimension, as converters have it; one of integers is a choice of elements."""
    return tuple(index) if any(isinstance(entry, slice) for entry in index) else index


def _gives_a_tuple(called: Operator) -> bool:
    is_along = called.kind in EXTREMA_OF_ANYTHING and isinstance(called.option("dim", 1), int)
    return is_along or called.kind in PARTS


def attribute(twin: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a get_attr node stands for."""
    module, _, name = str(node.target).rpartition(".")
    value = getattr(twin.get_submodule(module), name)
    assert isinstance(value, Tensor)
    return value


def _replace_tuple(twin: fx.GraphModule, called: Operator) -> None:
    """Puts operators that give one tensor in the places of one that gives a tuple and of those that pick from it."""
    tensor, *sizes = called.node.args
    is_extremum = called.kind in EXTREMA_OF_ANYTHING
    position = {"max": 1, "min": 1, "unbind": 1}.get(called.kind, 2)
    dimension = called.option("dim", position, 0)
    for user in list(called.node.users):
        at = _picked(user)
        if at is None or (is_extremum and at != 0):
            raise NotPiecewiseLinear(called.name)
        with twin.graph.inserting_before(user):
            if is_extremum:
                function = {"max": torch.amax, "min": torch.amin}[called.kind]
                keywords = {"dim": dimension, "keepdim": called.option("keepdim", 2, False)}
                single = twin.graph.call_function(function, (tensor,), keywords)
            else:
                arguments = (tensor, called.name, at, *sizes[: position - 1])
                single = twin.graph.call_function(part, arguments, {"dim": dimension})
        user.replace_all_uses_with(single)
        twin.graph.erase_node(user)
    twin.graph.erase_node(called.node)


def _picked(user: fx.Node) -> int | None:
    """Which element of a tuple a node stands for; None where it is something else."""
    if user.target is getattr:
        return {"values": 0, "indices": 1}.get(str(user.args[1]))
    name = getattr(user.target, "__name__", "")  # onnx2torch has a getitem of its own
    is_item = user.target is operator.getitem or name == "_get_element"
    at = user.args[1] if is_item and len(user.args) > 1 else None
    return at if isinstance(at, int) else None


def _refuse_changed_tensors(twin: fx.GraphModule) -> None:
    """Refuses the use of a tensor, or of what may be a view of it, after an operator changed it in place."""
    memory: dict[fx.Node, fx.Node] = {}
    changed: dict[fx.Node, str] = {}
    for node in twin.graph.nodes:
        called = operator_of(twin, node)
        is_fact = called is not None and called.kind in FACTS
        for used in node.all_input_nodes:
            if used in changed and not is_fact:
                raise NotPiecewiseLinear(changed[used])
        memory[node] = node
        if called is not None and (called.is_in_place or called.kind in VIEWS) and node.all_input_nodes:
            memory[node] = memory[node.all_input_nodes[0]]
        if called is not None and called.is_in_place:
            changed |= {other: called.name for other in memory if memory[other] is memory[node] and other is not node}
