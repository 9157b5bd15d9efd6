"""Answers as bytes: what their items store, which is all but the fields that have their default value.

orjson does the encoding: for the pixels of an image pydantic's encoder takes 2.9 times as long, msgspec's 1.7 times; a
small reply takes several times as long to build from pydantic models as to encode. It writes of a dataclass what its
instance stores, on which `service.access.visibility.Item` relies, and calls no Python code for it: there are more
than ten in an answer, which is written twice, for the record and for the reply.
"""

from __future__ import annotations

from typing import Any

import orjson

from service.access.visibility import Item

_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS
"""orjson sorts the names of objects, but not the fields of dataclasses."""


def encode(answer: Any, *, sorted_names: bool = False) -> bytes:
    """The answer as JSON."""
    return orjson.dumps(answer, default=_content, option=_SORTED if sorted_names else 0)


def _content(value: Any) -> Any:
    """What is written of items where names are sorted, and of other values, as of attributions, which say it."""
    return vars(value) if isinstance(value, Item) else value.to_json()
