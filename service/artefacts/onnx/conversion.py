"""Registers converters of ONNX operators to torch, in the place of onnx2torch's or where it has none.

A converter is a function of the node that returns a function of tensors. It reads sizes, axes and the like when it
converts: `service.artefacts.onnx.folding` has made constants of them. So the function that it returns consists of
torch's operators only, without a branch, and `torch.fx` can trace it.

This module imports onnx2torch: `service.artefacts.onnx.twins` says how that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from onnx import NodeProto, defs
from onnx2torch import convert
from onnx2torch.node_converters.registry import _CONVERTER_REGISTRY, OperationDescription, add_converter, get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import nn

from service.artefacts.onnx.folding import torch_domain
from service.artefacts.onnx.undifferentiable import described
from service.errors import CatalogError

__all__ = ["ROWS_TOGETHER", "Function", "Node", "carries_on", "convert", "converts", "has_converter", "rewrites"]

Array = NDArray[Any]
Function = Callable[..., Any]
"""From tensors to a tensor, or to a tuple of the node's outputs where it has several."""

ROWS_TOGETHER = "takes rows together or apart: what one is answered would depend on the others"
NEWEST = 5
"""The last version of the domains other than ONNX's own."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its converter sees it."""

    proto: NodeProto
    options: dict[str, Any]
    graph: Any

    @property
    def operator(self) -> str:
        """Its name in ONNX."""
        return self.proto.op_type

    def option(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.options.get(name, default)

    def array(self, at: int) -> Array | None:
        """The constant that is input `at`; None if there is no such input."""
        name = self.proto.input[at] if at < len(self.proto.input) else ""
        if not name:
            return None
        if name not in self.graph.initializers:
            raise self.error(f"is only converted where its input {at} is a constant")
        array: Array = self.graph.initializers[name].to_numpy()
        return array

    def tensor(self, at: int) -> torch.Tensor | None:
        """The constant that is input `at`, for torch."""
        array = self.array(at)
        return None if array is None else torch.from_numpy(array)

    def needed(self, at: int) -> torch.Tensor:
        """The constant that is input `at`, which the operator cannot do without."""
        tensor = self.tensor(at)
        if tensor is None:
            raise self.error(f"lacks its input {at}")
        return tensor

    def integers(self, name: str, at: int) -> list[int] | None:
        """Integers that older versions have as an attribute and newer ones as an input."""
        array = self.array(at)
        values: list[int] | None = self.option(name) if array is None else array.reshape(-1).tolist()
        return values

    def shape(self, at: int = 0) -> tuple[int | None, ...]:
        """The sizes of input `at`; None for the number of rows."""
        return self._shape_of(self.proto.input[at])

    def result(self, at: int = 0) -> tuple[int | None, ...]:
        """The sizes of output `at`; None for the number of rows."""
        return self._shape_of(self.proto.output[at])

    def sizes(self, first: int, at: int = 0) -> tuple[int, ...]:
        """The sizes of input `at` from the dimension `first` on, which are not those of the rows."""
        sizes = [size for size in self.shape(at)[first:] if size is not None]
        if len(sizes) < len(self.shape(at)[first:]):
            raise self.error(ROWS_TOGETHER)
        return tuple(sizes)

    def element_type(self, at: int) -> int:
        """ONNX's number of the element type of input `at`."""
        name = self.proto.input[at]
        if name in self.graph.initializers:
            return int(self.graph.initializers[name].proto.data_type)
        return int(self.graph.value_info[name].type.tensor_type.elem_type)

    def _shape_of(self, name: str) -> tuple[int | None, ...]:
        if name in self.graph.initializers:
            return tuple(self.graph.initializers[name].proto.dims)
        sizes = self.graph.value_info[name].type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)

    def error(self, what: str) -> CatalogError:
        """The operator, its node and what is the matter with it."""
        return CatalogError(f"{described(self.proto)} {what}")


Converter = Callable[[Node], Function]
Rewrite = Callable[[Node], NodeProto]


class _Computed(nn.Module):
    """An operator as a module; tracing leaves only the operators of its function."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


def converts(
    *operators: str, domain: str = "", tensors: int | Sequence[int] | None = 1
) -> Callable[[Converter], Converter]:
    """Registers a converter of operators, in all their versions, in the place of onnx2torch's.

    The function gets the first `tensors` of the inputs, those at these places, or all of them, without those that the
    node leaves out.
    """

    def register(converter: Converter) -> Converter:
        def converted(onnx_node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
            function = converter(Node(onnx_node.proto, dict(onnx_node.attributes), graph))
            names = onnx_node.input_values
            taken = names[:tensors] if tensors is None or isinstance(tensors, int) else [*_at(names, tensors)]
            inputs = tuple(name for name in taken if name)
            return OperationConverterResult(_Computed(function), OnnxMapping(inputs, onnx_node.output_values))

        for operator in operators:
            _register(operator, domain, converted)
        return converter

    return register


def _at(names: Sequence[str], places: Sequence[int]) -> Iterator[str]:
    return (names[place] for place in places if place < len(names))


def rewrites(*operators: str) -> Callable[[Rewrite], Rewrite]:
    """Registers, for all versions of operators, onnx2torch's newest converter, of the node rewritten."""

    def register(rewrite: Rewrite) -> Rewrite:
        for operator in operators:
            _convert_rewritten(operator, rewrite)
        return rewrite

    return register


def _convert_rewritten(operator: str, rewrite: Rewrite) -> None:
    newest = _newest(operator)

    def converted(onnx_node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
        node = rewrite(Node(onnx_node.proto, dict(onnx_node.attributes), graph))
        return newest(OnnxNode(node, onnx_node.unique_name), graph)

    _register(operator, "", converted)


def carries_on(*operators: str) -> None:
    """Registers onnx2torch's newest converter of operators for all versions, where they differ in types alone."""
    for operator in operators:
        _register(operator, "", _newest(operator))


def _newest(operator: str) -> Any:
    known = [
        registered
        for registered in _CONVERTER_REGISTRY
        if (registered.domain, registered.operation_type) == ("", operator)
    ]
    return _CONVERTER_REGISTRY[max(known, key=lambda registered: registered.version)]


def _register(operator: str, domain: str, converted: Any) -> None:
    """Replaces what is registered, which onnx2torch's own function refuses to do."""
    for version in range(1, NEWEST + 1) if domain else _onnx_versions()[operator]:
        _CONVERTER_REGISTRY.pop(OperationDescription(domain, operator, version), None)
        add_converter(operator, version, domain)(converted)


@cache
def _onnx_versions() -> dict[str, list[int]]:
    versions: dict[str, list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            versions.setdefault(schema.name, []).append(schema.since_version)
    return versions


def has_converter(node: NodeProto, versions: Mapping[str, int]) -> bool:
    """Whether there is a converter of a node of a graph with these versions of the domains."""
    domain = torch_domain(node.domain)
    try:
        get_converter(node.op_type, versions[domain], domain)
    except NotImplementedError:
        return False
    return True
