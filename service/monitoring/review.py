"""Which review rules of the manifest an explanation fires."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from service.catalog.inputs.kind import Inputs
from service.catalog.manifest import Manifest
from service.catalog.outputs.kind import OutputKind, Outputs, are_finite
from service.catalog.review_rules import (
    LABEL,
    OF_OUTPUTS,
    PROTECTED_SHARE,
    RANK_STABILITY,
    SEGMENT_SHARE,
    Figure,
    Rule,
    parts_of,
)
from service.domain import Explanation, OutputSpace, Plan


def protected_share(inputs: Inputs, attributions: Sequence[float] | None) -> float | None:
    """The protected features' share of the sum of absolute attributions, from 0 to 1.

    None where what attributions are of has no names, without attributions, or where all of them are zero.
    """
    if attributions is None or not inputs.components:
        return None
    total = sum(map(abs, attributions))
    if not total:
        return None
    return sum(abs(attributions[place]) for place in inputs.protected) / total


class Segment(Protocol):
    """A named segment of a text, and its share of the sum of absolute attributions."""

    @property
    def name(self) -> str: ...
    @property
    def share(self) -> float | None: ...


class Stability(Protocol):
    """How much of an explanation's ranking is left near its input."""

    @property
    def rank_correlation(self) -> float | None: ...


def flags_of(
    manifest: Manifest,
    plan: Plan,
    explanation: Explanation,
    segments: Sequence[Segment] = (),
    stability: Stability | None = None,
    *,
    adds_up: bool,
) -> list[str]:
    """The names of the rules that fired; `segments` are those that came with the instance, `stability` what was found
    where that was asked for.

    `adds_up` says whether the attributions are what each feature moved the output by; others have no shares.
    """
    review = manifest.review
    if not review.all_rules:
        return []
    shares = {segment.name: segment.share for segment in segments if adds_up}
    figures: dict[str, Figure] = {
        name: shares.get(of or "") if own == SEGMENT_SHARE else _figure(name, manifest, plan, explanation)
        for name, (own, of) in ((name, parts_of(name)) for name in review.quantities)
        if name not in (PROTECTED_SHARE, RANK_STABILITY)
    }
    if PROTECTED_SHARE in review.quantities:
        share = protected_share(manifest.inputs, explanation.attributions) if adds_up else None
        figures[PROTECTED_SHARE] = share
    if RANK_STABILITY in review.quantities:
        figures[RANK_STABILITY] = None if stability is None else stability.rank_correlation
    return [flag for flag, rule in review.all_rules.items() if rule.fires(figures)]


def _figure(quantity: str, manifest: Manifest, plan: Plan, explanation: Explanation) -> Figure:
    name, _ = parts_of(quantity)
    if name not in OF_OUTPUTS and name != LABEL:
        return _QUANTITIES[name](plan, explanation)
    return _figure_of_outputs(quantity, manifest.outputs, explanation.outputs, plan.output_space)


def holds(rule: Rule, kind: OutputKind, outputs: Outputs, space: OutputSpace) -> bool:
    """Whether a rule that names nothing but outputs holds for these."""
    return rule.fires({name: _figure_of_outputs(name, kind, outputs, space) for name in rule.quantities})


def _figure_of_outputs(quantity: str, kind: OutputKind, outputs: Outputs | None, space: OutputSpace) -> Figure:
    if outputs is None or not are_finite(outputs):
        return None
    name, of = parts_of(quantity)
    return kind.labels_of(outputs, space) if name == LABEL else kind.quantity(name, of, outputs, space)


def _change(_plan: Plan, explanation: Explanation) -> float | None:
    output, baseline = explanation.output, explanation.baseline_output
    return None if output is None or baseline is None else abs(output - baseline)


_QUANTITIES: Mapping[str, Callable[[Plan, Explanation], float | None]] = {
    "completeness_error": lambda _plan, explanation: explanation.completeness_error,
    "attribution_error": lambda _plan, explanation: explanation.attribution_error,
    "tolerance": lambda plan, _explanation: plan.tolerance,
    "evaluations": lambda _plan, explanation: explanation.evaluations,
    "output": lambda _plan, explanation: explanation.output,
    "change": _change,
}
