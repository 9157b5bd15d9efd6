"""Words and sentences: the tokens of a text that are summed where a request asks for either."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from service.catalog.inputs.kind import Units

END_OF_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][」』”’）]*\s*|\n\s*\n\s*")
BEFORE_NO_END = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|Fig|Eq|cf|al|approx|Inc|Ltd|Co|e\.g|i\.e)|\b[A-Za-z])$"
)
"""What stands before a full stop that ends no sentence: an abbreviation, or a single letter."""
VISIBLE = re.compile(r"\S")
NAMES = {Units.WORDS: "word", Units.SENTENCES: "sentence"}


@dataclass(frozen=True, slots=True)
class TextToken:
    """A token of a text: its position in the row, how it is spelled, where it is in which text, and the number of its
    word, None where it was added by the tokenizer; `part` is None where there is one text."""

    position: int
    spelling: str | int
    start: int
    end: int
    word: int | None
    part: int | None


def summed(
    tokens: Sequence[TextToken], values: Sequence[float], texts: Sequence[str], units: Units
) -> Iterator[dict[str, Any]]:
    """Words or sentences in the order of the tokens, each with its place, its text and the sum over its tokens, of a
    row's `values`. Tokens that are in none, which the tokenizer added, stand between them as they are."""
    unit_of, name = _unit_of(texts, units), NAMES[units]

    def key_of(token: TextToken) -> tuple[int, int]:
        return (-1, token.position) if token.word is None else unit_of(token)

    for _, members in groupby(tokens, key_of):
        own = [*members]
        first, last, value = own[0], own[-1], math.fsum(values[token.position] for token in own)
        part = {} if first.part is None else {"part": first.part}
        if first.word is None:
            place = {"token": first.spelling, "start": first.start, "end": first.end}
        else:
            said = texts[first.part or 0][first.start : last.end]
            bare = said.strip() or said
            start = first.start + said.index(bare)
            place = {name: bare, "start": start, "end": start + len(bare)}
        yield {**place, **part, "attribution": value}


def word_numbers(ids: Sequence[int | None], places: Sequence[tuple[int, int]], text: str) -> Iterator[int | None]:
    """For each token of a text the number of its word. Words are those of the tokenizer's own `ids`; where one holds
    white space, as with tokenizers that never divide a text, it is divided there."""
    number, own, last, is_begun = -1, None, 0, False
    for id_, (start, end) in zip(ids, places, strict=True):
        said = text[last:end]
        if id_ is not None and (id_ != own or (is_begun and said[:1].isspace())):
            number, is_begun = number + 1, False
        own, last = id_, end
        is_begun = is_begun or not (said.isspace() or start == end)
        yield None if id_ is None else number


def sentence_starts(text: str) -> list[int]:
    """Where sentences begin: behind a full stop, a question or an exclamation mark and white space, unless the stop is
    an abbreviation's or a small letter follows; behind a Chinese or Japanese one; and behind an empty line."""
    starts = [0]
    for found in END_OF_SENTENCE.finditer(text):
        is_stop = found[0][0] in ".…"
        follows = text[found.end() : found.end() + 1]
        if is_stop and (follows.islower() or BEFORE_NO_END.search(text[max(0, found.start() - 8) : found.start()])):
            continue
        if found.end() < len(text):
            starts.append(found.end())
    return starts


def _unit_of(texts: Sequence[str], units: Units) -> Callable[[TextToken], tuple[int, int]]:
    """The part and the number of a token's word or sentence: that in which it ends, or of white space alone that of
    what follows, since tokenizers begin words with it."""
    if units is Units.WORDS:
        return lambda token: (token.part or 0, token.word or 0)
    starts = [sentence_starts(text) for text in texts]

    def sentence_of(token: TextToken) -> tuple[int, int]:
        part, last = token.part or 0, max(token.start, token.end - 1)
        visible = VISIBLE.search(texts[part], last)
        return part, bisect_right(starts[part], last if visible is None else visible.start())

    return sentence_of
