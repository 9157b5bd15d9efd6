"""What a manifest says about what a model takes: rows of a table, images, or tokens, be they of texts or of bytes."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from service.catalog.formats import RelativePath, Sha256
from service.catalog.inputs.tables import TabularInputs, check_range


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Normalisation(_Frozen):
    """From files: value / 255, less `mean`, over `deviation`, a number a channel each."""

    mean: tuple[FiniteFloat, ...]
    deviation: tuple[PositiveFloat, ...]


class ImageInputs(_Frozen):
    """An image: a float tensor of `shape` (channels, height, width) with values in `range`, inclusive, in `unit`.

    Files are resized as `resize` says (`none`: files of another size are refused), and either normalised or stretched
    over the range. With `shorter_side` only that side is resized to so many pixels, and the middle is cut out.
    `background`, from 0 to 255 a channel, is what lies behind a transparent file; without it such files are refused.
    Where it is not known how a file becomes the model's numbers, it `takes_files` not. Nested lists are taken as they
    are.
    """

    kind: Literal["image"]
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
    def names(self) -> tuple[str, ...]:
        """Pixels have no names."""
        return ()

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Pixels have no names."""
        return ()

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of every pixel and channel."""
        values = prod(self.shape)
        return (self.range[0],) * values, (self.range[1],) * values


class Tokenizer(_Frozen):
    """A `tokenizer.json` of the package tokenizers; `truncate` texts that have more tokens than the model takes.

    The special tokens are those that the file adds to every text.
    """

    file: RelativePath
    sha256: Sha256
    truncate: bool = False


class Bytes(_Frozen):
    """Files are the tokens: the `first` and the `last` bytes, each filled up with the padding where there are fewer.

    White space around them is taken away, as far as it lies in the first or the last `block` bytes.
    """

    first: PositiveInt
    last: NonNegativeInt
    block: PositiveInt


SideInput = Literal["mask", "zeros", "positions"]
"""What else a graph of tokens takes: 1 for every token and 0 for the padding, zeros, or 0, 1, 2 and so on."""


class TokenInputs(_Frozen):
    """A sequence of `length` integers below `vocabulary`, explained at the network's first embedding.

    Shorter sequences are filled up with `padding`. The baseline `mask` has the token `mask` at every position but
    those of `special` tokens, which, like the padding, stay as they are. Besides tokens, an instance may be a text,
    with a `tokenizer`, or a file, with `bytes`. `side` are the graph's other inputs.
    """

    kind: Literal["tokens"]
    tensor: str
    length: PositiveInt
    vocabulary: PositiveInt
    padding: NonNegativeInt
    mask: NonNegativeInt
    special: tuple[NonNegativeInt, ...] = ()
    side: dict[str, SideInput] = {}
    tokenizer: Tokenizer | None = None
    bytes: Bytes | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Positions have no names."""
        return ()

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Positions have no names."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of the artefact: (length,)."""
        return (self.length,)

    @property
    def has_mask(self) -> bool:
        """Whether the graph is told which positions are padding."""
        return "mask" in self.side.values()

    @cached_property
    def kept(self) -> frozenset[int]:
        """The tokens that stay as they are in the baseline `mask`."""
        return frozenset({self.padding, *self.special})

    @model_validator(mode="after")
    def _consistent(self) -> TokenInputs:
        if max(self.padding, self.mask, *self.special) >= self.vocabulary:
            raise ValueError("padding, mask and special tokens must be below the vocabulary's size")
        if self.has_mask and self.mask == self.padding:
            raise ValueError(
                "the mask token is the padding's, so that masking a token would hide its place from the model"
            )
        if self.tokenizer is not None and self.bytes is not None:
            raise ValueError("the tokens are those of texts or of bytes, not of both")
        if self.bytes is not None:
            if self.bytes.first + self.bytes.last != self.length:
                raise ValueError("the first and the last bytes together are as many as the tokens, `length`")
            if self.vocabulary < 256 or self.bytes.block < max(self.bytes.first, self.bytes.last):
                raise ValueError("bytes need a vocabulary of 256 tokens, and a block that holds what is taken of it")
        return self


Inputs = Annotated[TabularInputs | ImageInputs | TokenInputs, Field(discriminator="kind")]
