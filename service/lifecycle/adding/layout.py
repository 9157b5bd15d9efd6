"""Which axis of a graph's input holds the channels of an image, or the features of a series: the graph's first operator
with channels or features says it."""

from __future__ import annotations

from collections import deque
from typing import Any

from onnx import ModelProto, helper

WITH_CHANNELS = {
    *("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "DepthToSpace", "SpaceToDepth"),
}
"""Operators that take channels in the first axis behind the rows."""
RECURRENT = {"RNN", "GRU", "LSTM"}
"""Operators that take features in the last axis."""
KEEPING_AXES = {"Identity", "Cast", "Add", "Sub", "Mul", "Div", "Clip", "Pad", "Resize", "Relu", "Sqrt", "Dropout"}


def channel_axis(model: ModelProto, name: str, axes: int) -> int | None:
    """The axis of the input `name`, which has so many, that its first operator of these kinds takes for channels or
    features; None where there is none, or it takes the rows for them."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for tensor_read in node.input:
            readers.setdefault(tensor_read, []).append(node)
    waiting = deque([(name, [*range(axes)])])
    while waiting:
        tensor, order = waiting.popleft()
        for node in readers.get(tensor, ()):
            if node.op_type in WITH_CHANNELS | RECURRENT and node.input[0] == tensor:
                return order[1 if node.op_type in WITH_CHANNELS else -1] or None
            if node.op_type == "Transpose":
                options = {one.name: helper.get_attribute_value(one) for one in node.attribute}
                turned = options.get("perm", range(axes)[::-1])
                waiting.append((node.output[0], [order[at] for at in turned]))
            elif node.op_type in KEEPING_AXES:
                waiting.append((node.output[0], order))
    return None
