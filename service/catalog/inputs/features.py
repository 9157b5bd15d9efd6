"""What a manifest says about the rows of a table: features, their categories, and groups that are explained as one.

Three things are distinguished. A *feature* is what an instance names; a row has one number for each, which for a
category is its index. A *column* is an input of the network: a numeric feature is one column, a category has one for
each of its values, or those of its embedding in the graph. A *component* is what gets one attribution: a feature (with
all columns of a category), or all features of a group; of other inputs, a pixel or a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol

import orjson
from pydantic import Field, FiniteFloat, StrictInt, StrictStr, model_validator

from service.catalog.inputs.kind import Declaration, check_range

NAME_OF_FEATURE = r"^[A-Za-z_][A-Za-z0-9_]*$"
MAX_CATEGORIES = 10_000
Category = StrictStr | StrictInt


class Reason(Declaration):
    """How a feature is named to a consumer when it counts among the principal reasons."""

    code: str
    text: str


class Feature(Declaration):
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
    categories: Annotated[tuple[Category, ...], Field(max_length=MAX_CATEGORIES)] = ()
    reference: Category | None = None
    whole: bool = False
    missing: FiniteFloat | str | None = None
    protected: bool = False
    reason: Reason | None = None
    tensor: str = ""

    @model_validator(mode="before")
    @classmethod
    def _range_of_places(cls, declared: Any) -> Any:
        """The range of a category's index, where none is declared."""
        if not isinstance(declared, dict) or not declared.get("categories") or "range" in declared:
            return declared
        return {**declared, "range": (0, len(declared["categories"]) - 1)}

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
        """The index of each category."""
        return {category: place for place, category in enumerate(self.categories)}

    @property
    def imputed(self) -> float | None:
        """The number that null stands for; None where it is refused."""
        if self.categories and self.missing is not None:
            return float(self.places[self.missing])  # type: ignore[index]
        return None if self.missing is None else float(self.missing)

    def value_of(self, number: float) -> Category | float:
        """A number of a row as instances write it."""
        return self.categories[int(number)] if self.categories else number


class Group(Declaration):
    """Features that are explained as one, such as columns that were derived from one value before.

    It is `protected` where one of its members is.
    """

    name: str = Field(pattern=NAME_OF_FEATURE)
    title: str
    members: tuple[str, ...] = Field(min_length=1)
    protected: bool = False
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """What gets one attribution; `members` are the numbers of its features."""

    name: str
    title: str
    protected: bool
    reason: Reason | None
    members: tuple[int, ...]


def reason_groups(components: Iterable[tuple[str, Titled]]) -> tuple[ReasonGroup, ...]:
    """What may be a principal reason: the components of one code, or of one name where they have no reason.

    Each comes with its name. The groups are in the order of their first components, whose title and text they have.
    """
    groups: dict[str, tuple[Titled, list[int]]] = {}
    for place, (name, component) in enumerate(components):
        key = f"feature {name}" if component.reason is None else f"code {component.reason.code}"
        groups.setdefault(key, (component, []))[1].append(place)
    return tuple(ReasonGroup(first.title, first.reason, tuple(places)) for first, places in groups.values())


def digest_of_reasons(components: Iterable[Titled]) -> str:
    """The version of the reason texts: the digest of every component's title, code and text, in order."""
    named = [(u.name, u.title, u.reason and u.reason.code, u.reason and u.reason.text) for u in components]
    return "sha256:" + hashlib.sha256(orjson.dumps(named)).hexdigest()


class Titled(Protocol):
    """What a reason can be of: a component, or a feature of several."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def reason(self) -> Reason | None: ...


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """The components, by number, that are one reason: all that have its code, or a single one without a reason text."""

    title: str
    reason: Reason | None
    places: tuple[int, ...]
