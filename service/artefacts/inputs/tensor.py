"""Images and series as an ONNX graph takes them: one tensor, of the shape that the manifest has."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from service.artefacts.inputs.kind import OnnxInputs
from service.artefacts.onnx.session_inputs import GraphInput, SessionInputs, compare_names
from service.artefacts.onnx.twin_source import TwinSource
from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.series import SeriesInputs
from service.errors import CatalogError


class OnnxTensor(OnnxInputs):
    """One tensor of a graph; see `OnnxInputs`."""

    inputs: ImageInputs | SeriesInputs

    def __init__(self, inputs: ImageInputs | SeriesInputs, graph_inputs: Mapping[str, GraphInput]) -> None:
        self.inputs = inputs
        self.graph_inputs = graph_inputs

    def session_inputs(self) -> SessionInputs:
        """The rows in the shape of the inputs, which must be the one that the graph takes."""
        inputs = self.inputs
        compare_names([inputs.tensor], self.graph_inputs)
        graph_input = self.graph_inputs[inputs.tensor]
        expected = (
            len(graph_input.shape),
            *(own or size for own, size in zip(graph_input.shape, inputs.shape, strict=False)),
        )
        if (len(inputs.shape), *inputs.shape) != expected:
            shape = [size or "any" for size in graph_input.shape]
            raise CatalogError(
                f"the graph's input {graph_input.name!r} takes {shape}, the manifest says {list(inputs.shape)}"
            )
        return lambda rows: {inputs.tensor: rows.reshape(-1, *inputs.shape).astype(graph_input.dtype, copy=False)}

    def source(self, graph: ModelProto, session_inputs: SessionInputs, end: str) -> TwinSource:
        """The whole graph."""
        return TwinSource(graph, self.inputs.tensor, self.inputs.shape, None)
