"""The kinds of input of models that can be added, by how many axes a row of the graph's input has."""

from __future__ import annotations

from collections.abc import Mapping

from service.lifecycle.adding.added_inputs import AddedInputs
from service.lifecycle.adding.inputs import SingleInput, refuse_shape
from service.lifecycle.adding.pictures import AddedPictures
from service.lifecycle.adding.series import AddedSeries
from service.lifecycle.adding.tables import AddedTable

BY_AXES: Mapping[int, type[AddedInputs]] = {1: AddedTable, 2: AddedSeries, 3: AddedPictures}


def added_inputs(graph_input: SingleInput) -> AddedInputs:
    """The inputs of a graph. Raises CatalogError where the shape of a row does not determine their kind."""
    refuse_shape(graph_input)
    return BY_AXES[len(graph_input.shape)](graph_input)
