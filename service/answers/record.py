"""The record of an explanation: what the ledger holds of it, written once and read back as a typed value.

It has two parts. What is in clear is kept for ever. The personal part is sealed, and destroyed when the person is
erased: the input and the answer to it, whom it concerns, and every digest that a guess of these could be tested
against.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, WithJsonSchema

from service.access.callers import Caller
from service.access.visibility import ABSENT, ALWAYS, OWN_PARTS, PARTS, Absent, Item
from service.answers.encoding import encode
from service.answers.explanation import IN_CLEAR, Answered, Explained
from service.answers.items import RecordedBaseline, RecordedNoise
from service.answers.reasons import texts_digest
from service.catalog.inputs.kind import Places, Row
from service.catalog.outputs.predictions import AnyPrediction
from service.catalog.versions import ModelVersion
from service.domain import SCHEMA, Context, Continuation, Contrast, Explanation, Plan, PlanTarget, Similarity
from service.ledger.entries import Entry


def _or_absent(schema: dict[str, Any]) -> None:
    """Drops the default from the documentation of a field that may be null and may also be absent."""
    schema.pop("default", None)


_TEXT = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})
_WHOLE = WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "null"}]})
_WITHOUT_DEFAULT: Any = _or_absent


class RecordedContrast(Item):
    """Two labels of which the difference is explained."""

    index: Annotated[int, ALWAYS, Field(description="of the label that is explained")]
    rather_than: Annotated[int, ALWAYS, Field(description="the index of the label that it is compared with")]


class RecordedSimilarity(Item):
    """The similarity to an embedding, which is in the personal part: `reference`."""

    measure: Annotated[Literal["cosine", "dot"], ALWAYS, Field(description="the cosine of the angle, or the product")]


RecordedTarget = int | RecordedContrast | RecordedSimilarity


class RecordedContinuation(Item):
    """The text that is explained, by its tokens. It may be of a person, and is part of what is destroyed with them."""

    tokens: tuple[int, ...] = ()
    rather_than: tuple[int, ...] = ()
    per_token: bool = False


class RecordedParameters(Item):
    """What the request asked for, defaults filled in."""

    target: Annotated[
        RecordedTarget | None,
        ALWAYS,
        Field(
            description="the label's or value's index, perhaps with that of another, `rather_than`; the `measure` of a "
            "similarity; null: the predicted, or a continuation, whose tokens are in the personal part"
        ),
    ]
    tolerance: Annotated[float, ALWAYS, Field(description="the largest error accepted")]
    tolerance_of: Annotated[
        str | None, ALWAYS, Field(description="what it is an error of; absent in records made before a choice")
    ] = None
    errors: Annotated[bool | None, ALWAYS, Field(description="whether the error of each attribution was asked for")] = (
        None
    )
    max_evaluations: Annotated[int, ALWAYS, Field(description="the budget, in gradient points")]
    seed: Annotated[int, ALWAYS, Field(description="0 where nothing was drawn")]
    floor: Annotated[float | None, ALWAYS, Field(description="the least change that errors are relative to")]
    options: Annotated[dict[str, Any], ALWAYS, Field(description="the method's, by name")]
    noise: Annotated[RecordedNoise | None, ALWAYS, Field(description="kind, samples and scale of noisy copies")]


class PlaceItem(Item):
    """Where the record stands in the log."""

    sequence: Annotated[int, ALWAYS, Field(description="its row, from 1")]
    leaf: Annotated[
        str, ALWAYS, Field(description="the hash of the record that the tree is built over, in hexadecimal")
    ]
    tombstone: Annotated[int | None, ALWAYS, Field(description="the row of the event that erased the personal part")]


class RecordItem(Explained):
    """All that the ledger holds of an explanation: what was answered, and what it takes to repeat it.

    The personal part is absent after an erasure.
    """

    schema: Annotated[int, ALWAYS, IN_CLEAR, Field(description="of the record; absent in those of schema 1")] = 1
    prediction: Annotated[AnyPrediction | None, OWN_PARTS, Field(description="what the deployed artefact answered")] = (
        None
    )
    parameters: Annotated[RecordedParameters | None, ALWAYS, IN_CLEAR, Field(description="what was asked for")] = None
    policy: Annotated[
        dict[str, Any] | None,
        ALWAYS,
        IN_CLEAR,
        Field(description="what the policy of the key that asked kept back"),
    ] = None
    rule: Annotated[str | None, ALWAYS, IN_CLEAR, Field(description="the quadrature rule that was taken")] = None
    answers_until_deadline: Annotated[
        int | Absent | None,
        ALWAYS,
        IN_CLEAR,
        _WHOLE,
        Field(
            description="rounds of work done when the deadline passed; null where it did not end the explanation",
            json_schema_extra=_WITHOUT_DEFAULT,
        ),
    ] = ABSENT
    manifest: Annotated[str | None, ALWAYS, IN_CLEAR, Field(description="the SHA-256 of the manifest")] = None
    reason_texts: Annotated[
        str | Absent | None,
        ALWAYS,
        IN_CLEAR,
        _TEXT,
        Field(description="the version of the reason texts: their digest", json_schema_extra=_WITHOUT_DEFAULT),
    ] = ABSENT
    environment: Annotated[
        dict[str, str] | None,
        ALWAYS,
        IN_CLEAR,
        Field(description="versions and settings that numbers depend on"),
    ] = None
    input: Annotated[Any, ALWAYS, Field(description="the input: by feature name, or a flat list")] = None
    subject: Annotated[
        str | Absent | None,
        ALWAYS,
        _TEXT,
        Field(description="the person, from the request's context", json_schema_extra=_WITHOUT_DEFAULT),
    ] = ABSENT
    decision_id: Annotated[
        str | Absent | None,
        ALWAYS,
        _TEXT,
        Field(description="the decision, from the request's context", json_schema_extra=_WITHOUT_DEFAULT),
    ] = ABSENT
    cohort: Annotated[dict[str, str], ALWAYS, Field(description="tags, from the request's context")]
    personal_commitment: Annotated[
        str | None, ALWAYS, Field(description="the SHA-256 of the personal part, which the leaf holds")
    ] = None
    created: Annotated[int, ALWAYS, Field(description="microseconds since the epoch, UTC")]
    tenant: Annotated[str, ALWAYS, Field(description="whose it is")]
    key_id: Annotated[str, ALWAYS, Field(description="of the key that asked")]
    retention: Annotated[str, ALWAYS, Field(description="the class that says how long the personal part is kept")]
    ledger: Annotated[PlaceItem, PARTS, Field(description="where the record stands in the log")]


class DamagedItem(Item):
    """What is shown in the place of a record that was changed behind the ledger's back and cannot be read any more."""

    id: Annotated[str, ALWAYS, Field(description="of the explanation")]
    ledger: Annotated[PlaceItem, ALWAYS, Field(description="where the record stands in the log")]
    damaged: Annotated[Literal[True], ALWAYS, Field(description="the record is not what was written; verify the log")]


class RecordedRow(Item):
    """The row of a baseline that came with the request, None for a set; and the digest of either."""

    row: tuple[float, ...] | None
    digest: str


class Personal(Item):
    """The personal part of a record, as far as repeating the explanation needs it.

    `content` is the whole of it, from which the kind of input reads the row that it wrote. `reference` is what a target
    refers to: the embedding that the input is to be similar to.
    """

    plan_digest: str
    baseline: RecordedRow
    reference: tuple[float, ...] | None = None
    continuation: RecordedContinuation | None = None
    content: Mapping[str, Any]


@cache
def in_clear(kind: type) -> frozenset[str]:
    """The fields of an answer or a record that are kept in clear."""
    hints = get_type_hints(kind, include_extras=True)
    return frozenset(name for name, hint in hints.items() if IN_CLEAR in getattr(hint, "__metadata__", ()))


def ledger_entry(
    version: ModelVersion,
    plan: Plan,
    plan_digest: str,
    explanation: Explanation,
    prediction: AnyPrediction,
    answer: Answered,
    caller: Caller,
    context: Context,
    places: Places | None = None,
    job_row: tuple[str, int] | None = None,
) -> Entry:
    """The record of one explanation, serialised once."""
    content = vars(answer)
    target = plan.target
    clear = in_clear(Answered) - ({"target"} if answer.continuation else set())
    personal = {
        **version.manifest.inputs.to_record(Row(plan.input, places)),
        "baseline": RecordedRow(row=plan.baseline.row, digest=plan.baseline.digest),
        "plan_digest": plan_digest,
        **({"continuation": RecordedContinuation(**vars(target))} if isinstance(target, Continuation) else {}),
        "answer": {name: value for name, value in content.items() if name not in clear} | {"prediction": prediction},
    }
    if isinstance(plan.target, Similarity):
        personal["reference"] = plan.target.reference
    is_inline = plan.baseline.row is not None
    record = {
        **{name: value for name, value in content.items() if name in clear},
        "schema": SCHEMA,
        "baseline": RecordedBaseline(name=plan.baseline.name, size=1) if is_inline else answer.baseline,
        "parameters": _parameters(plan),
        "policy": caller.policy.written(),
        "rule": explanation.rule,
        "answers_until_deadline": explanation.answers,
        "manifest": version.manifest_digest,
        "reason_texts": None if answer.reasons is None else texts_digest(version.manifest),
        "environment": {**(version.environment or {}), "chunk_rows": explanation.chunk_rows},
    }
    return Entry(
        id=answer.id,
        tenant=caller.tenant,
        created=time.time_ns() // 1000,
        model=plan.model.name,
        version=plan.model.version,
        method=plan.method,
        converged=explanation.converged,
        key_id=caller.key_id,
        record=encode(record, sorted_names=True),
        personal=encode(personal),
        label=prediction.recorded_label,
        further_labels=prediction.further_labels,
        decision_id=context.decision_id,
        subject=context.subject,
        cohort=context.cohort,
        flags=answer.flags,
        retention=version.manifest.retention,
        job_row=job_row,
    )


def _parameters(plan: Plan) -> RecordedParameters:
    noise = plan.noise
    return RecordedParameters(
        target=_target(plan.target),
        tolerance=plan.tolerance,
        max_evaluations=plan.max_evaluations,
        seed=plan.seed,
        floor=plan.floor,
        options=dict(plan.options),
        noise=None if noise is None else RecordedNoise(kind=noise.kind.value, samples=noise.samples, scale=noise.scale),
        tolerance_of=plan.tolerance_of.value,
        errors=plan.errors,
    )


def _target(target: PlanTarget | None) -> RecordedTarget | None:
    if isinstance(target, Continuation):
        return None
    if isinstance(target, Contrast):
        return RecordedContrast(index=target.index, rather_than=target.rather_than)
    return RecordedSimilarity(measure=target.measure.value) if isinstance(target, Similarity) else target


def recorded_target_kind(content: Mapping[str, Any]) -> type[RecordedContrast | RecordedSimilarity]:
    """Which of the kinds a recorded target that is no index is of."""
    return RecordedSimilarity if "measure" in content else RecordedContrast
