"""The breakpoints kernel: where a piecewise-linear network bends along straight lines through its input space.

On the line x' + alpha (x - x') such a network is piecewise linear in alpha. The two ends of each line are pushed
through the layers as rows; between neighbouring rows every tensor is linear. At each activation the rows where a unit
changes its regime are found by linear interpolation, exactly, and inserted into every tensor that is still needed, so
that the statement holds again behind the activation. One forward pass finds all breakpoints of many lines together
(the idea of ExactLine: Sotoudeh and Thakur, "Computing Linear Restrictions of Neural Networks", NeurIPS 2019).

The number of rows varies, so affine layers are applied in blocks of the chunk's row count: a row's result then does
not depend on which lines share the pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

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
PRODUCTS = {torch.mul, operator.mul, operator.imul, torch.matmul, operator.matmul}
QUOTIENTS = {torch.div, operator.truediv}
EXTREMA = {torch.maximum, torch.minimum}
RECTIFIERS = {torch.relu, functional.relu}
OTHER_KINKED_MODULES = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.PReLU, nn.Hardsigmoid, nn.Hardswish)
OTHER_KINKED_FUNCTIONS = {torch.abs, torch.amax, torch.amin, torch.max_pool2d, functional.max_pool2d}


class NotPiecewiseLinear(Exception):
    """The network has an operator whose breakpoints cannot be found."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Breakpoints of several lines, in order: row r lies on line `line[r]` at `alpha[r]` and has `logits[r]`.

    `overflowed[l]` is true for a line with more pieces than were allowed; it has no rows.
    """

    line: Tensor
    alpha: Tensor
    logits: Tensor
    overflowed: Tensor


@dataclass(slots=True)
class _State:
    """The pass so far: `values` holds every tensor still needed, all with the same rows."""

    line: Tensor
    alpha: Tensor
    overflowed: Tensor
    max_pieces: Tensor
    values: dict[fx.Node, Tensor] = field(default_factory=dict)

    def split(self, thresholds: Tensor) -> None:
        """Insert a row wherever a column of `thresholds` [rows, units] changes its sign between two neighbours."""
        units = thresholds.flatten(1)
        before, after = units[:-1], units[1:]
        crosses = (before * after < 0) & (self.line[:-1] == self.line[1:])[:, None]
        row, unit = crosses.nonzero(as_tuple=True)
        if not len(row):
            return
        start, end = before[row, unit], after[row, unit]
        share = start / (start - end)
        order = torch.argsort(row.double() + share.double().clamp(max=1 - 1e-9), stable=True)
        self._insert(row[order], share[order])
        self._drop_overflowing()

    def _insert(self, row: Tensor, share: Tensor) -> None:
        """Behind row[i], at the share[i] of the way to the next row, a new row of every tensor."""
        total = len(self.line) + len(row)
        new = row + 1 + torch.arange(len(row), device=row.device)
        is_new = torch.zeros(total, dtype=torch.bool, device=row.device)
        is_new[new] = True
        old = (~is_new).nonzero().squeeze(1)

        def widened(values: Tensor) -> Tensor:
            weight = share.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))
            result = values.new_empty(total, *values.shape[1:])
            result[old] = values
            left = values[row]
            result[new] = left + weight * (values[row + 1] - left)
            return result

        lines = self.line.new_empty(total)
        lines[old], lines[new] = self.line, self.line[row]
        self.alpha = widened(self.alpha)
        self.line = lines
        self.values = {node: widened(value) for node, value in self.values.items()}

    def _drop_overflowing(self) -> None:
        pieces = torch.bincount(self.line, minlength=len(self.max_pieces)) - 1
        over = pieces > self.max_pieces
        if not bool(over.any()):
            return
        self.overflowed |= over
        keep = (~over[self.line]).nonzero().squeeze(1)
        self.line, self.alpha = self.line[keep], self.alpha[keep]
        self.values = {node: value[keep] for node, value in self.values.items()}


Handler = Callable[[_State, fx.Node], Tensor]


class PiecewiseLinear:
    """A network of affine layers and piecewise-linear activations, prepared for finding its breakpoints.

    Affine layers, sums, products with constants, ReLU, leaky ReLU, clipping, minimum and maximum, and the replacement
    of NaN, which cannot occur between finite ends. Raises NotPiecewiseLinear, naming the first other operator.
    """

    def __init__(self, twin: fx.GraphModule, block_rows: int) -> None:
        self._twin = twin
        self._block_rows = block_rows
        self._constants: dict[fx.Node, Tensor] = {}
        self._guards: set[fx.Node] = set()
        self._handlers: dict[fx.Node, Handler] = {}
        for node in twin.graph.nodes:
            self._prepare(node)
        self._last_use = {
            used: node for node in twin.graph.nodes for used in node.all_input_nodes if used not in self._constants
        }

    def _prepare(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "output"):
            return
        if node.op == "get_attr":
            self._constants[node] = self._attribute(str(node.target))
            return
        handler = self._handler(node)
        if handler is None:
            name = type(self._twin.get_submodule(str(node.target))).__name__ if node.op == "call_module" else node.name
            raise NotPiecewiseLinear(f"the operator {name} is not piecewise linear")
        self._handlers[node] = handler

    def _attribute(self, path: str) -> Tensor:
        module, _, name = path.rpartition(".")
        value = getattr(self._twin.get_submodule(module), name)
        assert isinstance(value, Tensor)
        return value

    def _handler(self, node: fx.Node) -> Handler | None:
        kinks = _kinks(self._twin, node)
        if kinks is not None:
            return lambda state, at: self._bend(state, at, kinks)
        if node.op == "call_module":
            return self._in_blocks if isinstance(self._twin.get_submodule(str(node.target)), AFFINE_MODULES) else None
        if node.op != "call_function":
            return None
        function = node.target
        if function is torch.isnan:
            self._guards.add(node)
            return self._never_nan
        varying = [a for a in node.args[:2] if isinstance(a, fx.Node) and a not in self._constants]
        if function in SUMS:
            return self._elementwise
        if function in PRODUCTS and len(varying) == 1:
            return self._in_blocks
        if function in QUOTIENTS and node.args[1] not in varying:
            return self._elementwise
        if function is torch.where and node.args[0] in self._guards:
            return self._elementwise
        if function in AFFINE_FUNCTIONS:
            return self._elementwise
        return self._extremum if function in EXTREMA else None

    def _arguments(self, state: _State, node: fx.Node) -> list[object]:
        def value(argument: object) -> object:
            if isinstance(argument, fx.Node):
                return self._constants[argument] if argument in self._constants else state.values[argument]
            return argument

        return [value(argument) for argument in node.args]

    def _apply(self, node: fx.Node, arguments: list[object]) -> Tensor:
        operation = self._twin.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        assert callable(operation)
        result = operation(*arguments, **node.kwargs)
        assert isinstance(result, Tensor)
        return result

    def _elementwise(self, state: _State, node: fx.Node) -> Tensor:
        return self._apply(node, self._arguments(state, node))

    def _never_nan(self, state: _State, node: fx.Node) -> Tensor:
        value = self._arguments(state, node)[0]
        assert isinstance(value, Tensor)
        return torch.zeros_like(value, dtype=torch.bool)

    def _in_blocks(self, state: _State, node: fx.Node) -> Tensor:
        arguments = self._arguments(state, node)
        varying = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a not in self._constants)
        rows = arguments[varying]
        assert isinstance(rows, Tensor)
        count = len(rows)
        padded = functional.pad(rows, [0, 0] * (rows.dim() - 1) + [0, -count % self._block_rows])
        blocks = []
        for block in torch.split(padded, self._block_rows):
            arguments[varying] = block
            blocks.append(self._apply(node, arguments))
        return torch.cat(blocks)[:count]

    def _extremum(self, state: _State, node: fx.Node) -> Tensor:
        first, second = self._arguments(state, node)
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        state.split(first - second)
        return self._elementwise(state, node)

    def _bend(self, state: _State, node: fx.Node, kinks: tuple[float, ...]) -> Tensor:
        for kink in kinks:
            value = self._arguments(state, node)[0]
            assert isinstance(value, Tensor)
            state.split(value - kink)
        return self._elementwise(state, node)

    @torch.no_grad()
    def breakpoints(self, starts: Tensor, directions: Tensor, max_pieces: Tensor) -> Rows:
        """The rows at which any unit bends, the two ends included, of each line starts[l] + alpha directions[l].

        `starts` and `directions` are [lines, ...input], `max_pieces` [lines] int64; alpha runs from 0 to 1.
        """
        lines = len(starts)
        line = torch.arange(lines, device=starts.device).repeat_interleave(2)
        alpha = torch.tensor([0.0, 1.0], dtype=torch.float64, device=starts.device).repeat(lines)
        overflowed = torch.zeros(lines, dtype=torch.bool, device=starts.device)
        state = _State(line, alpha, overflowed, max_pieces)
        for node in self._twin.graph.nodes:
            if node.op == "placeholder":
                state.values[node] = torch.stack([starts, starts + directions], 1).flatten(0, 1)
            elif node.op == "output":
                source = node.args[0]
                source = source[0] if isinstance(source, tuple | list) else source
                assert isinstance(source, fx.Node)
                return Rows(state.line, state.alpha, state.values[source], state.overflowed)
            elif node in self._handlers:
                state.values[node] = self._handlers[node](state, node)
                for used in node.all_input_nodes:
                    if self._last_use.get(used) is node:
                        state.values.pop(used, None)
        raise AssertionError("the graph has no output")


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
