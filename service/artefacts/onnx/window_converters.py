"""Converters of operators on windows of an image, or on its layout: pooling, convolution, padding, resizing."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper
from torch import Tensor
from torch.nn import functional

from service.artefacts.onnx.conversion import ROWS_TOGETHER, Function, Node, converts, rewrites
from service.artefacts.onnx.folding import OWN_DOMAIN
from service.artefacts.onnx.undifferentiable import PLACES

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
AVERAGES: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _each(node: Node, name: str, default: int) -> list[int]:
    """An option of the node, which is one number for each dimension of the image."""
    option: list[int] = node.option(name) or [default] * (len(node.shape()) - 2)
    return option


def _padding(node: Node) -> tuple[list[int], list[int]]:
    """The padding before and behind the image, in each of its dimensions."""
    image = node.shape()[2:]
    mode = node.option("auto_pad", "NOTSET")
    if not mode.startswith("SAME") and not node.option("output_shape"):
        pads = _each(node, "pads", 0)
        return pads[: len(image)], pads[-len(image) :]
    is_transposed = node.operator == "ConvTranspose"
    kernel = node.option("kernel_shape") or node.shape(1)[2:]
    small, large = (image, node.result()[2:]) if is_transposed else (node.result()[2:], image)
    options = (
        _each(node, name, default) for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    totals = [
        max((few - 1) * stride + dilation * (extent - 1) + 1 + extra - many, 0)
        for few, many, extent, stride, dilation, extra in zip(small, large, kernel, *options, strict=True)
    ]
    halves, others = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (halves, others) if mode == "SAME_UPPER" else (others, halves)


def _as_torch(before: list[int], behind: list[int]) -> list[int]:
    """In torch's order: the last dimension first."""
    return [size for pair in zip(before[::-1], behind[::-1], strict=True) for size in pair]


@rewrites("Conv", "MaxPool")
def _with_pads(node: Node) -> NodeProto:
    """The node with explicit numbers for its padding, the only form that onnx2torch reads."""
    if len(node.proto.output) > 1:
        raise node.error(f"cannot be differentiated: {PLACES}")
    before, behind = _padding(node)
    result = NodeProto()
    result.CopyFrom(node.proto)
    del result.attribute[:]
    result.attribute.extend(a for a in node.proto.attribute if a.name not in ("pads", "auto_pad"))
    result.attribute.append(helper.make_attribute("pads", [*before, *behind]))
    return result


@converts("AveragePool")
def _average_pool(node: Node) -> Function:
    before, behind = _padding(node)
    kernel, strides = node.option("kernel_shape"), _each(node, "strides", 1)
    is_ceiled, counts_padding = bool(node.option("ceil_mode", 0)), bool(node.option("count_include_pad", 0))
    pool = AVERAGES[len(kernel)]
    if max(_each(node, "dilations", 1)) > 1 or (is_ceiled and before != behind):
        raise node.error("is not converted with dilations, or with ceil_mode and unequal padding")
    if before == behind:
        return lambda tensor: pool(tensor, kernel, strides, before, is_ceiled, counts_padding)
    pads = _as_torch(before, behind)
    ones = torch.ones(1, 1, *node.sizes(2))
    share = 1.0 if counts_padding else 1 / pool(functional.pad(ones, pads), kernel, strides)
    return lambda tensor: pool(functional.pad(tensor, pads), kernel, strides) * share


@converts("LpPool")
def _norm_pool(node: Node) -> Function:
    before, behind = _padding(node)
    kernel, strides, power = node.option("kernel_shape"), _each(node, "strides", 1), node.option("p", 2)
    if max(_each(node, "dilations", 1)) > 1 or node.option("ceil_mode", 0):
        raise node.error("is not converted with dilations, or with ceil_mode")
    pool, pads, count = AVERAGES[len(kernel)], _as_torch(before, behind), float(np.prod(kernel))

    def pooled(tensor: Tensor) -> Tensor:
        powers = functional.pad(torch.pow(torch.abs(tensor), power), pads)
        return torch.pow(torch.mul(pool(powers, kernel, strides), count), 1 / power)

    return pooled


@converts("ConvTranspose", tensors=3)
def _conv_transpose(node: Node) -> Function:
    before, behind = _padding(node)
    strides, dilations, extra = (
        _each(node, *option) for option in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    transposed, groups = TRANSPOSED[len(before)], node.option("group", 1)
    if before == behind:
        return lambda tensor, weight, bias=None: transposed(
            tensor, weight, bias, strides, before, extra, groups, dilations
        )
    whole = [0] * len(before)
    image = (slice(start, start + (size or 0)) for start, size in zip(before, node.result()[2:], strict=True))
    index = (slice(None), slice(None), *image)

    def cut(tensor: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return transposed(tensor, weight, bias, strides, whole, extra, groups, dilations)[index]

    return cut


@converts("Pad")
def _pad(node: Node) -> Function:
    shape, declared = node.shape(), node.integers("pads", 1) or []
    axes = node.integers("axes", 3) or range(len(shape))
    before, behind = [0] * len(shape), [0] * len(shape)
    for at, axis in enumerate(axes):
        before[axis], behind[axis] = declared[at], declared[at + len(declared) // 2]
    if any(size is None and (start or end) for size, start, end in zip(shape, before, behind, strict=True)):
        raise node.error(ROWS_TOGETHER)
    mode, value = PAD_MODES[node.option("mode", "constant")], node.option("value", 0.0)
    if (constant := node.array(2)) is not None:
        value = constant.item()
    if mode == "constant":
        pads = _as_torch(before, behind)
        return lambda tensor: functional.pad(tensor, pads, mode, value)
    pads = _as_torch(before[2:], behind[2:])
    if before[1] or behind[1]:
        raise node.error(f"is not converted where it pads channels in mode {mode}")
    return lambda tensor: functional.pad(tensor, pads, mode)


SAMPLED = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}
"""torch's names of the modes, which were renamed in version 20."""


@converts("GridSample", tensors=2)
def _grid_sample(node: Node) -> Function:
    mode, beyond = SAMPLED[node.option("mode", "linear")], node.option("padding_mode", "zeros")
    aligns = bool(node.option("align_corners", 0))
    return lambda tensor, grid: functional.grid_sample(tensor, grid, mode, beyond, aligns)


@converts("Resize", "Upsample")
@converts("Resize", domain=OWN_DOMAIN)
def _resize(node: Node) -> Function:
    """Along one dimension after the other: where a new element lies among the old does not depend on their values."""
    mode, is_smoothed = node.option("mode", "nearest"), bool(node.option("antialias", 0))
    resized = _RESIZED.get(mode)
    if resized is None or (is_smoothed and mode != "linear"):
        raise node.error("is only converted in the modes nearest, linear and cubic, and smoothed only where linear")
    resized = _smoothed if is_smoothed else resized
    sizes = list(enumerate(zip(node.shape(), node.result(), strict=True)))
    steps = [resized(node, axis, _places(node, axis)) for axis, (size, new) in sizes if size != new]
    return lambda tensor: reduce(lambda partly, step: step(partly), steps, tensor)


def _places(node: Node, axis: int) -> NDArray[np.float32]:
    """The positions of the result's elements among the input's, in ONNX Runtime's precision."""
    size, new = node.shape()[axis] or 1, node.result()[axis] or 1
    is_old = len(node.proto.input) < 3
    scales = node.array(1 if is_old else 2)
    scale = np.float32(scales[axis] if scales is not None and scales.size else new / size)
    elements, half = np.arange(new, dtype=np.float32), np.float32(0.5)
    places: NDArray[np.float32]
    match node.option("coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel"):
        case "half_pixel":
            places = (elements + half) / scale - half
        case "pytorch_half_pixel":
            places = (elements + half) / scale - half if new > 1 else elements
        case "align_corners":
            places = elements * np.float32(size - 1) / np.float32(max(new - 1, 1))
        case "asymmetric":
            places = elements / scale
        case "tf_half_pixel_for_nn":
            places = (elements + half) / scale
        case other:
            raise node.error(f"is not converted with coordinate_transformation_mode {other}")
    return places


def _nearest(node: Node, axis: int, places: NDArray[np.float32]) -> Function:
    places = places.clip(0, (node.shape()[axis] or 1) - 1)
    is_old = len(node.proto.input) < 3
    match node.option("nearest_mode", "floor" if is_old else "round_prefer_floor"):
        case "round_prefer_floor":
            nearest = np.ceil(places - 0.5)
        case "round_prefer_ceil":
            nearest = np.floor(places + 0.5)
        case "floor":
            nearest = np.floor(places)
        case _:
            nearest = np.ceil(places)
    index = torch.from_numpy(nearest.astype(np.int64))
    return lambda tensor: torch.index_select(tensor, axis, index)


def _linear(node: Node, axis: int, places: NDArray[np.float32]) -> Function:
    places = places.clip(0, (node.shape()[axis] or 1) - 1)
    low = np.floor(places)
    share = torch.from_numpy(places - low).reshape(-1, *[1] * (len(node.shape()) - axis - 1))
    before = torch.from_numpy(low.astype(np.int64))
    behind = torch.clamp(before + 1, max=(node.shape()[axis] or 1) - 1)

    def resized(tensor: Tensor) -> Tensor:
        start, end = (torch.index_select(tensor, axis, index) for index in (before, behind))
        return start + (end - start) * share

    return resized


def _cubic(node: Node, axis: int, places: NDArray[np.float32]) -> Function:
    """Four neighbours each (Keys, 1981); beyond the ends lies the last one, or nothing with `exclude_outside`."""
    size, coefficient = node.shape()[axis] or 1, node.option("cubic_coeff_a", -0.75)
    matrix = np.zeros((len(places), size))
    for neighbour in range(-1, 3):
        at = np.floor(places).astype(np.int64) + neighbour
        distance = np.abs(places - at)
        near = ((coefficient + 2) * distance - (coefficient + 3)) * distance**2 + 1
        far = coefficient * (((distance - 5) * distance + 8) * distance - 4)
        share = np.where(distance <= 1, near, far)
        if node.option("exclude_outside", 0):
            share = np.where((at < 0) | (at >= size), 0.0, share)
        np.add.at(matrix, (np.arange(len(places)), at.clip(0, size - 1)), share)
    return _mixed(matrix / matrix.sum(axis=1, keepdims=True), axis)


def _smoothed(node: Node, axis: int, places: NDArray[np.float32]) -> Function:
    """Linear, over as many elements as are made one where the result is smaller."""
    size, new = node.shape()[axis] or 1, len(places)
    scales = node.array(2)
    stretch = max(1.0, 1 / float(scales[axis]) if scales is not None and scales.size else size / new)
    reach = int(np.ceil(stretch)) + 1
    around = np.arange(-reach, size + reach)
    share = np.maximum(1 - np.abs(around - places[:, None].astype(np.float64)) / stretch, 0.0)
    if node.option("exclude_outside", 0):
        share *= (around >= 0) & (around < size)
    matrix = np.zeros((new, size))
    np.add.at(matrix, (np.arange(new)[:, None], around.clip(0, size - 1)[None]), share)
    return _mixed(matrix / matrix.sum(axis=1, keepdims=True), axis)


def _mixed(matrix: NDArray[np.float64], axis: int) -> Function:
    """Each new element as a sum of the old ones."""
    shares = torch.from_numpy(matrix.astype(np.float32).T.copy())
    return lambda tensor: torch.matmul(tensor.transpose(axis, -1), shares).transpose(axis, -1)


_RESIZED: dict[str, Callable[[Node, int, NDArray[np.float32]], Function]] = {
    "nearest": _nearest,
    "linear": _linear,
    "cubic": _cubic,
}
