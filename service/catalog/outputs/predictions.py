"""What a prediction and a target say, as replies and records have them: a dataclass for each kind of output.

Another kind has its own here, in the unions at the end and in the two functions that read what was recorded. Fields
with the default None are left out where they are None; the marks say what of them a policy shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from service.access.visibility import ALWAYS, OUTPUTS, OUTPUTS_BY_NAME

Space = Literal["probability", "logit", "value"]

_SPACE = Field(description="what the outputs are")
_TRUNCATED = Field(description="true where a text or a file was longer than the model takes")
_OUTPUTS = Field(description="one for each label; empty where they are not finite, or not shown")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrediction:
    """What a model of classes answers; no label where it answered no finite numbers."""

    label: Annotated[str | None, ALWAYS, Field(description="the label of the largest output")] = None
    index: Annotated[int | None, ALWAYS, Field(description="the label's place among the model's labels, from 0")] = None
    outputs: Annotated[tuple[float, ...], OUTPUTS, _OUTPUTS]
    output_space: Annotated[Space, ALWAYS, _SPACE]
    truncated: Annotated[bool | None, ALWAYS, _TRUNCATED] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsPrediction:
    """What a model of several labels at once answers."""

    label: Annotated[str | None, ALWAYS, Field(description="the likeliest of the labels")] = None
    labels: Annotated[tuple[str, ...], ALWAYS, Field(description="those over their thresholds, the likeliest first")]
    outputs: Annotated[tuple[float, ...], OUTPUTS, _OUTPUTS]
    output_space: Annotated[Space, ALWAYS, _SPACE]
    truncated: Annotated[bool | None, ALWAYS, _TRUNCATED] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesPrediction:
    """What a model of values answers."""

    values: Annotated[
        dict[str, float],
        OUTPUTS_BY_NAME,
        Field(description="each by name; empty where they are not finite, or not shown"),
    ]
    units: Annotated[dict[str, str], ALWAYS, Field(description="of the values, by name")]
    output_space: Annotated[Space, ALWAYS, _SPACE]
    truncated: Annotated[bool | None, ALWAYS, _TRUNCATED] = None

    @property
    def label(self) -> None:
        """There is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTarget:
    """The label whose output is explained, or the difference of two."""

    index: Annotated[int, ALWAYS, Field(description="its place among the model's labels, from 0")]
    label: Annotated[str, ALWAYS, Field(description="its name")]
    rather_than: Annotated[
        str | None, ALWAYS, Field(description="the label whose output is taken away from this one's")
    ] = None

    @property
    def text(self) -> str:
        """As people are told it."""
        return self.label if self.rather_than is None else f"{self.label} rather than {self.rather_than}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTarget:
    """The value that is explained."""

    index: Annotated[int, ALWAYS, Field(description="its place among the model's values, from 0")]
    value: Annotated[str, ALWAYS, Field(description="its name")]
    unit: Annotated[str, ALWAYS, Field(description="its unit, which attributions are in; `1` for none")]

    @property
    def text(self) -> str:
        """As people are told it."""
        return self.value


AnyPrediction = ClassPrediction | LabelsPrediction | ValuesPrediction
AnyTarget = LabelTarget | ValueTarget


def prediction_kind(content: Mapping[str, Any]) -> type[AnyPrediction]:
    """Which of the kinds a recorded prediction is of."""
    if "values" in content:
        return ValuesPrediction
    return LabelsPrediction if "labels" in content else ClassPrediction


def target_kind(content: Mapping[str, Any]) -> type[AnyTarget]:
    """Which of the kinds a recorded target is of."""
    return ValueTarget if "value" in content else LabelTarget
