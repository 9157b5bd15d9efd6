"""Images as an ONNX graph takes them: one tensor, of the shape that the manifest has."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.onnx.session_inputs import Feeds, GraphInput, compare_names
from service.artefacts.onnx.twin_source import TwinSource
from service.catalog.inputs.image import ImageInputs
from service.errors import CatalogError


class OnnxImage(OnnxInputs):
    """Images of a graph; see `OnnxInputs`."""

    def __init__(self, inputs: ImageInputs, given: Mapping[str, GraphInput]) -> None:
        self.inputs = inputs
        self.given = given

    def feeds(self) -> Feeds:
        """The rows in their shape, which the graph must take."""
        inputs = self.inputs
        compare_names([inputs.tensor], self.given)
        given = self.given[inputs.tensor]
        expected = len(given.shape), *(own or size for own, size in zip(given.shape, inputs.shape, strict=False))
        if (len(inputs.shape), *inputs.shape) != expected:
            shape = [size or "any" for size in given.shape]
            raise CatalogError(
                f"the graph's input {given.name!r} takes {shape}, the manifest says {list(inputs.shape)}"
            )
        return lambda rows: {inputs.tensor: rows.reshape(-1, *inputs.shape).astype(given.dtype, copy=False)}

    def source(self, graph: ModelProto, feeds: Feeds, end: str) -> TwinSource:
        """The whole graph."""
        return TwinSource(graph, self.inputs.tensor, self.inputs.shape, None)
