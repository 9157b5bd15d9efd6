"""Images: nested lists by channel, row and column, or files."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt, model_validator

from service.catalog.inputs.image_files import decode, described
from service.catalog.inputs.kind import PLAIN, Declaration, Detail, InputItem, Inputs, Number, Row, check_range
from service.catalog.inputs.removal import INPAINTING_PACKAGE, Inpainting, Removal, StandIns, blurred, channel_means
from service.catalog.nearest import Searches
from service.catalog.traits import Axis
from service.domain import Floats, Indices
from service.errors import MAX_FAULTS, Fault, InvalidRequest, Kind, invalid, pointer_to

Channel = tuple[tuple[Number, ...], ...]
"""By row and column."""


class PixelAttributions(BaseModel):
    """One value a pixel, summed over the channels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, int] = Field(description="height and width")
    values: tuple[Number, ...] = Field(description="row by row")
    channels: tuple[Channel, ...] | None = Field(
        None, description="by channel, row and column, where the parameter `channels` asks for it"
    )

    @property
    def numbers(self) -> Sequence[float]:
        """The values of the pixels, then those of each channel."""
        if self.channels is None:
            return self.values
        return (*self.values, *(value for channel in self.channels for row in channel for value in row))

    @property
    def detail(self) -> Detail:
        """Whether there are values of each channel."""
        return PLAIN if self.channels is None else Detail(channels=True)

    @property
    def structure(self) -> list[Any]:
        """The shape, and the sizes of the channels."""
        return [list(self.shape), *(sum(map(len, channel)) for channel in self.channels or ())]

    def with_values(self, values: Sequence[float]) -> PixelAttributions:
        """Other values of the pixels, without channels."""
        return PixelAttributions.model_construct(shape=self.shape, values=tuple(values))

    def keeping(self, components: Collection[int]) -> PixelAttributions:
        """The same shape, with 0 for pixels that are not kept."""
        return self.with_values([value if at in components else 0.0 for at, value in enumerate(self.values)])

    def to_json(self) -> orjson.Fragment:
        """An object with the shape, the values, and the channels where there are some."""
        return self._bytes

    @cached_property
    def _bytes(self) -> orjson.Fragment:
        """Made once: the record and the reply hold the same, and writing 50,000 pixels takes over 1 ms."""
        content: dict[str, Any] = {"shape": self.shape, "values": self.values}
        return orjson.Fragment(
            orjson.dumps(content if self.channels is None else {**content, "channels": self.channels})
        )


class Normalisation(Declaration):
    """For files: (value / 255 - `mean`) / `deviation`, with one number for each channel."""

    mean: tuple[FiniteFloat, ...]
    deviation: tuple[PositiveFloat, ...]


class ImageInputs(Inputs):
    """An image: a float tensor of `shape` (channels, height, width) with values in `range`, inclusive, in `unit`.

    Files are resized as `resize` says (`none`: files of another size are refused), and either normalised or stretched
    over the range. With `shorter_side` only that side is resized to so many pixels, and the middle is cut out.
    `background`, from 0 to 255 a channel, is what lies behind a transparent file; without it such files are refused.
    `takes_files` is false where it is not known how pixels of a file are scaled for the model. Nested lists are taken
    as they are.
    """

    kind: Literal["image"]
    axes: ClassVar[tuple[Axis, ...]] = (Axis.CHANNEL, Axis.HEIGHT, Axis.WIDTH)
    tensor: str = ""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    range: tuple[FiniteFloat, FiniteFloat]
    unit: str = "1"
    resize: Literal["none", "nearest", "bilinear", "bicubic"] = "none"
    shorter_side: PositiveInt | None = None
    normalise: Normalisation | None = None
    background: tuple[Annotated[int, Field(ge=0, le=255)], ...] | None = None
    takes_files: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> ImageInputs:
        check_range("pixels", self.range)
        if self.range[0] == self.range[1]:
            raise ValueError("the range of pixels has two different ends")
        channels = {self.shape[0]}
        if self.normalise and {len(self.normalise.mean), len(self.normalise.deviation)} != channels:
            raise ValueError("normalise has one mean and one deviation a channel")
        if self.background is not None and (len(self.background) not in channels or len(self.background) not in (1, 3)):
            raise ValueError("background has one number a channel, of one channel or three")
        if self.shorter_side is not None and (self.resize == "none" or self.shorter_side < max(self.shape[1:])):
            raise ValueError("shorter_side needs a way to resize, and is no less than what is cut out of the image")
        return self

    @property
    def component_count(self) -> int:
        """Pixels."""
        return prod(self.shape[1:])

    def described(self) -> list[InputItem]:
        """The declaration, and how files are processed."""
        return [InputItem(**self.model_dump(exclude_none=True), files=described(self))]

    def notes(self) -> tuple[str, ...]:
        """What becomes of files."""
        return (f"image files: {described(self)}",)

    @property
    def component_of_values(self) -> Indices:
        """A pixel has a number in every channel."""
        return np.tile(np.arange(self.component_count), self.shape[0])

    @property
    def removals(self) -> tuple[str, ...]:
        """Blurred pixels too, and inpainted ones where scikit-image is installed."""
        inpainting = () if find_spec(INPAINTING_PACKAGE) is None else ("inpainting",)
        return (*super().removals, "blur", *inpainting)

    def removal(self, row: Floats, name: str, baselines: Floats, seed: int) -> Removal:
        """The mean is that of the image itself, one for each channel."""
        image = row.reshape(self.shape)
        match name:
            case "mean":
                return StandIns(row, channel_means(image), self.component_of_values)
            case "blur":
                return StandIns(row, blurred(image), self.component_of_values)
            case "inpainting":
                return Inpainting(image, *self.range)
        return super().removal(row, name, baselines, seed)

    def picture(self, row: Floats) -> NDArray[np.uint8] | None:
        """The range becomes 0 to 255; files have one channel or three."""
        if self.shape[0] not in (1, 3):
            return None
        low, high = self.range
        bytes_ = np.rint((row - low) / (high - low) * 255).astype(np.uint8)
        return np.moveaxis(bytes_.reshape(self.shape), 0, -1)

    def row_of_picture(self, picture: NDArray[np.uint8]) -> Floats:
        """0 to 255 become the range."""
        low, high = self.range
        return low + np.moveaxis(picture, -1, 0).ravel() / 255 * (high - low)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of every pixel and channel."""
        values = prod(self.shape)
        return (self.range[0],) * values, (self.range[1],) * values

    def read(
        self,
        instance: object,
        folder: Path | None = None,
        searches: Searches | None = None,
    ) -> Row:
        """An instance is nested lists by channel, row and column, of which one channel needs no list of its own, or an
        object with a file in `image`."""
        return Row(_read(self, instance))

    def as_instance(self, values: Sequence[float]) -> Any:
        """Nested lists by channel, row and column."""
        return np.reshape(values, self.shape).tolist()

    def attributions(
        self,
        values: Sequence[float],
        shape: tuple[int, ...],
        row: Row,
        *,
        detail: Detail = PLAIN,
    ) -> PixelAttributions:
        """By pixel, summed over its channels where there is a value for each of them."""
        height, width = shape[-2:]
        pixels = height * width
        parts = [tuple(values[at : at + pixels]) for at in range(0, len(values), pixels)]
        sums = parts[0] if len(parts) == 1 else tuple(map(math.fsum, zip(*parts, strict=True)))
        by_channel = None
        if detail.channels:
            by_channel = tuple(tuple(part[at : at + width] for at in range(0, pixels, width)) for part in parts)
        return PixelAttributions.model_construct(shape=(height, width), values=sums, channels=by_channel)


def _read(inputs: ImageInputs, instance: object) -> tuple[float, ...]:
    channels, height, width = inputs.shape
    shape: tuple[int, ...] = inputs.shape
    nested = instance
    if isinstance(instance, Mapping) and set(instance) == {"image"} and isinstance(instance["image"], str):
        nested = decode(inputs, instance["image"]).tolist()
    if channels == 1 and isinstance(nested, Sequence) and len(nested) == height and height != 1:
        shape = (height, width)
    values = tuple(_leaves(nested, shape))
    low, high = inputs.range
    if min(values) >= low and max(values) <= high:
        return values
    wrong = (
        Fault(Kind.OUT_OF_RANGE, *_pixel(at, shape, value, low, high))
        for at, value in enumerate(values)
        if not low <= value <= high
    )
    faults = [*islice(wrong, MAX_FAULTS)]
    raise InvalidRequest(faults[0].detail, *faults)


def _pixel(at: int, shape: tuple[int, ...], value: float, low: float, high: float) -> tuple[str, str]:
    """The fault of the value number `at`: its place in the nested lists, and why it is refused."""
    row, column = divmod(at % (shape[-2] * shape[-1]), shape[-1])
    channel = (at // (shape[-2] * shape[-1]),) if len(shape) == 3 else ()
    detail = f"the pixel in row {row}, column {column} is {value:g}, outside the range from {low:g} to {high:g}"
    return pointer_to(*channel, row, column), detail


def _leaves(nested: object, shape: tuple[int, ...], place: tuple[int, ...] = ()) -> Iterator[float]:
    if not isinstance(nested, Sequence) or isinstance(nested, str) or len(nested) != shape[0]:
        detail = "an image is nested lists by channel, row and column, as the model's shape says, or a file in `image`"
        raise invalid(Kind.WRONG_INSTANCE, pointer_to(*place), detail)
    for at, item in enumerate(nested):
        if len(shape) > 1:
            yield from _leaves(item, shape[1:], (*place, at))
        elif type(item) is float or type(item) is int:
            yield float(item)
        else:
            raise invalid(Kind.NOT_A_NUMBER, pointer_to(*place, at), "every pixel must be a number")
