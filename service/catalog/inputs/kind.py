"""A kind of input: one object that says all in which tables, images and tokens differ.

What a manifest declares under `inputs` is that object; its `kind` is the word by which
`service.catalog.inputs.registry` finds the class. Elsewhere nobody asks which kind it is: the object is asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, WithJsonSchema

from service.catalog.formats import Artefact
from service.catalog.inputs.removal import Mask, Removal, StandIns, drawn_from
from service.catalog.nearest import Searches
from service.catalog.traits import Axis
from service.domain import DOUBLE, Floats, Indices, RowType, Target
from service.errors import InvalidRequest

if TYPE_CHECKING:
    from service.catalog.inputs.encodings import Encoding
    from service.catalog.inputs.features import Component, Feature, ReasonGroup
    from service.catalog.inputs.segments import SegmentOfRow
    from service.catalog.inputs.sequences import Tokenizer

MASK = "mask"
"""The name of the baseline that masks all tokens but the special ones."""
ZEROS = "zeros"
"""The name of the baseline of zeros, where zeros can be an instance."""
ZEROS_STAND_IN = "zero"
"""The name of zeros in the place of removed components."""
FARTHEST = 1e37
"""The limit of ranges: float32 ends at 3.4e38, and the difference of both ends must be finite too."""


Number = Annotated[StrictFloat | StrictInt, WithJsonSchema({"type": "number"})]
"""The type of a recorded value: text is not parsed and 1 does not become 1.0, so that every bit can be compared."""


class Declaration(BaseModel):
    """A part of a manifest: frozen, and without fields that are not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_range(of: str, limits: tuple[float, float]) -> None:
    """Raises ValueError for a range whose ends are in the wrong order, or beyond float32."""
    low, high = limits
    if low > high:
        raise ValueError(f"the range of {of} is from {low:g} to {high:g}: the lower end comes first")
    if max(-low, high) > FARTHEST:
        raise ValueError(f"the range of {of} must lie between -{FARTHEST:g} and {FARTHEST:g}, as 32-bit floats do")


class Places(Protocol):
    """Where the parts of a row are in what was sent. What a place is, only the kind of input knows."""

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
    def truncated(self) -> bool | None:
        """True where more was sent than the model takes; else None, which answers leave out."""
        return (self.places is not None and self.places.truncated) or None


class Over(StrEnum):
    """What attributions of a series are summed over."""

    TIME = "time"
    FEATURE = "feature"


class Units(StrEnum):
    """What the tokens of a text are summed to."""

    WORDS = "words"
    SENTENCES = "sentences"


@dataclass(frozen=True, slots=True)
class Detail:
    """What is asked for beside one attribution for each component: an image's by `channels`, or sums of a series'
    `over` its steps or its features; or in their place those of a text's `units`. A kind of input gives what there is
    of it."""

    channels: bool = False
    over: Over | None = None
    units: Units | None = None

    @property
    def of_errors(self) -> Detail:
        """That of errors, of which a sum is not the error of the sum; of units it is a bound on that."""
        return replace(self, over=None)


PLAIN = Detail()
"""Nothing beside them."""


class Attributions(Protocol):
    """Values by component: attributions, or how far each of them may be off.

    They are pydantic models, whose schema is that of the JSON that `to_json` gives.
    """

    @property
    def values(self) -> Sequence[float]:
        """One for each component, in the order of the components."""
        ...

    @property
    def numbers(self) -> Sequence[float]:
        """All numbers: the values, in an order that depends on `structure` alone, and those of the detail."""
        ...

    @property
    def detail(self) -> Detail:
        """What is shown beside the values."""
        ...

    @property
    def structure(self) -> object:
        """All but the `numbers`: names, places, shapes. Only values of the same structure can be compared."""
        ...

    def with_values(self, values: Sequence[float]) -> Self:
        """The same components with other values, and without detail."""
        ...

    def keeping(self, components: Collection[int]) -> Self:
        """The values of these components, by their places in `values`, and without detail."""
        ...

    def to_json(self) -> Any:
        """The attributions as replies and records have them, in objects and lists, or as bytes where they are large."""
        ...


class InputItem(BaseModel):
    """A feature of a table; or what there is of images, series and tokens, as the manifest has it."""

    model_config = ConfigDict(extra="allow")

    name: str | None = Field(None, description="of the feature, as instances have it")
    title: str | None = Field(None, description="what it is called for people")
    unit: str | None = Field(None, description="of its numbers; `1` for none")
    range: list[float] | None = Field(None, description="the least and the greatest value, both allowed")
    categories: list[str | int] | None = Field(None, description="its values, where it is a category")
    whole: bool | None = Field(None, description="true where only whole numbers are taken")
    missing: float | str | int | None = Field(None, description="what null stands for; absent where null is refused")
    protected: bool | None = Field(None, description="whether decisions must not rest on it")
    group: str | None = Field(None, description="the group that its attributions are summed into")
    kind: str | None = Field(None, description="`image`, `series` or `tokens`; absent for a table")


class Inputs(Declaration, ABC):
    """What a model takes, as its manifest declares it."""

    kind: str
    axes: ClassVar[tuple[Axis, ...]]
    """Of what methods see of a row."""
    is_read_at_once: ClassVar[bool] = False
    """Whether an instance is read in microseconds; texts and files take their time."""
    are_prompts: ClassVar[bool] = False
    """Whether what is explained of a row is what follows it."""

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]:
            """Of one row."""

        @property
        def tensor(self) -> str:
            """The graph's input."""

    @property
    def cut(self) -> tuple[Self, ...]:
        """The same inputs with rows that are cut to fewer places, ascending, where what is cut off of some rows is
        padding that does not count."""
        return ()

    def length_of(self, values: Sequence[float]) -> int:
        """How many places a row has, without padding that does not count."""
        return len(values)

    def padded(self, rows: NDArray[np.floating]) -> NDArray[np.floating]:
        """Rows [n, fewer columns] that were cut, whole again: [n, columns]."""
        return rows

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers of a row; empty where they have none."""
        return ()

    @property
    def named_features(self) -> tuple[Feature, ...]:
        """The declaration of each number of a row; empty where numbers are not declared one by one."""
        return ()

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that get attributions, where they have names."""
        return ()

    @cached_property
    def component_names(self) -> tuple[str, ...]:
        """The names of the components."""
        return tuple(component.name for component in self.components)

    @property
    @abstractmethod
    def component_count(self) -> int:
        """How many attributions there are."""

    @property
    def component_labels(self) -> tuple[str, ...]:
        """Their names, or the place of each in the inputs' shape."""
        return self.component_names or tuple(",".join(map(str, place)) for place in np.ndindex(self.shape[-2:]))

    @cached_property
    def protected(self) -> tuple[int, ...]:
        """The places of the protected ones among the attributions."""
        return tuple(place for place, component in enumerate(self.components) if component.protected)

    @property
    def reason_groups(self) -> tuple[ReasonGroup, ...]:
        """What may be a principal reason."""
        return ()

    @property
    def reason_texts(self) -> str | None:
        """The version of the reason texts; None where no component could have one."""
        return None

    @property
    def identity(self) -> list[object]:
        """What rows of one model must share to be rows of another one."""
        return [self.kind, self.names, self.shape]

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The inputs of an ONNX graph; a name is empty where the manifest has none."""
        return (self.tensor,)

    def check_artefact(self, artefact: Artefact) -> None:
        """Raises ValueError where an artefact of that format cannot have such inputs."""
        if artefact.format != "onnx" and any(self.tensor_names):
            raise ValueError(
                f"inputs.tensor is for ONNX: an artefact in the format {artefact.format} has no names for it"
            )
        if artefact.takes_tokens and Axis.POSITION not in self.axes:
            raise ValueError(f"an artefact in the format {artefact.format} takes texts: its inputs are of kind tokens")
        if artefact.architecture is not None and artefact.architecture.is_spatial and Axis.HEIGHT not in self.axes:
            raise ValueError(f"the architecture {artefact.architecture.name!r} takes images")

    @property
    def text_tokenizer(self) -> Tokenizer | None:
        """By which texts that the model writes become tokens; None where it writes none, or takes no texts."""
        return None

    def with_target(self, values: tuple[float, ...], target: Target | None) -> tuple[float, ...]:
        """The row that the network is given where `target` is explained. Raises InvalidRequest where that is none."""
        return values

    @property
    def own_baseline(self) -> str | None:
        """The name of the baseline that needs no file."""
        return ZEROS

    def own_baseline_for(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The values of the baseline of that name."""
        return (0.0,) * len(values)

    def depends_on_row(self, baseline: str) -> bool:
        """Whether a baseline of that name differs by row, or has to be checked against each row."""
        return False

    def baseline_obstacle(self, baseline: tuple[float, ...], values: tuple[float, ...]) -> str | None:
        """Why the one row cannot be the baseline of the other."""
        return None

    @property
    def sets_obstacle(self) -> str | None:
        """Why there are no baseline sets of such inputs."""
        return None

    @property
    def imputed(self) -> dict[str, float]:
        """By name, the value that the artefact must replace NaN by."""
        return {}

    @property
    @abstractmethod
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of each of a row's numbers."""

    def random_rows(self, count: int, row_type: RowType) -> NDArray[np.floating]:
        """Rows [count, columns] within the bounds, always the same ones."""
        low, high = (np.array(limit, dtype=row_type) for limit in self.bounds)
        return np.random.default_rng(0).uniform(low, high, (count, len(low))).astype(row_type)

    def whole_rows(self, count: int) -> NDArray[np.floating] | None:
        """Random rows [count, columns] without padding, always the same ones; None where nothing is ever padded."""
        return None

    def nearest_row(self, values: Floats, rows: Floats) -> Floats:
        """The row that is most like `values` [columns], a mean or a median of `rows` [n, columns]."""
        return values

    @property
    def encoding(self) -> Encoding | None:
        """From rows to the inputs of a network without an encoder of its own; None where it takes rows."""
        return None

    def components_of_columns(self, encoding: Encoding | None) -> tuple[int, ...]:
        """For each number of encoded rows, the component that it belongs to; empty where each is one of its own, or
        components follow from the axes."""
        return ()

    @property
    def component_of_values(self) -> Indices:
        """The component that each of a row's numbers belongs to: [columns]."""
        places = self.components_of_columns(None)
        return np.array(places) if places else np.arange(prod(self.shape))

    def removable(self, row: Floats) -> Mask:
        """Which components of a row [columns] can be removed: [components]."""
        return np.ones(self.component_count, dtype=np.bool_)

    def continuous(self, row: Floats) -> Mask:
        """Which components of a row [columns] can take any value near their own, as methods see it: [components]."""
        return self.removable(row)

    @property
    def removals(self) -> tuple[str, ...]:
        """What can stand in the place of removed components, by name, the usual one first; see `removal`."""
        return ("mean", "marginal", "noise", *([ZEROS_STAND_IN] if self.own_baseline == ZEROS else []))

    def removal(self, row: Floats, name: str, baselines: Floats, seed: int) -> Removal:
        """How components of `row` [columns] are removed by what has that name, which is one of `removals`.

        `baselines` [K, columns] are the rows of the explanation's baseline; `seed` decides what is drawn.
        """
        match name:
            case "mean":
                stand_ins = self.nearest_row(baselines.mean(axis=0), baselines)[None]
            case "marginal":
                stand_ins = drawn_from(baselines, seed)
            case "noise":
                stand_ins = self.random_rows(1, DOUBLE).astype(np.float64)
            case _:
                stand_ins = np.zeros((1, len(row)))
        return StandIns(row, stand_ins, self.component_of_values, numeric=self.mean_is_row)

    def recorded_values(self, attributions: Attributions, row: Row) -> tuple[float, ...]:
        """One value for each component, in the order in which metrics have them, of attributions of `row` that were
        recorded."""
        return tuple(attributions.values)

    def picture(self, row: Floats) -> NDArray[np.uint8] | None:
        """The row as an image file would hold it, [height, width, channels]; None where it is no picture."""
        return None

    def row_of_picture(self, picture: NDArray[np.uint8]) -> Floats:
        """The row [columns] of what `picture` gave."""
        raise NotImplementedError

    def is_comparable_with(self, other: Inputs) -> bool:
        """Whether explanations of both have the same components."""
        return self.kind == other.kind and self.shape == other.shape

    @property
    def mean_is_row(self) -> bool:
        """Whether the mean of rows is a row."""
        return True

    def described(self) -> list[InputItem]:
        """The inputs in the description of the model."""
        return [InputItem(**self.model_dump(exclude_none=True))]

    def notes(self) -> tuple[str, ...]:
        """Remarks on the inputs that the check of a version prints, on what it cannot verify."""
        return ()

    @abstractmethod
    def read(self, instance: object, folder: Path | None = None, searches: Searches | None = None) -> Row:
        """The row of an instance.

        `folder` holds the version's files; without it, what needs one of them is refused. `searches` are those for
        names that were meant, which all instances of a request share. Raises InvalidRequest, naming what is missing,
        unknown, not a number or out of its range.
        """

    def of_numbers(self, values: Sequence[float]) -> Row:
        """The row of these numbers, as a file of rows has them, NaN where one is missing. Raises InvalidRequest."""
        return self.read(self.as_instance(values))

    @abstractmethod
    def as_instance(self, values: Sequence[float]) -> Any:
        """The instance that is read into these values; by name where inputs have names."""

    def to_record(self, row: Row) -> dict[str, Any]:
        """The fields of a record's personal part that hold the row, `input` among them; `of_record` reads them."""
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
        self, values: Sequence[float], shape: tuple[int, ...], row: Row, *, detail: Detail = PLAIN
    ) -> Attributions:
        """The values of an explanation of `row`, in the `shape` that it has, with what there is of the `detail`."""

    @property
    def segment_names(self) -> tuple[str, ...]:
        """The names of segments that every instance must have which is explained."""
        return ()

    def segments_of(self, row: Row) -> tuple[SegmentOfRow, ...]:
        """The segments that came with an instance."""
        return ()

    def check_example(self, example: object) -> None:
        """Raises ValueError where the example is not one complete instance that can be explained."""
        if self.names and not (isinstance(example, Mapping) and {*example} == {*self.names}):
            raise ValueError("the example is not one complete instance")

    def check_explained(self, row: Row, detail: Detail) -> None:
        """Raises InvalidRequest for an instance that can be predicted, but not explained in that detail."""

    def check_files(self, folder: Path) -> None:
        """Reads the files of the version in `folder` that instances are read with. Raises CatalogError."""

    def check_rows(self, rows: NDArray[np.floating], file: str) -> None:
        """Checks the rows [n, columns] of a file against the declaration. Raises CatalogError."""
