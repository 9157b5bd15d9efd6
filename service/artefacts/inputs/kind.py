"""What the worker must know of a kind of input: how a graph takes it, and where its twin begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from service.artefacts.onnx.session_inputs import Feeds, GraphInput
from service.artefacts.onnx.twin_source import TwinSource
from service.catalog.inputs.encodings import Encoding
from service.domain import DOUBLE, SINGLE, RowType


class OnnxInputs(ABC):
    """The inputs that a manifest declares, as the graph takes them whose inputs are `given`, by name.

    Made for each of the kinds of `service.catalog.inputs`; `service.artefacts.inputs.registry` finds it.
    """

    given: Mapping[str, GraphInput]

    @abstractmethod
    def feeds(self) -> Feeds:
        """What the graph is given for rows of the model.

        Raises CatalogError where the manifest names other inputs than the graph has, or does not say what they take.
        """

    @abstractmethod
    def source(self, graph: ModelProto, feeds: Feeds, end: str) -> TwinSource:
        """What the twin is made of, up to the tensor `end`. Raises CatalogError where it could not begin anywhere."""

    def row_type(self) -> RowType:
        """What holds the rows of a model as its graph takes them, exactly: float32, or float64 where that is too
        coarse."""
        return DOUBLE if any(one.dtype is np.float64 for one in self.given.values()) else SINGLE

    def encoded_feeds(self, encoding: Encoding | None) -> Feeds | None:
        """What the graph is given for encoded rows; None where it does not take them."""
        return None
