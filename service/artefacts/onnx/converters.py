"""Converters of the operators that compute, where onnx2torch's are missing, wrong, or cannot be traced."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor
from torch.nn import functional

from service.artefacts.onnx.conversion import ROWS_TOGETHER, Function, Node, carries_on, converts, rewrites
from service.artefacts.onnx.folding import HALF_PRECISION
from service.artefacts.onnx.undifferentiable import TRAINING

MICROSOFT, ML = "com_microsoft", "ai_onnx_ml"
"""ONNX Runtime's own domain, and that of classical models."""

carries_on("Acos", "Asin", "Atan", "Cos", "Sin", "Tan", "Round", "IsInf", "IsNaN", "Mod", "Einsum")
carries_on("Elu", "Celu", "Selu", "HardSwish", "HardSigmoid", "Softplus", "Softsign")
carries_on("Equal", "GreaterOrEqual", "LessOrEqual", "InstanceNormalization")
carries_on("Gemm", "Abs", "Ceil", "Concat", "Exp", "Floor", "Greater", "Less", "Log", "Relu", "Tanh")


@rewrites("BatchNormalization")
def _batch_norm(node: Node) -> NodeProto:
    """Without older versions' `spatial`, which is one where there is a mean for each channel."""
    if not node.option("spatial", 1):
        raise node.error("is only converted with a mean for each channel, and not for each element (spatial = 0)")
    result = NodeProto()
    result.CopyFrom(node.proto)
    del result.attribute[:]
    result.attribute.extend(one for one in node.proto.attribute if one.name == "epsilon")
    return result


SINGLE: dict[str, Callable[[Tensor], Tensor]] = {
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Mish": functional.mish,
}
CHAINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Min": torch.minimum,
    "Max": torch.maximum,
    "Sum": torch.add,
}


@converts(*SINGLE)
def _single(node: Node) -> Function:
    return SINGLE[node.operator]


@converts(*CHAINED, tensors=None)
def _chained(node: Node) -> Function:
    operation = CHAINED[node.operator]
    return lambda *tensors: reduce(operation, tensors)


@converts("Mean", tensors=None)
def _mean(_: Node) -> Function:
    return lambda *tensors: torch.div(reduce(torch.add, tensors), len(tensors))


@converts("Div", tensors=2)
def _div(_: Node) -> Function:
    return torch.div


@converts("Identity")
def _same(_: Node) -> Function:
    return lambda tensor: tensor


@converts("Dropout")
def _dropout(node: Node) -> Function:
    share, is_training = node.array(1), node.array(2)
    if is_training is not None and is_training.item() and (share is None or share.item() > 0):
        raise node.error(TRAINING)
    if len(node.proto.output) == 1:
        return lambda tensor: tensor
    return lambda tensor: (tensor, torch.ones_like(tensor, dtype=torch.bool))


@converts("Cast", "CastLike")
def _cast(node: Node) -> Function:
    target = node.option("to") if node.operator == "Cast" else node.element_type(1)
    if {target, node.element_type(0)} <= {TensorProto.FLOAT, *HALF_PRECISION}:
        return lambda tensor: tensor
    if target == node.element_type(0):
        return lambda tensor: tensor
    if target in HALF_PRECISION:
        return lambda tensor: tensor.to(torch.float32)
    dtype = torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(target))).dtype
    return lambda tensor: tensor.to(dtype)


@converts("Clip")
def _clip(node: Node) -> Function:
    low, high = (
        node.option(name) if (constant := node.array(at)) is None else constant.item()
        for at, name in ((1, "min"), (2, "max"))
    )
    match low, high:
        case None, None:
            return lambda tensor: tensor
        case 0, None:
            return functional.relu
        case 0, 6:
            return functional.relu6
    return lambda tensor: torch.clamp(tensor, low, high)


@converts("PRelu")
def _prelu(node: Node) -> Function:
    slope, shape = node.needed(1), node.shape()
    of_channels = slope.reshape(-1)
    per_channel = (len(of_channels), *[1] * (len(shape) - 2))
    if slope.numel() == 1 or (shape[1] == len(of_channels) and tuple(slope.shape)[-len(per_channel) :] == per_channel):
        return lambda tensor: functional.prelu(tensor, of_channels)
    return lambda tensor: torch.relu(tensor) + slope * torch.clamp(tensor, max=0.0)


@converts("Gelu")
@converts("Gelu", domain=MICROSOFT)
def _gelu(node: Node) -> Function:
    approximate = node.option("approximate", "none")
    return lambda tensor: functional.gelu(tensor, approximate=approximate)


@converts("QuickGelu", domain=MICROSOFT)
def _quick_gelu(node: Node) -> Function:
    alpha = node.option("alpha", 1.702)
    return lambda tensor: torch.mul(tensor, torch.sigmoid(torch.mul(tensor, alpha)))


@converts("Shrink")
def _shrink(node: Node) -> Function:
    width, bias = node.option("lambd", 0.5), node.option("bias", 0.0)

    def shrunk(tensor: Tensor) -> Tensor:
        outside = torch.sub(tensor, torch.mul(torch.sign(tensor), bias))
        return torch.where(torch.abs(tensor) > width, outside, torch.zeros_like(tensor))

    return shrunk


@converts("BiasGelu", "FastGelu", domain=MICROSOFT, tensors=2)
def _biased_gelu(node: Node) -> Function:
    approximate = "tanh" if node.operator == "FastGelu" else "none"
    return lambda *terms: functional.gelu(reduce(torch.add, terms), approximate=approximate)


@converts("FusedMatMul", "TransposeMatMul", domain=MICROSOFT, tensors=2)
def _fused_matmul(node: Node) -> Function:
    turned, alpha = [node.option("transA", 0), node.option("transB", 0)], node.option("alpha", 1.0)

    def product(*factors: Tensor) -> Tensor:
        left, right = (f.transpose(-1, -2) if turn else f for f, turn in zip(factors, turned, strict=True))
        return torch.mul(torch.matmul(left, right), alpha)

    return product


@converts("LayerNormalization", tensors=3)
def _layer_norm(node: Node) -> Function:
    shape, epsilon = node.sizes(node.option("axis", -1)), node.option("epsilon", 1e-5)
    if len(node.proto.output) == 1:
        return lambda tensor, scale=None, bias=None: functional.layer_norm(tensor, shape, scale, bias, epsilon)
    axes = tuple(range(-len(shape), 0))

    def with_moments(tensor: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Any:
        """With the mean and the reciprocal of the deviation, the outputs that ONNX defines for training."""
        mean = torch.mean(tensor, axes, keepdim=True)
        variance = torch.mean(torch.square(tensor - mean), axes, keepdim=True)
        normal = functional.layer_norm(tensor, shape, scale, bias, epsilon)
        return normal, mean, torch.rsqrt(variance + epsilon)

    return with_moments


@converts("SkipLayerNormalization", domain=MICROSOFT, tensors=2)
def _skip_layer_norm(node: Node) -> Function:
    scale, shift, bias = node.needed(2), node.tensor(3), node.tensor(4)
    epsilon, has_sum = node.option("epsilon", 1e-12), len(node.proto.output) > 1

    def normalised(tensor: Tensor, skipped: Tensor) -> Any:
        total = tensor + skipped if bias is None else tensor + skipped + bias
        result = functional.layer_norm(total, scale.shape, scale, shift, epsilon)
        return (result, None, None, total) if has_sum else result

    return normalised


@converts("SkipSimplifiedLayerNormalization", domain=MICROSOFT, tensors=2)
def _skip_rms_norm(node: Node) -> Function:
    scale, bias = node.needed(2), node.tensor(3)
    epsilon, has_sum = node.option("epsilon", 1e-12), len(node.proto.output) > 1

    def normalised(tensor: Tensor, skipped: Tensor) -> Any:
        total = tensor + skipped if bias is None else tensor + skipped + bias
        result = functional.rms_norm(total, scale.shape, scale, epsilon)
        return (result, None, None, total) if has_sum else result

    return normalised


@converts("RMSNormalization", tensors=2)
def _rms_norm(node: Node) -> Function:
    shape, epsilon = node.sizes(node.option("axis", -1)), node.option("epsilon", 1e-5)
    return lambda tensor, scale: functional.rms_norm(tensor, shape, scale, epsilon)


@converts("GroupNormalization")
def _group_norm(node: Node) -> Function:
    groups, epsilon, channels = node.option("num_groups"), node.option("epsilon", 1e-5), node.sizes(1)[0]
    scale, bias = (
        values.repeat_interleave(channels // len(values)) for values in (node.needed(1), node.needed(2))
    )  # version 18 has one for each group
    return lambda tensor: functional.group_norm(tensor, groups, scale, bias, epsilon)


@converts("LpNormalization")
def _normalize(node: Node) -> Function:
    power, axis = node.option("p", 2), node.option("axis", -1)
    return lambda tensor: functional.normalize(tensor, power, axis)


def _product(tensor: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        tensor = torch.prod(tensor, axis, keepdim=keepdim)
    return tensor


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceL1": lambda tensor, axes, keepdim: torch.sum(torch.abs(tensor), axes, keepdim=keepdim),
    "ReduceL2": lambda tensor, axes, keepdim: torch.linalg.vector_norm(tensor, 2, axes, keepdim=keepdim),
    "ReduceLogSum": lambda tensor, axes, keepdim: torch.log(torch.sum(tensor, axes, keepdim=keepdim)),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": lambda tensor, axes, keepdim: torch.sum(torch.square(tensor), axes, keepdim=keepdim),
    "ReduceProd": _product,
}


@converts(*REDUCTIONS)
def _reduced(node: Node) -> Function:
    reduction, keepdim, shape = REDUCTIONS[node.operator], bool(node.option("keepdims", 1)), node.shape()
    axes = tuple(node.integers("axes", 1) or ())
    if not axes and node.option("noop_with_empty_axes", 0):
        return lambda tensor: tensor
    axes = tuple(axis % len(shape) for axis in axes or range(len(shape)))
    if None in (shape[axis] for axis in axes):
        raise node.error(ROWS_TOGETHER)
    return lambda tensor: reduction(tensor, axes, keepdim=keepdim)


@converts("GlobalAveragePool", "GlobalMaxPool")
def _over_all(node: Node) -> Function:
    reduction: Callable[..., Tensor] = torch.mean if node.operator == "GlobalAveragePool" else torch.amax
    axes = tuple(range(2, len(node.shape())))
    return lambda tensor: reduction(tensor, axes, keepdim=True)


@converts("GlobalLpPool")
def _norm_over_all(node: Node) -> Function:
    power, axes = node.option("p", 2), tuple(range(2, len(node.shape())))
    return lambda tensor: torch.linalg.vector_norm(tensor, power, axes, keepdim=True)


@converts("Det")
def _determinant(_: Node) -> Function:
    return lambda tensor: torch.linalg.det(tensor)


@converts("Scaler", domain=ML)
def _scaler(node: Node) -> Function:
    offset, scale = torch.tensor(node.option("offset")), torch.tensor(node.option("scale"))
    return lambda tensor: torch.mul(torch.sub(tensor, offset), scale)


@converts("Imputer", domain=ML)
def _imputer(node: Node) -> Function:
    values, missing = torch.tensor(node.option("imputed_value_floats")), node.option("replaced_value_float", 0.0)
    if np.isnan(missing):
        return lambda tensor: torch.where(torch.isnan(tensor), values, tensor)
    return lambda tensor: torch.where(torch.eq(tensor, missing), values, tensor)


@converts("Normalizer", domain=ML)
def _normalizer(node: Node) -> Function:
    match node.option("norm", "MAX"):
        case "MAX":
            return lambda tensor: torch.div(tensor, torch.amax(tensor, -1, keepdim=True))
        case "L1":
            return lambda tensor: functional.normalize(tensor, 1.0, -1)
    return lambda tensor: functional.normalize(tensor, 2.0, -1)


@converts("LinearClassifier", "LinearRegressor", domain=ML)
def _linear(node: Node) -> Function:
    is_classifier = node.operator == "LinearClassifier"
    if is_classifier and node.proto.output[0]:
        raise node.error("cannot be differentiated: a label is no number that could grow a little")
    if node.option("post_transform", "NONE") != "NONE":
        raise node.error("has its probabilities made inside of it, where no logits can be read; export raw scores")
    weights = torch.tensor(node.option("coefficients")).reshape(-1, *node.sizes(-1))
    bias = torch.tensor(node.option("intercepts", [0.0] * len(weights)))
    if is_classifier:
        return lambda tensor: (None, functional.linear(tensor, weights, bias))
    return lambda tensor: functional.linear(tensor, weights, bias)
