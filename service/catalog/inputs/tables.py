"""What a manifest says about the rows of a table: features, their categories, and groups that are explained as one.

Three things are told apart. A *feature* is what an instance names, and a row has one number for each: of a category its
place in the list. A *column* is what the model computes with: a feature is one column, but a category has one for each
of its values, or those of the embedding that the graph looks it up in. A *unit* is what an attribution speaks of: a
feature, all columns of a category, or all features of a group.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, StrictStr, model_validator

NAME_OF_FEATURE = r"^[A-Za-z_][A-Za-z0-9_]*$"
MOST_CATEGORIES = 10_000
FARTHEST = 1e37
"""Of a range: what networks compute with ends at 3.4e38, and the distance between both ends is still a number."""
Category = StrictStr | StrictInt


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def check_range(of: str, limits: tuple[float, float]) -> None:
    """Raises ValueError for a range from more to less, or beyond what networks compute with."""
    low, high = limits
    if low > high:
        raise ValueError(f"the range of {of} is from {low:g} to {high:g}: the lower end comes first")
    if max(-low, high) > FARTHEST:
        raise ValueError(f"the range of {of} must lie between -{FARTHEST:g} and {FARTHEST:g}, as 32-bit floats do")


class Reason(_Frozen):
    """How a feature is named to a consumer when it counts among the principal reasons."""

    code: str
    text: str


class Feature(_Frozen):
    """One value of an instance: a number, or one of a few `categories`.

    A number lies in `range`, inclusive, in `unit`; it is a `whole` one where the model takes no others. `missing` is
    what null stands for: a number, or one of the categories. A category is one column for each of its values, in their
    order, but for the `reference`, which has none and is all zeros, as encoders have it that drop one. `tensor` is the
    graph's input that takes the feature, where there are several.
    """

    name: str = Field(pattern=NAME_OF_FEATURE)
    title: str
    unit: str = "1"
    range: tuple[FiniteFloat, FiniteFloat]
    categories: Annotated[tuple[Category, ...], Field(max_length=MOST_CATEGORIES)] = ()
    reference: Category | None = None
    whole: bool = False
    missing: FiniteFloat | str | None = None
    protected: bool = False
    reason: Reason | None = None
    tensor: str = ""

    @model_validator(mode="before")
    @classmethod
    def _range_of_places(cls, given: Any) -> Any:
        """A category's number is its place among the categories."""
        if not isinstance(given, dict) or not given.get("categories") or "range" in given:
            return given
        return {**given, "range": (0, len(given["categories"]) - 1)}

    @model_validator(mode="after")
    def _consistent(self) -> Feature:
        values = self.categories
        check_range(self.name, self.range)
        if not values:
            if self.reference is not None or isinstance(self.missing, str):
                raise ValueError(f"{self.name} has no categories, so its reference and its missing value are none")
            return self
        if len(values) < 2 or len(set(values)) < len(values):
            raise ValueError(f"{self.name} needs two categories at least, and none of them twice")
        if self.range != (0, len(values) - 1):
            raise ValueError(f"{self.name} has categories, so it has no range")
        for name in ("reference", "missing"):
            if getattr(self, name) is not None and getattr(self, name) not in values:
                raise ValueError(f"{name} of {self.name} is not among its categories")
        return self

    @cached_property
    def places(self) -> dict[Category, int]:
        """Where each category stands."""
        return {category: place for place, category in enumerate(self.categories)}

    @property
    def imputed(self) -> float | None:
        """The number that null stands for; None where it is refused."""
        if self.categories and self.missing is not None:
            return float(self.places[self.missing])  # type: ignore[index]
        return None if self.missing is None else float(self.missing)

    def shown(self, number: float) -> Category | float:
        """A number of a row as an instance has it."""
        return self.categories[int(number)] if self.categories else number


class Group(_Frozen):
    """Features that are explained as one, such as the columns that somebody else made of one value.

    It is `protected` where one of its members is.
    """

    name: str = Field(pattern=NAME_OF_FEATURE)
    title: str
    members: tuple[str, ...] = Field(min_length=1)
    protected: bool = False
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """What one attribution speaks of; `members` are the numbers of its features."""

    name: str
    title: str
    protected: bool
    reason: Reason | None
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """The units that are one reason, by their places: all that have its code, or one that has no reason text."""

    title: str
    reason: Reason | None
    places: tuple[int, ...]


class TabularInputs(_Frozen):
    """A table row: a value for each of `features`, in their order, some of which are explained in `groups`.

    `tensor` is an ONNX graph's name for it; where it has several inputs, each feature names its own.
    """

    kind: Literal["tabular"]
    tensor: str = ""
    features: tuple[Feature, ...] = Field(min_length=1)
    groups: tuple[Group, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> TabularInputs:
        names, grouped = set(self.names), [member for group in self.groups for member in group.members]
        if len(names) < len(self.names):
            raise ValueError("two features have the same name")
        unknown = [member for member in grouped if member not in names]
        if unknown:
            raise ValueError(f"the group's member {unknown[0]!r} is no feature")
        if len(set(grouped)) < len(grouped):
            raise ValueError("a feature is in one group at most")
        of_units = [*names.difference(grouped), *(group.name for group in self.groups)]
        if len(set(of_units)) < len(of_units):
            raise ValueError("a group has the name of a feature, or of another group")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What attributions speak of, in the order of the features; a group where its first member is."""
        group_of = {member: group for group in self.groups for member in group.members}
        units: dict[str, Unit] = {}
        for number, feature in enumerate(self.features):
            group = group_of.get(feature.name)
            if group is None:
                units[feature.name] = Unit(
                    feature.name, feature.title, feature.protected, feature.reason, members=(number,)
                )
            elif group.name not in units:
                members = tuple(at for at, name in enumerate(self.names) if name in group.members)
                protected = group.protected or any(self.features[at].protected for at in members)
                units[group.name] = Unit(group.name, group.title, protected, group.reason, members)
        return tuple(units.values())

    @cached_property
    def unit_names(self) -> tuple[str, ...]:
        """The names of what attributions speak of."""
        return tuple(unit.name for unit in self.units)

    @cached_property
    def reason_groups(self) -> tuple[ReasonGroup, ...]:
        """What may be a principal reason, in the order of the first unit of each."""
        places: dict[str, list[int]] = {}
        for place, unit in enumerate(self.units):
            key = f"feature {unit.name}" if unit.reason is None else f"code {unit.reason.code}"
            places.setdefault(key, []).append(place)
        first = [(self.units[members[0]], tuple(members)) for members in places.values()]
        return tuple(ReasonGroup(unit.title, unit.reason, members) for unit, members in first)

    @cached_property
    def reason_texts(self) -> str:
        """The version of the reason texts: the digest of every unit's title, code and text, in order."""
        named = [(u.name, u.title, u.reason and u.reason.code, u.reason and u.reason.text) for u in self.units]
        return "sha256:" + hashlib.sha256(orjson.dumps(named)).hexdigest()

    @cached_property
    def protected(self) -> tuple[int, ...]:
        """The places of the protected ones among the attributions."""
        return tuple(place for place, unit in enumerate(self.units) if unit.protected)

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The inputs of the graph, in the order of the features, and which features each takes."""
        taken: dict[str, list[int]] = {}
        for number, feature in enumerate(self.features):
            taken.setdefault(feature.tensor or self.tensor, []).append(number)
        return {tensor: tuple(numbers) for tensor, numbers in taken.items()}

    @cached_property
    def ranges_of_fractions(self) -> tuple[tuple[float, float], ...]:
        """Where a float is a feature's value as it is; nowhere for a category or a whole number, which need a look."""
        nothing = (math.inf, -math.inf)
        return tuple(nothing if f.categories or f.whole else f.range for f in self.features)

    @cached_property
    def has_categories(self) -> bool:
        """Whether a feature is no number."""
        return any(feature.categories for feature in self.features)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: (features,)."""
        return (len(self.features),)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The least and the greatest value of every feature."""
        return tuple(f.range[0] for f in self.features), tuple(f.range[1] for f in self.features)
