"""The differentiable twin of an ONNX artefact: the same graph in torch, cut at the logits.

`onnx2torch` does the conversion and is used in this file only. It imports torchvision for two detection operators
that have no gradient to explain; torchvision's binary must match torch's build exactly, so an empty stand-in is
imported in its place, which also saves a second of start-up.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx.utils
import torch
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import fx, nn

from service.errors import CatalogError


def _import_onnx2torch() -> Any:
    stand_in = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops")}
    stand_in["torchvision.ops"].__dict__["roi_align"] = None
    absent = {name: module for name, module in stand_in.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnx2torch
    finally:
        for name in absent:
            del sys.modules[name]
    return onnx2torch


def parse_onnx(content: bytes) -> onnx.ModelProto:
    """The model in `content`. Raises CatalogError when it is no valid ONNX model or points to data outside itself."""
    try:
        model = onnx.load_model_from_string(content)
        external = [tensor.name for tensor in _tensors(model) if _is_external(tensor)]
        if external:
            raise CatalogError(f"the ONNX model keeps {external[0]!r} in a file outside itself")
        onnx.checker.check_model(model)
    except (DecodeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise CatalogError(f"not a valid ONNX model: {error}") from error
    return model


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in the model: initialisers, constants, branches, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _tensors(child)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0


class _Division(nn.Module):
    def forward(self, dividend: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
        return torch.div(dividend, divisor)


class _Extremum(nn.Module):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = {"Min": torch.minimum, "Max": torch.maximum}[operation]

    def forward(self, first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            first = self.operation(first, other)
        return first


def _plain(converted: fx.GraphModule) -> fx.GraphModule:
    """The converted graph in torch's own modules and functions, none of onnx2torch's left.

    Division and the extrema are replaced first: onnx2torch's look at types and shapes, which tracing cannot.
    """
    for name, module in list(converted.named_children()):
        operation = getattr(module, "_op_type", None)
        if operation in ("Min", "Max"):
            setattr(converted, name, _Extremum(operation))
        elif getattr(getattr(module, "math_op_function", None), "__name__", "") == "_onnx_div":
            setattr(converted, name, _Division())
    traced: fx.GraphModule = fx.symbolic_trace(converted)
    return traced


def build_twin(model: onnx.ModelProto, input_tensor: str, logit_tensor: str) -> fx.GraphModule:
    """A torch module [N, ...] -> logits [N, labels] with frozen parameters, equal to the graph up to `logit_tensor`.

    Raises CatalogError when a tensor is not in the graph or an operator has no torch counterpart.
    """
    onnx2torch = _import_onnx2torch()
    try:
        whole = onnx.shape_inference.infer_shapes(model)
        part = onnx.utils.Extractor(whole).extract_model([input_tensor], [logit_tensor])
        twin = _plain(onnx2torch.convert(part))
    except NotImplementedError as error:
        raise CatalogError(f"an operator of the model cannot be differentiated here: {error}") from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise CatalogError(f"no twin from {input_tensor!r} to {logit_tensor!r}: {error}") from error
    twin.eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def find_embedding(model: onnx.ModelProto, input_tensor: str) -> tuple[str, NDArray[np.float32]]:
    """The tensor that holds the embeddings of the tokens in `input_tensor`, and the table [vocabulary, dimensions].

    The embedding is the Gather of a constant table's rows by the tokens. Raises CatalogError where there is none.
    """
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    tokens = {input_tensor}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in tokens:
            tokens.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in tokens and node.input[0] in tables:
            table: NDArray[np.float32] = numpy_helper.to_array(tables[node.input[0]]).astype(np.float32)
            if table.ndim == 2 and not any(a.name == "axis" and a.i != 0 for a in node.attribute):
                return node.output[0], table
    raise CatalogError(f"no embedding of the tokens in {input_tensor!r}: no Gather of a constant table's rows by them")


def check_parity(twin_outputs: torch.Tensor, deployed_outputs: torch.Tensor, limit: float = 1e-4) -> float:
    """The largest difference of the two, relative to the larger of one and the deployed magnitude.

    Raises CatalogError over `limit`: then the twin is not a twin.
    """
    scale = deployed_outputs.abs().clamp_min(1.0)
    difference = float(((twin_outputs - deployed_outputs).abs() / scale).max())
    if not difference <= limit:
        raise CatalogError(
            f"the torch twin and the deployed artefact differ by {difference:.2g} (relative), over {limit:g}"
        )
    return difference
