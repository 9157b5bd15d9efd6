"""From texts, files and lists to the tokens that a model takes, and their places in what was sent."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from service.access.visibility import Item
from service.catalog.formats import RelativePath, Sha256
from service.catalog.inputs.kind import Declaration, Row
from service.catalog.inputs.pairs import (
    EMPTY,
    PROBE,
    check_parts,
    check_tokenizer,
    first_too_long,
    is_second,
    texts_of,
)
from service.catalog.inputs.segments import SentSegment, read_segments
from service.catalog.inputs.units import word_numbers
from service.catalog.version_files import read_verified
from service.errors import MAX_FAULTS, CatalogError, Fault, InvalidRequest, Kind, pointer_to

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Parsed

    from service.catalog.inputs.tokens import TokenInputs

MAX_CHARACTERS = 200_000
"""A longer text is refused before it is tokenised: 100,000 characters take a tenth of a second."""
MAX_TOKENIZERS = 64


class Tokenizer(Declaration):
    """A `tokenizer.json` of the package tokenizers; `truncate` texts that have more tokens than the model takes.

    The special tokens are those that the file adds to every text.
    """

    file: RelativePath
    sha256: Sha256
    truncate: bool = False


class Bytes(Declaration):
    """Files are the tokens: the `first` and the `last` bytes, each filled up with the padding where there are fewer.

    White space around them is stripped, as far as it lies in the first or the last `block` bytes.
    """

    first: PositiveInt
    last: NonNegativeInt
    block: PositiveInt


class Spans(Item):
    """For each position that is not padding: its number, the token's text, and where the token starts and ends, in
    characters of a text or bytes of a file; a special token has length zero. `truncated` says that there was more than
    the model takes. Of a text there are the number of each token's word, None where the tokenizer added it, the text or
    both of a pair, and the segments that came with it.
    """

    positions: tuple[int, ...]
    tokens: tuple[str | int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    truncated: bool = False
    words: tuple[int | None, ...] | None = None
    texts: tuple[str, ...] | None = None
    segments: tuple[SentSegment, ...] | None = None

    @staticmethod
    def of_record(recorded: Mapping[str, Any]) -> Spans:
        """As a record holds them. Raises TypeError where it is something else."""
        sent = recorded.get("segments")
        if sent is None:
            return Spans(**recorded)
        return Spans(**{**recorded, "segments": tuple(SentSegment(**segment) for segment in sent)})


def parse_tokenizer(content: bytes, file: str) -> Parsed:
    """A tokenizer that neither pads nor truncates. Raises CatalogError where the content is none."""
    from tokenizers import Tokenizer as Parsed  # the front starts without it

    try:
        parsed = Parsed.from_str(content.decode())
    except Exception as error:  # the package raises plain exceptions
        raise CatalogError(f"{file} is no tokenizer: {error}") from error
    parsed.no_padding()
    parsed.no_truncation()
    return parsed


class TextTokenizer:
    """The tokenizer of a version, set to the model's length."""

    def __init__(self, content: bytes, declared: Tokenizer, inputs: TokenInputs) -> None:
        """Raises CatalogError when the file is not a tokenizer, or its tokens are not those of the manifest."""
        parsed = parse_tokenizer(content, declared.file)
        if parsed.get_vocab_size() > inputs.vocabulary:
            raise CatalogError(
                f"{declared.file} has {parsed.get_vocab_size()} tokens, the manifest's vocabulary {inputs.vocabulary}"
            )
        takes_pairs = inputs.separator is not None
        added = parsed.encode(*EMPTY if takes_pairs else ("",)).ids
        if not {*added} <= inputs.kept:
            names = sorted({*added})
            raise CatalogError(f"{declared.file} adds the tokens {names} to every text; name them in `special`")
        if len(added) >= inputs.length:
            raise CatalogError(f"{declared.file} adds as many tokens to every text as the model takes")
        if takes_pairs:
            check_tokenizer(declared.file, parsed.encode(*PROBE), inputs)
        self._whole: Parsed = parsed
        self._inputs = inputs
        self._cut: Parsed | None = None
        if declared.truncate:
            self._cut = parse_tokenizer(content, declared.file)
            self._cut.enable_truncation(inputs.length, strategy="only_second" if takes_pairs else "longest_first")

    def read(self, texts: tuple[str, ...], segments: tuple[SentSegment, ...] = ()) -> Row:
        """The tokens of a text, or of both texts of a pair, of which the second is cut where too much is sent.

        Raises InvalidRequest for what is too long.
        """
        what = "the text has" if len(texts) == 1 else "the texts have"
        characters = sum(map(len, texts))
        if characters > MAX_CHARACTERS:
            raise InvalidRequest(f"{what} {characters} characters; at most {MAX_CHARACTERS} are read")
        encoding = self._encoded(texts)
        ids, length, separator = encoding.ids, self._inputs.length, self._inputs.separator
        if len(ids) > length:
            raise InvalidRequest(
                f"{what} {len(ids)} tokens, the model takes {length}: shorten it, or explain it part by part"
            )
        first = len(ids)
        if separator is not None:
            check_parts(encoding, separator)
            first -= int(is_second(np.array(ids), separator).sum())
        offsets, special, ids_of_words = encoding.offsets, encoding.special_tokens_mask, encoding.word_ids
        places: list[tuple[int, int]] = []
        words: list[int | None] = []
        for part, text in zip((slice(first), slice(first, None)), texts, strict=False):
            own = _places(offsets[part], special[part])
            places += own
            words += word_numbers(ids_of_words[part], own, text)
        spans = Spans(
            positions=tuple(range(len(ids))),
            tokens=tuple(encoding.tokens),
            starts=tuple(start for start, _ in places),
            ends=tuple(end for _, end in places),
            truncated=bool(encoding.overflowing),
            words=tuple(words),
            texts=texts,
            segments=segments or None,
        )
        return Row(_padded(ids, self._inputs), spans)

    def _encoded(self, texts: tuple[str, ...]) -> Encoding:
        """The batch call is used for the one text or pair, since the call for a single one holds the interpreter's
        lock."""
        single = texts[0] if len(texts) == 1 else texts
        if self._cut is not None:
            try:
                return self._cut.encode_batch([single])[0]
            except Exception as error:  # a plain one, where the first text leaves no room for the second
                (whole,) = self._whole.encode_batch([single])
                raise first_too_long(whole, self._inputs.length) from error
        return self._whole.encode_batch([single])[0]


def _places(offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[tuple[int, int]]:
    """Where tokens start and end; special ones, which the tokenizer puts at 0, stand where the one before ends."""
    places, last = [], 0
    for (start, end), is_special in zip(offsets, special, strict=True):
        places.append((last, last) if is_special else (start, end))
        last = places[-1][1]
    return places


def read_tokenizer(folder: Path, inputs: TokenInputs) -> TextTokenizer | None:
    """The tokenizer of the version in `folder`, if its manifest names one. Raises CatalogError."""
    declared = inputs.tokenizer
    if declared is None:
        return None
    return _tokenizer(folder, inputs, declared)


@lru_cache(MAX_TOKENIZERS)
def _tokenizer(folder: Path, inputs: TokenInputs, declared: Tokenizer) -> TextTokenizer:
    return TextTokenizer(read_verified(folder, declared.file, declared.sha256), declared, inputs)


def read_sequence(inputs: TokenInputs, instance: object, tokenizer: TextTokenizer | None) -> Row:
    """The tokens [length] of an instance, padding included: a list of them, or an object with `tokens`, `text` or
    `bytes`; of the last two with their places.

    Raises InvalidRequest where it is none of these, too long, or holds what is no token.
    """
    match instance:
        case {"text": text, **rest} if (
            rest.keys() <= {"segments"}
            and inputs.tokenizer is not None
            and (texts := texts_of(inputs, text)) is not None
        ):
            if tokenizer is None:
                raise InvalidRequest("the text cannot be tokenised here; send its tokens")
            return tokenizer.read(texts, read_segments(rest.get("segments", ()), texts))
        case {"bytes": str(content), **rest} if not rest and inputs.bytes is not None:
            return _of_file(inputs, inputs.bytes, content)
        case {"tokens": tokens, **rest} if not rest:
            try:
                return Row(_tokens(inputs, tokens))
            except InvalidRequest as error:
                raise error.under("/tokens") from None
        case Mapping() | str():
            raise InvalidRequest(f"an instance is {_kinds(inputs)}")
    return Row(_tokens(inputs, instance))


def _kinds(inputs: TokenInputs) -> str:
    text = "an object with a `text`" if inputs.separator is None else "an object with a `text`, a list of two,"
    kinds = [text] if inputs.tokenizer is not None else []
    kinds += ["an object with `bytes`, the base64 of a file"] if inputs.bytes is not None else []
    return " or ".join([*kinds, "a list of tokens, or an object with `tokens`"])


def _tokens(inputs: TokenInputs, instance: object) -> tuple[float, ...]:
    if not isinstance(instance, Sequence) or isinstance(instance, str):
        raise InvalidRequest(f"an instance is {_kinds(inputs)}")
    if not 1 <= len(instance) <= inputs.length:
        raise InvalidRequest(f"the instance has {len(instance)} tokens; it must have from 1 to {inputs.length}")
    most = inputs.vocabulary - 1
    wrong = (
        Fault(Kind.OUT_OF_RANGE, pointer_to(at), f"token {at} must be a whole number from 0 to {most}")
        for at, token in enumerate(instance)
        if type(token) is not int or not 0 <= token <= most
    )
    faults = [*islice(wrong, MAX_FAULTS)]
    if faults:
        raise InvalidRequest(faults[0].detail, *faults)
    return _padded(instance, inputs)


def _padded(tokens: Sequence[int], inputs: TokenInputs) -> tuple[float, ...]:
    return tuple(map(float, tokens)) + (float(inputs.padding),) * (inputs.length - len(tokens))


def _of_file(inputs: TokenInputs, declared: Bytes, content: str) -> Row:
    """The first bytes of a file, padded behind, and its last ones, padded before."""
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("bytes must be the base64 of a file") from error
    first, start = _first(file, declared)
    last, end = _last(file, declared)
    if not first and not last:
        raise InvalidRequest("the file holds nothing but white space")
    gap = (inputs.padding,)
    tokens = (*first, *gap * (declared.first - len(first)), *gap * (declared.last - len(last)), *last)
    positions = (*range(len(first)), *range(inputs.length - len(last), inputs.length))
    starts = (*range(start, start + len(first)), *range(end - len(last), end))
    spans = Spans(
        positions=positions,
        tokens=(*first, *last),
        starts=starts,
        ends=tuple(at + 1 for at in starts),
        truncated=end - start > inputs.length,
    )
    return Row(tuple(map(float, tokens)), spans)


def _first(file: bytes, declared: Bytes) -> tuple[bytes, int]:
    """The first bytes behind the white space, and where they start."""
    block = file[: declared.block]
    start = len(block) - len(block.lstrip())
    return block[start : start + declared.first], start


def _last(file: bytes, declared: Bytes) -> tuple[bytes, int]:
    """The last bytes before the white space, and where they end."""
    block = file[-declared.block :]
    kept = block.rstrip()
    return kept[max(0, len(kept) - declared.last) :], len(file) - (len(block) - len(kept))
