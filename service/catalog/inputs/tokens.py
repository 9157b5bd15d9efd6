"""Sequences of tokens: lists of them, texts, or files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, RootModel, model_validator, with_config
from typing_extensions import TypedDict

from service.catalog.formats import Artefact
from service.catalog.inputs.kind import MASK, PLAIN, Attributions, Detail, Inputs, Number, Row
from service.catalog.inputs.pairs import part_of
from service.catalog.inputs.removal import CUT, Cut, Mask, Removal, StandIns
from service.catalog.inputs.segments import SegmentOfRow, segments_of
from service.catalog.inputs.sequences import Bytes, Spans, Tokenizer, read_sequence, read_tokenizer
from service.catalog.inputs.units import NAMES, TextToken, summed
from service.catalog.nearest import Searches
from service.catalog.traits import Axis
from service.domain import Floats, Indices, RowType
from service.errors import Kind, invalid

CUT_LENGTHS = tuple(length for power in range(4, 16) for length in (2**power, 3 * 2 ** (power - 1)))
"""The lengths at which texts are computed, beside the model's own: a third is padding, at most, above the least."""
MAX_WATCHED = 5
"""Segments that a manifest may list: their names become labels of metrics, so there may be only few."""
NAME = r"^[a-z][a-z0-9_]{0,31}$"
SideInput = Literal["mask", "zeros", "positions", "parts"]
"""The graph's other inputs: 1 for every token and 0 for the padding, zeros, positions 0, 1, 2 and so on, or of a pair
1 for every token of the second part."""


@with_config(ConfigDict(extra="forbid"))
class TokenAttribution(TypedDict):
    """The value of one token, or where that is asked for of a word or a sentence."""

    token: NotRequired[Annotated[int | str, Field(description="its number, or of a text as the tokenizer spells it")]]
    word: NotRequired[Annotated[str, Field(description="with `units: words`, in the place of its tokens")]]
    sentence: NotRequired[Annotated[str, Field(description="with `units: sentences`, in the place of its tokens")]]
    start: NotRequired[
        Annotated[int, Field(description="where it begins in the text (characters) or the file (bytes)")]
    ]
    end: NotRequired[Annotated[int, Field(description="where it ends; a special token is as long as nothing")]]
    part: NotRequired[
        Annotated[
            int, Field(description="of a pair: 0 for the first text and the separator behind it, 1 for the second")
        ]
    ]
    attribution: Annotated[Number, Field(description="its value")]


class TokenAttributions(RootModel[list[TokenAttribution]]):
    """By token, word or sentence, in their order."""

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
    def detail(self) -> Detail:
        """Whether they are of words or sentences."""
        named = next((unit for unit, name in NAMES.items() if any(name in token for token in self.root)), None)
        return PLAIN if named is None else Detail(units=named)

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

    def keeping(self, components: Collection[int]) -> TokenAttributions:
        """Those of some tokens; the others are left out."""
        return TokenAttributions.model_construct([token for at, token in enumerate(self.root) if at in components])

    def to_json(self) -> list[TokenAttribution]:
        """A list of objects."""
        return self.root


class TokenInputs(Inputs):
    """A sequence of `length` integers below `vocabulary`, explained at the network's first embedding.

    Shorter sequences are filled up with `padding`. The baseline `mask` has the token `mask` at every position but
    those of `special` tokens, which, like the padding, stay as they are. Besides tokens, an instance may be a text,
    with a `tokenizer`, or a file, with `bytes`. `side` are the graph's other inputs, or the other arguments of a
    network of the package transformers, where `tensor` is left out. A model with a `separator` takes pairs of texts:
    that token is the end of the first. What is explained must name the `segments` of its text that are listed here,
    whose shares of the attributions are watched.
    """

    kind: Literal["tokens"]
    near: ClassVar[float] = 0.1
    axes: ClassVar[tuple[Axis, ...]] = (Axis.POSITION, Axis.EMBEDDING)
    tensor: str = ""
    length: PositiveInt
    vocabulary: PositiveInt
    padding: NonNegativeInt
    mask: NonNegativeInt
    special: tuple[NonNegativeInt, ...] = ()
    separator: NonNegativeInt | None = None
    side: dict[str, SideInput] = Field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    segments: Annotated[tuple[Annotated[str, Field(pattern=NAME)], ...], Field(max_length=MAX_WATCHED)] = ()
    bytes: Bytes | None = None

    @property
    def component_count(self) -> int:
        """Positions."""
        return self.length

    @property
    def cut(self) -> tuple[TokenInputs, ...]:
        """Rows of `CUT_LENGTHS`, where the graph takes a mask: only then does padding not count."""
        if not self.has_mask:
            return ()
        return tuple(self.model_copy(update={"length": length}) for length in CUT_LENGTHS if length < self.length)

    def length_of(self, values: Sequence[float]) -> int:
        """Up to the last token that is no padding, where that does not count."""
        if not self.has_mask:
            return len(values)
        return max((at for at, token in enumerate(values, 1) if token != self.padding), default=1)

    def check_artefact(self, artefact: Artefact) -> None:
        """Only of ONNX graphs and of the networks of transformers is it known where their tokens become numbers."""
        if artefact.format != "onnx" and not artefact.takes_tokens:
            raise ValueError(
                "tokens are explained at the embedding of an ONNX graph or of a Hugging Face folder, not of the format "
                f"{artefact.format}"
            )
        super().check_artefact(artefact)
        if artefact.takes_tokens and not self.has_mask:
            raise ValueError("inputs.side names no mask: a network of transformers takes {attention_mask: mask}")

    def padded(self, rows: NDArray[np.floating]) -> NDArray[np.floating]:
        """With padding behind them."""
        missing = self.length - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, missing)), constant_values=self.padding)

    @property
    def own_baseline(self) -> str:
        """Every token masked; zeros would be a token."""
        return MASK

    def own_baseline_for(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The row with `mask` in the place of every token that is neither special nor padding."""
        return tuple(token if token in self.kept else float(self.mask) for token in values)

    def depends_on_row(self, baseline: str) -> bool:
        """The masked baseline depends on the row's tokens; where the graph takes a mask, padding must match too."""
        return baseline == MASK or self.has_mask or self.has_parts

    def baseline_obstacle(self, baseline: tuple[float, ...], values: tuple[float, ...]) -> str | None:
        """Padding in one where the other has none, or a pair that is divided elsewhere: the graph takes one mask for
        both, and one division."""
        tokens = [sum(token != self.padding for token in each) for each in (baseline, values)]
        if self.has_mask and tokens[0] != tokens[1]:
            return f"it has {tokens[0]} tokens and the instance {tokens[1]}; they must have as many"
        parts = [part_of(each, self.separator) for each in (baseline, values)]
        if self.has_parts and parts[0] != parts[1]:
            first = [part.count(0) for part in parts if part is not None]
            return (
                f"its first text has {first[0]} tokens with the separator, and the instance's {first[1]}; they must "
                "have as many"
            )
        return None

    @property
    def sets_obstacle(self) -> str | None:
        """Where the graph takes a mask, rows of a set would have padding in other places than an instance; where it is
        told the parts of a pair, its texts would end elsewhere."""
        if self.has_parts and not self.has_mask:
            return (
                "a model that is told the parts of a pair has no baseline sets: their rows are divided elsewhere; name "
                "the baseline `mask`, or send another pair of as many tokens with each"
            )
        if not self.has_mask:
            return None
        return (
            "a model that is told the padding has no baseline sets: their rows have another padding; name the baseline "
            "`mask`, or send another text of as many tokens with each"
        )

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of tokens."""
        return (0.0,) * self.length, (self.vocabulary - 1.0,) * self.length

    def random_rows(self, count: int, row_type: RowType) -> NDArray[np.floating]:
        """Every other text is a shorter one, with padding behind it."""
        lengths = np.random.default_rng(0).integers(1, self.length + 1, (count, 1))
        lengths[::2] = self.length
        tokens = self.whole_rows(count)
        return np.where(np.arange(self.length) < lengths, tokens, np.float32(self.padding)).astype(row_type)

    def whole_rows(self, count: int) -> NDArray[np.floating]:
        """Random tokens [count, length], none of them padding: a graph may answer nothing for a row of padding
        alone. Pairs are divided somewhere."""
        draws = np.random.default_rng(0)
        tokens = draws.integers(0, max(1, self.vocabulary - 1), (count, self.length))
        whole = np.where(tokens >= self.padding, tokens + 1, tokens).clip(0, self.vocabulary - 1)
        if self.separator is not None:
            whole[np.arange(count), draws.integers(0, self.length, count)] = self.separator
        return whole.astype(np.float32)

    @property
    def component_of_values(self) -> Indices:
        """A token is one number of a row, and one component."""
        return np.arange(self.length)

    def recorded_values(self, attributions: Attributions, row: Row) -> tuple[float, ...]:
        """Those of its tokens, and zeros for the padding, which is never removed."""
        if row.places is None:
            return (*attributions.values, *(0.0,) * (self.length - len(attributions.values)))
        assert isinstance(row.places, Spans)
        values = dict(zip(row.places.positions, attributions.values, strict=True))
        return tuple(values.get(position, 0.0) for position in range(self.length))

    def distances(self, rows: Floats, row: Floats) -> Floats:
        """The share of the tokens that are others; padding is none."""
        different: Floats = (rows != row).sum(axis=1) / max(1, np.count_nonzero(row != self.padding))
        return different

    def removable(self, row: Floats) -> Mask:
        """All but special tokens and padding."""
        return ~np.isin(row, list(self.kept))

    @property
    def removals(self) -> tuple[str, ...]:
        """The mask token; and nothing, where the graph is told what is padding and a special token is always left."""
        return (MASK, CUT) if self.has_mask and self.special else (MASK,)

    def removal(self, row: Floats, name: str, baselines: Floats, seed: int) -> Removal:
        """A token is masked, or taken out."""
        if name == CUT:
            return Cut(row, float(self.padding))
        return StandIns(row, np.full((1, len(row)), float(self.mask)), self.component_of_values, numeric=False)

    @property
    def mean_is_row(self) -> bool:
        """Never: a mean of tokens is not a token."""
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of the artefact: (length,)."""
        return (self.length,)

    @property
    def has_mask(self) -> bool:
        """Whether the graph is told which positions are padding."""
        return "mask" in self.side.values()

    @property
    def has_parts(self) -> bool:
        """Whether the graph is told which tokens are those of the second text of a pair."""
        return "parts" in self.side.values()

    @cached_property
    def kept(self) -> frozenset[int]:
        """The tokens that stay as they are in the baseline `mask`."""
        return frozenset({self.padding, *self.special})

    @model_validator(mode="after")
    def _consistent(self) -> TokenInputs:
        if max(self.padding, self.mask, self.separator or 0, *self.special) >= self.vocabulary:
            raise ValueError("padding, mask, separator and special tokens must be below the vocabulary's size")
        if self.separator is None and self.has_parts:
            raise ValueError("`parts` are those of a pair: name the `separator` behind the first text")
        if self.separator is not None and self.separator not in self.special:
            raise ValueError("the separator must be among the special tokens, which no baseline masks")
        if self.has_mask and self.mask == self.padding:
            raise ValueError(
                "the mask token is the padding's, so that masking a token would hide its place from the model"
            )
        if self.segments and self.tokenizer is None:
            raise ValueError("segments are those of texts, which need a tokenizer")
        if len(set(self.segments)) < len(self.segments):
            raise ValueError("two segments have the same name")
        if self.tokenizer is not None and self.bytes is not None:
            raise ValueError("the tokens are those of texts or of bytes, not of both")
        if self.bytes is not None:
            if self.bytes.first + self.bytes.last != self.length:
                raise ValueError("the first and the last bytes together are as many as the tokens, `length`")
            if self.vocabulary < 256 or self.bytes.block < max(self.bytes.first, self.bytes.last):
                raise ValueError("bytes need a vocabulary of 256 tokens, and a block that holds what is taken of it")
        return self

    def __hash__(self) -> int:
        """For the cache of tokenizers; `side` is a dictionary, which has no hash."""
        return hash((self.length, self.vocabulary, self.padding, self.special, self.separator, self.tokenizer))

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
        """A list of tokens; for values that are not tokens, such as means, the numbers."""
        return [int(value) if float(value).is_integer() else value for value in values]

    def to_record(self, row: Row) -> dict[str, Any]:
        """The tokens, and where the tokens of a text or a file are in it."""
        personal: dict[str, Any] = {"input": row.values}
        return personal if row.places is None else {**personal, "spans": row.places}

    def of_record(self, personal: Mapping[str, Any]) -> Row:
        """The tokens, and their places where there are some."""
        spans = Spans.of_record(personal["spans"]) if "spans" in personal else None
        return Row(tuple(map(float, personal["input"])), spans)

    def attributions(
        self,
        values: Sequence[float],
        shape: tuple[int, ...],
        row: Row,
        *,
        detail: Detail = PLAIN,
    ) -> TokenAttributions:
        """By token: of a text or a file those that are no padding, with their places in it; of a pair with their
        part. Of a text also by word or sentence."""
        parts = part_of(row.values, self.separator)
        if detail.units is not None and isinstance(row.places, Spans) and row.places.words is not None:
            tokens = _text_tokens(row.places, parts)
            units: list[Any] = [*summed(tokens, values, row.places.texts or (), detail.units)]
            return TokenAttributions.model_construct(units)
        positions: Sequence[int] = range(len(row.values))
        named: list[dict[str, Any]] = [{"token": int(token)} for token in row.values] if row.places is None else []
        if row.places is not None:
            spans = row.places
            assert isinstance(spans, Spans)
            positions = spans.positions
            places = zip(spans.tokens, spans.starts, spans.ends, strict=True)
            named = [{"token": token, "start": start, "end": end} for token, start, end in places]
        if parts is not None:
            named = [{**token, "part": parts[at]} for token, at in zip(named, positions, strict=True)]
        valued: list[Any] = [{**token, "attribution": values[at]} for token, at in zip(named, positions, strict=True)]
        return TokenAttributions.model_construct(valued)

    @property
    def segment_names(self) -> tuple[str, ...]:
        """Those that the manifest lists."""
        return self.segments

    def segments_of(self, row: Row) -> tuple[SegmentOfRow, ...]:
        """Of a text, the tokens that lie in each."""
        spans = row.places
        if not isinstance(spans, Spans) or spans.segments is None:
            return ()
        return segments_of(spans.segments, _text_tokens(spans, part_of(row.values, self.separator)))

    def check_example(self, example: object) -> None:
        """It must name the segments that are listed."""
        sent = example.get("segments", ()) if isinstance(example, Mapping) else ()
        missing = {*self.segments} - {one.get("name") for one in sent}
        if missing:
            raise ValueError(f"the example has no segment {min(missing)!r}, which the inputs list")

    def check_explained(self, row: Row, detail: Detail) -> None:
        """Words and sentences are those of a text, and so are segments, of which some must be named."""
        spans = row.places if isinstance(row.places, Spans) else None
        if detail.units is not None and (spans is None or spans.words is None):
            raise invalid(
                Kind.WRONG_INSTANCE, "", f"only a text has {detail.units}; send one, or leave the parameter `units` out"
            )
        named = {segment.name for segment in (spans.segments or () if spans is not None else ())}
        missing = [name for name in self.segments if name not in named]
        if missing:
            raise invalid(
                Kind.WRONG_INSTANCE,
                "/segments",
                f"no segment is called {missing[0]!r}: with a text to explain, this model must be told where in it "
                f"{' and '.join(self.segments)} {'is' if len(self.segments) == 1 else 'are'}",
            )

    def check_files(self, folder: Path) -> None:
        """The tokenizer."""
        read_tokenizer(folder, self)


def _text_tokens(spans: Spans, parts: Sequence[int] | None) -> list[TextToken]:
    assert spans.words is not None
    places = zip(spans.positions, spans.tokens, spans.starts, spans.ends, spans.words, strict=True)
    return [TextToken(*place, None if parts is None else parts[place[0]]) for place in places]
