"""Values: one or several numbers, each with a name and a unit, as of a regression or a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from service.access.visibility import ALWAYS, OUTPUTS_BY_NAME, Item
from service.catalog.outputs.kind import (
    PREDICTED,
    SHARE_OF_SPREAD,
    TRUNCATED,
    BoundItem,
    KnownOutputs,
    OutputKind,
    Outputs,
    OutputsItem,
    PredictionItem,
    Space,
    ValueItem,
    are_finite,
)
from service.domain import Floats, OutputSpace, PlanTarget, Target
from service.numerics.links import IDENTITY, Link
from service.wording import number_of

MIN_SHARE = 1e-6
"""The share of the largest output over the baseline set below which differences are rounding: ten times float32's."""
MIN_FLOOR = 1e-30


class Value(BaseModel):
    """One number, with its unit; `1` for none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    unit: str = "1"
    title: str = ""


class Bound(BaseModel):
    """The bound beyond which a value is bad news: `above` or `below` a number. `value` names it where there are
    several."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: FiniteFloat | None = None
    below: FiniteFloat | None = None
    value: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Bound:
        if (self.above is None) == (self.below is None):
            raise ValueError("adverse is one bound: either `above` or `below` a number")
        return self

    def holds(self, value: float) -> bool:
        """Whether the value is beyond the bound."""
        return value > self.above if self.above is not None else value < (self.below or 0.0)

    @property
    def text(self) -> str:
        """As people are told it."""
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


class ValuesPrediction(PredictionItem):
    """The values that the deployed artefact answers."""

    values: Annotated[
        dict[str, float],
        OUTPUTS_BY_NAME,
        Field(description="each by its name; empty where they are not finite, or not shown"),
    ]
    units: Annotated[dict[str, str], ALWAYS, Field(description="of the values, by name; `1` for none")]
    output_space: Annotated[Space, ALWAYS, Field(description="what the values are told in")]
    truncated: Annotated[bool | None, ALWAYS, TRUNCATED] = None


class ValueTarget(Item):
    """The value that is explained."""

    index: Annotated[int, ALWAYS, Field(description="its place among the model's values, from 0")]
    value: Annotated[str, ALWAYS, Field(description="its name")]
    unit: Annotated[str, ALWAYS, Field(description="of the value, and so of its attributions; `1` for none")]

    @property
    def text(self) -> str:
        """As people are told it."""
        return self.value


class Values(OutputKind):
    """The network outputs the values themselves. `adverse` says beyond which bound one of them is bad news."""

    noun: ClassVar[str] = "value"
    network_noun: ClassVar[str] = "numbers"
    spaces: ClassVar[tuple[OutputSpace, ...]] = (OutputSpace.VALUE,)
    network_space: ClassVar[OutputSpace] = OutputSpace.VALUE
    network_link: ClassVar[Link] = IDENTITY

    kind: Literal["values"]
    values: tuple[Value, ...] = Field(min_length=1)
    adverse: Bound | None = None
    default_space: OutputSpace = OutputSpace.VALUE

    @model_validator(mode="after")
    def _consistent(self) -> Values:
        self._check_names(self.names)
        if self.adverse is not None:
            if self.adverse.value is None and len(self.values) > 1:
                raise ValueError(f"adverse: there are several values; name one of {', '.join(self.names)} as `value`")
            if self.adverse.value not in {*self.names, None}:
                raise ValueError(f"adverse: {self.adverse.value!r} is not among the values")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.values)

    @property
    def _adverse_index(self) -> int:
        named = None if self.adverse is None else self.adverse.value
        return 0 if named is None else self.names.index(named)

    def parity_scale(self, deployed: NDArray[np.floating]) -> NDArray[np.floating] | float:
        """Each value's largest magnitude: differences are relative to that, whether values are millions or
        thousandths."""
        largest: NDArray[np.floating] = np.abs(deployed).max(axis=0)
        return np.where(largest > 0, largest, 1.0)

    def read_target(self, requested: object) -> Target | None:
        if isinstance(requested, Mapping):
            raise self._no_contrast(f"these are values, so name one of them: {', '.join(self.names)}")
        if requested == PREDICTED:
            if len(self.values) > 1 and (self.adverse is None or self.adverse.value is None):
                raise self._unknown(f"target is missing: name one of the values {', '.join(self.names)}")
            return self._adverse_index
        return self._index(requested)

    @property
    def usual_target(self) -> str:
        return self.names[self._adverse_index]

    def adverse_sign(self, target: Target) -> int | None:
        if self.adverse is None or target != self._adverse_index:
            return None
        return 1 if self.adverse.above is not None else -1

    def target_item(self, target: Target) -> ValueTarget:
        assert isinstance(target, int)
        return ValueTarget(index=target, value=self.values[target].name, unit=self.values[target].unit)

    def prediction_item(
        self, outputs: Outputs | None, space: OutputSpace, truncated: bool | None = None
    ) -> ValuesPrediction:
        answered = outputs if outputs is not None and are_finite(outputs) else ()
        return ValuesPrediction(
            values=dict(zip(self.names, answered, strict=False)),
            units={value.name: value.unit for value in self.values},
            output_space=space.value,
            truncated=truncated,
        )

    def decision(self, outputs: Outputs, space: OutputSpace) -> str | None:
        if self.adverse is None:
            return None
        name = self.names[self._adverse_index]
        return f"{name} {'' if self.is_adverse(outputs, space) else 'not '}{self.adverse.text}"

    def is_adverse(self, outputs: Outputs, space: OutputSpace) -> bool:  # noqa: ARG002
        return self.adverse is not None and self.adverse.holds(outputs[self._adverse_index])

    def default_floor(self, space: OutputSpace, over_baselines: Floats, target: PlanTarget) -> float:  # noqa: ARG002
        """A hundredth of the spread over the baseline set, but no less than the rounding of such values in float32."""
        spread = float(over_baselines.max() - over_baselines.min())
        return max(SHARE_OF_SPREAD * spread, MIN_SHARE * float(np.abs(over_baselines).max()), MIN_FLOOR)

    def check_quantity(self, quantity: str, of: str | None) -> None:
        if quantity != "value":
            raise ValueError(f"`{quantity}` is not told of values; they have `value`")
        if of is None and len(self.values) > 1:
            raise ValueError(f"there are several values: say which, as in value({self.names[0]})")
        if of is not None and of not in self.names:
            raise ValueError(f"value({of}): the values are {', '.join(self.names)}")

    def quantity(
        self,
        quantity: str,  # noqa: ARG002 - the only one
        of: str | None,
        outputs: Outputs,
        space: OutputSpace,  # noqa: ARG002
    ) -> float | None:
        return outputs[0 if of is None else self.names.index(of)]

    def labels_of(self, outputs: Outputs, space: OutputSpace) -> frozenset[str]:  # noqa: ARG002
        return frozenset()

    @classmethod
    def usual_names(cls, count: int) -> tuple[str, ...]:
        return ("value",) if count == 1 else super().usual_names(count)

    @classmethod
    def declaration(cls, known: KnownOutputs) -> dict[str, Any]:
        if known.units and len(known.units) != len(known.names):
            raise ValueError(
                f"the model has {number_of(len(known.names), 'value')}, and {number_of(len(known.units), 'unit')} "
                "were named; name one for each, `1` for none"
            )
        units = known.units or ("1",) * len(known.names)
        values = [{"name": name, "unit": unit} for name, unit in zip(known.names, units, strict=True)]
        bound = {} if known.adverse is None else {"adverse": cls._bound(known.names, known.adverse)}
        return {"kind": "values", "values": values, **bound, "tensors": dict(known.tensors)}

    @classmethod
    def _bound(cls, names: Sequence[str], adverse: str) -> dict[str, Any]:
        """The bound that `above 0.5`, `below 600` or `price above 0.5` says. Raises ValueError."""
        *name, side, number = adverse.split() if len(adverse.split()) > 1 else ("", "")
        value = " ".join(name)
        example = f"{names[0]} above 0.5" if len(names) > 1 else "above 0.5"
        if side not in {"above", "below"} or (value and value not in names) or (not value and len(names) > 1):
            raise ValueError(f"{adverse!r} says nothing of a value; bad news is said as in {example!r}")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise ValueError(f"{adverse!r}: {number!r} is no number; bad news is said as in {example!r}") from None
        return {side: bound, **({"value": value} if value else {})}

    def comparison_obstacle(self, other: OutputKind) -> str | None:
        obstacle = super().comparison_obstacle(other)
        if obstacle is not None or not isinstance(other, Values):
            return obstacle
        if [value.unit for value in self.values] != [value.unit for value in other.values]:
            return "have values in different units"
        return None if self.usual_target == other.usual_target else "name different values as adverse"

    def described(self) -> OutputsItem:
        bound = self.adverse
        return OutputsItem(
            kind=self.kind,
            values=[ValueItem(name=value.name, unit=value.unit, title=value.title) for value in self.values],
            adverse=None if bound is None else BoundItem(above=bound.above, below=bound.below, value=bound.value),
            spaces=[space.value for space in self.spaces],
            default_space=self.default_space.value,
        )
