"""What differs by kind of input when a model is added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from service.catalog.inputs.image import Normalisation
from service.domain import Floats
from service.lifecycle.adding.inputs import SingleInput
from service.lifecycle.adding.rows import Rows

if TYPE_CHECKING:
    from service.lifecycle.adding.adding import AddOptions
    from service.lifecycle.adding.manifests import ManifestChoices

Ask = Callable[[str, str], str]
"""From a question and a default to the answer of the user, or the default."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that was read and only has to be written, into a folder of its name and version.

    `how` says, as a sentence to users, where its outputs come from; `hint` is added to what is wrong with it.
    Of one that `is_rounded` the limit of parity is measured and written into the manifest.
    """

    name: str
    version: str
    how: str
    write: Callable[[Path], None]
    hint: str = ""
    is_rounded: bool = False


class AddedInputs(ABC):
    """The inputs of a graph: how rows of data are read, what is asked of the user, and what the manifest declares."""

    def __init__(self, graph_input: SingleInput) -> None:
        self.input = graph_input

    def check_graph(self, model: ModelProto, options: AddOptions, ask: Ask) -> None:  # noqa: B027 - some have nothing to check
        """Raises CatalogError where the graph takes inputs in a form that instances are not read into."""

    @abstractmethod
    def read(self, data: Path, options: AddOptions, ask: Ask) -> Rows:
        """The rows of a file. Raises CatalogError."""

    def name_features(
        self, options: AddOptions, rows: Rows | None, ask: Ask
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the features, and their titles. Raises CatalogError."""
        return (), ()

    def normalisation(self, options: AddOptions, rows: Rows | None, ask: Ask) -> Normalisation | None:
        """How the pixels of image files are normalised. Raises CatalogError."""
        return None

    @abstractmethod
    def declared(
        self, rows: Floats | None, missing: Sequence[float | None], choices: ManifestChoices
    ) -> dict[str, Any]:
        """The manifest's `inputs`; `missing` has, by column, the value that the graph imputes, or None."""

    @abstractmethod
    def example(self, rows: Floats | None, baseline: Floats, declared: dict[str, Any]) -> Any:
        """An instance that is not a real person's, made from `rows`, where there are some, and the rows of the
        baseline."""
