"""Whole replies that are made of answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.access.visibility import Item
from service.answers.encoding import encode
from service.answers.explanation import ExplanationItem
from service.answers.items import ReasonItem, TimingsItem
from service.answers.record import DamagedItem, RecordItem
from service.catalog.outputs.registry import AnyPrediction

Verdict = Literal["bit_exact", "within_tolerance", "environment_differs", "differs"]


class PredictReply(Item):
    """The predictions, in the order of the instances."""

    predictions: Annotated[tuple[AnyPrediction, ...], Field(description="one for each instance")]


class ExplainReply(Item):
    """The answer, in the order of the instances."""

    predictions: Annotated[tuple[AnyPrediction, ...], Field(description="one for each instance")]
    explanations: Annotated[
        tuple[ExplanationItem | None, ...],
        Field(
            description="one for each instance; with `targets` one for each target of the first instance, in their "
            "order, then those of the second, and so on; null where `when` does not hold"
        ),
    ]


class RememberedReply(Item):
    """What is stored to repeat a reply for an `Idempotency-Key`: the ids of its records, the times it stated, and with
    `when` the numbers of the instances that were explained."""

    ids: tuple[str, ...]
    timings: tuple[TimingsItem, ...]
    explained: tuple[int, ...] | None = None

    def to_mapping(self) -> dict[str, Any]:
        """As a JSON object."""
        kept: dict[str, Any] = orjson.loads(encode(self))
        return kept


class SearchReply(Item):
    """A page of records, the newest first. In the place of one that cannot be read stands what can be said of it."""

    explanations: Annotated[
        tuple[RecordItem | DamagedItem, ...], Field(description="the records that meet all conditions")
    ]
    next_cursor: Annotated[str | None, Field(description="where the next page begins; null after the last")]


class ChangeItem(BaseModel):
    """A value that would be another."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    feature: str = Field(description="its name")
    code: str | None = Field(None, description="of the reason that it belongs to")
    before: float = Field(validation_alias="from", serialization_alias="from", description="the value as it is")
    after: float = Field(validation_alias="to", serialization_alias="to", description="the value as it would be")
    unit: str = Field(description="of both")

    def to_json(self) -> dict[str, Any]:
        """With the names that are keywords of Python."""
        return self.model_dump(by_alias=True, exclude_none=True)


class HintItem(Item):
    """The smallest change on the way to the baseline after which the answer is not adverse, with the features of these
    reasons only; or why there is none."""

    found: Annotated[bool, Field(description="whether there is one")]
    label: Annotated[
        str | None, Field(description="what the model answers then: labels, or that a value is not beyond its bound")
    ] = None
    step: Annotated[float | None, Field(description="the share of the way to the baseline")] = None
    changes: Annotated[tuple[ChangeItem, ...] | None, Field(description="the values that are others then")] = None
    note: Annotated[str | None, Field(description="what the hint is, and what it is not")] = None
    why: Annotated[str | None, Field(description="why there is none")] = None


class ReasonsReply(Item):
    """The principal reasons of a stored explanation."""

    id: Annotated[str, Field(description="of the explanation")]
    reasons: Annotated[tuple[ReasonItem, ...], Field(description="the strongest first")]
    reason_texts: Annotated[str | None, Field(description="the version of the reason texts: their digest")] = None
    counterfactual: Annotated[HintItem | None, Field(description="absent for a key whose policy limits values")] = None


class DifferenceItem(Item):
    """Something that the numbers depend on and that is not what it was when they were recorded."""

    what: Annotated[str, Field(description="`artefact`, `baseline`, `manifest`, or `environment.` and a name")]
    recorded: Annotated[str | None, Field(description="what it was")] = None
    now: Annotated[
        str | None,
        Field(description="what it is here and now; of a set that lost rows of an erased person, or all: `erased`"),
    ] = None


class ReplayReply(Item):
    """The verdict. Without `numbers` and `max_difference` nothing was computed: what it takes is no longer here."""

    id: Annotated[str, Field(description="of the explanation")]
    verdict: Annotated[Verdict, Field(description="what came of it, as the operation says")]
    numbers: Annotated[Literal["equal", "within_tolerance", "differ"] | None, Field(description="how they compare")] = (
        None
    )
    max_difference: Annotated[float | None, Field(description="the largest absolute difference of two numbers")] = None
    fields: Annotated[tuple[str, ...], Field(description="the parts of the explanation that differ")]
    differences: Annotated[
        tuple[DifferenceItem, ...], Field(description="what the numbers depend on and is not what it was")
    ]
