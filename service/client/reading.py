"""JSON as typed values: a dataclass by the names of its fields.

Names that a dataclass does not know are passed over, so that this client reads what a newer service answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UnexpectedAnswer

T = TypeVar("T")


def read(kind: Callable[..., T], content: Any) -> T:
    """The content as a value of the kind. Raises UnexpectedAnswer."""
    try:
        value: T = _reader(kind)(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        name = getattr(kind, "__name__", kind)
        raise UnexpectedAnswer(
            f"the answer holds no {name} that this client can read ({error!r}); is it the service that answers, and of "
            "a version that this client knows?"
        ) from None
    return value


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """How JSON becomes a value of this type. A class with a `from_json` of its own is asked for it."""
    if "from_json" in getattr(kind, "__dict__", ()):
        return kind.from_json  # type: ignore[no-any-return]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _optional(arguments)
    if origin is tuple:
        of_item = _reader(arguments[0])
        return lambda items: tuple(map(of_item, items))
    if origin is dict:
        of_value = _reader(arguments[1])
        return lambda items: {name: of_value(value) for name, value in items.items()}
    if is_dataclass(kind):
        return _by_field(kind)
    return lambda content: content


def _optional(arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    readers = [_reader(argument) for argument in arguments if argument is not NoneType]
    if len(readers) > 1:  # of plain values, which are read as they are
        return lambda content: content
    return lambda content: None if content is None else readers[0](content)


def _by_field(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind) if field.init}
    required = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}

    def construct(content: Any) -> Any:
        if not isinstance(content, Mapping):
            raise TypeError(f"{content!r:.50} is no object")
        missing = required - content.keys()
        if missing:
            raise KeyError(*sorted(missing))
        return kind(**{name: readers[name](value) for name, value in content.items() if name in readers})

    return construct
