"""Named segments of a text, such as the context that was retrieved for a prompt: what a request says of them, and which
tokens lie in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.access.visibility import Item
from service.catalog.inputs.units import TextToken
from service.errors import InvalidRequest, Kind, invalid, pointer_to

MAX_SEGMENTS = 64
MAX_NAME = 64
FIELDS = ("name", "start", "end")
PART = "part"


class SentSegment(Item):
    """A segment as it was sent: from `start` to `end`, in characters of the text, or of that `part` of a pair."""

    name: str
    start: int
    end: int
    part: int | None = None

    def holds(self, end: int, part: int | None) -> bool:
        """Whether a token lies in it: that is where it ends, since some begin with the white space before them."""
        return part == self.part and self.start < end <= self.end


@dataclass(frozen=True, slots=True)
class SegmentOfRow:
    """A segment, and the attributions that belong to it, by their places."""

    sent: SentSegment
    components: tuple[int, ...]


def read_segments(sent: object, texts: Sequence[str]) -> tuple[SentSegment, ...]:
    """The segments of an instance. They may lie in one another, but not cross.

    Raises InvalidRequest, naming the first that is wrong.
    """
    if not isinstance(sent, Sequence) or isinstance(sent, str) or len(sent) > MAX_SEGMENTS:
        raise _wrong(f"segments are a list of at most {MAX_SEGMENTS} objects of name, start and end")
    segments = tuple(_read(one, at, texts) for at, one in enumerate(sent))
    names: set[str] = set()
    for at, segment in enumerate(segments):
        if segment.name in names:
            raise _wrong(f"two segments are called {segment.name!r}", at, "name")
        names.add(segment.name)
        crossed = next((other for other in segments[:at] if _cross(segment, other)), None)
        if crossed is not None:
            raise _wrong(
                f"the segments {crossed.name!r} and {segment.name!r} cross: one may lie in the other, or behind it", at
            )
    return segments


def segments_of(segments: Sequence[SentSegment], tokens: Sequence[TextToken]) -> tuple[SegmentOfRow, ...]:
    """Each segment with its tokens; those that the tokenizer added are in none."""
    own = [token for token in tokens if token.word is not None]
    return tuple(
        SegmentOfRow(segment, tuple(token.position for token in own if segment.holds(token.end, token.part)))
        for segment in segments
    )


def _read(sent: object, at: int, texts: Sequence[str]) -> SentSegment:
    fields = (*FIELDS, PART) if len(texts) > 1 else FIELDS
    if not isinstance(sent, Mapping) or {*sent} != {*fields}:
        of_pair = "; part 0 is the first text, part 1 the second" if len(texts) > 1 else ""
        raise _wrong(f"a segment is an object of {', '.join(fields[:-1])} and {fields[-1]}{of_pair}", at)
    values: list[Any] = [sent.get(field) for field in (*FIELDS, PART)]
    name, start, end, part = values
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise _wrong(f"a segment's name has from 1 to {MAX_NAME} characters", at, "name")
    if len(texts) > 1 and (type(part) is not int or not 0 <= part < len(texts)):
        raise _wrong("part must be 0 or 1", at, PART)
    length = len(texts[part or 0])
    for field, value in (("start", start), ("end", end)):
        if type(value) is not int or not 0 <= value <= length:
            raise _wrong(f"{field} must be a whole number from 0 to {length}, the text's length", at, field)
    if start > end:
        raise _wrong(f"the segment {name!r} ends before it starts", at, "end")
    return SentSegment(name=name, start=start, end=end, part=part)


def _cross(one: SentSegment, other: SentSegment) -> bool:
    """Whether two share some of the text, and each has some that the other has not."""
    if one.part != other.part:
        return False
    return one.start < other.start < one.end < other.end or other.start < one.start < other.end < one.end


def _wrong(detail: str, *place: Any) -> InvalidRequest:
    return invalid(Kind.WRONG_INSTANCE, pointer_to("segments", *place), detail)
