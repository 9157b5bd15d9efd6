"""Rows of a table: a value for each feature, some of which are explained in groups."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, RootModel, model_validator

from service.catalog.inputs.encodings import Encoding, TableEncoding, one_hot
from service.catalog.inputs.features import (
    Category,
    Component,
    Feature,
    Group,
    ReasonGroup,
    digest_of_reasons,
    reason_groups,
)
from service.catalog.inputs.kind import PLAIN, ZEROS, Detail, InputItem, Inputs, Number, Row
from service.catalog.inputs.removal import Mask
from service.catalog.inputs.table_rows import read_row
from service.catalog.nearest import Searches
from service.catalog.traits import Axis
from service.domain import Floats, RowType
from service.errors import CatalogError, InvalidRequest


class FeatureAttributions(RootModel[dict[str, Number]]):
    """By the name of the feature, or of the group."""

    model_config = ConfigDict(frozen=True)

    @property
    def values(self) -> list[float]:
        """In the order in which they were written: that of the components."""
        return list(self.root.values())

    @property
    def numbers(self) -> list[float]:
        """In the order of their names."""
        return [self.root[name] for name in self.structure]

    @property
    def detail(self) -> Detail:
        """Nothing more."""
        return PLAIN

    @property
    def structure(self) -> list[str]:
        """The names."""
        return sorted(self.root)

    def with_values(self, values: Sequence[float]) -> FeatureAttributions:
        """Other values."""
        return FeatureAttributions.model_construct(dict(zip(self.root, values, strict=True)))

    def keeping(self, components: Collection[int]) -> FeatureAttributions:
        """Those of some features; the others are left out."""
        return FeatureAttributions.model_construct(
            {name: value for at, (name, value) in enumerate(self.root.items()) if at in components}
        )

    def to_json(self) -> dict[str, float]:
        """An object by name."""
        return self.root


class TabularInputs(Inputs):
    """A table row: a value for each of `features`, in their order, some of which are explained in `groups`.

    `tensor` is an ONNX graph's name for it; where it has several inputs, each feature names its own.
    """

    kind: Literal["tabular"]
    axes: ClassVar[tuple[Axis, ...]] = (Axis.FEATURE,)
    is_read_at_once: ClassVar[bool] = True
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
        of_components = [*names.difference(grouped), *(group.name for group in self.groups)]
        if len(set(of_components)) < len(of_components):
            raise ValueError("a group has the name of a feature, or of another group")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """What gets one attribution each, in the order of the features; a group stands where its first member does."""
        group_of = {member: group for group in self.groups for member in group.members}
        components: dict[str, Component] = {}
        for number, feature in enumerate(self.features):
            group = group_of.get(feature.name)
            if group is None:
                components[feature.name] = Component(
                    feature.name, feature.title, feature.protected, feature.reason, members=(number,)
                )
            elif group.name not in components:
                members = tuple(at for at, name in enumerate(self.names) if name in group.members)
                protected = group.protected or any(self.features[at].protected for at in members)
                components[group.name] = Component(group.name, group.title, protected, group.reason, members)
        return tuple(components.values())

    @cached_property
    def reason_groups(self) -> tuple[ReasonGroup, ...]:
        """What may be a principal reason, in the order of the first component of each."""
        return reason_groups((component.name, component) for component in self.components)

    @cached_property
    def reason_texts(self) -> str:
        """The version of the reason texts: the digest of every component's title, code and text, in order."""
        return digest_of_reasons(self.components)

    @cached_property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The inputs of the graph, in the order of the features, and which features each takes."""
        taken: dict[str, list[int]] = {}
        for number, feature in enumerate(self.features):
            taken.setdefault(feature.tensor or self.tensor, []).append(number)
        return {tensor: tuple(numbers) for tensor, numbers in taken.items()}

    @cached_property
    def ranges_of_fractions(self) -> tuple[tuple[float, float], ...]:
        """The range within which any float is a valid value; empty for a category or a whole number, which need a
        check."""
        nothing = (math.inf, -math.inf)
        return tuple(nothing if f.categories or f.whole else f.range for f in self.features)

    @cached_property
    def has_categories(self) -> bool:
        """Whether some feature is a category."""
        return any(feature.categories for feature in self.features)

    @property
    def named_features(self) -> tuple[Feature, ...]:
        """All features."""
        return self.features

    @property
    def component_count(self) -> int:
        """Features, or groups of them."""
        return len(self.components)

    @property
    def identity(self) -> list[object]:
        """With categories, what their numbers mean too."""
        categories = [feature.categories for feature in self.features] if self.has_categories else []
        return [*super().identity, *categories]

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Those of the features, or the one that takes them all."""
        return tuple(self.tensors)

    @property
    def own_baseline(self) -> str | None:
        """Zeros, where no feature is a category."""
        return None if self.has_categories else ZEROS

    @property
    def mean_is_row(self) -> bool:
        """Not where there are categories: their mean is not a category."""
        return not self.has_categories

    def described(self) -> list[InputItem]:
        """The features, each with the group whose attributions it is summed into, if there is one."""
        component_of = {number: component for component in self.components for number in component.members}
        return [_described(feature, component_of[number]) for number, feature in enumerate(self.features)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: (features,)."""
        return (len(self.features),)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The ends of each feature's range."""
        return tuple(f.range[0] for f in self.features), tuple(f.range[1] for f in self.features)

    def random_rows(self, count: int, row_type: RowType) -> NDArray[np.floating]:
        """Categories and whole numbers are whole."""
        rows = super().random_rows(count, row_type)
        whole = [at for at, feature in enumerate(self.features) if feature.categories or feature.whole]
        rows[:, whole] = np.rint(rows[:, whole])
        return rows

    def nearest_row(self, values: Floats, rows: Floats) -> Floats:
        """Whole numbers rounded, and of a category the most frequent."""
        nearest = values.copy()
        for at, feature in enumerate(self.features):
            if feature.categories:
                nearest[at] = np.bincount(rows[:, at].astype(np.intp)).argmax()
            elif feature.whole:
                nearest[at] = np.rint(values[at])
        return nearest

    def continuous(self, row: Floats) -> Mask:
        """Those without categories and whole numbers."""
        fixed = {at for at, feature in enumerate(self.features) if feature.categories or feature.whole}
        return np.array([fixed.isdisjoint(component.members) for component in self.components])

    @property
    def imputed(self) -> dict[str, float]:
        """Of numbers; a category that stands for what is missing is never NaN."""
        return {f.name: float(f.missing) for f in self.features if f.missing is not None and not f.categories}

    @property
    def encoding(self) -> TableEncoding | None:
        """One-hot columns for categories; None without any."""
        if not self.has_categories:
            return None
        return self.encoding_by([one_hot(feature) if feature.categories else None for feature in self.features])

    def encoding_by(self, tables: Sequence[Floats | None]) -> TableEncoding:
        """The encoding by one entry a feature."""
        low, high = (np.array(limit) for limit in self.bounds)
        return TableEncoding(tables, low, high)

    def components_of_columns(self, encoding: Encoding | None) -> tuple[int, ...]:
        """A feature and its category's columns are of one component, and a group's features."""
        widths = encoding.widths if isinstance(encoding, TableEncoding) else [1] * len(self.features)
        component_of = {
            feature: number for number, component in enumerate(self.components) for feature in component.members
        }
        numbers = tuple(component_of[feature] for feature, width in enumerate(widths) for _ in range(width))
        return () if len(self.components) == sum(widths) else numbers

    def is_comparable_with(self, other: Inputs) -> bool:
        """Tables are, by the features that both have."""
        return self.kind == other.kind

    def of_numbers(self, values: Sequence[float]) -> Row:
        """A category is its place."""
        return self.read([self._as_sent(feature, value) for feature, value in zip(self.features, values, strict=True)])

    @staticmethod
    def _as_sent(feature: Feature, number: float) -> Category | float | None:
        if math.isnan(number):
            return None
        if feature.categories and number not in range(len(feature.categories)):
            last = feature.range[1]
            raise InvalidRequest(f"{feature.name} is {number:g}; its categories have the places 0 to {last:g}")
        return feature.value_of(number)

    def read(
        self,
        instance: object,
        folder: Path | None = None,
        searches: Searches | None = None,
    ) -> Row:
        """An instance is an object by feature name or a list in feature order."""
        return Row(read_row(self, instance, searches or Searches()))

    def as_instance(self, values: Sequence[float]) -> dict[str, Category | float]:
        """By feature name, categories as they are called."""
        if not self.has_categories:
            return dict(zip(self.names, values, strict=True))
        return {feature.name: feature.value_of(value) for feature, value in zip(self.features, values, strict=True)}

    def to_record(self, row: Row) -> dict[str, Any]:
        """By feature name; where there are categories, the `row` of their indices too."""
        personal = {"input": self.as_instance(row.values)}
        return {**personal, "row": row.values} if self.has_categories else personal

    def of_record(self, personal: Mapping[str, Any]) -> Row:
        """Values by name lie in the order of the features, as they were written."""
        values = personal["row"] if "row" in personal else personal["input"]
        return Row(tuple(map(float, values.values() if isinstance(values, Mapping) else values)))

    def of_other_version(self, personal: Mapping[str, Any]) -> Row:
        """The features of the same names; others are left out."""
        values = personal["input"]
        known = {name: values[name] for name in self.names if name in values} if isinstance(values, dict) else values
        return self.read(known)

    def attributions(
        self,
        values: Sequence[float],
        shape: tuple[int, ...],
        row: Row,
        *,
        detail: Detail = PLAIN,
    ) -> FeatureAttributions:
        """By the name of the feature or the group."""
        return FeatureAttributions.model_construct(dict(zip(self.component_names, values, strict=True)))

    def check_rows(self, rows: NDArray[np.floating], file: str) -> None:
        """A category is its place among the feature's."""
        for feature, values in zip(self.features, rows.T, strict=True):
            count, places = len(feature.categories), np.rint(values)
            if count and not ((places == values) & (places >= 0) & (places < count)).all():
                raise CatalogError(
                    f"{file} must hold whole numbers below {count} for {feature.name}: the places of its categories"
                )


def _described(feature: Feature, component: Component) -> InputItem:
    is_number = not feature.categories
    return InputItem(
        name=feature.name,
        title=feature.title,
        unit=feature.unit if is_number else None,
        range=list(feature.range) if is_number else None,
        categories=list(feature.categories) or None,
        whole=feature.whole or None,
        missing=feature.missing,
        protected=feature.protected or component.protected,
        group=None if component.name == feature.name else component.name,
    )
