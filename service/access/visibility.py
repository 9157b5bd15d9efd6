"""What a policy that limits values shows of an answer: declared once, at each field.

The fields of an answer carry one of these marks in their annotation, `Annotated[float | None, OUTPUT, ...]`. A field
without a mark is not shown under such a policy, so that one which is added later is withheld until somebody has
decided about it. Fields whose mark `is_measured` hold figures, to which tolerances apply; all other fields of two
answers are either equal or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Literal, Self, TypeVar, dataclass_transform, get_type_hints

from service.access.permissions import Policy

MIN_STEP = 1e-250
"""No float32 divided by it overflows; values for which the grid would have to be finer become 0."""


class Absent(Enum):
    """The value of a field that is not shown, or that an earlier record does not have."""

    ABSENT = "absent"


ABSENT: Literal[Absent.ABSENT] = Absent.ABSENT


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Item:
    """A part of an answer, of named fields: its subclasses are frozen dataclasses, whose values are given by name.

    A value that is the field's default is not stored but read from the class. So a field whose default is None is left
    out of replies and records, never null, and one without a default may be null: orjson writes what an instance
    stores, `vars(item)`. Fields that a policy withholds are not stored either: they read as their default, and those
    without one not at all. Nothing else may be stored, as a `cached_property` would, for it would be written too.
    """

    _defaults: ClassVar[Mapping[str, object]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in cls.__annotations__.keys() - vars(cls).keys():
            setattr(cls, name, field())  # or it would have the default of the field that it overrides
        dataclass(init=False, eq=False, repr=False, frozen=True, kw_only=True)(cls)
        declared: Any = cls
        cls._defaults = {each.name: each.default for each in fields(declared) if each.default is not MISSING}

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "__dict__", values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Drops what is default. Apart from `__init__`, since pydantic, reading an item, calls this alone."""
        values = vars(self)
        for name, default in self._defaults.items():
            if name in values and values[name] is default:
                del values[name]

    def adding(self, **values: Any) -> Self:
        """The same with some other values."""
        return type(self)(**{**vars(self), **values})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


T = TypeVar("T", bound=Item)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy withholds of one answer.

    `kept` are the components whose values are shown, by their places, None for all; `component_step` and `output_step`
    are the grids on which their values and the model's outputs are rounded, None where they are not.
    """

    policy: Policy
    kept: Collection[int] | None
    component_step: float | None
    output_step: float | None


@dataclass(frozen=True, slots=True)
class Mark:
    """How the value of a field is shown: `limited` gives the value under the limits, or ABSENT."""

    limited: Callable[[Any, Limits], Any]
    is_measured: bool = False


def _parts(value: Any, limits: Limits) -> Any:
    """A part of an answer, or several, whose own fields have marks."""
    return tuple(limited_to(part, limits) for part in value) if isinstance(value, tuple) else limited_to(value, limits)


def _own_parts(value: Any, limits: Limits) -> Any:
    return limited_to(value, Limits(limits.policy, None, None, step_of(outputs_in(value), limits.policy)))


def _first_parts(value: tuple[Any, ...], limits: Limits) -> Any:
    return _parts(value[: limits.policy.top], limits)


def _joint_parts(value: tuple[Any, ...], limits: Limits) -> Any:
    return ABSENT if limits.policy.top is not None else _parts(value, limits)


def _joint(value: Any, limits: Limits) -> Any:
    return ABSENT if limits.policy.top is not None else on_grid(value, limits.component_step)


def _by_component(value: Any, limits: Limits) -> Any:
    if limits.kept is not None:
        value = value.keeping(limits.kept)
    return value.with_values(on_grid(value.values, limits.component_step))


def _errors_by_component(value: Any, limits: Limits) -> Any:
    if (step := limits.component_step) is not None:
        # a value is off by half a step more, once it is rounded
        value = value.with_values(tuple(rounded_up(error + step / 2, step) for error in value.values))
    return value if limits.kept is None else value.keeping(limits.kept)


def _error(value: float, limits: Limits) -> float:
    step = step_of((value,), limits.policy)
    return value if step is None else rounded_up(value, step)


def _output(hidden: object) -> Mark:
    def limited(value: Any, limits: Limits) -> Any:
        return on_grid(value, limits.output_step) if limits.policy.outputs else hidden

    return Mark(limited, is_measured=True)


ALWAYS = Mark(lambda value, _: value)
"""What the model was asked and how, and what it decided."""
PARTS = Mark(_parts)
OWN_PARTS = Mark(_own_parts)
"""A part whose outputs are rounded on a grid of their own, as when it is answered alone."""
FIRST_PARTS = Mark(_first_parts)
"""Parts in order of their size, of which as many are shown as values."""
JOINT_PARTS = Mark(_joint_parts, is_measured=True)
JOINT = Mark(_joint, is_measured=True)
"""Values of several components together. Groups of one would reveal all values, so none is shown with `top`."""
BY_COMPONENT = Mark(_by_component, is_measured=True)
"""Values by feature, step, pixel or token (`service.catalog.inputs.kind.Attributions`)."""
ERRORS_BY_COMPONENT = Mark(_errors_by_component, is_measured=True)
"""How far the values by component may be off as they are shown: rounded up on their grid, and never to 0."""
ON_COMPONENT_GRID = Mark(lambda value, limits: on_grid(value, limits.component_step), is_measured=True)
"""A figure computed from the values of components, rounded as they are."""
WITHHELD = Mark(lambda _value, _limits: ABSENT)
"""What only keys without limits are shown."""
SHARE = Mark(lambda value, limits: on_grid(value, step_of((1.0,), limits.policy)), is_measured=True)
"""A figure from 0 to 1, rounded relative to 1."""
ERROR = Mark(_error)
"""An error estimate, rounded up relative to itself."""
OUTPUT = _output(ABSENT)
"""An output of the model."""
OUTPUT_OR_NULL = _output(None)
OUTPUTS = _output(())
"""A list of outputs, which is empty where they are not shown."""
OUTPUTS_BY_NAME = _output({})


@cache
def marks_of(kind: Hashable) -> Mapping[str, Mark]:
    """The marks of the fields of a class of answers, by name; a field without one is not in it."""
    hints = get_type_hints(kind, include_extras=True)
    marks = {
        name: [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Mark)]
        for name, hint in hints.items()
    }
    return {name: of_field[-1] for name, of_field in marks.items() if of_field}


def limited_to(item: T, limits: Limits) -> T:
    """An answer, or a part of one, with the limits applied."""
    kind: Any = type(item)
    marks = marks_of(kind)
    limited_values = {
        name: None if value is None else marks[name].limited(value, limits)
        for name, value in vars(item).items()
        if name in marks
    }
    limited: T = kind(**{name: value for name, value in limited_values.items() if value is not ABSENT})
    return limited


def outputs_in(item: object) -> Iterable[float]:
    """The model's outputs in an answer and its parts."""
    if not isinstance(item, Item):
        return
    kind: Any = type(item)
    marks = marks_of(kind)
    for name, value in vars(item).items():
        mark = marks.get(name)
        if mark in (OUTPUT, OUTPUT_OR_NULL, OUTPUTS, OUTPUTS_BY_NAME):
            yield from numbers_in(value)
        elif mark in (PARTS, OWN_PARTS):
            yield from outputs_in(value)


def numbers_in(value: Any) -> Iterable[float]:
    """All numbers in lists and objects."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for member in value:
            yield from numbers_in(member)
    elif type(value) in (int, float):
        yield value


def step_of(values: Iterable[float], policy: Policy) -> float | None:
    """The grid on which the largest value has as many significant digits as the policy shows; None shows all."""
    if policy.digits is None:
        return None
    largest = max(map(abs, values), default=0.0)
    if not largest:
        return 1.0
    return max(10.0 ** (math.floor(math.log10(largest)) - policy.digits + 1), MIN_STEP)


def on_grid(value: Any, step: float | None) -> Any:
    """All numbers in lists and objects, each at the nearest point of the grid."""
    if step is None or value is None:
        return value
    if isinstance(value, Mapping):
        return {name: on_grid(member, step) for name, member in value.items()}
    if isinstance(value, tuple | list):
        return tuple(on_grid(member, step) for member in value)
    return float(f"{round(value / step) * step:.15g}")  # without the digits that the multiplication adds


def rounded_up(value: float, step: float) -> float:
    """The least point of the grid that is not below `value`, but for the rounding of floats."""
    return float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.15g}")
