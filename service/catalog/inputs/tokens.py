"""Sequences of tokens: lists of them, texts, or files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, RootModel, model_validator, with_config
from typing_extensions import TypedDict

from service.catalog.inputs.kind import Inputs, Number, Row
from service.catalog.inputs.sequences import Bytes, Spans, Tokenizer, read_sequence, read_tokenizer
from service.catalog.nearest import Searches
from service.domain import Axis

SideInput = Literal["mask", "zeros", "positions"]
"""What else a graph of tokens takes: 1 for every token and 0 for the padding, zeros, or 0, 1, 2 and so on."""


@with_config(ConfigDict(extra="forbid"))
class TokenAttribution(TypedDict):
    """The value of one token."""

    token: Annotated[int | str, Field(description="its number, or of a text as the tokenizer spells it")]
    start: NotRequired[
        Annotated[int, Field(description="where it begins in the text (characters) or the file (bytes)")]
    ]
    end: NotRequired[Annotated[int, Field(description="where it ends; a special token is as long as nothing")]]
    attribution: Annotated[Number, Field(description="its value")]


class TokenAttributions(RootModel[list[TokenAttribution]]):
    """By token, in their order."""

    model_config = ConfigDict(frozen=True)

    @property
    def values(self) -> list[float]:
        """Of each token."""
        return [token["attribution"] for token in self.root]

    @property
    def numbers(self) -> list[float]:
        """The values."""
        return self.values

    @property
    def structure(self) -> list[dict[str, object]]:
        """The tokens and their places."""
        return [{name: part for name, part in token.items() if name != "attribution"} for token in self.root]

    def with_values(self, values: Sequence[float]) -> TokenAttributions:
        """Other values."""
        tokens: list[TokenAttribution] = [
            {**token, "attribution": value} for token, value in zip(self.root, values, strict=True)
        ]
        return TokenAttributions.model_construct(tokens)

    def keeping(self, units: Collection[int]) -> TokenAttributions:
        """Those of some tokens; the others are left out."""
        return TokenAttributions.model_construct([token for at, token in enumerate(self.root) if at in units])

    def to_json(self) -> list[TokenAttribution]:
        """A list of objects."""
        return self.root


class TokenInputs(Inputs):
    """A sequence of `length` integers below `vocabulary`, explained at the network's first embedding.

    Shorter sequences are filled up with `padding`. The baseline `mask` has the token `mask` at every position but
    those of `special` tokens, which, like the padding, stay as they are. Besides tokens, an instance may be a text,
    with a `tokenizer`, or a file, with `bytes`. `side` are the graph's other inputs.
    """

    kind: Literal["tokens"]
    axes: ClassVar[tuple[Axis, ...]] = (Axis.POSITION, Axis.EMBEDDING)
    tensor: str
    length: PositiveInt
    vocabulary: PositiveInt
    padding: NonNegativeInt
    mask: NonNegativeInt
    special: tuple[NonNegativeInt, ...] = ()
    side: dict[str, SideInput] = Field(default_factory=dict)
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

    def __hash__(self) -> int:
        """For the cache of tokenizers; of a dictionary, `side`, there is none."""
        return hash((self.length, self.vocabulary, self.padding, self.special, self.tokenizer))

    def read(
        self,
        instance: object,
        folder: Path | None = None,
        searches: Searches | None = None,
    ) -> Row:
        """An instance is a list of tokens, or an object with `tokens`, and where the manifest says so a `text`, whose
        tokenizer is in `folder`, or a file in `bytes`."""
        return read_sequence(self, instance, None if folder is None else read_tokenizer(folder, self))

    def as_instance(self, values: Sequence[float]) -> list[float]:
        """A list of tokens; of what are none, as of means, the numbers."""
        return [int(value) if float(value).is_integer() else value for value in values]

    def to_record(self, row: Row) -> dict[str, Any]:
        """The tokens, and where the tokens of a text or a file are in it."""
        shown: dict[str, Any] = {"input": row.values}
        return shown if row.places is None else {**shown, "spans": row.places}

    def of_record(self, personal: Mapping[str, Any]) -> Row:
        """The tokens, and their places where there are some."""
        spans = Spans(**personal["spans"]) if "spans" in personal else None
        return Row(tuple(map(float, personal["input"])), spans)

    def attributions(
        self,
        values: Sequence[float],
        shape: tuple[int, ...],
        row: Row,
        *,
        channels: bool = False,
    ) -> TokenAttributions:
        """By token: of a text or a file those that are no padding, with their places in it."""
        if row.places is None:
            return TokenAttributions.model_construct(
                [{"token": int(token), "attribution": value} for token, value in zip(row.values, values, strict=True)]
            )
        spans = row.places
        assert isinstance(spans, Spans)
        places = zip(spans.positions, spans.tokens, spans.starts, spans.ends, strict=True)
        return TokenAttributions.model_construct(
            [
                {"token": token, "start": start, "end": end, "attribution": values[position]}
                for position, token, start, end in places
            ]
        )

    def check_files(self, folder: Path) -> None:
        """The tokenizer."""
        read_tokenizer(folder, self)
