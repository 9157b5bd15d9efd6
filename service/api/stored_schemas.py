"""The shapes of stored explanations: records, pages of them, and their reasons."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import Explained, ModelItem, PredictionItem, ReasonItem, Space, TargetItem


class RecordedBaseline(BaseModel):
    """The baseline. Of a row that came with the request the digest is in the personal part, where a guess of the row
    cannot be tried against it."""

    name: str = Field(description="of the set, or `inline`, `zeros` or `mask`")
    version: str | None = Field(None, description="of the set")
    digest: str | None = Field(None, description="the SHA-256 of the set's file")
    size: int = Field(description="rows")


class RecordedParameters(BaseModel):
    """What the request asked for, defaults filled in."""

    target: int | dict[str, int] | None = Field(
        description="the index of the label or value, with what it is explained `rather_than`; null: the predicted one"
    )
    tolerance: float = Field(description="the largest error accepted")
    tolerance_of: str | None = Field(None, description="what it is an error of; absent in records made before a choice")
    errors: bool | None = Field(None, description="whether the error of each attribution was asked for")
    max_evaluations: int = Field(description="the budget, in gradient points")
    seed: int = Field(description="0 where nothing was drawn")
    floor: float | None = Field(description="the least change that errors are relative to")
    options: dict[str, Any] = Field(description="the method's, by name")
    noise: dict[str, Any] | None = Field(description="kind, samples and scale of noisy copies")


class PlaceItem(BaseModel):
    """Where the record stands in the log."""

    sequence: int = Field(description="its row, from 1")
    leaf: str = Field(description="the hash of the record that the tree is built over, in hexadecimal")
    tombstone: int | None = Field(description="the row of the event that erased the personal part")


class RecordItem(Explained):
    """All that the ledger holds of an explanation: what was answered, and what it takes to repeat it.

    The personal part is absent after an erasure.
    """

    model_config = ConfigDict(extra="allow")  # records of earlier versions

    model: ModelItem | None = Field(None, description="what answered")
    target: TargetItem | None = Field(None, description="what was explained")
    output_space: Space | None = Field(None, description="what the outputs are")
    converged: bool | None = Field(None, description="whether the tolerance was met")
    evaluations: int | None = Field(None, description="gradient points spent")
    flags: list[str] | None = Field(None, description="the review rules that fired")
    cached: bool | None = Field(None, description="whether it was computed earlier")
    baseline: RecordedBaseline | None = Field(None, description="what the input is compared with")
    parameters: RecordedParameters | None = Field(None, description="what was asked for")
    policy: dict[str, Any] | None = Field(None, description="what the policy of the key that asked kept back")
    rule: str | None = Field(None, description="the quadrature rule that was taken")
    answers_until_deadline: int | None = Field(None, description="rounds of work done when the deadline passed")
    manifest: str | None = Field(None, description="the SHA-256 of the manifest")
    reason_texts: str | None = Field(None, description="the version of the reason texts: their digest")
    environment: dict[str, str] | None = Field(None, description="versions and settings that numbers depend on")
    prediction: PredictionItem | None = Field(None, description="what the deployed artefact answered")
    input: Any = Field(None, description="the input: by feature name, or a flat list")
    subject: str | None = Field(None, description="the person, from the request's context")
    decision_id: str | None = Field(None, description="the decision, from the request's context")
    cohort: dict[str, str] = Field(description="tags, from the request's context")
    personal_commitment: str | None = Field(None, description="the SHA-256 of the personal part, which the leaf holds")
    created: int = Field(description="microseconds since the epoch, UTC")
    tenant: str = Field(description="whose it is")
    key_id: str = Field(description="of the key that asked")
    retention: str = Field(description="the class that says how long the personal part is kept")
    ledger: PlaceItem = Field(description="where the record stands in the log")


class SearchReply(BaseModel):
    """A page of records, the newest first."""

    explanations: list[RecordItem] = Field(description="the records that meet all conditions")
    next_cursor: str | None = Field(description="where the next page begins; null after the last")


class ChangeItem(BaseModel):
    """A value that would be another."""

    feature: str = Field(description="its name")
    code: str | None = Field(None, description="of the reason that it belongs to")
    before: float = Field(alias="from", description="the value as it is")
    after: float = Field(alias="to", description="the value as it would be")
    unit: str = Field(description="of both")


class HintItem(BaseModel):
    """The smallest change on the way to the baseline that changes the label, with the features of these reasons only;
    or why there is none."""

    found: bool = Field(description="whether there is one")
    label: str | None = Field(None, description="what the model answers then")
    step: float | None = Field(None, description="the share of the way to the baseline")
    changes: list[ChangeItem] | None = Field(None, description="the values that are others then")
    note: str | None = Field(None, description="what the hint is, and what it is not")
    why: str | None = Field(None, description="why there is none")


class ReasonsReply(BaseModel):
    """The principal reasons of a stored explanation."""

    id: str = Field(description="of the explanation")
    reasons: list[ReasonItem] = Field(description="the strongest first")
    reason_texts: str | None = Field(None, description="the version of the reason texts: their digest")
    counterfactual: HintItem | None = Field(None, description="absent for a key whose policy limits values")
