"""What a kind of input is: one object that holds everything in which tables, images and tokens differ.

What a manifest declares under `inputs` is that object; its `kind` is the word by which
`service.catalog.inputs.registry` finds the class. Elsewhere nobody asks which kind it is: the object is asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, StrictFloat, StrictInt, WithJsonSchema

from service.catalog.nearest import Searches
from service.domain import Axis
from service.errors import InvalidRequest

FARTHEST = 1e37
"""Of a range: what networks compute with ends at 3.4e38, and the distance between both ends is still a number."""


Number = Annotated[StrictFloat | StrictInt, WithJsonSchema({"type": "number"})]
"""Of a value that was shown: no text is read as one, and 1 is not made 1.0, so that every bit can be compared."""


class Declaration(BaseModel):
    """A part of a manifest: frozen, and without fields that are not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_range(of: str, limits: tuple[float, float]) -> None:
    """Raises ValueError for a range from more to less, or beyond what networks compute with."""
    low, high = limits
    if low > high:
        raise ValueError(f"the range of {of} is from {low:g} to {high:g}: the lower end comes first")
    if max(-low, high) > FARTHEST:
        raise ValueError(f"the range of {of} must lie between -{FARTHEST:g} and {FARTHEST:g}, as 32-bit floats do")


class Places(Protocol):
    """Where in what was sent the parts of a row are; of what kind, only the kind of input knows."""

    @property
    def truncated(self) -> bool:
        """Whether more was sent than the model takes."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """The model's input row for one instance: its `values`, flat, in the artefact's own units, and their places in what
    was sent, where that was something else than the values."""

    values: tuple[float, ...]
    places: Places | None = None

    @property
    def is_truncated(self) -> bool:
        """Whether more was sent than the model takes."""
        return self.places is not None and self.places.truncated


class Attributions(Protocol):
    """Values by unit: attributions, or how far each of them may be off.

    They are pydantic models, whose schema is that of the JSON that `to_json` gives.
    """

    @property
    def values(self) -> Sequence[float]:
        """One for each unit, in the order of the units."""
        ...

    @property
    def numbers(self) -> Sequence[float]:
        """All numbers that are shown: the values, in an order that depends on `structure` alone, and what is shown of
        their parts."""
        ...

    @property
    def structure(self) -> object:
        """All that is shown and is not one of the `numbers`; only values of the same structure can be compared."""
        ...

    def with_values(self, values: Sequence[float]) -> Self:
        """The same units with other values, and without what is shown of their parts."""
        ...

    def keeping(self, units: Collection[int]) -> Self:
        """The values of these units, by their places in `values`, and without what is shown of their parts."""
        ...

    def to_json(self) -> Any:
        """What stands in replies and records, of objects and lists that any JSON library writes."""
        ...


class Inputs(Declaration, ABC):
    """What a model takes, as its manifest declares it."""

    kind: str
    axes: ClassVar[tuple[Axis, ...]]
    """Of what methods see of a row."""
    is_read_at_once: ClassVar[bool] = False
    """Whether an instance is read in microseconds; texts and files take their time."""

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]:
            """Of one row."""

    @abstractmethod
    def read(self, instance: object, folder: Path | None = None, searches: Searches | None = None) -> Row:
        """The row of an instance.

        `folder` holds the version's files; without it, what needs one of them is refused. `searches` are those for
        names that were meant, which all instances of a request share. Raises InvalidRequest, naming what is missing,
        unknown, not a number or out of its range.
        """

    @abstractmethod
    def as_instance(self, values: Sequence[float]) -> Any:
        """The instance that these values are read from: of what has names by name."""

    def to_record(self, row: Row) -> dict[str, Any]:
        """What the personal part of a record holds of the row, `input` among it; `of_record` reads it back."""
        return {"input": row.values}

    def of_record(self, personal: Mapping[str, Any]) -> Row:
        """The row that the personal part of a record holds, as it was computed with.

        Raises KeyError, TypeError or ValueError where it holds none.
        """
        return Row(tuple(map(float, personal["input"])))

    def of_other_version(self, personal: Mapping[str, Any]) -> Row:
        """The row for the input that the personal part of a record of another version holds. Raises InvalidRequest."""
        try:
            row = self.of_record(personal)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequest("the stored input is of another kind") from error
        if len(row.values) != prod(self.shape):
            raise InvalidRequest("the stored input has another size")
        return row

    @abstractmethod
    def attributions(
        self, values: Sequence[float], shape: tuple[int, ...], row: Row, *, channels: bool = False
    ) -> Attributions:
        """The values of an explanation of `row`, in the `shape` that it has; where they are sums over `channels`, with
        those of each channel if asked for."""

    def check_files(self, folder: Path) -> None:
        """Reads the files of the version in `folder` that instances are read with. Raises CatalogError."""

    def check_rows(self, rows: NDArray[np.floating], file: str) -> None:
        """Holds the rows [n, columns] of a file against what is declared. Raises CatalogError."""
