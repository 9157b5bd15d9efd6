"""Converters of recurrent layers (RNN, GRU, LSTM), unrolled over their steps: each step is operators that torch
differentiates, as often as one likes, and that a chunk computes row by row.

Equations, names and the order of gates in the weights are those of ONNX's operators of these names (opset 22).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from service.artefacts.onnx.conversion import Function, Node, converts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
USUAL = {"RNN": ["tanh"], "GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"]}
SEQUENCE_LENGTHS, HIDDEN, CELL, PEEPHOLES = 4, 5, 6, 7
"""Places of optional inputs."""

State = tuple[Tensor, ...]
"""What a step hands to the next: the hidden state [rows, hidden], and of LSTM the cell; empty before the first step of
a layer that begins at zero."""
Cell = Callable[[Tensor, State], State]
"""One step: from the projected input [rows, gates * hidden] and the state before it to the state after it."""


@dataclass(frozen=True, slots=True)
class Direction:
    """The weights of one direction of a layer, and its activations.

    `recurrent` is [gates * hidden, hidden], `bias` what is added to its product, [gates * hidden].
    """

    recurrent: Tensor
    bias: Tensor
    activations: Sequence[Callable[[Tensor], Tensor]]

    def gates(self, state: State) -> Tensor:
        """The recurrent part of all gates."""
        return linear(state[0], self.recurrent, self.bias) if state else self.bias

    def part(self, first: int, last: int) -> Direction:
        """The weights of some gates."""
        size = self.recurrent.shape[1]
        rows = slice(first * size, last * size)
        return Direction(self.recurrent[rows], self.bias[rows], self.activations)


def _rnn(weights: Direction, _: Node) -> Cell:
    (activation,) = weights.activations

    def step(projected: Tensor, state: State) -> State:
        return (activation(projected + weights.gates(state)),)

    return step


def _gru(weights: Direction, node: Node) -> Cell:
    f, g = weights.activations
    update_and_reset, candidate = weights.part(0, 2), weights.part(2, 3)
    size = weights.recurrent.shape[1]
    resets_product = bool(node.option("linear_before_reset", 0))

    def step(projected: Tensor, state: State) -> State:
        gates = f(projected[:, : 2 * size] + update_and_reset.gates(state))
        update, reset = gates[:, :size], gates[:, size:]
        if resets_product or not state:
            recurrent = reset * candidate.gates(state) if resets_product else candidate.bias
        else:
            recurrent = candidate.gates((reset * state[0],))
        proposed = g(projected[:, 2 * size :] + recurrent)
        kept = (1 - update) * proposed
        return (kept + update * state[0] if state else kept,)

    return step


def _lstm(weights: Direction, _: Node) -> Cell:
    f, g, h = weights.activations
    size = weights.recurrent.shape[1]

    def step(projected: Tensor, state: State) -> State:
        gates = projected + weights.gates(state)
        into, out, kept = (f(gates[:, at * size : (at + 1) * size]) for at in range(3))
        proposed = into * g(gates[:, 3 * size :])
        cell = kept * state[1] + proposed if state else proposed
        return out * h(cell), cell

    return step


CELLS: dict[str, Callable[[Direction, Node], Cell]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}


@converts("RNN", "GRU", "LSTM", tensors=(0, HIDDEN, CELL))
def _recurrent(node: Node) -> Function:
    _check(node)
    steps = node.shape()[0]
    if steps is None:
        raise node.error("has as many steps as there are rows")
    direction = node.option("direction", "forward")
    ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    input_weights, biases = node.needed(1), _biases(node, len(ways))
    size = input_weights.shape[1] // GATES[node.operator]
    activations = _activations(node, len(ways))
    cells = []
    for at in range(len(ways)):
        weights = Direction(node.needed(2)[at], biases[at][input_weights.shape[1] :], activations[at])
        cells.append(CELLS[node.operator](weights, node))
    has_state = [_has(node, place) for place in (HIDDEN, CELL)]
    if has_state == [False, True] or (node.operator == "LSTM" and has_state == [True, False]):
        raise node.error("has only one of its two states at the start")

    def run(rows: Tensor, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs, last = [], []
        for at, is_reversed in enumerate(ways):
            projected = linear(rows, input_weights[at], biases[at][: size * GATES[node.operator]])
            state: State = tuple(one[at] for one in states)
            hidden: list[Tensor] = []
            for step in reversed(range(steps)) if is_reversed else range(steps):
                state = cells[at](projected[step], state)
                hidden.append(state[0])
            outputs.append(torch.stack(hidden[::-1] if is_reversed else hidden))
            last.append(state)
        results = [torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*last, strict=True))]
        count = len(node.proto.output)
        return results[0] if count == 1 else tuple(results[:count])

    return run


def _has(node: Node, place: int) -> bool:
    return place < len(node.proto.input) and bool(node.proto.input[place])


def _check(node: Node) -> None:
    """Raises CatalogError for what is not converted."""
    for name in ("clip", "input_forget", "layout"):
        if node.option(name):
            raise node.error(f"is not converted with {name}")
    if _has(node, PEEPHOLES) and bool(node.needed(PEEPHOLES).any()):
        raise node.error("is not converted with peepholes")
    if _has(node, SEQUENCE_LENGTHS):
        lengths = node.array(SEQUENCE_LENGTHS)
        if lengths is None or (lengths != node.shape()[0]).any():
            raise node.error("is only converted where every row has all steps")


def _biases(node: Node, ways: int) -> Tensor:
    """Of the input's product, then of the recurrent one: [ways, 2 * gates * hidden]."""
    if _has(node, 3):
        return node.needed(3)
    weights = node.needed(1)
    return torch.zeros(ways, 2 * weights.shape[1], dtype=weights.dtype)


def _activations(node: Node, ways: int) -> list[list[Callable[[Tensor], Tensor]]]:
    """Those of each direction."""
    usual = USUAL[node.operator]
    named = [name.lower() for name in node.option("activations") or usual * ways]
    if unknown := [name for name in named if name not in ACTIVATIONS]:
        raise node.error(f"is not converted with the activation {unknown[0]}")
    count = len(usual)
    return [[ACTIVATIONS[name] for name in named[at * count : (at + 1) * count]] for at in range(ways)]
