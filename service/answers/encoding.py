"""Answers as bytes and as JSON: of a dataclass all fields, but for those that have their default.

A field whose default is None is so left out, never null; one that may be null has none. orjson writes them, which
takes half as long for the pixels of an image as pydantic's or msgspec's own encoders do; building a reply as pydantic
models takes fifteen times as long as these.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

import orjson

from service.access.visibility import ABSENT


def encode(answer: Any, *, sorted_names: bool = False) -> bytes:
    """The answer as JSON."""
    options = orjson.OPT_PASSTHROUGH_DATACLASS | (orjson.OPT_SORT_KEYS if sorted_names else 0)
    return orjson.dumps(answer, default=to_json, option=options)


def to_json(answer: Any) -> Any:
    """Of a dataclass the fields by name, of what writes itself what it gives; parts of them as they are."""
    own = getattr(answer, "to_json", None)
    if own is not None:
        return own()
    if not is_dataclass(answer):
        raise TypeError(f"{type(answer).__name__} is no answer")
    kind: Any = type(answer)
    shown = {}
    for name, written, default in _fields(kind):
        value = getattr(answer, name)
        if value is not default and value is not ABSENT:
            shown[written] = value
    return shown


@cache
def _fields(kind: Any) -> tuple[tuple[str, str, object], ...]:
    """Of each field its name, its name in JSON, and its default."""
    return tuple((field.name, name_in_json(kind, field.name), field.default) for field in fields(kind))


@cache
def name_in_json(kind: Any, name: str) -> str:
    """That of a field, which has another where it is a word of Python's."""
    marks = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
    return next((alias for mark in marks if isinstance(alias := getattr(mark, "alias", None), str)), name)
