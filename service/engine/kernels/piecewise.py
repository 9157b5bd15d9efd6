"""The breakpoints kernel: where a piecewise-linear network bends along straight lines through its input space.

On the line x' + alpha (x - x') such a network is piecewise linear in alpha. The two ends of each line are pushed
through the layers as rows; between neighbouring rows every tensor is linear. At each activation the rows where a neuron
changes its regime, and at each maximum those where another element becomes the largest, are found by linear
interpolation, exactly, and inserted into every tensor that is still needed, so that the statement holds again behind
the operator. One forward pass finds all breakpoints of many lines together (the idea of ExactLine: Sotoudeh and Thakur,
"Computing Linear Restrictions of Neural Networks", NeurIPS 2019).

The number of rows varies, so affine layers are applied in blocks of a fixed row count: a row's result then does not
depend on which lines share the pass. Everything happens on the host, whatever device the gradients are on: how many
rows there are is known only step by step, a device would be waited for at each of them, and numpy takes a third of
torch's time for the many small arrays between the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.nn import functional

from service.artefacts.sizes import row_type_of
from service.domain import Floats, Indices
from service.engine.graph.dimensions import dimensions, grows, is_row_count
from service.engine.graph.operators import (
    FACTS,
    IN_BLOCKS,
    RESHAPES,
    NotPiecewiseLinear,
    Operation,
    Operator,
    bounds,
    is_affine,
    operation_of,
    operator_of,
    unpacked,
)
from service.engine.graph.simplification import attribute, simplified
from service.engine.kernels.line_pass import LinePass
from service.engine.kernels.windows import Windows, changes, windows_of

BLOCK_ROWS = 64


@dataclass(frozen=True, slots=True)
class Bends:
    """The breakpoints of several lines, in order: number r lies on line `line[r]` at `alpha[r]` and has `logits[r]`.

    `overflowed[l]` is true for a line with more pieces than were allowed; none of its breakpoints are here.
    """

    line: Indices
    alpha: Floats
    logits: NDArray[np.floating]
    overflowed: NDArray[np.bool_]


Handler = Callable[[LinePass, "_Step"], Tensor]


@dataclass(frozen=True, slots=True)
class _Step:
    """An operator of the graph: `handler` computes it with `operation`.

    `varying` are its arguments that depend on the input, `along` the dimensions it works along, and `released` the
    values nobody needs after it. A step without a handler gives a constant of the pass.
    """

    node: fx.Node
    name: str
    operation: Operation
    handler: Handler | None
    varying: tuple[fx.Node, ...]
    along: tuple[int, ...]
    grows: bool
    released: tuple[fx.Node, ...]

    def arguments(self, state: LinePass) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's arguments, with the tensors of the pass in the nodes' places."""
        result: tuple[tuple[Any, ...], dict[str, Any]] = map_arg((self.node.args, self.node.kwargs), state.of)
        return result

    def compute(self, state: LinePass) -> Any:
        """The operator's result for all rows together."""
        arguments, keywords = self.arguments(state)
        return self.operation(*arguments, **keywords)

    def refuse_mixed_rows(self, state: LinePass) -> None:
        """Raises NotPiecewiseLinear where rows would not be rows of the result, now that all ranks are known."""
        ranks = {state.values[node].dim() for node in self.varying}
        if len(ranks) > 1 or -(max(ranks) + self.grows) in self.along:
            raise NotPiecewiseLinear(self.name)


class PiecewiseLinear:
    """A network of affine and piecewise-linear operators, prepared for finding its breakpoints.

    Which they are is said in `service.engine.graph.operators`; besides them there is the replacement of NaN, which
    cannot occur between finite ends. Raises NotPiecewiseLinear, naming the first other operator. Some can only be seen
    to mix rows when ranks are known: they are refused here if `shape`, that of one row of the input, is given, and
    else when breakpoints are first asked for.
    """

    def __init__(
        self, twin: fx.GraphModule, block_rows: int = BLOCK_ROWS, shape: tuple[int, ...] | None = None
    ) -> None:
        self._twin = simplified(twin)
        self.row_type = row_type_of(twin)
        self._block_rows = block_rows
        self._constants: dict[fx.Node, Any] = {}
        self._guards: set[fx.Node] = set()
        nodes = list(self._twin.graph.nodes)
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._varying = set(self._inputs)
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        self._steps = []
        for node in nodes:
            operator = operator_of(self._twin, node)
            if node.op == "get_attr":
                self._constants[node] = attribute(self._twin, node)
            elif operator is not None:
                released = tuple(u for u in node.all_input_nodes if last_use[u] is node and u in self._varying)
                self._steps.append(self._step(operator, released))
        (output,) = nodes[-1].all_input_nodes
        self._output: fx.Node = output
        self._is_checked = False
        if shape is not None:
            point = np.zeros((1, *shape), self.row_type)
            self.breakpoints(point, point, np.ones(1, dtype=np.intp))

    def _step(self, operator: Operator, released: tuple[fx.Node, ...]) -> _Step:
        node = operator.node
        varying: list[fx.Node] = []  # as often as they are given
        map_arg((node.args, node.kwargs), lambda used: varying.append(used) if used in self._varying else None)
        distinct = tuple(dict.fromkeys(varying))
        operation = operation_of(operator, varies=bool(varying))
        counts_rows = any(is_row_count(self._twin, used, self._varying) for used in node.all_input_nodes)
        if counts_rows and operator.kind not in (*RESHAPES, "expand"):
            raise NotPiecewiseLinear(operator.name)
        if not varying or operator.kind in FACTS:
            return _Step(node, operator.name, operation, None, distinct, (), False, released)
        self._varying.add(node)
        handler = self._handler(operator, varying)
        along = dimensions(operator, distinct)
        if handler is None or 0 in along:
            raise NotPiecewiseLinear(operator.name)
        return _Step(node, operator.name, operation, handler, distinct, along, grows(operator), released)

    def _handler(self, operator: Operator, varying: list[fx.Node]) -> Handler | None:
        node, kind = operator.node, operator.kind
        if operator.is_in_training:
            return None
        limits = bounds(operator)
        if limits:
            return partial(_bent, limits) if {node.args[0], *limits}.issuperset(varying) else None
        windows = windows_of(operator)
        if windows is not None:
            return partial(_largest, windows, -1 if kind == "amin" else 1)
        if kind == "isnan":
            self._guards.add(node)
            is_guard = all(user.target is torch.where and user.args[0] is node for user in node.users)
            return _first_argument if is_guard else None
        if kind == "where" and node.args[0] in self._guards:
            return _unguarded if node.args[2] in varying else None
        if not is_affine(operator, varying):
            return None
        if kind in RESHAPES:
            return _reshaped
        if kind in IN_BLOCKS:
            return self._in_blocks if varying[0] in node.args else None
        return _whole

    def _in_blocks(self, state: LinePass, step: _Step) -> Tensor:
        (varying,) = step.varying
        rows = state.values[varying]
        count = len(rows)
        missing = -count % self._block_rows if count else self._block_rows  # where every line had too many pieces
        padded = functional.pad(rows, [0, 0] * (rows.dim() - 1) + [0, missing])
        positional, keywords = step.arguments(state)
        arguments, at = list(positional), step.node.args.index(varying)
        blocks = []
        for block in torch.split(padded, self._block_rows):
            arguments[at] = block
            blocks.append(step.operation(*arguments, **keywords))
        return (torch.cat(blocks) if len(blocks) > 1 else blocks[0])[:count]

    @torch.inference_mode()
    def breakpoints(self, starts: NDArray[np.floating], ends: NDArray[np.floating], max_pieces: Indices) -> Bends:
        """The rows at which any neuron of the network bends, the two ends included, on each line from starts[l] to
        ends[l].

        `starts` and `ends` are [lines, ...input], `max_pieces` [lines]; alpha runs from 0 to 1.
        """
        lines = len(starts)
        with np.errstate(over="ignore", invalid="ignore"):  # ends beyond float32's range have pieces that are NaN
            both = np.empty((2 * lines, *starts.shape[1:]), starts.dtype)
            both[::2], both[1::2] = starts, ends
            line, end = np.divmod(np.arange(2 * lines), 2)
            state = LinePass(
                line=line,
                alpha=end.astype(np.float64),
                overflowed=np.zeros(lines, dtype=bool),
                max_pieces=max_pieces,
                values=dict.fromkeys(self._inputs, torch.from_numpy(both)),
                constants=dict(self._constants),
            )
            for step in self._steps:
                if step.handler is None:
                    state.constants[step.node] = step.compute(state)
                else:
                    if not self._is_checked:
                        step.refuse_mixed_rows(state)
                    state.values[step.node] = step.handler(state, step)
                    if not self._is_checked and len(state.values[step.node]) != len(state.line):
                        raise NotPiecewiseLinear(step.name)
                for node in step.released:
                    del state.values[node]
            self._is_checked = True  # the next inputs have the same ranks
        return Bends(state.line, state.alpha, state.values[self._output].numpy(), state.overflowed)


def _whole(state: LinePass, step: _Step) -> Tensor:
    result: Tensor = step.compute(state)
    return result


def _reshaped(state: LinePass, step: _Step) -> Tensor:
    """Rows stay rows, also where there are none: torch cannot infer a size then."""
    (tensor, *sizes), keywords = step.arguments(state)
    rows, *shape = unpacked(keywords.get("shape", sizes))
    width, known = prod(tensor.shape[1:]), prod(size for size in shape if size != -1)
    shape = [width // max(known, 1) if size == -1 else size for size in shape]
    if rows != -1 or prod(shape) != width:
        raise NotPiecewiseLinear(step.name)
    result: Tensor = tensor.reshape(len(tensor), *shape)
    return result


def _first_argument(state: LinePass, step: _Step) -> Tensor:
    """In place of isnan: nothing is NaN between finite ends, so whatever it guards is never replaced."""
    return state.values[step.varying[0]]


def _unguarded(state: LinePass, step: _Step) -> Tensor:
    """where(isnan(...), replacement, value)"""
    value: Tensor = state.of(step.node.args[2])
    return value


def _bent(bounds: tuple[float | fx.Node, ...], state: LinePass, step: _Step) -> Tensor:
    for bound in bounds:
        value, limit = state.of(step.node.args[0]), state.of(bound)
        state.split(value - limit if isinstance(limit, Tensor) or limit else value)
    return _whole(state, step)


def _largest(windows: Windows, sign: int, state: LinePass, step: _Step) -> Tensor:
    result = _whole(state, step)
    rows = state.values[step.varying[0]]
    values = sign * rows.numpy().reshape(len(rows), prod(rows.shape[1:]))
    row, share = changes(values, windows(tuple(rows.shape[1:]), tuple(result.shape[1:])))
    within = state.line[row] == state.line[np.minimum(row + 1, len(rows) - 1)]
    if not within.any():
        return result
    state.cut(row[within], share[within])
    return _whole(state, step)
