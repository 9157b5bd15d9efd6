"""How graphs end in probabilities, and the logits behind them: numbers of which the probabilities are the softmax.

A softmax is unchanged when the same is added to all numbers of a row. So log p, the input of a softmax, and the
logarithms of numbers that are divided by their sum at the end all have the softmax p. A small probability in floating
point has lost most of its digits compared with its logit; so instead of taking its logarithm, the graph is followed
back to the numbers that it was computed from. Whether that was done correctly is checked on rows
(`service.lifecycle.adding.equivalence`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from service.catalog.outputs.classes import Classes
from service.catalog.outputs.embedding import Embedding
from service.catalog.outputs.kind import OutputKind
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Values

LINEAR = "answerable_linear"
"""The prefix of the tensors that replace a linear classifier."""
LOGITS, PROBABILITIES, VALUES = "answerable_logits", "answerable_probabilities", "answerable_values"
SCORE = "answerable_score"
"""The one logit [rows, 1] that two labels share, where they do: with zero beside it, it makes their `LOGITS`."""
MIN_PROBABILITY = 2.0**-126
"""float32's smallest normal number, in the place of zeros, which have no logarithm."""
SAME_VALUES = {
    *("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "ZipMap"),
    *("QuantizeLinear", "DequantizeLinear"),
}
PASSING_ON = {*SAME_VALUES, "Normalizer"}
"""Operators that leave probabilities as they are; scikit-learn normalises numbers that sum to 1 already."""
BEFORE = {"Softmax": "before the softmax", "LogSoftmax": "before the logsoftmax", "Exp": "before its exponential"}

HALF_PRECISION: set[int] = {TensorProto.FLOAT16, TensorProto.BFLOAT16}

Producers = Mapping[str, NodeProto]
"""The node that computes each tensor, by the tensor's name."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the logits are computed from a tensor: they are the tensor, 0 and the tensor, its logarithms or its log-odds.
    Or the tensor holds values, or an embedding.

    `outputs` is the kind of output that the file then has; `how` says the same as a sentence to users.
    """

    kind: Literal["logits", "second logit", "logarithms", "log-odds", "values"]
    tensor: str
    how: str
    outputs: type[OutputKind] = Classes


def producers_of(graph: GraphProto) -> Producers:
    """The node that computes each tensor, by the tensor's name."""
    return {name: node for node in graph.node for name in node.output if name}


def behind(name: str, producers: Producers, operators: set[str]) -> str:
    """The tensor that `name` was computed from by such operators alone."""
    while name in producers and producers[name].op_type in operators:
        name = producers[name].input[0]
    return name


def as_logits(output: str, columns: int, producers: Producers) -> Ending:
    """The ending of an output that holds logits, or one logit, the second label's of two."""
    tensor = behind(output, producers, {"ZipMap"})
    if columns == 1:
        return Ending("second logit", tensor, f"logits are 0 and {_called(tensor)}")
    return Ending("logits", tensor, f"logits are {_called(tensor)}")


def visible_ending(output: str, columns: int, producers: Producers) -> Ending | None:
    """The ending of an output with so many probabilities a row, as the graph shows it; None where it is not
    recognised."""
    node = producers.get(behind(output, producers, PASSING_ON))
    if node is None or not node.input:
        return None
    first, last = node.input[0], node.input[-1]
    match node.op_type:
        case "Softmax" | "LogSoftmax" | "Exp":
            return Ending("logits", first, f"logits are {_called(first)}, {BEFORE[node.op_type]}")
        case "Sigmoid" if columns == 1:
            return _before_sigmoid(first)
        case "Concat" if columns == 2:  # of 1 - p and p
            second = producers.get(behind(last, producers, PASSING_ON))
            return _before_sigmoid(second.input[0]) if second is not None and second.op_type == "Sigmoid" else None
        case "Div":
            return visible_ending(first, columns, producers) or by_logarithm(first, producers)
    return None


def as_values(output: str) -> Ending:
    """The ending of an output that holds values."""
    return Ending("values", output, f"the values are {_called(output)}", Values)


def as_embedding(output: str) -> Ending:
    """The ending of an output that holds an embedding."""
    return Ending("values", output, f"the embedding is {_called(output)}", Embedding)


def as_independent_logits(output: str) -> Ending:
    """The ending of an output that holds a logit for each of several labels that may be right at once."""
    return Ending("logits", output, f"logits are {_called(output)}, a sigmoid each", Labels)


def independent_endings(output: str, producers: Producers, *, is_sure: bool) -> Iterator[Ending]:
    """The endings of an output that holds a probability for each of several labels that may be right at once.

    Where the graph does not end in sigmoids, `is_sure` must say that these are probabilities.
    """
    tensor = behind(output, producers, SAME_VALUES)
    node = producers.get(tensor)
    if node is not None and node.op_type == "Sigmoid":
        how = f"logits are {_called(node.input[0])}, before a sigmoid each"
        yield Ending("logits", node.input[0], how, Labels)
    elif is_sure:
        yield Ending("log-odds", tensor, f"logits are the log-odds of {_called(tensor)}", Labels)


def _before_sigmoid(score: str) -> Ending:
    return Ending("second logit", score, f"logits are 0 and {_called(score)}, before the sigmoid of two labels")


def by_logarithm(output: str, producers: Producers) -> Ending:
    """The ending of any output of probabilities: logits are their logarithms."""
    name = behind(output, producers, PASSING_ON)
    return Ending("logarithms", name, f"logits are the logarithms of {_called(name)}")


def _called(tensor: str) -> str:
    return "the sums of the linear classifier" if tensor.startswith(LINEAR) else repr(tensor)


def add_outputs(graph: GraphProto, ending: Ending) -> None:
    """Adds the tensors `LOGITS` and `PROBABILITIES`, float32 [rows, labels], or else `VALUES`."""
    end = _GraphEnd(graph)
    match ending.kind:
        case "values":
            graph.node.append(helper.make_node("Flatten", [end.in_float32(ending.tensor)], [VALUES], axis=1))
            return
        case "log-odds":
            logits = end("Sub", end.logarithm(ending.tensor), end.logarithm(ending.tensor, of_the_rest=True))
        case "second logit":  # softmax(0, z) = (1 - sigmoid(z), sigmoid(z)). The score is [rows, 1], or [rows].
            column = end.constant(np.array([-1, 1], dtype=np.int64))
            score = helper.make_node("Reshape", [end.in_float32(ending.tensor), column], [SCORE])
            graph.node.append(score)
            nothing = end("Mul", SCORE, end.constant(np.zeros((), dtype=np.float32)))
            logits = end("Concat", nothing, SCORE, axis=1)
        case "logarithms":
            logits = end.logarithm(ending.tensor)
        case _:
            logits = end.in_float32(ending.tensor)
    graph.node.append(helper.make_node("Flatten", [logits], [LOGITS], axis=1))
    operator, options = ending.outputs.network_link.onnx_operator
    graph.node.append(helper.make_node(operator, [LOGITS], [PROBABILITIES], **options))


def has_floats(graph: GraphProto, kinds: set[int]) -> bool:
    """Whether the graph has constants, or casts to tensors, of one of these element types."""
    types = {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        types |= {one.i for one in node.attribute if one.name == "to"}
        types |= {one.t.data_type for one in node.attribute if one.name == "value"}
    return bool(types & kinds)


class _GraphEnd:
    """Appends nodes to a graph; each call returns the name of the tensor that the new node computes."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._producers = producers_of(graph)
        self._is_float32 = not has_floats(graph, {*HALF_PRECISION, TensorProto.DOUBLE})
        self._ones = {t.name for t in graph.initializer if (numpy_helper.to_array(t) == 1).all()}

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"answerable_{operator.lower()}_{len(self._graph.node)}"
        self._graph.node.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        name = f"answerable_constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def in_float32(self, name: str) -> str:
        return name if self._is_float32 else self("Cast", name, to=TensorProto.FLOAT)

    def logarithm(self, name: str, of_the_rest: bool = False) -> str:
        """The logarithm of a tensor p of probabilities, or of 1 - p, from the tensors that p is computed from if
        possible."""
        node = self._producers.get(name, NodeProto())
        match node.op_type:
            case "Cast" | "ZipMap":
                return self.logarithm(node.input[0], of_the_rest)
            case "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Slice":
                return self._repeated(node, [self.logarithm(node.input[0], of_the_rest), *node.input[1:]])
            case "Concat":
                return self._repeated(node, [self.logarithm(part, of_the_rest) for part in node.input])
            case "Exp" if not of_the_rest:
                return self.in_float32(node.input[0])
            case "Sigmoid":  # 1 - sigmoid(z) = sigmoid(-z), and log sigmoid(z) = -softplus(-z)
                score = self.in_float32(node.input[0])
                return self("Neg", self("Softplus", score if of_the_rest else self("Neg", score)))
            case "Sub" if node.input[0] in self._ones:
                return self.logarithm(node.input[1], not of_the_rest)
        value = self.in_float32(name)
        if of_the_rest:
            value = self("Sub", self.constant(np.ones((), dtype=np.float32)), value)
        return self("Log", self("Max", value, self.constant(np.array(MIN_PROBABILITY, dtype=np.float32))))

    def _repeated(self, node: NodeProto, inputs: list[str]) -> str:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        return self(node.op_type, *inputs, **attributes)
