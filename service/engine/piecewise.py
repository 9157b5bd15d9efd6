"""The breakpoints kernel: where a piecewise-linear network bends along straight lines through its input space.

On the line x' + alpha (x - x') such a network is piecewise linear in alpha. The two ends of each line are pushed
through the layers as rows; between neighbouring rows every tensor is linear. At each activation the rows where a unit
changes its regime are found by linear interpolation, exactly, and inserted into every tensor that is still needed, so
that the statement holds again behind the activation. One forward pass finds all breakpoints of many lines together
(the idea of ExactLine: Sotoudeh and Thakur, "Computing Linear Restrictions of Neural Networks", NeurIPS 2019).

The number of rows varies, so affine layers are applied in blocks of a fixed row count: a row's result then does not
depend on which lines share the pass. Everything happens on the host, whatever device the gradients are on: how many
rows there are is known only step by step, a device would be waited for at each of them, and numpy takes a third of
torch's time for the many small arrays between the layers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional

from service.domain import Floats, Indices

AFFINE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
)
AFFINE_FUNCTIONS = {torch.flatten, torch.neg, operator.neg}
SUMS = {torch.add, torch.sub, operator.add, operator.sub, operator.iadd, operator.isub}
PRODUCTS = {torch.mul, operator.mul, operator.imul}
MATRIX_PRODUCTS = {torch.matmul, operator.matmul}
QUOTIENTS = {torch.div, operator.truediv}
EXTREMA = {torch.maximum, torch.minimum}
RECTIFIERS = {torch.relu, functional.relu}
OTHER_KINKED_MODULES = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.PReLU, nn.Hardsigmoid, nn.Hardswish)
OTHER_KINKED_FUNCTIONS = {torch.abs, torch.amax, torch.amin, torch.max_pool2d, functional.max_pool2d}


BLOCK_ROWS = 64


class NotPiecewiseLinear(Exception):
    """The network has an operator whose breakpoints cannot be found."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Breakpoints of several lines, in order: row r lies on line `line[r]` at `alpha[r]` and has `logits[r]`.

    `overflowed[l]` is true for a line with more pieces than were allowed; it has no rows.
    """

    line: Indices
    alpha: Floats
    logits: NDArray[np.floating]
    overflowed: NDArray[np.bool_]


@dataclass(slots=True)
class _State:
    """The pass so far: `values` holds every tensor still needed, all with the same rows."""

    line: Indices
    alpha: Floats
    overflowed: NDArray[np.bool_]
    max_pieces: Indices
    values: dict[fx.Node, Tensor] = field(default_factory=dict)

    def split(self, thresholds: Tensor) -> None:
        """Insert a row wherever a column of `thresholds` [rows, units] changes its sign between two neighbours."""
        width = prod(thresholds.shape[1:])
        values = thresholds.numpy().reshape(len(self.line), width)
        crossings = np.flatnonzero(values[:-1] * values[1:] < 0)
        row = crossings // width
        if self.max_pieces.size > 1:  # the end of a line and the start of the next are no neighbours
            within = self.line[row] == self.line[row + 1]
            crossings, row = crossings[within], row[within]
        if not row.size:
            return
        flat = values.reshape(-1)
        start, end = flat[crossings], flat[crossings + width]
        share = start / (start - end)
        order = np.argsort(row + np.fmin(share, 1 - 1e-9, dtype=np.float64), kind="stable")
        self._insert(row[order], share[order])
        self._drop_overflowing()

    def _insert(self, row: Indices, share: NDArray[np.floating]) -> None:
        """Behind row[i], at the share[i] of the way to the next row, a new row of every tensor."""
        new = row + np.arange(1, len(row) + 1)
        is_old = np.ones(len(self.line) + len(row), dtype=bool)
        is_old[new] = False
        old = np.flatnonzero(is_old)

        def widened(values: NDArray[Any]) -> NDArray[Any]:
            left = values[row]
            weight = share.astype(values.dtype, copy=False).reshape(-1, *[1] * (values.ndim - 1))
            result = np.empty((len(is_old), *values.shape[1:]), values.dtype)
            result[old] = values
            result[new] = left + weight * (values[row + 1] - left)
            return result

        line = np.empty(len(is_old), self.line.dtype)
        line[old], line[new] = self.line, self.line[row]
        self.line, self.alpha = line, widened(self.alpha)
        self.values = {node: torch.from_numpy(widened(value.numpy())) for node, value in self.values.items()}

    def _drop_overflowing(self) -> None:
        over = np.bincount(self.line, minlength=len(self.max_pieces)) - 1 > self.max_pieces
        if not over.any():
            return
        self.overflowed |= over
        keep = np.flatnonzero(~over[self.line])
        self.line, self.alpha = self.line[keep], self.alpha[keep]
        self.values = {node: torch.from_numpy(value.numpy()[keep]) for node, value in self.values.items()}


Operation = Callable[..., Tensor]
Handler = Callable[[_State, "_Step"], Tensor]


@dataclass(frozen=True, slots=True)
class _Step:
    """A node of the graph: `handler` computes it with `operation`; `released` are the values nobody needs after it."""

    node: fx.Node
    handler: Handler
    operation: Operation
    constants: Mapping[fx.Node, Tensor]
    released: tuple[fx.Node, ...]

    def arguments(self, state: _State) -> list[Any]:
        """The node's arguments, with the tensors of the pass in the nodes' places."""
        return [
            (self.constants[argument] if argument in self.constants else state.values[argument])
            if isinstance(argument, fx.Node)
            else argument
            for argument in self.node.args
        ]


class PiecewiseLinear:
    """A network of affine layers and piecewise-linear activations, prepared for finding its breakpoints.

    Affine layers, sums, products with constants, ReLU, leaky ReLU, clipping, minimum and maximum, and the replacement
    of NaN, which cannot occur between finite ends. Raises NotPiecewiseLinear, naming the first other operator.
    """

    def __init__(self, twin: fx.GraphModule, block_rows: int = BLOCK_ROWS) -> None:
        self._twin = deepcopy(twin).cpu()
        self._block_rows = block_rows
        self._constants: dict[fx.Node, Tensor] = {}
        self._guards: set[fx.Node] = set()
        nodes = list(self._twin.graph.nodes)
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        self._steps = []
        for node in nodes:
            if node.op == "get_attr":
                self._constants[node] = self._attribute(str(node.target))
            elif node.op in ("call_module", "call_function", "call_method"):
                released = tuple(
                    used for used in node.all_input_nodes if last_use[used] is node and used not in self._constants
                )
                self._steps.append(self._step(node, released))
        (output,) = nodes[-1].all_input_nodes
        self._output: fx.Node = output

    def _step(self, node: fx.Node, released: tuple[fx.Node, ...]) -> _Step:
        module = self._twin.get_submodule(str(node.target)) if node.op == "call_module" else None
        handler = self._handler(node, module)
        if handler is None:
            name = type(module).__name__ if module is not None else node.name
            raise NotPiecewiseLinear(f"the operator {name} is not piecewise linear")
        operation = module.forward if module is not None else node.target
        assert callable(operation)
        if node.kwargs:
            operation = partial(operation, **node.kwargs)
        return _Step(node, handler, operation, self._constants, released)

    def _attribute(self, path: str) -> Tensor:
        module, _, name = path.rpartition(".")
        value = getattr(self._twin.get_submodule(module), name)
        assert isinstance(value, Tensor)
        return value

    def _handler(self, node: fx.Node, module: nn.Module | None) -> Handler | None:
        kinks = _kinks(self._twin, node)
        if kinks is not None:
            return partial(_bent, kinks)
        if module is not None:
            return self._in_blocks if isinstance(module, AFFINE_MODULES) else None
        if node.op != "call_function":
            return None
        function = node.target
        if function is torch.isnan:
            self._guards.add(node)
            return _first_argument
        varying = [a for a in node.args[:2] if isinstance(a, fx.Node) and a not in self._constants]
        if function in MATRIX_PRODUCTS and len(varying) == 1:
            return self._in_blocks
        if function in SUMS or (function in PRODUCTS and len(varying) == 1):
            return _elementwise
        if function in QUOTIENTS and node.args[1] not in varying:
            return _elementwise
        if function is torch.where and node.args[0] in self._guards and node.args[2] not in self._constants:
            return _unguarded
        if function in AFFINE_FUNCTIONS:
            return _elementwise
        return _extremum if function in EXTREMA else None

    def _in_blocks(self, state: _State, step: _Step) -> Tensor:
        arguments = step.arguments(state)
        varying = next(i for i, a in enumerate(step.node.args) if isinstance(a, fx.Node) and a not in self._constants)
        rows: Tensor = arguments[varying]
        count = len(rows)
        blocks_needed = max(1, -(-count // self._block_rows))  # also where every line had too many pieces
        padded = rows.new_zeros(blocks_needed * self._block_rows, *rows.shape[1:])
        padded[:count] = rows
        blocks = []
        for start in range(0, len(padded), self._block_rows):
            arguments[varying] = padded[start : start + self._block_rows]
            blocks.append(step.operation(*arguments))
        return (torch.cat(blocks) if len(blocks) > 1 else blocks[0])[:count]

    @torch.inference_mode()
    def breakpoints(self, starts: NDArray[np.floating], ends: NDArray[np.floating], max_pieces: Indices) -> Rows:
        """The rows at which any unit bends, the two ends included, on each line from starts[l] to ends[l].

        `starts` and `ends` are [lines, ...input], `max_pieces` [lines]; alpha runs from 0 to 1.
        """
        lines = len(starts)
        with np.errstate(over="ignore", invalid="ignore"):  # ends beyond float32's range have pieces that are NaN
            both = np.stack([starts, ends], axis=1).reshape(2 * lines, *starts.shape[1:])
            state = _State(
                line=np.repeat(np.arange(lines), 2),
                alpha=np.tile([0.0, 1.0], lines),
                overflowed=np.zeros(lines, dtype=bool),
                max_pieces=max_pieces,
                values=dict.fromkeys(self._inputs, torch.from_numpy(both)),
            )
            for step in self._steps:
                state.values[step.node] = step.handler(state, step)
                for node in step.released:
                    del state.values[node]
        return Rows(state.line, state.alpha, state.values[self._output].numpy(), state.overflowed)


def _elementwise(state: _State, step: _Step) -> Tensor:
    return step.operation(*step.arguments(state))


def _first_argument(state: _State, step: _Step) -> Tensor:
    """In place of isnan: nothing is NaN between finite ends, so whatever it guards is never replaced."""
    value: Tensor = step.arguments(state)[0]
    return value


def _unguarded(state: _State, step: _Step) -> Tensor:
    """where(isnan(...), replacement, value)"""
    value: Tensor = step.arguments(state)[2]
    return value


def _extremum(state: _State, step: _Step) -> Tensor:
    first, second = step.arguments(state)
    state.split(first - second)
    return _elementwise(state, step)


def _bent(kinks: tuple[float, ...], state: _State, step: _Step) -> Tensor:
    for kink in kinks:
        value: Tensor = step.arguments(state)[0]
        state.split(value - kink if kink else value)
    return _elementwise(state, step)


def _kinks(twin: fx.GraphModule, node: fx.Node) -> tuple[float, ...] | None:
    """The values of its input at which an elementwise activation bends; None for anything else."""
    if node.op == "call_function":
        if node.target in RECTIFIERS:
            return (0.0,)
        if node.target is torch.clamp:
            bounds = [*node.args[1:], node.kwargs.get("min"), node.kwargs.get("max")]
            return tuple(float(bound) for bound in bounds if isinstance(bound, int | float))
        return None
    module = twin.get_submodule(str(node.target)) if node.op == "call_module" else None
    match module:
        case nn.ReLU6():
            return (0.0, 6.0)
        case nn.ReLU() | nn.LeakyReLU():
            return (0.0,)
        case nn.Hardtanh():
            return (module.min_val, module.max_val)
    return None


def has_kinks(twin: fx.GraphModule) -> bool:
    """Whether the gradient jumps somewhere; decides between the midpoint and the Gauss-Legendre rule."""
    for node in twin.graph.nodes:
        if _kinks(twin, node) or node.target in EXTREMA or node.target in OTHER_KINKED_FUNCTIONS:
            return True
        if node.op == "call_module" and isinstance(twin.get_submodule(str(node.target)), OTHER_KINKED_MODULES):
            return True
    return False
