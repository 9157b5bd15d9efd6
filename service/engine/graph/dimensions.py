"""Which dimensions an operator works along: row r of its result must depend on row r of its arguments alone."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import fx

from service.engine.graph.operators import (
    EXTREMA_ALONG,
    JOINTS,
    PARTS,
    REPETITIONS,
    RESHAPES,
    SHAPES,
    Operator,
    operator_of,
    unpacked,
)

OPTIONS: dict[str, tuple[tuple[str, int, Any], ...]] = {
    **dict.fromkeys(("sum", "mean", "cumsum", *EXTREMA_ALONG), (("dim", 1, None),)),
    **dict.fromkeys(("unsqueeze", "unflatten", "narrow", "select", "indexselect"), (("dim", 1, None),)),
    **dict.fromkeys(JOINTS | PARTS, (("dim", 1, 0),)),
    **dict.fromkeys(("transpose", "swapdims"), (("dim0", 1, None), ("dim1", 2, None))),
    **dict.fromkeys(("movedim", "moveaxis"), (("source", 1, None), ("destination", 2, None))),
    "swapaxes": (("axis0", 1, None), ("axis1", 2, None)),
    "squeeze": (("dim", 1, ()),),
    "flatten": (("start_dim", 1, 0),),
    "roll": (("dims", 2, None),),
}
"""The options that name dimensions: keyword, position, default."""


def dimensions(operator: Operator, varying: tuple[fx.Node, ...]) -> tuple[int, ...]:
    """The dimensions along which elements are combined or moved, as far as that may concern the rows, dimension 0.

    Negative ones count from the last, of the result where that has one more.
    """
    kind, arguments = operator.kind, operator.node.args
    if kind == "matmul" and arguments[0] not in varying:
        return (-2,)
    if kind == "mm" and arguments[0] not in varying:
        return (0,)
    if kind == "permute":
        order = operator.options("dims")
        return tuple(at for at, source in enumerate(order) if source not in (at, at - len(order)))
    if kind == "flip":
        return operator.options("dims")
    if kind == "pad":
        return tuple(-1 - at // 2 for at, size in enumerate(unpacked(operator.option("pad", 1))) if size != 0)
    if kind == "getitem":
        return _indexed(unpacked(arguments[1]))
    if kind in RESHAPES:
        first = operator.options("shape")[0]
        return () if first == -1 or isinstance(first, fx.Node) else (0,)
    if kind in REPETITIONS:
        first = operator.options("dims" if kind == "tile" else "repeats")[0]
        return () if first == REPETITIONS[kind] or isinstance(first, fx.Node) else (0,)
    named = [unpacked(operator.option(*option)) for option in OPTIONS.get(kind, ())]
    numbers = tuple(at for dimensions in named for at in dimensions)
    is_all = () in named and kind != "squeeze"
    return (0,) if is_all or not all(isinstance(at, int) for at in numbers) else numbers


def grows(operator: Operator) -> bool:
    """Whether the result has one dimension more."""
    return operator.kind in ("unsqueeze", "stack")


def _indexed(index: tuple[Any, ...]) -> tuple[int, ...]:
    if sum(isinstance(entry, fx.Node | list | tuple) for entry in index) > 1:
        return (0,)  # the dimensions of several tensors come first in the result
    if index[0] is Ellipsis:
        return tuple(-1 - at for at, entry in enumerate(index[:0:-1]) if entry is not None)
    return () if index[0] in (slice(None), slice(0, None), slice(None, None, 1), slice(0, None, 1)) else (0,)


def is_row_count(twin: fx.GraphModule, node: fx.Node, varying: Container[fx.Node]) -> bool:
    """Whether a node is the number of rows: size(0) or shape[0] of a tensor in `varying`."""
    operator = operator_of(twin, node)
    if operator is None or operator.kind not in ("size", "getitem"):
        return False
    source, at = node.args[0], operator.option("dim", 1)
    if operator.kind == "getitem":
        shape = operator_of(twin, source) if isinstance(source, fx.Node) else None
        if shape is None or shape.kind not in SHAPES:
            return False
        source = shape.node.args[0]
    return source in varying and bool(at == 0)
