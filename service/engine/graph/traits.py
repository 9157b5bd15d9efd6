"""Which methods apply to a network, read off its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx
from torch.fx.node import map_arg

from service.artefacts.sizes import layer_sizes, propagate, row_type_of, size_of
from service.catalog.traits import Axis, Traits
from service.domain import DOUBLE
from service.engine.graph.operators import (
    EXTREMA_ALONG,
    MAX_POOLS,
    PADS,
    SUMS,
    NotPiecewiseLinear,
    Operator,
    bounds,
    is_affine,
    kinked_operators,
    varying_operators,
)
from service.engine.kernels.piecewise import PiecewiseLinear

MAX_LAYER_SIZE = 2**15
"""The most values of a layer for breakpoints, which are searched on the host in blocks of 64 rows: 8 MiB of such a
layer."""
MAY_ADD = {*("linear", "addmm", "conv", "convtranspose", "batchnorm", "where", "maskedfill"), *SUMS, *PADS}
"""Affine operators that can add a constant to their inputs."""


def traits_of(
    twin: fx.GraphModule, axes: tuple[Axis, ...], shape: tuple[int, ...], labels: int, columns: tuple[int, ...] = ()
) -> Traits:
    """The traits of a twin whose inputs are [rows, *shape], along these axes; `columns` says which component each input
    belongs to."""
    obstacle = None
    try:
        PiecewiseLinear(twin, shape=shape)
    except NotPiecewiseLinear as error:
        obstacle = str(error)
    largest = largest_layer(twin, shape)
    if obstacle is None and largest > MAX_LAYER_SIZE:
        obstacle = f"it has a layer of {largest} values, and finding the pieces would take too much memory"
    return Traits(
        axes=axes,
        shape=shape,
        labels=labels,
        obstacle=obstacle,
        kinks=kinked_operators(twin),
        has_relu=any(is_relu(operator) for operator in varying_operators(twin)),
        has_convolution=_has_maps_over(twin, shape),
        biases_obstacle=_biases_obstacle(twin),
        columns=columns,
        has_double_rows=row_type_of(twin) == DOUBLE,
    )


def largest_layer(twin: fx.GraphModule, shape: tuple[int, ...]) -> int:
    """The number of values, for one row, of the largest tensor on the way."""
    return max(layer_sizes(twin, shape))


def is_relu(operator: Operator) -> bool:
    """Whether it is a ReLU, however it is written."""
    return operator.kind == "relu"


def last_feature_maps(twin: fx.GraphModule, shape: tuple[int, ...]) -> fx.Node | None:
    """The last node of the size of the last convolution's maps through which all of its effect passes: its activation,
    say.

    None for a network without a convolution.
    """
    operators = list(varying_operators(twin))
    convolutions = [operator.node for operator in operators if operator.kind == "conv"]
    if not convolutions:
        return None
    propagate(twin, shape)
    place = {operator.node: at for at, operator in enumerate(operators)}
    last = convolutions[-1]
    size, behind, furthest = size_of(last), {last}, _furthest_use(last, place)
    for at, operator in enumerate(operators):
        if behind.intersection(operator.node.all_input_nodes):
            behind.add(operator.node)
            # It is on every path to the output when nothing behind the convolution is used beyond it.
            if furthest <= at and size_of(operator.node) == size and "pool" not in operator.kind:
                last = operator.node
            furthest = max(furthest, _furthest_use(operator.node, place))
    return last


def _furthest_use(node: fx.Node, place: Mapping[fx.Node, int]) -> int:
    return max((place[user] for user in node.users if user in place), default=-1)


def space_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions that maps are laid over: those of an image's pixels, or the features of a table."""
    return shape[1:] or shape


def _has_maps_over(twin: fx.GraphModule, shape: tuple[int, ...]) -> bool:
    """Whether the last convolution's maps have the dimensions of the input; a table's, if it is one channel's row."""
    maps = last_feature_maps(twin, shape)
    if maps is None or len(size_of(maps) or ()) - 2 != len(space_of(shape)):
        return False
    first = next(operator.node for operator in varying_operators(twin) if operator.kind == "conv")
    (varying_arguments, *_) = _varying_among(first, varying_nodes(twin))
    return len(shape) > 1 or size_of(varying_arguments) == (1, 1, *shape)


def varying_nodes(twin: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on those of the input, itself included."""
    inputs = {node for node in twin.graph.nodes if node.op == "placeholder"}
    return inputs | {operator.node for operator in varying_operators(twin)}


def _varying_among(node: fx.Node, varying: set[fx.Node]) -> list[fx.Node]:
    """The node's arguments that are `varying`, one that is passed twice is listed twice."""
    varying_arguments: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda used: varying_arguments.append(used) if used in varying else None)
    return varying_arguments


def adding_nodes(twin: fx.GraphModule) -> list[fx.Node]:
    """The operators that may add a constant to their inputs."""
    return [operator.node for operator in varying_operators(twin) if operator.kind in MAY_ADD]


def _biases_obstacle(twin: fx.GraphModule) -> str | None:
    """The first operator for which the input's and the biases' gradients do not account for the output.

    They do for what is affine, whose bias is its output for zeros, and for what is homogeneous, which has no bias.
    """
    varying = varying_nodes(twin)
    for operator in varying_operators(twin):
        varying_arguments = _varying_among(operator.node, varying)
        is_known = is_affine(operator, varying_arguments) or _is_homogeneous(operator, varying_arguments)
        if operator.is_in_training or not is_known:
            return operator.name
    return None


def _is_homogeneous(operator: Operator, varying_arguments: Sequence[fx.Node]) -> bool:
    """Whether it is piecewise linear, and scaling its `varying_arguments` by a positive number scales the result."""
    limits = bounds(operator)
    if limits:
        bends_at_zero = all(
            limit in varying_arguments if isinstance(limit, fx.Node) else limit == 0 for limit in limits
        )
        return bends_at_zero and {operator.node.args[0], *limits}.issuperset(varying_arguments)
    return operator.kind in MAX_POOLS | EXTREMA_ALONG
