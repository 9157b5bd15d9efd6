"""How graphs end in probabilities, and the logits behind them: numbers whose softmax the probabilities are.

A softmax does not tell numbers from others that are all larger by the same in a row. So it gives p again of log p, of
what stood before a softmax, and of the logarithms of whatever was divided by its sum in the end. A small probability,
once it is written down, has lost most of its digits; so its logarithm is not taken, but followed back to what it was
made of. Whether that was done rightly, the answers for rows say (`service.lifecycle.adding.equivalence`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from service.catalog.outputs.classes import Classes
from service.catalog.outputs.kind import OutputKind
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Values
from service.domain import Link

LINEAR = "answerable_linear"
"""How tensors begin that stand in the place of a linear classifier."""
LOGITS, PROBABILITIES, VALUES = "answerable_logits", "answerable_probabilities", "answerable_values"
SCORE = "answerable_score"
"""The one logit [rows, 1] that two labels share, where they do: with zero beside it, it makes their `LOGITS`."""
MIN_PROBABILITY = 2.0**-126
"""float32's least number of full precision, in the place of zeros, which have no logarithm."""
SAME_VALUES = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "ZipMap"}
PASSING_ON = {*SAME_VALUES, "Normalizer"}
"""Operators between the probabilities and an output that do not change them; scikit-learn normalises what sums to 1."""
BEFORE = {"Softmax": "before the softmax", "LogSoftmax": "before the logsoftmax", "Exp": "before its exponential"}

LINKS: Mapping[Link, tuple[str, dict[str, Any]]] = {
    Link.SOFTMAX: ("Softmax", {"axis": 1}),
    Link.SIGMOID: ("Sigmoid", {}),
}
"""The operator that leads from the logits to the probabilities, with its attributes."""
HALVES: set[int] = {TensorProto.FLOAT16, TensorProto.BFLOAT16}

Makers = Mapping[str, NodeProto]
"""The nodes by the names of their outputs."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The logits are what is made of a tensor: itself, 0 and itself, its logarithms or log-odds; or it holds values.

    `outputs` is the kind of output that this makes of the file.
    """

    kind: Literal["logits", "second logit", "logarithms", "log-odds", "values"]
    tensor: str
    how: str
    outputs: type[OutputKind] = Classes


def makers_of(graph: GraphProto) -> Makers:
    """The nodes by the names of their outputs."""
    return {name: node for node in graph.node for name in node.output if name}


def behind(name: str, makers: Makers, operators: set[str]) -> str:
    """The tensor behind such operators."""
    while name in makers and makers[name].op_type in operators:
        name = makers[name].input[0]
    return name


def as_logits(output: str, columns: int, makers: Makers) -> Ending:
    """Of an output that holds logits, or the one of the second of two labels."""
    tensor = behind(output, makers, {"ZipMap"})
    if columns == 1:
        return Ending("second logit", tensor, f"logits are 0 and {_called(tensor)}")
    return Ending("logits", tensor, f"logits are {_called(tensor)}")


def visible_ending(output: str, columns: int, makers: Makers) -> Ending | None:
    """Of an output with so many probabilities a row; None where the graph ends in no way that is known."""
    node = makers.get(behind(output, makers, PASSING_ON))
    if node is None or not node.input:
        return None
    given, last = node.input[0], node.input[-1]
    match node.op_type:
        case "Softmax" | "LogSoftmax" | "Exp":
            return Ending("logits", given, f"logits are {_called(given)}, {BEFORE[node.op_type]}")
        case "Sigmoid" if columns == 1:
            return _before_sigmoid(given)
        case "Concat" if columns == 2:  # of 1 - p and p
            second = makers.get(behind(last, makers, PASSING_ON))
            return _before_sigmoid(second.input[0]) if second is not None and second.op_type == "Sigmoid" else None
        case "Div":
            return visible_ending(given, columns, makers) or by_logarithm(given, makers)
    return None


def as_values(output: str) -> Ending:
    """Of an output that holds values."""
    return Ending("values", output, f"the values are {_called(output)}", Values)


def as_independent_logits(output: str) -> Ending:
    """Of an output that holds a logit for each of several labels that may be right at once."""
    return Ending("logits", output, f"logits are {_called(output)}, a sigmoid each", Labels)


def independent_endings(output: str, makers: Makers, *, is_sure: bool) -> Iterator[Ending]:
    """Of an output that holds a probability for each of several labels that may be right at once.

    Where the graph does not end in their sigmoids, it must be known that these are probabilities.
    """
    tensor = behind(output, makers, SAME_VALUES)
    node = makers.get(tensor)
    if node is not None and node.op_type == "Sigmoid":
        how = f"logits are {_called(node.input[0])}, before a sigmoid each"
        yield Ending("logits", node.input[0], how, Labels)
    elif is_sure:
        yield Ending("log-odds", tensor, f"logits are the log-odds of {_called(tensor)}", Labels)


def _before_sigmoid(score: str) -> Ending:
    return Ending("second logit", score, f"logits are 0 and {_called(score)}, before the sigmoid of two labels")


def by_logarithm(output: str, makers: Makers) -> Ending:
    """Of any probabilities."""
    name = behind(output, makers, PASSING_ON)
    return Ending("logarithms", name, f"logits are the logarithms of {_called(name)}")


def _called(tensor: str) -> str:
    return "the sums of the linear classifier" if tensor.startswith(LINEAR) else repr(tensor)


def add_outputs(graph: GraphProto, ending: Ending) -> None:
    """Adds the tensor `LOGITS`, float32 [rows, labels], and what they lead to: `PROBABILITIES`; or else `VALUES`."""
    added = _Added(graph)
    match ending.kind:
        case "values":
            graph.node.append(helper.make_node("Flatten", [added.in_float32(ending.tensor)], [VALUES], axis=1))
            return
        case "log-odds":
            logits = added("Sub", added.logarithm(ending.tensor), added.logarithm(ending.tensor, of_the_rest=True))
        case "second logit":  # softmax(0, z) = (1 - sigmoid(z), sigmoid(z)). The score is [rows, 1], or [rows].
            column = added.constant(np.array([-1, 1], dtype=np.int64))
            score = helper.make_node("Reshape", [added.in_float32(ending.tensor), column], [SCORE])
            graph.node.append(score)
            nothing = added("Mul", SCORE, added.constant(np.zeros((), dtype=np.float32)))
            logits = added("Concat", nothing, SCORE, axis=1)
        case "logarithms":
            logits = added.logarithm(ending.tensor)
        case _:
            logits = added.in_float32(ending.tensor)
    graph.node.append(helper.make_node("Flatten", [logits], [LOGITS], axis=1))
    operator, options = LINKS[ending.outputs.network_link]
    graph.node.append(helper.make_node(operator, [LOGITS], [PROBABILITIES], **options))


def has_floats(graph: GraphProto, kinds: set[int]) -> bool:
    """Whether something in the graph is computed in numbers of one of these kinds."""
    found = {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        found |= {one.i for one in node.attribute if one.name == "to"}
        found |= {one.t.data_type for one in node.attribute if one.name == "value"}
    return bool(found & kinds)


class _Added:
    """Adds nodes to a graph, and gives the name of what each computes."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._makers = makers_of(graph)
        self._is_float32 = not has_floats(graph, {*HALVES, TensorProto.DOUBLE})
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
        """The logarithm of a tensor p of probabilities, or of 1 - p, by what p was made of as far as that is known."""
        node = self._makers.get(name, NodeProto())
        match node.op_type:
            case "Cast" | "ZipMap":
                return self.logarithm(node.input[0], of_the_rest)
            case "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Slice":
                return self._again(node, [self.logarithm(node.input[0], of_the_rest), *node.input[1:]])
            case "Concat":
                return self._again(node, [self.logarithm(part, of_the_rest) for part in node.input])
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

    def _again(self, node: NodeProto, inputs: list[str]) -> str:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        return self(node.op_type, *inputs, **attributes)
