"""Series: the same features at each of several steps, of time say."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from service.catalog.inputs.features import Component, Feature, ReasonGroup, digest_of_reasons, reason_groups
from service.catalog.inputs.kind import PLAIN, Attributions, Detail, InputItem, Inputs, Number, Over, Row
from service.catalog.inputs.removal import Removal, StandIns, blurred
from service.catalog.inputs.table_rows import read_number
from service.catalog.nearest import Searches
from service.catalog.traits import Axis
from service.domain import Floats
from service.errors import MAX_FAULTS, Fault, InvalidRequest, Kind, invalid, pointer_to


class SeriesAttributions(BaseModel):
    """One value for each feature at each step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, int] = Field(description="steps and features")
    features: tuple[str, ...] = Field(description="the names of the features, in their order within a step")
    values: tuple[Number, ...] = Field(description="step by step")
    over_time: tuple[Number, ...] | None = Field(
        None, description="with `over: time`: for each feature the sum over all steps"
    )
    over_feature: tuple[Number, ...] | None = Field(
        None, description="with `over: feature`: for each step the sum over all features"
    )

    @property
    def numbers(self) -> Sequence[float]:
        """The values, then the sums."""
        return (*self.values, *(self.over_time or ()), *(self.over_feature or ()))

    @property
    def detail(self) -> Detail:
        """Which sums there are."""
        if self.over_time is not None:
            return Detail(over=Over.TIME)
        return PLAIN if self.over_feature is None else Detail(over=Over.FEATURE)

    @property
    def structure(self) -> list[Any]:
        """The shape, the names, and which sums there are."""
        return [*self.shape, *self.features, *([] if self.detail.over is None else [self.detail.over.value])]

    def with_values(self, values: Sequence[float]) -> SeriesAttributions:
        """Other values."""
        return SeriesAttributions.model_construct(shape=self.shape, features=self.features, values=tuple(values))

    def keeping(self, components: Collection[int]) -> SeriesAttributions:
        """The same shape, with 0 for what is not kept."""
        return self.with_values([value if at in components else 0.0 for at, value in enumerate(self.values)])

    def to_json(self) -> dict[str, Any]:
        """An object with the shape, the names and the values, and the sums where there are some."""
        sums = {"over_time": self.over_time, "over_feature": self.over_feature}
        return {
            "shape": [*self.shape],
            "features": [*self.features],
            "values": self.values,
            **{name: values for name, values in sums.items() if values is not None},
        }


class SeriesInputs(Inputs):
    """A number for each of `features` at each of `steps`.

    The artefact takes them as `order` says: [steps, features], as recurrent networks do, or [features, steps], as
    convolutions do. Instances and attributions are by step and feature whatever the order.
    """

    kind: Literal["series"]
    tensor: str = ""
    steps: PositiveInt
    features: tuple[Feature, ...] = Field(min_length=1)
    order: Literal["steps first", "features first"] = "steps first"

    @model_validator(mode="after")
    def _consistent(self) -> SeriesInputs:
        names = [feature.name for feature in self.features]
        if len(set(names)) < len(names):
            raise ValueError("two features have the same name")
        for feature in self.features:
            if feature.categories or feature.whole or feature.tensor:
                raise ValueError(f"{feature.name}: features of a series are any numbers of their range, in one tensor")
        return self

    @property
    def axes(self) -> tuple[Axis, ...]:  # type: ignore[override]
        """In the order of the artefact."""
        return (Axis.TIME, Axis.FEATURE) if self.is_steps_first else (Axis.FEATURE, Axis.TIME)

    @property
    def is_steps_first(self) -> bool:
        """Whether the artefact takes [steps, features]."""
        return self.order == "steps first"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input of the artefact."""
        sizes = (self.steps, len(self.features))
        return sizes if self.is_steps_first else sizes[::-1]

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """Every feature at every step, in the order of the artefact."""
        return tuple(
            Component(
                f"{feature.name}[{step}]",
                f"{feature.title}, step {step}",
                feature.protected,
                feature.reason,
                members=(at,),
            )
            for at, (step, feature) in enumerate(self._places)
        )

    @property
    def _places(self) -> list[tuple[int, Feature]]:
        """Step and feature of each number of a row."""
        if self.is_steps_first:
            return [(step, feature) for step in range(self.steps) for feature in self.features]
        return [(step, feature) for feature in self.features for step in range(self.steps)]

    @property
    def component_count(self) -> int:
        """Features times steps."""
        return self.steps * len(self.features)

    @cached_property
    def reason_groups(self) -> tuple[ReasonGroup, ...]:
        """A feature at all of its steps is one reason."""
        return reason_groups((feature.name, feature) for _, feature in self._places)

    @cached_property
    def reason_texts(self) -> str:
        """The version of the reason texts of the features."""
        return digest_of_reasons(self.features)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Each feature's range, at every step."""
        ends = [tuple(feature.range[end] for feature in self.features) for end in (0, 1)]
        low, high = (self._laid_out(one * self.steps) for one in ends)
        return low, high

    def recorded_values(self, attributions: Attributions, row: Row) -> tuple[float, ...]:
        """They are by step, components as the artefact takes them."""
        return self._laid_out(attributions.values)

    @property
    def removals(self) -> tuple[str, ...]:
        """Steps blurred over time too."""
        return (*super().removals, "blur")

    def removal(self, row: Floats, name: str, baselines: Floats, seed: int) -> Removal:
        """A blur runs over the steps of each feature by itself."""
        if name != "blur":
            return super().removal(row, name, baselines, seed)
        laid_out = row.reshape(self.shape)
        by_feature = laid_out.T if self.is_steps_first else laid_out
        over_time = blurred(by_feature[:, None, :]).reshape(by_feature.shape)
        stand_in = over_time.T if self.is_steps_first else over_time
        return StandIns(row, stand_in.reshape(1, -1), self.component_of_values)

    def described(self) -> list[InputItem]:
        """The declaration, without what features of a series cannot have."""
        declared = self.model_dump(
            exclude_none=True, exclude={"features": {"__all__": {"categories", "whole", "tensor"}}}
        )
        return [InputItem(**declared)]

    def read(
        self,
        instance: object,
        folder: Path | None = None,
        searches: Searches | None = None,
    ) -> Row:
        """An instance is a list of steps, each a list of numbers in the order of the features."""
        values = tuple(self._numbers(instance))
        if not any(math.isnan(value) for value in values):
            return Row(self._laid_out(values))
        faults = [*islice(self._faults(instance), MAX_FAULTS)]
        raise InvalidRequest(faults[0].detail, *faults)

    def as_instance(self, values: Sequence[float]) -> list[list[float]]:
        """By step and feature."""
        by_step, width = self._by_step(values), len(self.features)
        return [[*by_step[at : at + width]] for at in range(0, len(by_step), width)]

    def of_numbers(self, values: Sequence[float]) -> Row:
        """The numbers lie as the artefact takes them."""
        return self.read(self.as_instance(values))

    def attributions(
        self,
        values: Sequence[float],
        shape: tuple[int, ...],
        row: Row,
        *,
        detail: Detail = PLAIN,
    ) -> SeriesAttributions:
        """By step and feature."""
        by_step, width = self._by_step(values), len(self.features)
        over_time = over_feature = None
        if detail.over is Over.TIME:
            over_time = tuple(math.fsum(by_step[at::width]) for at in range(width))
        if detail.over is Over.FEATURE:
            over_feature = tuple(math.fsum(by_step[at : at + width]) for at in range(0, len(by_step), width))
        return SeriesAttributions.model_construct(
            shape=(self.steps, width),
            features=tuple(feature.name for feature in self.features),
            values=by_step,
            over_time=over_time,
            over_feature=over_feature,
        )

    def _laid_out(self, by_step: Sequence[float]) -> tuple[float, ...]:
        """Numbers that lie step by step, as the artefact takes them."""
        if self.is_steps_first:
            return tuple(by_step)
        width = len(self.features)
        return tuple(by_step[step * width + at] for at in range(width) for step in range(self.steps))

    def _by_step(self, values: Sequence[float]) -> tuple[float, ...]:
        """Numbers that lie as the artefact takes them, step by step."""
        if self.is_steps_first:
            return tuple(values)
        return tuple(values[at * self.steps + step] for step in range(self.steps) for at in range(len(self.features)))

    def _numbers(self, instance: object) -> Iterator[float]:
        """All numbers, step by step; NaN for what is wrong. Raises InvalidRequest for another shape."""
        if not _is_list(instance) or len(instance) != self.steps:
            detail = f"a series is a list of {self.steps} steps, each a list of {len(self.features)} numbers"
            raise invalid(Kind.WRONG_INSTANCE, "", detail)
        for at, step in enumerate(instance):
            if not _is_list(step) or len(step) != len(self.features):
                detail = f"step {at} must be a list of {len(self.features)} numbers, one for each feature"
                raise invalid(Kind.WRONG_INSTANCE, pointer_to(at), detail)
            for feature, value in zip(self.features, step, strict=True):
                try:
                    yield read_number(feature, value)
                except InvalidRequest:
                    yield math.nan

    def _faults(self, instance: Any) -> Iterator[Fault]:
        for at, step in enumerate(instance):
            for number, (feature, value) in enumerate(zip(self.features, step, strict=True)):
                try:
                    read_number(feature, value)
                except InvalidRequest as error:
                    (fault,) = error.faults
                    yield Fault(fault.kind, pointer_to(at, number), f"step {at}: {fault.detail}")


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
