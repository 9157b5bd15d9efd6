"""What a prediction and a target say, as replies and records have them: a dataclass for each kind of output.

Another kind has its own here, in the unions at the end and in the two functions that read what was recorded. Fields
with the default None are left out where they are None; the marks say what of them a policy shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from service.access.visibility import ALWAYS, OUTPUTS

Space = Literal["probability", "logit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionItem:
    """What the deployed artefact answers; no label where it answered no finite numbers."""

    label: Annotated[str | None, ALWAYS, Field(description="the label of the largest output")] = None
    index: Annotated[int | None, ALWAYS, Field(description="the label's place among the model's labels, from 0")] = None
    outputs: Annotated[
        tuple[float, ...],
        OUTPUTS,
        Field(description="one for each label; empty where they are not finite, or not shown"),
    ]
    output_space: Annotated[Space, ALWAYS, Field(description="what the outputs are")]
    truncated: Annotated[
        bool | None, ALWAYS, Field(description="true where a text or a file was longer than the model takes")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetItem:
    """The label whose output is explained."""

    index: Annotated[int, ALWAYS, Field(description="its place among the model's labels, from 0")]
    label: Annotated[str, ALWAYS, Field(description="its name")]


AnyPrediction = PredictionItem
AnyTarget = TargetItem


def prediction_kind(_content: Mapping[str, Any]) -> type[AnyPrediction]:
    """Which of the kinds a recorded prediction is of."""
    return PredictionItem


def target_kind(_content: Mapping[str, Any]) -> type[AnyTarget]:
    """Which of the kinds a recorded target is of."""
    return TargetItem
