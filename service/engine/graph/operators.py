"""The operators of a traced network, however they are written: what each is, and whether and where it bends.

A module is known by its class, a function and a method by its name. But for case, underscores and the number of
dimensions these agree (`nn.LeakyReLU` and `functional.leaky_relu`, `nn.MaxPool2d` and `torch.max_pool1d`,
`Tensor.relu_` and `torch.relu`), so that one table serves them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn

from service.catalog.traits import kind_of

SUMS = {"add", "iadd", "sub", "subtract", "isub", "rsub"}
PRODUCTS = {"mul", "multiply", "imul"}
MATRIX_PRODUCTS = {"matmul", "mm"}
QUOTIENTS = {"div", "divide", "truedivide", "truediv", "itruediv"}
JOINTS = {"cat", "concat", "concatenate", "stack"}
PARTS = {"split", "splitwithsizes", "tensorsplit", "chunk", "unbind"}
RESHAPES = {"view", "reshape"}
REPETITIONS = {"expand": -1, "repeat": 1, "tile": 1}
"""The index that keeps a dimension whole."""
DROPOUTS = {"dropout", "alphadropout", "featuredropout", "featurealphadropout"}
PADS = {"pad", "constantpad", "zeropad", "reflectionpad", "replicationpad", "circularpad"}
CASTS = {"to", "float", "double"}
IN_BLOCKS = {
    *("linear", "addmm", "conv", "convtranspose", "batchnorm", "avgpool", "adaptiveavgpool", "sum", "mean", "cumsum"),
    *("interpolate", "upsample", "upsamplingnearest", "upsamplingbilinear", *MATRIX_PRODUCTS),
    *("pixelshuffle", "pixelunshuffle", "channelshuffle", "flatten", "unflatten", *PADS),
}
"""Operators that need a fixed number of rows: the last bits may depend on it, or there have to be some."""
AFFINE = {
    *("neg", "negative", "pos", "positive", "identity", "clone", "contiguous", "maskedfill"),
    *("transpose", "swapdims", "swapaxes", "permute", "movedim", "moveaxis", "squeeze", "unsqueeze", "flip", "roll"),
    *("getitem", "narrow", "select", "indexselect"),
    *(IN_BLOCKS | DROPOUTS | CASTS | PARTS | RESHAPES | set(REPETITIONS)),
}
"""Affine in their first argument, where that is the only one that varies."""

EXTREMA = {"maximum", "minimum", "fmax", "fmin"}
EXTREMA_OF_ANYTHING = {"max", "min"}
EXTREMA_ALONG = {"amax", "amin"}
MAX_POOLS = {"maxpool", "adaptivemaxpool"}
COMPARISONS = {"gt", "ge", "lt", "le", "greater", "greaterequal", "less", "lessequal"}
OTHER_KINKED = {
    *("hardswish", "hardshrink", "threshold", "selu", "sign", "sgn", "heaviside"),
    *("floor", "ceil", "round", "trunc", "frac", "floordivide", "floordiv", "fmod", "remainder", "mod"),
    *("sort", "topk", "median", "kthvalue", "aminmax", "cummax", "cummin"),
}
"""Operators whose gradient jumps, and which are curved besides, or jump themselves, or are not worth their code."""

SHAPES = {"shape", "size"}
FACTS = {*SHAPES, "dim", "ndim", "ndimension", "dtype", "device"}
"""Attributes and methods of a tensor that do not depend on its values."""
TRAINING = {**dict.fromkeys(DROPOUTS, (2, True)), "rrelu": (3, False), "batchnorm": (5, False)}
"""Operators that are something else in training, with that option's position and default."""
IN_PLACE = {"iadd", "isub", "imul", "itruediv"}
IN_PLACE_ON_DEMAND = {
    **dict.fromkeys(("relu", "relu6", "hardsigmoid"), 1),
    **dict.fromkeys(("hardtanh", "threshold"), 3),
    "leakyrelu": 2,
    "rrelu": 4,
}
"""Functions with an option to change their argument in place, with that option's position."""
LARGE = 1e38
"""Stands for infinity, near the end of float32's range."""

Operation = Callable[..., Any]


class NotPiecewiseLinear(Exception):
    """The network has an operator whose breakpoints cannot be found."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the operator {name} is not piecewise linear")


@dataclass(frozen=True, slots=True)
class Operator:
    """A node that computes something.

    `name` is the one in the author's code: of a module's class, a function, a method or an attribute. `kind` is the
    same however the operator is written; it is empty for what is neither torch's nor Python's own.
    """

    node: fx.Node
    module: nn.Module | None
    name: str
    kind: str

    def option(self, keyword: str, position: int, default: Any = None) -> Any:
        """An attribute of the module, or an argument of the call, whose tensor has position 0."""
        if self.module is not None:
            return getattr(self.module, keyword)
        by_position = self.node.args[position] if position < len(self.node.args) else default
        other_keyword = "axis" if keyword == "dim" else keyword
        return self.node.kwargs.get(keyword, self.node.kwargs.get(other_keyword, by_position))

    def options(self, keyword: str) -> tuple[Any, ...]:
        """The arguments after the tensor, whether passed one by one or as one sequence."""
        return unpacked(self.node.kwargs.get(keyword, self.node.args[1:]))

    @property
    def is_in_training(self) -> bool:
        """Whether it is random, or depends on the other rows of the chunk."""
        if self.kind not in TRAINING:
            return False
        has_statistics = self.kind != "batchnorm" or self.option("running_mean", 1) is not None
        return not has_statistics or bool(self.option("training", *TRAINING[self.kind]))

    @property
    def is_in_place(self) -> bool:
        """Whether it changes its argument."""
        if self.kind in DROPOUTS:
            return False  # outside training
        if self.module is not None:
            return bool(getattr(self.module, "inplace", False))
        if self.name in IN_PLACE or self.name.endswith("_"):
            return True
        return self.kind in IN_PLACE_ON_DEMAND and bool(self.option("inplace", IN_PLACE_ON_DEMAND[self.kind]))


def unpacked(values: Any) -> tuple[Any, ...]:
    """The elements of a sequence, of the only sequence in it, or a single value as a tuple."""
    if not isinstance(values, Sequence):
        return (values,)
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], Sequence) else tuple(values)


def part(tensor: Tensor, name: str, at: int, *sizes: Any, dim: int) -> Tensor:
    """One of the parts that method `name` cuts the tensor into; `service.engine.graph.simplification` puts it in."""
    parts: Sequence[Tensor] = getattr(tensor, name)(*sizes, dim=dim)
    return parts[at]


def operator_of(twin: fx.GraphModule, node: fx.Node) -> Operator | None:
    """The node as an operator; None for inputs, parameters and the output."""
    match node.op:
        case "call_module":
            module = twin.get_submodule(str(node.target))
            return Operator(node, module, type(module).__name__, _kind(type(module).__name__, type(module).__module__))
        case "call_method":
            return Operator(node, None, str(node.target), _kind(str(node.target)))
        case "call_function" if node.target in (getattr, part):
            return Operator(node, None, str(node.args[1]), _kind(str(node.args[1])))
        case "call_function":
            name = str(getattr(node.target, "__name__", node.target)).lstrip("_")
            return Operator(node, None, name, _kind(name, str(getattr(node.target, "__module__", ""))))
    return None


def operation_of(operator: Operator, *, varies: bool) -> Operation:
    """What to call with the node's arguments; `varies` says whether any of them depends on the network's input."""
    if varies and operator.kind in FACTS:
        return partial(_fact, operator.kind)
    target: Any = operator.node.target if operator.module is None else operator.module.forward
    operation: Operation = getattr(Tensor, target) if operator.node.op == "call_method" else target
    if operator.is_in_place:
        return partial(_on_a_copy, operation)
    return partial(_finite, operation) if operator.kind in PADS else operation


def _on_a_copy(operation: Operation, tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
    return operation(tensor.clone(), *arguments, **keywords)


def _finite(operation: Operation, *arguments: Any, **keywords: Any) -> Any:
    """Max-pools are padded with minus infinity, which cannot be interpolated on."""
    return operation(*arguments, **keywords).clamp(-LARGE, LARGE)


def _fact(kind: str, tensor: Tensor, dim: int | str | None = None) -> Any:
    """A tensor's dtype, device, rank or shape, where -1 stands for the number of rows, which is not constant."""
    if kind in SHAPES:
        shape = (-1, *tensor.shape[1:])
        return shape[dim] if isinstance(dim, int) else shape
    return tensor.dim() if kind in ("dim", "ndim", "ndimension") else getattr(tensor, kind)


def _kind(name: str, module: str = "torch") -> str:
    if module.partition(".")[0] not in ("torch", "_operator", "builtins"):
        return ""
    return re.sub("[123]d$", "", kind_of(name))


def bounds(operator: Operator) -> tuple[float | fx.Node, ...]:
    """The values of its first argument at which an elementwise operator bends: numbers, or another tensor's elements.

    Empty for everything else, and for an operator that jumps.
    """
    limits: tuple[Any, ...] = ()
    match operator.kind:
        case "relu" | "leakyrelu" | "prelu" | "rrelu" | "abs" | "absolute":
            limits = (0.0,)
        case "relu6":
            limits = (0.0, 6.0)
        case "hardsigmoid":
            limits = (-3.0, 3.0)
        case "hardtanh":
            limits = (operator.option("min_val", 1, -1.0), operator.option("max_val", 2, 1.0))
        case "softshrink":
            width = operator.option("lambd", 1, 0.5)
            limits = (-width, width)
        case "threshold" if operator.option("threshold", 1) == operator.option("value", 2):
            limits = (operator.option("value", 2),)
        case "clamp" | "clip":
            limits = (operator.option("min", 1), operator.option("max", 2))
        case "clampmin":
            limits = (operator.option("min", 1),)
        case "clampmax":
            limits = (operator.option("max", 1),)
        case kind if kind in EXTREMA | EXTREMA_OF_ANYTHING:
            other = operator.option("other", 1)
            limits = (other,) if isinstance(other, fx.Node) else ()
    return tuple(bound for bound in limits if bound is not None)


def is_affine(operator: Operator, varying: Sequence[fx.Node]) -> bool:
    """Whether it is affine in the arguments `varying`, with all others constant. One given twice is listed twice."""
    kind, arguments = operator.kind, operator.node.args or (None,)
    is_alone = len(varying) == 1
    is_first = is_alone and arguments[0] is varying[0]
    if kind in SUMS:
        return True
    if kind in PRODUCTS | MATRIX_PRODUCTS:
        return is_alone
    if kind in JOINTS:
        return len(varying) == len(unpacked(arguments[0]))
    if kind in QUOTIENTS:
        return is_first and operator.option("rounding_mode", 2) is None
    if kind == "addmm":
        return is_alone and arguments[1] is varying[0]
    if kind == "where":
        return len(arguments) == 3 and arguments[0] not in varying
    if kind in CASTS:
        dtypes = [value for value in (*arguments, *operator.node.kwargs.values()) if isinstance(value, torch.dtype)]
        return is_first and all(dtype in (torch.float32, torch.float64) for dtype in dtypes)
    return is_first and kind in AFFINE


def _is_kinked(operator: Operator) -> bool:
    if operator.kind == "elu":
        return bool(operator.option("alpha", 1, 1.0) != 1)
    if operator.kind == "norm":
        return operator.option("p", 1, "fro") in (1, inf)
    kinked = EXTREMA | EXTREMA_OF_ANYTHING | EXTREMA_ALONG | MAX_POOLS | COMPARISONS | OTHER_KINKED
    return operator.kind in kinked or bool(bounds(operator))


def varying_operators(twin: fx.GraphModule) -> Iterator[Operator]:
    """The operators whose results depend on the values of the network's inputs, in the order of the graph."""
    varying = {node for node in twin.graph.nodes if node.op == "placeholder"}
    for node in twin.graph.nodes:
        operator = operator_of(twin, node)
        if operator is not None and operator.kind not in FACTS and not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
            yield operator


def kinked_operators(twin: fx.GraphModule) -> tuple[str, ...]:
    """The distinct names of the operators at which the gradient jumps, in the order of the graph."""
    return tuple(dict.fromkeys(operator.name for operator in varying_operators(twin) if _is_kinked(operator)))


def has_kinks(twin: fx.GraphModule) -> bool:
    """Whether the gradient jumps somewhere; decides between the midpoint and the Gauss-Legendre rule."""
    return bool(kinked_operators(twin))
