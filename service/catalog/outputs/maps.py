"""Maps: a logit for each label at each place, as the head of a segmentation or of a dense detector answers.

What is explained is the sum of one label's logits over a box of places; the whole map where none is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, prod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from service.access.visibility import ALWAYS, OUTPUTS_BY_NAME, Item
from service.catalog.outputs.kind import (
    PREDICTED,
    TARGET,
    TRUNCATED,
    KnownOutputs,
    OutputKind,
    Outputs,
    OutputsItem,
    PredictionItem,
    Space,
    are_finite,
)
from service.domain import Combination, Floats, Indices, OutputSpace, Target
from service.errors import InvalidRequest, Kind, invalid
from service.numerics.links import IDENTITY, Link

MAX_NUMBERS = 2**17
"""Of a map, all labels together: as many as 21 labels have at 78 x 78 places. They are kept for every baseline row."""
Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Region(Combination):
    """The sum of outputs that lie in a box of a map, whose rows of `width` outputs begin at `start`.

    `places` are the first column and row, and those behind the last.
    """

    told_by = "places"

    start: int
    width: int
    places: tuple[int, int, int, int]

    @property
    def outputs(self) -> Indices:
        """The numbers of the outputs."""
        left, top, right, bottom = self.places
        rows = self.start + self.width * np.arange(top, bottom)[:, None]
        return (rows + np.arange(left, right)).ravel()

    def coefficients(self, outputs: int) -> Floats:
        coefficients = np.zeros(outputs)
        coefficients[self.outputs] = 1.0
        return coefficients

    def sum_of(self, outputs: Floats) -> Floats:
        return np.asarray(outputs[..., self.outputs].sum(axis=-1))


class RecordedRegion(Item):
    """Places of a map, of which the sum is explained."""

    told_by: ClassVar[str] = "places"

    start: Annotated[int, ALWAYS, Field(description="the index of the map's first output")]
    width: Annotated[int, ALWAYS, Field(description="of the map, in places")]
    places: Annotated[tuple[int, ...], ALWAYS, Field(description="the first column and row, and those behind the last")]


class MapPrediction(PredictionItem):
    """At how many places each label is the largest; of a single label, where its logit is above zero."""

    told_by: ClassVar[str] = "areas"

    label: Annotated[str | None, ALWAYS, Field(description="the label with the most places; absent for none")] = None
    areas: Annotated[
        dict[str, float],
        OUTPUTS_BY_NAME,
        Field(description="the share of all places, by label; empty where outputs are not finite, or not shown"),
    ]
    output_space: Annotated[Space, ALWAYS, Field(description="what the outputs are")]
    truncated: Annotated[bool | None, ALWAYS, TRUNCATED] = None

    @property
    def recorded_label(self) -> str | None:
        return self.label


class RegionTarget(Item):
    """The label whose logits are summed, and the box that they are summed over."""

    told_by: ClassVar[str] = "box"

    index: Annotated[int, ALWAYS, Field(description="the label's place among the model's labels, from 0")]
    label: Annotated[str, ALWAYS, Field(description="its name")]
    box: Annotated[
        tuple[float, ...], ALWAYS, Field(description="left, top, right and bottom, in pixels of the image, from 0")
    ]
    places: Annotated[int, ALWAYS, Field(description="how many places of the map lie inside")]

    @property
    def text(self) -> str:
        """The target in words."""
        return f"{self.label} in {', '.join(f'{edge:g}' for edge in self.box)}"


class Maps(OutputKind):
    """The network answers logits [rows, labels, height, width]; `size` is that height and width.

    Boxes are in pixels of an image of the size `image`, which is that of the map where it is left out. A place belongs
    to a box that holds its centre.
    """

    noun: ClassVar[str] = "label"
    spaces: ClassVar[tuple[OutputSpace, ...]] = (OutputSpace.LOGIT,)
    network_space: ClassVar[OutputSpace] = OutputSpace.LOGIT
    network_link: ClassVar[Link] = IDENTITY

    kind: Literal["maps"]
    labels: tuple[str, ...] = Field(min_length=1)
    size: tuple[Size, Size]
    image: tuple[Size, Size] | None = None
    adverse: str | None = None
    default_space: OutputSpace = OutputSpace.LOGIT

    @model_validator(mode="after")
    def _consistent(self) -> Maps:
        self._check_names(self.labels)
        if self.adverse is not None and self.adverse not in self.labels:
            raise ValueError(f"the adverse label {self.adverse!r} is not among the labels")
        numbers = prod(self.network_shape)
        if numbers > MAX_NUMBERS:
            raise ValueError(
                f"the map has {numbers} numbers, of {len(self.labels)} labels at {self.size[0]} x {self.size[1]} "
                f"places; {MAX_NUMBERS} at most: name the tensor before it is enlarged to the image's size"
            )
        return self

    def check_format(self, form: str) -> None:
        super().check_format(form)
        if form != "onnx":
            raise ValueError(f"maps are read from ONNX files, not from the format {form}: export the model")

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    @property
    def network_shape(self) -> tuple[int, ...]:
        return (len(self.labels), *self.size)

    @property
    def _image(self) -> tuple[int, int]:
        return self.image or self.size

    def read_target(self, requested: object) -> Target | None:
        if requested == PREDICTED:
            return None
        if not isinstance(requested, Mapping):
            return self._whole(self._index(requested, [PREDICTED]))
        if "box" not in requested:
            raise self._unfit(requested, "here a box of one label is explained, as in {box: [0, 0, 8, 8], label: ...}")
        label = requested.get("label")
        if label is None and len(self.labels) > 1:
            raise self._unknown(f"target: a box needs its `label`, one of {', '.join(self.labels)}")
        return self._region(0 if label is None else self._index(label), requested["box"])

    def _whole(self, label: int) -> Region:
        height, width = self.size
        return Region(label * height * width, width, (0, 0, width, height))

    def _region(self, label: int, box: Any) -> Region:
        """The places whose centres lie inside. Raises InvalidRequest for a box that holds none of them."""
        if not (isinstance(box, Sequence) and len(box) == 4 and all(map(_is_number, box))):
            raise _wrong("box is four numbers: left, top, right and bottom")
        (height, width), (pixels_down, pixels_across) = self.size, self._image
        left, top, right, bottom = box
        across, down = width / pixels_across, height / pixels_down
        # the centre of column i lies at i + 0.5
        columns = max(0, ceil(left * across - 0.5)), min(width, floor(right * across - 0.5) + 1)
        rows = max(0, ceil(top * down - 0.5)), min(height, floor(bottom * down - 0.5) + 1)
        if columns[0] >= columns[1] or rows[0] >= rows[1]:
            edges, place = ", ".join(f"{edge:g}" for edge in box), f"{1 / across:g} x {1 / down:g}"
            raise _wrong(
                f"the box [{edges}] holds the centre of no place of the map: left, top, right and bottom are in pixels "
                f"of an image of {pixels_across} x {pixels_down}, of which a place has {place}"
            )
        return Region(label * height * width, width, (columns[0], rows[0], columns[1], rows[1]))

    def recorded_target(self, target: Target | None) -> RecordedRegion | None:
        return RecordedRegion(**vars(target)) if isinstance(target, Region) else None

    def target_of_record(self, recorded: Any, personal: Mapping[str, Any]) -> Target | None:  # noqa: ARG002
        if recorded is None:
            return None
        left, top, right, bottom = recorded.places
        return Region(recorded.start, recorded.width, (left, top, right, bottom))

    def default_target(self, outputs: NDArray[np.floating]) -> Target:
        """The whole map of the label with the most places."""
        return self._whole(int(np.argmax(self._areas(outputs))))

    @property
    def usual_target(self) -> str:
        return self.adverse or PREDICTED

    def adverse_sign(self, target: Target) -> int | None:
        return 1 if self.adverse is not None and self._label_of(target) == self.labels.index(self.adverse) else None

    def _label_of(self, target: Target) -> int:
        assert isinstance(target, Region)
        return target.start // prod(self.size)

    def target_item(self, target: Target) -> RegionTarget:
        assert isinstance(target, Region)
        label = self._label_of(target)
        left, top, right, bottom = target.places
        (height, width), (pixels_down, pixels_across) = self.size, self._image
        across, down = pixels_across / width, pixels_down / height
        box = (left * across, top * down, right * across, bottom * down)
        return RegionTarget(index=label, label=self.labels[label], box=box, places=len(target.outputs))

    def _areas(self, outputs: Outputs | NDArray[np.floating]) -> Floats:
        """The share of places of each label [labels]."""
        maps = np.asarray(outputs, dtype=np.float64).reshape(len(self.labels), -1)
        if len(maps) == 1:
            return np.array([(maps > 0).mean()])
        largest = np.argmax(maps, axis=0)
        shares: Floats = np.bincount(largest, minlength=len(maps)) / maps.shape[1]
        return shares

    def prediction_item(
        self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None
    ) -> MapPrediction:
        if outputs is None or not are_finite(outputs):
            return MapPrediction(areas={}, output_space=space.value, truncated=truncated)
        areas = dict(zip(self.labels, self._areas(outputs).tolist(), strict=True))
        return MapPrediction(
            label=self.decision(outputs, space), areas=areas, output_space=space.value, truncated=truncated
        )

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:  # noqa: ARG002
        areas = self._areas(outputs)
        return self.labels[int(np.argmax(areas))] if areas.max() > 0 else None

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:
        return self.adverse is not None and self.decision(outputs, space) == self.adverse

    def check_quantity(self, quantity: str, of: str | None) -> None:  # noqa: ARG002
        if quantity != "label":
            raise ValueError(f"`{quantity}` is not told of maps; they have `label`, that with the most places")

    def quantity(self, quantity: str, of: str | None, outputs: Outputs, space: OutputSpace) -> float | None:  # noqa: ARG002
        return None

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:
        label = self.decision(outputs, space)
        return frozenset() if label is None else frozenset({label})

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:  # noqa: ARG003
        raise ValueError("maps are declared by hand: `kind: maps`, with their `labels` and `size`")

    def described(self) -> OutputsItem:
        return OutputsItem(
            kind=self.kind,
            labels=list(self.labels),
            size=list(self.size),
            image=list(self._image),
            adverse=self.adverse,
            spaces=[space.value for space in self.spaces],
            default_space=self.default_space.value,
        )


def _is_number(edge: object) -> bool:
    return isinstance(edge, int | float) and not isinstance(edge, bool) and isfinite(edge)


def _wrong(detail: str) -> InvalidRequest:
    return invalid(Kind.WRONG_VALUE, TARGET, f"target: {detail}")
