"""JSON without ambiguous or impossible content: names given twice, NaN, numbers too large to be finite.

orjson parses it, and of two values with the same name silently takes the last. Whether that happened is known from
counts: JSON has one colon outside its strings for every name, so the parsed content has as many names as there are
colons, unless one was lost. Colons inside strings make the counts differ too; only then is the body parsed again, by
Python's parser, which reports repeated names. If every body were parsed by both, a whole `:predict` of 1,000 loan
applications would take 16% more of the front's time and 5% longer, a whole cached `:explain` of one 4% and 5% (medians
of pairs, in turns). For a large body of nested lists counting takes a tenth of orjson's time, as the search ends when
all names are found; Python's parser takes six times orjson's, and holds the interpreter's lock meanwhile.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson

from service.errors import MAX_FAULTS, AnswerableError, Fault, InvalidRequest, Kind, MalformedBody, pointer_to
from service.wording import others_listed

MAX_DIGITS = 300
"""A whole number of fewer digits is always finite."""
MAX_STEPS = 16
"""Steps of the path to a fault that are reported; no valid request nests deeper."""
ENDS_OF_NAMES = (b'":', b" :", b"\t:", b"\r:", b"\n:")
"""How names end; these occur in strings less often than mere colons."""
_LONG = re.compile(rb"\d{%d}" % MAX_DIGITS)

Places = tuple["Places", str | int] | None
"""The path to a value, the last step first."""


def read(body: bytes) -> Any:
    """The content of a body. Raises MalformedBody (not JSON, or nested too deep), InvalidRequest with every fault."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _refusal(body, error) from None
    if not _has_every_name(body, content):
        faults = _faults(body)
        if faults:
            raise _impossible(faults)
    return content


def _has_every_name(body: bytes, content: Any) -> bool:
    """Whether no repeated name was lost; False may be a false alarm."""
    colons = body.count(b":")
    names = _count_names(content, colons)
    return names == colons or names == sum(map(body.count, ENDS_OF_NAMES))


def _count_names(content: Any, enough: int) -> int:
    """The names of all objects in `content`, level by level, until there are `enough`.

    Lists that begin with a number or a text are not searched: an object behind one is a false alarm, no more.
    """
    count, level = 0, [content]
    while level:
        for each in level:
            if type(each) is dict:
                count += len(each)
        if count >= enough:
            break
        deeper: list[Any] = []
        for each in level:
            if type(each) is dict:
                deeper += [value for value in each.values() if type(value) is dict or type(value) is list]
            elif each and (type(each[0]) is dict or type(each[0]) is list):
                deeper += [value for value in each if type(value) is dict or type(value) is list]
        level = deeper
    return count


def _refusal(body: bytes, error: orjson.JSONDecodeError) -> AnswerableError:
    """Numbers that are not finite are impossible (422); everything else is malformed (400)."""
    if "depth" in error.msg:
        return MalformedBody("the body is nested too deep")
    try:
        faults = _faults(body)
    except (ValueError, RecursionError):
        faults = []
    return _impossible(faults) if faults else MalformedBody(f"the body is not JSON: {error.msg}")


def _impossible(faults: list[Fault]) -> InvalidRequest:
    return InvalidRequest(faults[0].detail + others_listed(len(faults) - 1), *faults)


class _Repeated(dict[str, Any]):
    """An object in which names occurred twice."""

    names: dict[str, None]


class _NotFinite(str):
    """In place of NaN, Infinity and -Infinity."""

    __slots__ = ()


def _faults(body: bytes) -> list[Fault]:
    """Every name given twice and every number that is not finite, `MAX_FAULTS` at most.

    Raises ValueError for what is not JSON in other ways, MalformedBody for what is nested too deep.
    """
    try:
        content = json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_NotFinite,
            parse_int=float if _LONG.search(body) else None,  # int would refuse more than 4,300 digits
        )
    except RecursionError:
        raise MalformedBody("the body is nested too deep") from None
    return [*islice(_faults_in(content), MAX_FAULTS)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) == len(pairs):
        return read
    repeated, seen = _Repeated(read), set[str]()
    repeated.names = {}
    for name, _ in pairs:
        if name in seen:
            repeated.names[name] = None
            if len(repeated.names) == MAX_FAULTS:
                break
        seen.add(name)
    return repeated


def _faults_in(content: Any) -> Iterator[Fault]:
    """The faults, those of an object or a list before those of what lies in it."""
    stack: list[tuple[Any, Places]] = [([content], None)]
    while stack:
        each, places = stack.pop()
        if type(each) is _Repeated:
            for name in each.names:
                yield _fault(Kind.DUPLICATE_NAME, (places, name), "is given twice; send one value")
        deeper: list[tuple[Any, Places]] = []
        for at, value in enumerate(each) if type(each) is list else each.items():
            kind = type(value)
            if kind is float:
                if not math.isfinite(value):
                    yield _fault(Kind.NOT_FINITE, (places, at), "is too large a number; numbers must be finite")
            elif kind is _NotFinite:
                yield _fault(Kind.NOT_FINITE, (places, at), f"is {value}; numbers must be finite")
            elif kind is list or kind is dict or kind is _Repeated:
                deeper.append((value, (places, at)))
        stack += reversed(deeper)


def _fault(kind: Kind, places: Places, what: str) -> Fault:
    steps: list[str | int] = []
    while places is not None:
        places, step = places
        steps.append(step)
    steps = steps[-2::-1]  # the last is the place of the whole in a list of its own
    where = ".".join(str(step)[:64] for step in steps[-MAX_STEPS:])
    return Fault(kind, pointer_to(*steps[:MAX_STEPS]), f"{where or 'the body'} {what}")
