"""The kinds of input that a model is added with, by how many axes a row of its graph has."""

from __future__ import annotations

from collections.abc import Mapping

from service.lifecycle.adding.added_inputs import AddedInputs
from service.lifecycle.adding.inputs import Given, refuse_shape
from service.lifecycle.adding.pictures import AddedPictures
from service.lifecycle.adding.tables import AddedTable

BY_AXES: Mapping[int, type[AddedInputs]] = {1: AddedTable, 3: AddedPictures}


def added_inputs(given: Given) -> AddedInputs:
    """The inputs of a graph. Raises CatalogError where rows are of no kind that can be told by their shape."""
    refuse_shape(given)
    return BY_AXES[len(given.shape)](given)
