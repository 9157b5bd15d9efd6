"""An explanation as it is answered and recorded, and how it is made from what a worker computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from service.access.visibility import (
    ALWAYS,
    BY_COMPONENT,
    ERROR,
    ERRORS_BY_COMPONENT,
    FIRST_PARTS,
    JOINT,
    JOINT_PARTS,
    OUTPUT,
    PARTS,
    WITHHELD,
    Item,
)
from service.answers.items import (
    BaselineItem,
    DisclosureItem,
    GroupItem,
    ModelItem,
    NoiseItem,
    ReasonItem,
    RecordedBaseline,
    SegmentItem,
    StabilityItem,
    TimingsItem,
)
from service.answers.reasons import principal_reasons
from service.catalog.inputs.kind import PLAIN, Detail, Places, Row
from service.catalog.inputs.registry import AnyAttributions
from service.catalog.inputs.segments import SegmentOfRow
from service.catalog.manifest import Manifest
from service.catalog.outputs.kind import Space, TokenItem
from service.catalog.outputs.registry import AnyTarget
from service.catalog.versions import ModelVersion
from service.domain import Explanation, GroupShare, NoiseKind, Plan
from service.methods.registry import BY_NAME
from service.monitoring.review import flags_of

MAX_ERROR_OF_REASONS = 0.1
"""With a larger completeness error an explanation gives no reasons, and has no protected share."""

IN_CLEAR = "in_clear"
"""Marks the fields of an answer that the record holds in clear, and so for ever. The others reveal more of the person:
the model's outputs, attributions, errors that a guess of the input could be tested against. The fields in clear reveal
something too: the explained label, which by default is the predicted one (the ledger's column has it too), the flags,
and how many points the row took."""


class ContinuationItem(TokenItem):
    """A token of the explained continuation; with `per_token` what in the prompt its own log-probability rests on."""

    attributions: Annotated[
        AnyAttributions | None, BY_COMPONENT, Field(description="by token of the prompt, of this token alone")
    ] = None
    completeness_error: Annotated[float | None, ERROR, Field(description="as of the whole")] = None
    attribution_error: Annotated[float | None, ERROR, Field(description="as of the whole")] = None
    converged: Annotated[bool | None, ALWAYS, Field(description="whether the tolerance was met")] = None


class Explained(Item):
    """What an answer and a record both hold. What could not be computed, as the model's answer was not finite, is
    absent."""

    id: Annotated[str, ALWAYS, IN_CLEAR, Field(description="a UUID (version 7), by which the ledger finds the record")]
    model: Annotated[ModelItem | None, PARTS, IN_CLEAR, Field(description="what answered")] = None
    method: Annotated[str, ALWAYS, IN_CLEAR, Field(description="the attribution method")]
    target: Annotated[AnyTarget | None, PARTS, IN_CLEAR, Field(description="what was explained")] = None
    output_space: Annotated[Space | None, ALWAYS, IN_CLEAR, Field(description="what the outputs are")] = None
    output: Annotated[float | None, OUTPUT, Field(description="the deployed artefact's output for the input")] = None
    baseline_output: Annotated[float | None, OUTPUT, Field(description="the mean of its outputs over the baseline")] = (
        None
    )
    attributions: Annotated[
        AnyAttributions | None, BY_COMPONENT, Field(description="by feature, by step, by pixel or by token")
    ] = None
    completeness: Annotated[
        Literal["exact", "asymptotic", "by_construction", "none"] | None,
        ALWAYS,
        IN_CLEAR,
        Field(description="whether the attributions of this method sum to the change of the output, and why"),
    ] = None
    completeness_error: Annotated[
        float | None,
        ERROR,
        Field(description="what their sum misses, relative to the change (or to the manifest's floor, if larger)"),
    ] = None
    attribution_error: Annotated[
        float | None,
        ERROR,
        Field(description="the estimated relative error of the attributions (L1) from the quadrature"),
    ] = None
    standard_error: Annotated[
        AnyAttributions | None,
        ERRORS_BY_COMPONENT,
        Field(
            description="of expected gradients: the error from the baseline set being a sample; in 95 of 100, what the "
            "whole population would give is within 1.96 of it"
        ),
    ] = None
    attribution_errors: Annotated[
        AnyAttributions | None,
        ERRORS_BY_COMPONENT,
        Field(description="with `errors`: how far each attribution may be off, in units of the output"),
    ] = None
    segments: Annotated[
        tuple[SegmentItem, ...] | None,
        JOINT_PARTS,
        Field(description="of a text that came with some: what the attributions within each sum to, and their share"),
    ] = None
    interactions: Annotated[
        tuple[tuple[float, ...], ...] | None,
        JOINT,
        Field(description="of integrated Hessians: by pair of features"),
    ] = None
    continuation: Annotated[
        tuple[ContinuationItem, ...] | None,
        PARTS,
        Field(description="of a language model: the tokens whose log-probabilities are explained, in sum"),
    ] = None
    groups: Annotated[
        tuple[GroupItem, ...] | None, JOINT_PARTS, Field(description="of `directional_ig`: by group of features")
    ] = None
    noise: Annotated[NoiseItem | None, PARTS, Field(description="the noisy copies, where there are some")] = None
    converged: Annotated[bool | None, ALWAYS, IN_CLEAR, Field(description="whether the tolerance was met")] = None
    reason: Annotated[
        Literal["budget", "deadline", "non_finite", "precision", "steps"] | None,
        ALWAYS,
        IN_CLEAR,
        Field(description="why it was not"),
    ] = None
    evaluations: Annotated[int | None, ALWAYS, IN_CLEAR, Field(description="gradient points spent")] = None
    baseline: Annotated[
        RecordedBaseline | None, PARTS, IN_CLEAR, Field(description="what the input is compared with")
    ] = None
    flags: Annotated[tuple[str, ...] | None, ALWAYS, IN_CLEAR, Field(description="the review rules that fired")] = None
    cached: Annotated[bool | None, ALWAYS, IN_CLEAR, Field(description="whether it was computed earlier")] = None
    reasons: Annotated[
        tuple[ReasonItem, ...] | None,
        FIRST_PARTS,
        Field(description="the principal reasons, the strongest first; for models with reason texts"),
    ] = None
    stability: Annotated[
        StabilityItem | None,
        WITHHELD,
        Field(description="with `stability`: how much of the ranking is left near the input"),
    ] = None
    disclosure: Annotated[
        DisclosureItem | None, ALWAYS, Field(description="what the key's policy keeps back, where it does")
    ] = None


class Answered(Explained):
    """An explanation as it was answered, but for the time that it took."""

    model: Annotated[ModelItem, PARTS, IN_CLEAR, Field(description="what answered")]
    target: Annotated[AnyTarget, PARTS, IN_CLEAR, Field(description="what was explained")]
    output_space: Annotated[Space, ALWAYS, IN_CLEAR, Field(description="what the outputs are")]
    converged: Annotated[bool, ALWAYS, IN_CLEAR, Field(description="whether the tolerance was met")]
    evaluations: Annotated[int, ALWAYS, IN_CLEAR, Field(description="gradient points spent")]
    baseline: Annotated[BaselineItem, PARTS, IN_CLEAR, Field(description="what the input is compared with")]
    flags: Annotated[tuple[str, ...], ALWAYS, IN_CLEAR, Field(description="the review rules that fired")]
    cached: Annotated[bool, ALWAYS, IN_CLEAR, Field(description="whether it was computed for an earlier request")]

    def taking(self, timings: TimingsItem) -> ExplanationItem:
        """With the time that it took."""
        return ExplanationItem(**vars(self), timings_ms=timings)


class ExplanationItem(Answered):
    """One explanation."""

    timings_ms: Annotated[TimingsItem, ALWAYS, Field(description="the header Server-Timing repeats those of the first")]


def answered(
    version: ModelVersion,
    plan: Plan,
    explanation: Explanation,
    places: Places | None = None,
    *,
    id: str,
    cached: bool,
    detail: Detail = PLAIN,
    stability: StabilityItem | None = None,
) -> Answered:
    """The answer under this id. What could not be computed is left out, never null."""
    manifest, row = version.manifest, Row(plan.input, places)

    def by_component(values: tuple[float, ...] | None, detail: Detail) -> Any:
        if values is None:
            return None
        return manifest.inputs.attributions(values, explanation.shape, row, detail=detail)

    def explained_token(token: TokenItem, of_token: Explanation | None) -> ContinuationItem:
        if of_token is None:
            return ContinuationItem(**vars(token))
        return ContinuationItem(
            **vars(token),
            attributions=by_component(of_token.attributions, detail),
            completeness_error=of_token.completeness_error,
            attribution_error=of_token.attribution_error,
            converged=of_token.converged,
        )

    tokens = version.outputs.token_items(explanation.target, explanation.outputs)
    is_complete = explanation.attributions is not None
    has_reasons = gives_reasons(plan, explanation)
    baseline, noise = plan.baseline, plan.noise
    segments = _segments(manifest.inputs.segments_of(row), explanation.attributions)
    return Answered(
        id=id,
        model=ModelItem(name=plan.model.name, version=plan.model.version, digest=plan.model.digest),
        method=plan.method,
        target=version.outputs.target_item(explanation.target),
        output_space=plan.output_space.value,
        output=explanation.output,
        baseline_output=explanation.baseline_output if is_complete else None,
        attributions=by_component(explanation.attributions, detail),
        completeness=explanation.completeness.value if is_complete else None,
        completeness_error=explanation.completeness_error,
        attribution_error=explanation.attribution_error,
        standard_error=by_component(explanation.standard_error, detail.of_errors),
        attribution_errors=by_component(explanation.attribution_errors, detail.of_errors) if plan.errors else None,
        segments=segments or None,
        interactions=explanation.interactions,
        groups=tuple(_group(manifest, group) for group in explanation.groups) or None,
        continuation=tuple(map(explained_token, tokens, explanation.per_token or (None,) * len(tokens))) or None,
        noise=None
        if noise is None
        else NoiseItem(
            kind=noise.kind.value, samples=noise.samples, scale=noise.scale, output=explanation.noisy_output
        ),
        converged=explanation.converged,
        reason=explanation.reason,  # type: ignore[arg-type]
        evaluations=explanation.evaluations,
        baseline=BaselineItem(name=baseline.name, version=baseline.version, digest=baseline.digest, size=baseline.size),
        flags=tuple(flags_of(manifest, plan, explanation, segments, stability, adds_up=has_reasons)),
        cached=cached,
        stability=stability,
        reasons=principal_reasons(manifest, explanation) if has_reasons else None,
    )


def _segments(segments: Sequence[SegmentOfRow], attributions: Sequence[float] | None) -> tuple[SegmentItem, ...]:
    """Each with its sum and its share; none without attributions."""
    if attributions is None:
        return ()
    mass = math.fsum(map(abs, attributions))
    return tuple(
        SegmentItem(
            **vars(segment.sent),
            sum=math.fsum(attributions[place] for place in segment.components),
            share=math.fsum(abs(attributions[place]) for place in segment.components) / mass if mass else None,
        )
        for segment in segments
    )


def _group(manifest: Manifest, group: GroupShare) -> GroupItem:
    names = manifest.inputs.component_names
    members = tuple(names[member] for member in group.members) if names else group.members
    return GroupItem(features=members, dividend=group.dividend, value=group.value)


def gives_reasons(plan: Plan, explanation: Explanation) -> bool:
    """Whether the values are what each feature moved the output by, accurately enough."""
    is_variance = plan.noise is not None and plan.noise.kind is NoiseKind.VARGRAD
    error = explanation.completeness_error
    return BY_NAME[plan.method].gives_reasons and not is_variance and error is not None and error < MAX_ERROR_OF_REASONS
