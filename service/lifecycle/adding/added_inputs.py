"""What differs by kind of input when a model is added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from service.catalog.inputs.image import Normalisation
from service.domain import Floats
from service.lifecycle.adding.inputs import Given
from service.lifecycle.adding.rows import Rows

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import Asked
    from service.lifecycle.adding.manifests import Answers

Ask = Callable[[str, str], str]
"""Asks a question and gives the answer, or the default that it is given."""


class AddedInputs(ABC):
    """The inputs of a graph: rows that are brought for them, what is asked about them, and what the manifest says."""

    def __init__(self, given: Given) -> None:
        self.given = given

    def check_graph(self, model: ModelProto, asked: Asked, ask: Ask) -> None:  # noqa: B027 - some have nothing to check
        """Raises CatalogError where the graph does not take what instances are read into."""

    @abstractmethod
    def read(self, data: Path, asked: Asked, ask: Ask) -> Rows:
        """The rows of a file. Raises CatalogError."""

    def name_features(self, asked: Asked, rows: Rows | None, ask: Ask) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the features, and their titles. Raises CatalogError."""
        return (), ()

    def normalisation(self, asked: Asked, rows: Rows | None, ask: Ask) -> Normalisation | None:
        """How the numbers of a file become the model's. Raises CatalogError."""
        return None

    @abstractmethod
    def declared(self, rows: Floats | None, missing: Sequence[float | None], answers: Answers) -> dict[str, Any]:
        """What the manifest says of the inputs; `missing` has what the graph takes for a column that is missing."""

    @abstractmethod
    def example(self, rows: Floats | None, baseline: Floats, declared: dict[str, Any]) -> Any:
        """An instance that is nobody's: of `rows`, as far as they are known, and of the rows of the baseline."""
