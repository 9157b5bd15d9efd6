"""Answers as bytes and as JSON: of a dataclass all fields, but for those that have their default.

A field whose default is None is so left out, never null; one that may be null has none. orjson writes them: for the
pixels of an image pydantic's own encoder takes 2.9 times as long, msgspec's 1.7 times; and building a small reply of
pydantic models takes several times as long as writing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any, get_type_hints

import orjson

from service.access.visibility import ABSENT


def encode(answer: Any, *, sorted_names: bool = False) -> bytes:
    """The answer as JSON."""
    options = orjson.OPT_PASSTHROUGH_DATACLASS | (orjson.OPT_SORT_KEYS if sorted_names else 0)
    return orjson.dumps(answer, default=to_json, option=options)


def to_json(answer: Any) -> Any:
    """Of a dataclass the fields by name, of what writes itself what it gives; parts of them as they are."""
    kind: Any = type(answer)
    return _writer(kind)(answer)


@cache
def _writer(kind: Any) -> Callable[[Any], Any]:
    """How values of this class become JSON; made once, for a reply has dozens of them. What is large has bytes of its
    own, its `fragment`, which are copied."""
    if hasattr(kind, "fragment"):
        return attrgetter("fragment")
    own: Callable[[Any], Any] | None = getattr(kind, "to_json", None)
    if own is not None:
        return own
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is no answer")
    return _writer_of_fields(kind)


def _writer_of_fields(kind: Any) -> Callable[[Any], dict[str, Any]]:
    """A function of one line for each field, made as dataclasses make `__init__`.

    A loop over the fields takes two to seven times as long: of some 190 microseconds for answering, recording and
    writing one explanation of a table, 30 went into it.
    """
    known: dict[str, Any] = {"ABSENT": ABSENT}
    lines = ["def write(answer):", "    found = {}"]
    for field in fields(kind):
        known[f"default_of_{field.name}"] = field.default
        lines += [
            f"    value = answer.{field.name}",
            f"    if value is not default_of_{field.name} and value is not ABSENT:",
            f"        found[{name_in_json(kind, field.name)!r}] = value",
        ]
    exec("\n".join([*lines, "    return found"]), known)  # noqa: S102  # of names of fields alone
    write: Callable[[Any], dict[str, Any]] = known["write"]
    return write


@cache
def name_in_json(kind: Any, name: str) -> str:
    """That of a field, which has another where it is a word of Python's."""
    marks = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
    return next((alias for mark in marks if isinstance(alias := getattr(mark, "alias", None), str)), name)
