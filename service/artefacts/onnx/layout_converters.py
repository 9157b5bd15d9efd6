"""Converters of the operators that move, take and repeat elements, where onnx2torch's are missing, wrong, or cannot be
traced."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from service.artefacts.onnx.conversion import ROWS_TOGETHER, Function, Node, converts
from service.artefacts.onnx.converters import MICROSOFT, ML
from service.artefacts.onnx.folding import FOR_EACH_ROW, GATHER_IN_ROWS, OWN_DOMAIN, SCATTER_IN_ROWS
from service.artefacts.onnx.undifferentiable import PLACES

ALL = 10**9
"""Ends from here on mean that a slice has none: exporters write a billion, or the largest number of 32 or 64 bits."""


@converts(FOR_EACH_ROW, domain=OWN_DOMAIN, tensors=2)
def _for_each_row(node: Node) -> Function:
    """From the input and a constant: the constant, along one dimension as often as the input has rows."""
    sizes, axis = node.shape(1), node.option("axis")

    def repeated(tensor: Tensor, constant: Tensor) -> Tensor:
        rows = tensor.shape[0]
        if sizes[axis] == 1:
            return constant.expand([rows if at == axis else -1 for at in range(len(sizes))])
        return constant.repeat([rows if at == axis else 1 for at in range(len(sizes))])

    return repeated


@converts("Reshape")
@converts("Reshape", domain=OWN_DOMAIN)
def _reshape(node: Node) -> Function:
    sizes = _sizes(node)
    return lambda tensor: torch.reshape(tensor, sizes)


@converts("Flatten")
def _flatten(node: Node) -> Function:
    return (lambda tensor: torch.flatten(tensor, 1)) if node.option("axis", 1) == 1 else _reshape(node)


@converts("Expand")
@converts("Expand", domain=OWN_DOMAIN)
def _expand(node: Node) -> Function:
    sizes = _sizes(node)
    return lambda tensor: tensor.expand(sizes)


def _sizes(node: Node) -> list[int]:
    """The result's shape as torch takes it, with the number of rows left open."""
    shape = node.result()
    if shape.count(None) > 1:
        raise node.error("has the rows in two dimensions")
    return [-1 if size is None else size for size in shape]


@converts("Squeeze")
def _squeeze(node: Node) -> Function:
    shape = node.shape()
    declared = node.integers("axes", 1) or [axis for axis, size in enumerate(shape) if size == 1]
    axes = sorted((axis % len(shape) for axis in declared), reverse=True)

    def squeezed(tensor: Tensor) -> Tensor:
        for axis in axes:
            tensor = torch.squeeze(tensor, axis)
        return tensor

    return squeezed


@converts("Unsqueeze")
def _unsqueeze(node: Node) -> Function:
    declared = node.integers("axes", 1) or []
    axes = sorted(axis % (len(node.shape()) + len(declared)) for axis in declared)

    def unsqueezed(tensor: Tensor) -> Tensor:
        for axis in axes:
            tensor = torch.unsqueeze(tensor, axis)
        return tensor

    return unsqueezed


@converts("Transpose")
def _transpose(node: Node) -> Function:
    order = node.option("perm") or list(range(len(node.shape())))[::-1]
    return lambda tensor: tensor.permute(order)


@converts("Slice")
def _slice(node: Node) -> Function:
    shape, starts, ends = node.shape(), node.integers("starts", 1) or [], node.integers("ends", 2) or []
    axes, steps = node.integers("axes", 3) or range(len(starts)), node.integers("steps", 4) or [1] * len(starts)
    taken, turned = [slice(None)] * len(shape), []
    for axis, start, end, step in zip((axis % len(shape) for axis in axes), starts, ends, steps, strict=True):
        size = shape[axis]
        if size is None and (start, step) == (0, 1) and end >= ALL:
            continue
        if size is None:
            raise node.error(ROWS_TOGETHER)
        places = range(size)[start:end:step]
        if step < 0:
            turned.append(axis)
            places = range(size - 1 - places.start, size - 1 - places.stop, -step)
        taken[axis] = slice(places.start, places.stop, places.step)
    index = tuple(taken)
    return (lambda tensor: torch.flip(tensor, turned)[index]) if turned else (lambda tensor: tensor[index])


@converts("Split")
def _split(node: Node) -> Function:
    axis, count, size = node.option("axis", 0), len(node.proto.output), node.shape()[node.option("axis", 0)]
    if size is None:
        raise node.error(ROWS_TOGETHER)
    share = -(-size // count)
    sizes = node.integers("split", 1) or [min(share, size - at * share) for at in range(count)]
    return lambda tensor: torch.split(tensor, sizes, dim=axis)


@converts("Gather")
def _gather(node: Node) -> Function:
    if node.proto.input[0] in node.graph.initializers:
        raise node.error("looks rows of a table up by the input's values, which has no gradient; explain what it gives")
    axis, index, shape = node.option("axis", 0), node.needed(1), node.shape()
    size = shape[axis]
    if size is None:
        raise node.error(ROWS_TOGETHER)
    places = (index % size).reshape(-1)
    if index.dim() == 0:
        return lambda tensor: tensor.select(axis, int(places))
    if index.dim() == 1:
        return lambda tensor: torch.index_select(tensor, axis, places)
    sizes = _sizes(node)
    return lambda tensor: torch.reshape(torch.index_select(tensor, axis, places), sizes)


@converts(GATHER_IN_ROWS, domain=OWN_DOMAIN)
def _gather_in_rows(node: Node) -> Function:
    places, width, sizes = node.needed(1).reshape(-1), node.option("width"), _sizes(node)
    return lambda tensor: torch.reshape(torch.index_select(torch.reshape(tensor, [-1, width]), 1, places), sizes)


@converts(SCATTER_IN_ROWS, domain=OWN_DOMAIN, tensors=(0, 2))
def _scatter_in_rows(node: Node) -> Function:
    """The same places of every row replaced, or added to."""
    places, width, sizes = node.needed(1).reshape(-1), node.option("width"), _sizes(node)
    reduction = node.option("reduction", "none")
    if reduction not in ("none", "add"):
        raise node.error(f"is only converted where it replaces or adds, not with the reduction {reduction}")
    apart = [-1, width, prod(node.sizes(1)) // width]

    def scattered(tensor: Tensor, updates: Tensor) -> Tensor:
        rows = torch.reshape(tensor, apart)
        others = torch.reshape(updates, [-1, len(places), apart[2]])
        filled = torch.index_add if reduction == "add" else torch.index_copy
        return torch.reshape(filled(rows, 1, places, others), sizes)

    return scattered


@converts("ScatterND")
def _scatter(node: Node) -> Function:
    raise node.error(f"is only converted where it replaces the same places of every row; else it {ROWS_TOGETHER}")


@converts("ScatterElements", tensors=3)
def _scatter_elements(node: Node) -> Function:
    axis, reduction = node.option("axis", 0), node.option("reduction", "none")
    if axis % len(node.shape()) == 0:
        raise node.error(ROWS_TOGETHER)
    if reduction not in ("none", "add"):
        raise node.error(f"is only converted where it replaces or adds, not with the reduction {reduction}")
    scattered = torch.scatter_add if reduction == "add" else torch.scatter
    return lambda tensor, index, updates: scattered(tensor, axis, index, updates)


@converts("Compress")
def _compress(node: Node) -> Function:
    axis, kept = node.option("axis"), node.needed(1).reshape(-1).nonzero().reshape(-1)
    if axis is None or axis % len(node.shape()) == 0:
        raise node.error(ROWS_TOGETHER)
    return lambda tensor: torch.index_select(tensor, axis, kept)


@converts("GatherElements", tensors=2)
def _gather_elements(node: Node) -> Function:
    axis = node.option("axis", 0)
    return lambda tensor, index: torch.gather(tensor, axis, index)


@converts("GatherND")
def _gather_nd(node: Node) -> Function:
    index, shape = node.needed(1), node.shape()
    if node.option("batch_dims", 0) or None in shape[: index.shape[-1]]:
        raise node.error(ROWS_TOGETHER)
    places = tuple(index.unbind(-1))
    return lambda tensor: tensor[places]


@converts("ArrayFeatureExtractor", domain=ML)
def _columns(node: Node) -> Function:
    places = node.needed(1).reshape(-1)
    return lambda tensor: torch.index_select(tensor, -1, places)


@converts("FeatureVectorizer", domain=ML, tensors=None)
def _joined_columns(_: Node) -> Function:
    return lambda *tensors: torch.cat(tensors, 1)


@converts("Tile")
def _tile(node: Node) -> Function:
    times = node.needed(1).tolist()
    return lambda tensor: torch.tile(tensor, times)


@converts("TopK")
def _top(node: Node) -> Function:
    if node.proto.output[1]:
        raise node.error(f"cannot be differentiated: {PLACES}")
    count = node.option("k") if (constant := node.array(1)) is None else int(constant.item())
    axis = node.option("axis", -1)
    is_largest, is_sorted = bool(node.option("largest", 1)), bool(node.option("sorted", 1))
    return lambda tensor: torch.topk(tensor, count, axis, is_largest, is_sorted)


@converts("Trilu")
@converts("Trilu", domain=MICROSOFT)
def _triangle(node: Node) -> Function:
    triangle = torch.triu if node.option("upper", 1) else torch.tril
    diagonal = 0 if (constant := node.array(1)) is None else int(constant)
    return lambda tensor: triangle(tensor, diagonal)


@converts("CumSum")
def _running_sum(node: Node) -> Function:
    axis, is_turned, is_exclusive = int(node.needed(1)), node.option("reverse", 0), node.option("exclusive", 0)

    def running(tensor: Tensor) -> Tensor:
        terms = torch.flip(tensor, [axis]) if is_turned else tensor
        result = torch.cumsum(terms, axis)
        result = result - terms if is_exclusive else result
        return torch.flip(result, [axis]) if is_turned else result

    return running


@converts("DepthToSpace", "SpaceToDepth")
def _depth(node: Node) -> Function:
    block, sizes = node.option("blocksize"), _sizes(node)
    channels, height, width = node.sizes(1)
    if node.operator == "SpaceToDepth":
        cut, order = [-1, channels, height // block, block, width // block, block], [0, 3, 5, 1, 2, 4]
    elif node.option("mode", "DCR") == "CRD":
        return lambda tensor: torch.pixel_shuffle(tensor, block)
    else:
        cut, order = [-1, block, block, channels // block**2, height, width], [0, 3, 4, 1, 5, 2]
    return lambda tensor: torch.reshape(torch.reshape(tensor, cut).permute(order), sizes)
