"""YAML as a manifest is written in it, read so that no file can stop the process that reads it.

The parser's events are looked at one after the other, without recursion, before anything is built of them: in YAML a
value may be written once and repeated a billion times by aliases, and deep nesting crashes the parser's library.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml

MAX_BYTES = 2**24
MAX_VALUES = 2_000_000
"""The most values, with every alias counted as all that it stands for. A colour image of 800 by 800 as nested lists has
1.9 million."""
DEEPEST = 50
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML has it: an image of 64 by 64 as nested lists takes 0.06 s, and 1.1 without."""


@dataclass(slots=True)
class _Open:
    """A list or a mapping that has not ended. `key` is the one whose value comes next; None where a key does."""

    is_mapping: bool
    anchor: str | None
    values: int = 1
    keys: set[str] = field(default_factory=set)
    key: str | None = None


def read_yaml(content: bytes) -> object:
    """What the document in `content` says. Raises ValueError, saying what is wrong and where."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has {len(content)} bytes; at most {MAX_BYTES} are read")
    try:
        _check(content)
        return _loaded(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{place}this is no YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"this is no YAML: {' '.join(str(error).split())}") from error


def _loaded(content: bytes) -> object:
    try:
        return yaml.load(content, LOADER)  # noqa: S506 - both loaders are safe ones
    except (ValueError, OverflowError, TypeError) as error:
        raise ValueError(f"a value cannot be read: {error}") from error


def _check(content: bytes) -> None:
    """Raises ValueError for a repeated key, a tag, too many values and too deep nesting."""
    values_of: dict[str, int] = {}
    path: list[_Open] = [_Open(is_mapping=False, anchor=None)]
    for event in yaml.parse(content, LOADER):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in values_of:
                    raise ValueError(f"{_place(event)}: *{event.anchor} stands for nothing, or for what holds it")
                _add(path, event, values_of[event.anchor], None)
            case yaml.ScalarEvent():
                _refuse_tag(event)
                _add(path, event, 1, event.value)
                _note(values_of, event.anchor, 1)
            case yaml.CollectionStartEvent():
                _refuse_tag(event)
                if len(path) > DEEPEST:
                    raise ValueError(f"{_place(event)}: nested deeper than {DEEPEST}")
                path.append(_Open(isinstance(event, yaml.MappingStartEvent), event.anchor))
            case yaml.CollectionEndEvent():
                ended = path.pop()
                _add(path, event, ended.values, None)
                _note(values_of, ended.anchor, ended.values)


def _add(path: list[_Open], event: yaml.Event, values: int, key: str | None) -> None:
    """Adds the size of a value that has ended to the value that contains it. `key` is its text, where it may be a
    key."""
    inside = path[-1]
    inside.values += values
    if sum(one.values for one in path) > MAX_VALUES:
        raise ValueError(f"{_place(event)}: more than {MAX_VALUES} values, each alias counted as what it stands for")
    if not inside.is_mapping:
        return
    if inside.key is not None:
        inside.key = None
        return
    if key is None:
        raise ValueError(f"{_place(event)}: a key must be a text")
    if key in inside.keys:
        raise ValueError(f"{_place(event)}: {key[:64]!r} is there twice")
    inside.keys.add(key)
    inside.key = key


def _note(values_of: dict[str, int], anchor: str | None, values: int) -> None:
    if anchor is not None:
        values_of[anchor] = values


def _refuse_tag(event: yaml.NodeEvent) -> None:
    tag: str | None = getattr(event, "tag", None)
    if tag not in (None, "!", "tag:yaml.org,2002:str"):
        raise ValueError(f"{_place(event)}: the tag {tag[:64]!r} is not taken; write the value alone")


def _place(event: yaml.Event) -> str:
    mark = event.start_mark
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
