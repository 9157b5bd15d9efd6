"""Records read back: from the bytes that the ledger holds, of this schema or an earlier one, to typed values.

A record is read by its structure. Unknown fields, which a later version wrote, are ignored. A field whose content was
changed in the database is not refused but kept as it is, so that a replay can name it. A record that lacks a part that
every record has is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import orjson

from service.answers.explanation import Answered
from service.answers.record import (
    DamagedItem,
    Personal,
    PlaceItem,
    RecordedTarget,
    RecordItem,
    in_clear,
    recorded_target_kind,
)
from service.catalog.inputs.kind import PLAIN, Detail
from service.catalog.inputs.registry import AnyAttributions, read_attributions
from service.catalog.outputs.predictions import AnyPrediction, AnyTarget, prediction_kind, target_kind
from service.domain import Continuation, Contrast, PlanTarget, Similarity
from service.ledger.entries import LogChanged, Stored

NO_VERSION = "1"
"""The version of a baseline that is not a set: it came with the request, or is made from the input."""

NOT_WHOLE = KeyError, TypeError, ValueError, AttributeError
"""What is raised where a record that was changed lacks a part, or has one of another kind."""

T = TypeVar("T")
Reader = Callable[[Any], Any]


class UnreadableValues(NamedTuple):
    """In place of the attributions in a record that was changed. No policy shows it."""

    content: Any

    @property
    def values(self) -> Sequence[float]:
        """There are none."""
        return ()

    @property
    def numbers(self) -> Sequence[float]:
        """There are none."""
        return ()

    @property
    def detail(self) -> Detail:
        """Nothing more."""
        return PLAIN

    @property
    def structure(self) -> object:
        """The content itself."""
        return self.content

    def with_values(self, values: Sequence[float]) -> UnreadableValues:  # noqa: ARG002
        """Nothing."""
        return UnreadableValues(None)

    def keeping(self, components: Collection[int]) -> UnreadableValues:  # noqa: ARG002
        """Nothing."""
        return UnreadableValues(None)

    def to_json(self) -> Any:
        """The content as the record has it."""
        return self.content


def record_of(stored: Stored) -> RecordItem:
    """All that the ledger holds of an explanation: the record, the personal part, and its place in the log.

    Where the personal part was erased, the rest. Raises LogChanged.
    """
    with _refusing_damage():
        known = {
            "id": stored.id,
            "method": stored.method,
            **(orjson.loads(stored.record) if stored.record else {}),
            "created": stored.created,
            "tenant": stored.tenant,
            "key_id": stored.key_id,
            "cohort": stored.cohort,
            "retention": stored.retention,
            "ledger": _place(stored),
        }
        if stored.tombstone is None:
            personal = orjson.loads(stored.personal)
            known |= {
                **personal.get("answer", {}),  # which stood in the record before records had a schema
                "subject": stored.subject,
                "decision_id": stored.decision_id,
                "input": personal["input"],
                "personal_commitment": hashlib.sha256(stored.opened).hexdigest(),
            }
        return read(RecordItem, known)


def damaged(stored: Stored) -> DamagedItem:
    """What can be said of a record that cannot be read: nothing of it is from the record itself."""
    return DamagedItem(id=stored.id, ledger=read(PlaceItem, _place(stored)), damaged=True)


def _place(stored: Stored) -> dict[str, Any]:
    return {"sequence": stored.seq, "leaf": stored.leaf.hex(), "tombstone": stored.tombstone}


def personal_of(stored: Stored) -> Personal:
    """The personal part of a record. Raises LogChanged."""
    with _refusing_damage():
        content = orjson.loads(stored.personal)
        return read(Personal, {**content, "content": content})


def answer_of(stored: Stored) -> tuple[AnyPrediction, Answered]:
    """The prediction and the explanation that were answered when this was recorded, before any policy limited them.

    Raises LogChanged.
    """
    with _refusing_damage():
        record, personal = orjson.loads(stored.record), orjson.loads(stored.personal)
        clear = in_clear(Answered)
        answer = {name: value for name, value in record.items() if name in clear} | personal["answer"]
        if personal["baseline"]["row"] is not None:  # its digest would tell the row
            answer["baseline"] = {"version": NO_VERSION, "digest": personal["baseline"]["digest"], **answer["baseline"]}
        prediction: AnyPrediction = read(prediction_kind(answer["prediction"]), answer["prediction"])
        return prediction, read(Answered, answer)


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except NOT_WHOLE as error:
        raise LogChanged("the record of an explanation is not what was written") from error


def read(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass from its JSON. Raises KeyError for a field that is missing, TypeError and ValueError for parts of
    another type."""
    values: dict[str, Any] = {}
    hashable: Any = kind
    for name, reader, is_required in _fields(hashable):
        if name in content:
            value = content[name]
            values[name] = value if value is None or reader is None else reader(value)
        elif is_required:
            raise KeyError(name)
    return kind(**values)


@cache
def _fields(kind: Any) -> tuple[tuple[str, Reader | None, bool], ...]:
    """For each field its name, its reader (None: the value is taken as it is), whether required."""
    hints = get_type_hints(kind)
    return tuple(
        (
            field.name,
            _reader(hints[field.name]),
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(kind)
    )


def _reader(hint: Any) -> Reader | None:
    """How a value of this type is read from JSON; None for what JSON holds as it is."""
    known = _KINDS.get(_without_none(hint))
    if known is not None:
        return known
    options = [option for option in _options(hint) if option is not NoneType]
    if any(get_origin(option) is tuple for option in options):
        return _tuple_reader(get_args(options[0])[0])
    parts = [option for option in options if isinstance(option, type) and is_dataclass(option)]
    if parts:
        (part,) = parts
        return lambda content: content if len(options) > 1 and not isinstance(content, Mapping) else read(part, content)
    (first, *others) = options
    return first if not others and isinstance(first, type) and issubclass(first, Enum) else None


def _tuple_reader(item: Any) -> Reader:
    reader = _reader(item)
    if reader is None:
        return tuple
    return lambda content: tuple(map(reader, content))


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _without_none(hint: Any) -> frozenset[Any]:
    return frozenset(option for option in _options(hint) if option is not NoneType)


def _attributions(content: Any) -> AnyAttributions | UnreadableValues:
    try:
        return read_attributions(content)
    except ValueError:
        return UnreadableValues(content)


def _index_or(kind_of: Callable[[Mapping[str, Any]], type[Any]], content: Any) -> Any:
    """A target that may be a mere index; what was changed is left as it is."""
    return read(kind_of(content), content) if isinstance(content, Mapping) else content


def _target_kind(content: Mapping[str, Any]) -> type[Contrast | Similarity | Continuation]:
    if "measure" in content:
        return Similarity
    return Contrast if "index" in content else Continuation


_KINDS: Mapping[frozenset[Any], Reader] = {
    _without_none(AnyAttributions): _attributions,
    _without_none(AnyPrediction): lambda content: read(prediction_kind(content), content),
    _without_none(AnyTarget): lambda content: read(target_kind(content), content),
    _without_none(RecordedTarget): lambda content: _index_or(recorded_target_kind, content),
    _without_none(PlanTarget): lambda content: _index_or(_target_kind, content),
}
"""Types that are unions, of which the content tells the member."""
