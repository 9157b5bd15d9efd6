"""The networks of `service.catalog.architectures`, with weights from a safetensors file.

A network is built without memory for its weights, compared with the file tensor by tensor, and then given the
file's weights: whatever sizes a manifest asks for, no more is allocated than the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from service.artefacts.reported import reported
from service.catalog.architectures import Activation, Architecture, Block, Cnn, Mlp
from service.errors import CatalogError


class MlpNetwork(nn.Module):
    """Rows [n, ...shape] to logits [n, labels]."""

    def __init__(self, options: Mlp, shape: tuple[int, ...], labels: int) -> None:
        super().__init__()
        widths = (prod(shape), *options.widths, labels)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.activation = options.activation
        self.scaling = _Scaling((prod(shape),)) if options.scaling else None

    def forward(self, rows: Tensor) -> Tensor:
        hidden = rows.flatten(1)
        hidden = hidden if self.scaling is None else self.scaling(hidden)
        *inner, last = self.layers
        for layer in inner:
            hidden = _activated(layer(hidden), self.activation)
        logits: Tensor = last(hidden)
        return logits


class CnnNetwork(nn.Module):
    """Images [n, channels, height, width] to logits [n, labels]."""

    def __init__(self, options: Cnn, shape: tuple[int, ...], labels: int) -> None:
        super().__init__()
        channels, *size = shape
        self.scaling = _Scaling((channels, 1, 1)) if options.scaling else None
        self.blocks = nn.ModuleList()
        for at, block in enumerate(options.blocks):
            if block.residual and (block.channels, block.stride) != (channels, 1):
                raise CatalogError(f"block {at} adds what it is given, so it needs {channels} channels and stride 1")
            self.blocks.append(_BlockNetwork(block, channels, options.activation))
            channels, size = block.channels, [((length - 1) // block.stride + 1) // block.pool for length in size]
            if 0 in size:
                raise CatalogError(f"block {at} leaves nothing of an image of {shape[1]} by {shape[2]}")
        self.head = options.head
        self.last = nn.Linear(channels * (prod(size) if options.head == "flat" else 1), labels)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images if self.scaling is None else self.scaling(images)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.last(hidden.flatten(1) if self.head == "flat" else hidden.mean((2, 3)))
        return logits


class _BlockNetwork(nn.Module):
    def __init__(self, options: Block, inputs: int, activation: Activation) -> None:
        super().__init__()
        kernel = options.kernel
        self.convolution = nn.Conv2d(
            inputs, options.channels, kernel, options.stride, padding=kernel // 2, bias=options.bias
        )
        self.normal = nn.BatchNorm2d(options.channels) if options.normal else None
        self.residual, self.pool, self.activation = options.residual, options.pool, activation

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.convolution(inputs)
        hidden = hidden if self.normal is None else self.normal(hidden)
        hidden = _activated(hidden + inputs if self.residual else hidden, self.activation)
        return hidden if self.pool == 1 else functional.max_pool2d(hidden, self.pool)


class _Scaling(nn.Module):
    """Sets inputs to mean zero and deviation one."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(shape))
        self.register_buffer("deviation", torch.empty(shape))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.deviation


def _activated(hidden: Tensor, activation: Activation) -> Tensor:
    result: Tensor = getattr(functional, activation)(hidden)
    return result


def read_network(content: bytes, architecture: Architecture, shape: tuple[int, ...], labels: int) -> nn.Module:
    """The network [n, ...shape] -> logits [n, labels] with the weights in `content`, in evaluation mode.

    Raises CatalogError when the options do not fit the shape, or names the first tensor that is not as it should be.
    """
    with torch.device("meta"):
        network: nn.Module = (
            MlpNetwork(architecture, shape, labels)
            if isinstance(architecture, Mlp)
            else CnnNetwork(architecture, shape, labels)
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CatalogError(f"not a valid safetensors file: {reported(error)}") from error
    _check_tensors(tensors, network.state_dict(), architecture.name)
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> None:
    for name, tensor in expected.items():
        described = f"{_described(tensor)}, as the architecture {architecture!r} has it"
        if name not in tensors:
            raise CatalogError(f"the file lacks the tensor {name!r}: {described}")
        if _described(tensors[name]) != _described(tensor):
            raise CatalogError(f"the tensor {name!r} is {_described(tensors[name])} in the file, not {described}")
        if not tensors[name].isfinite().all():
            raise CatalogError(f"the tensor {name!r} holds values that are not finite")
    unknown = next((name for name in tensors if name not in expected), None)
    if unknown is not None:
        raise CatalogError(f"the architecture {architecture!r} has no tensor {unknown!r}, which the file holds")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
