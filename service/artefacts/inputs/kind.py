"""What the worker must know of a kind of input: what a graph's session is given for it, and where the twin begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import Self

import numpy as np
from onnx import ModelProto

from service.artefacts.onnx.session_inputs import GraphInput, SessionInputs
from service.artefacts.onnx.twin_source import TwinSource
from service.catalog.inputs.encodings import Encoding
from service.catalog.inputs.kind import Inputs
from service.domain import DOUBLE, SINGLE, RowType


class OnnxInputs(ABC):
    """The inputs that a manifest declares, as its graph takes them; `graph_inputs` are those of the graph, by name.

    Each kind in `service.catalog.inputs` has a subclass, named in `service.artefacts.inputs.registry`.
    """

    inputs: Inputs
    graph_inputs: Mapping[str, GraphInput]

    def cut_to(self, inputs: Inputs) -> Self:
        """The same with rows that are cut, one of `Inputs.cut`."""
        cut = copy(self)
        cut.inputs = inputs
        return cut

    @abstractmethod
    def session_inputs(self) -> SessionInputs:
        """From rows of the model to the inputs of the graph's session.

        Raises CatalogError where the manifest names other inputs than the graph has, or does not say what they take.
        """

    @abstractmethod
    def source(self, graph: ModelProto, session_inputs: SessionInputs, end: str) -> TwinSource:
        """What the twin is made of, up to the tensor `end`. Raises CatalogError where it cannot begin anywhere."""

    def row_type(self) -> RowType:
        """float32 where that represents the model's rows exactly as the graph takes them, else float64."""
        return DOUBLE if any(one.dtype is np.float64 for one in self.graph_inputs.values()) else SINGLE

    def encoded_session_inputs(self, encoding: Encoding | None) -> SessionInputs | None:
        """From encoded rows to the inputs of the graph's session; None where the graph does not take encoded rows."""
        return None
