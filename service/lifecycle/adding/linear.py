"""Expands scikit-learn's linear models, each one operator in ONNX, into matrix product, sum and link."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from service.lifecycle.adding.endings import LINEAR

TRANSFORMS = (b"NONE", b"LOGISTIC", b"SOFTMAX")


def expand_linear(model: ModelProto) -> None:
    """Computes every linear model's scores with plain operators; the operator itself still computes a classifier's
    label."""
    graph = model.graph
    if not any(node.op_type in SCORES_OF for node in graph.node):
        return
    widths = _widths(model)
    nodes: list[NodeProto] = []
    for number, node in enumerate(list(graph.node)):
        place = SCORES_OF.get(node.op_type)
        parts = [] if place is None else list(PARTS[node.op_type](model, node, number, widths))
        if parts and place is not None:
            node.output[place] = f"{node.output[place]}_of_the_operator"
        nodes += [node, *parts]
    del graph.node[:]
    graph.node.extend(nodes)


def _widths(model: ModelProto) -> dict[str, int]:
    """The number of columns of tensors, where it is known."""
    graph = shape_inference.infer_shapes(model).graph
    values: Iterable[Any] = [*graph.input, *graph.value_info]
    sizes = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {name: dims[-1].dim_value for name, dims in sizes.items() if dims and dims[-1].dim_value > 0}


def _regressor_parts(model: ModelProto, node: NodeProto, number: int, _widths: dict[str, int]) -> Iterator[NodeProto]:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if attributes.get("post_transform", b"NONE") != b"NONE":
        return
    targets = attributes.get("targets", 1)
    weights = np.array(attributes["coefficients"], dtype=np.float32).reshape(targets, -1)
    intercepts = np.array(attributes.get("intercepts") or [0.0] * targets, dtype=np.float32)
    prefix = f"{LINEAR}_{number}"
    names = {"weights": weights.T.copy(), "intercepts": intercepts}
    model.graph.initializer.extend(numpy_helper.from_array(value, f"{prefix}_{name}") for name, value in names.items())
    yield helper.make_node("MatMul", [node.input[0], f"{prefix}_weights"], [f"{prefix}_product"])
    yield helper.make_node("Add", [f"{prefix}_product", f"{prefix}_intercepts"], [node.output[0]])


def _classifier_parts(model: ModelProto, node: NodeProto, number: int, widths: dict[str, int]) -> Iterator[NodeProto]:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    transform = attributes.get("post_transform", b"NONE")
    labels = attributes.get("classlabels_strings") or attributes.get("classlabels_ints") or [0, 1]
    coefficients = np.array(attributes["coefficients"], dtype=np.float32)
    intercepts = np.array(attributes.get("intercepts") or [0.0] * len(labels), dtype=np.float32)
    columns = widths.get(node.input[0], len(coefficients) // len(intercepts))
    weights = coefficients[: len(intercepts) * columns].reshape(len(intercepts), columns)
    is_pair = len(labels) == 2 and (len(weights) == 1 or np.array_equal(weights[0], -weights[-1]))
    if transform not in TRANSFORMS or (len(intercepts) != len(labels) and transform != b"LOGISTIC"):
        return
    is_second = transform == b"LOGISTIC" and is_pair
    if is_second:  # One score for the second label; where there are two, the first is the other's negative.
        weights, intercepts = weights[-1:], intercepts[-1:]
    prefix = f"{LINEAR}_{number}"
    names = {"weights": weights.T.copy(), "intercepts": intercepts, "one": np.ones((), dtype=np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, f"{prefix}_{name}") for name, value in names.items())
    yield helper.make_node("MatMul", [node.input[0], f"{prefix}_weights"], [f"{prefix}_product"])
    total, scores = f"{prefix}_sum", node.output[1]
    yield helper.make_node("Add", [f"{prefix}_product", f"{prefix}_intercepts"], [total])
    if is_second:
        yield helper.make_node("Sigmoid", [total], [f"{prefix}_second"])
        yield helper.make_node("Sub", [f"{prefix}_one", f"{prefix}_second"], [f"{prefix}_first"])
        yield helper.make_node("Concat", [f"{prefix}_first", f"{prefix}_second"], [scores], axis=1)
    elif transform == b"SOFTMAX":
        yield helper.make_node("Softmax", [total], [scores], axis=1)
    else:
        yield helper.make_node("Sigmoid" if transform == b"LOGISTIC" else "Identity", [total], [scores])


PARTS = {"LinearClassifier": _classifier_parts, "LinearRegressor": _regressor_parts}
SCORES_OF = {"LinearClassifier": 1, "LinearRegressor": 0}
"""By operator, which of its outputs are the scores."""
