"""The differentiable twin of an ONNX artefact: the same graph in torch, cut at the logits.

What does not depend on the input's values becomes a constant (`folding`). Operators without a gradient are refused
(`undifferentiable`). Quantised operators are spelled out in real numbers (`quantisation`). `onnx2torch` converts the
others, mostly by converters of our own (`*converters`), and tracing the result leaves a flat graph of torch's modules
and functions.

`onnx2torch` imports torchvision for two detection operators that have no gradient to explain; torchvision's binary must
match torch's build exactly, so an empty stand-in is imported in its place, which also saves a second of start-up.
"""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from service.artefacts.onnx.folding import HALF_PRECISION, choose_branches, fold, versions
from service.artefacts.onnx.functions import without_functions, without_fused
from service.artefacts.onnx.graphs import Graph, network, read_graph
from service.artefacts.onnx.quantisation import in_real_numbers
from service.artefacts.onnx.undifferentiable import described, refuse_undifferentiable
from service.artefacts.reported import reported
from service.errors import CatalogError

UNCONVERTED = (ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError, ArithmeticError)
"""What onnx2torch and torch raise for graphs that they do not support."""


def _import_conversion() -> Any:
    stand_in = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops")}
    stand_in["torchvision.ops"].__dict__["roi_align"] = None
    absent = {name: module for name, module in stand_in.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from service.artefacts.onnx import (
                attention_converters,  # noqa: F401
                conversion,
                converters,  # noqa: F401
                layout_converters,  # noqa: F401
                quantised_converters,  # noqa: F401
                recurrent_converters,  # noqa: F401
                window_converters,  # noqa: F401
            )
    finally:
        for name in absent:
            del sys.modules[name]
    return conversion


def build_twin(
    model: onnx.ModelProto, input_tensor: str, logit_tensor: str, shape: tuple[int, ...] | None = None
) -> fx.GraphModule:
    """A torch module [N, ...] -> logits [N, labels] with frozen parameters, equal to the graph up to `logit_tensor`.

    `shape` is that of one row of the graph's own input; without it the input must declare its shape. Raises
    CatalogError when a tensor is not in the graph, or an operator has no gradient or no counterpart in torch.
    """
    _, part, module = converted(model, input_tensor, logit_tensor, shape)
    try:
        twin: fx.GraphModule = fx.symbolic_trace(module).requires_grad_(False)
        _check_gradient_and_shape(twin, part.graph)
        if len(part.graph.output[0].type.tensor_type.shape.dim) == 1:
            twin = fx.symbolic_trace(_OneColumn(twin))
    except UNCONVERTED as error:
        raise CatalogError(f"no twin from {input_tensor!r} to {logit_tensor!r}: {reported(error)}") from error
    return twin


class _OneColumn(nn.Module):
    """A network that answers one number a row, [N], as one that answers [N, 1]."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        column: Tensor = self.network(rows).unsqueeze(1)
        return column


def converted(
    model: onnx.ModelProto, input_tensor: str, logit_tensor: str, shape: tuple[int, ...] | None = None
) -> tuple[Graph, onnx.ModelProto, fx.GraphModule]:
    """As `build_twin`, before tracing: the graph, its part between the two tensors, and that with a module a node."""
    conversion = _import_conversion()
    try:
        whole = without_functions(in_real_numbers(without_fused(model)), conversion.has_converter)
        graph = choose_branches(read_graph(whole, logit_tensor, shape))
        nodes = network(graph, input_tensor)
        refuse_undifferentiable(nodes)
        for node in nodes:
            if not conversion.has_converter(node, versions(whole)):
                raise CatalogError(
                    f"{described(node)} has no counterpart in torch here, so it cannot be differentiated"
                )
        part = fold(graph, nodes, input_tensor)
        module: fx.GraphModule = conversion.convert(part).eval()
    except UNCONVERTED as error:
        raise CatalogError(f"no twin from {input_tensor!r} to {logit_tensor!r}: {reported(error)}") from error
    return graph, part, module


def _check_gradient_and_shape(twin: fx.GraphModule, part: onnx.GraphProto) -> None:
    """Raises CatalogError when the twin has no gradient at all, or not one result for each row."""
    taken, result = (value[0].type.tensor_type for value in (part.input, part.output))
    sizes, expected = ([size.dim_value or 2 for size in value.shape.dim] for value in (taken, result))
    element_type = onnx.TensorProto.FLOAT if taken.elem_type in HALF_PRECISION else taken.elem_type
    rows = torch.from_numpy(np.zeros(sizes, onnx.helper.tensor_dtype_to_np_dtype(element_type)))
    if not rows.is_floating_point():
        raise CatalogError("the input's values are integers, which have no gradient; an embedding of them has")
    logits = twin(rows.requires_grad_())
    if not logits.requires_grad:
        raise CatalogError(
            "no gradient reaches the input: on every way to the logits its values are rounded or compared"
        )
    if list(logits.shape) != expected:
        raise CatalogError(f"{sizes[0]} rows have logits of the shape {list(logits.shape)}")


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the larger of one and the expected magnitude; NaN where there is a NaN."""
    scale = expected.abs().clamp_min(1.0)
    return float(((actual - expected).abs() / scale).max()) if expected.numel() else 0.0


def check_parity(twin_outputs: torch.Tensor, deployed_outputs: torch.Tensor, limit: float = 1e-4) -> float:
    """The largest difference of the two, relative to the larger of one and the deployed magnitude.

    Raises CatalogError over `limit`: then the twin is not a twin.
    """
    difference = relative_difference(twin_outputs, deployed_outputs)
    if not difference <= limit:
        raise CatalogError(
            f"the torch twin and the deployed artefact differ by {difference:.2g} (relative), over {limit:g}"
        )
    return difference
