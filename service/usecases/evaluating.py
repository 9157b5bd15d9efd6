"""Evaluating: from what a request asks to measures, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as abridged

from service.catalog.nearest import did_you_mean, known
from service.catalog.versions import ModelVersion
from service.domain import OptionValue, Plan
from service.errors import Kind, ModelNotReady, invalid, pointer_to
from service.faithfulness.registry import BY_NAME, METRICS
from service.faithfulness.spec import MetricSpec
from service.faithfulness.subject import Measure
from service.methods.spec import Components, Facts
from service.usecases.planning import expected_points

REPLACE = "replace"
"""The name of the option that says what stands in the place of removed components."""
NO_COMPONENTS = Components((), 0)


def read_measures(
    version: ModelVersion,
    metrics: Sequence[str] | None,
    options: Mapping[str, Mapping[str, object]],
    *,
    has_boxes: bool = False,
) -> list[Measure]:
    """The measures that are asked for; without `metrics`, all that say something of the model.

    `options` are by metric; `has_boxes` says that boxes come with the images. Raises InvalidRequest, with its place;
    ModelNotReady.
    """
    if version.traits is None:
        raise ModelNotReady("the model is not ready yet")
    applying = (spec.name for spec in METRICS if _obstacle(version, spec, has_boxes) is None)
    names = metrics if metrics is not None else [*applying]
    for at, name in enumerate(names):
        if name not in BY_NAME:
            detail = f"metric {abridged(name)} is not known; {known('metrics', BY_NAME)}{did_you_mean(name, BY_NAME)}"
            raise invalid(Kind.WRONG_VALUE, pointer_to("metrics", at), detail)
        obstacle = _obstacle(version, BY_NAME[name], has_boxes)
        if obstacle is not None:
            raise invalid(Kind.WRONG_VALUE, pointer_to("metrics", at), f"{name}: {obstacle}")
    for name in options:
        if name not in names:
            detail = f"options are for metrics that are asked for; {abridged(name)} is not among them"
            raise invalid(Kind.UNKNOWN_OPTION, pointer_to("options", name), detail)
    return [_measure(version, BY_NAME[name], options.get(name, {})) for name in dict.fromkeys(names)]


def _obstacle(version: ModelVersion, spec: MetricSpec, has_boxes: bool) -> str | None:
    obstacle = spec.not_applicable(_facts(version, spec.defaults()))
    if obstacle is None and spec.takes_boxes and not has_boxes:
        return "it compares maps with boxes around objects, which `boxes` has for each of the instances of a job"
    return obstacle


def _facts(version: ModelVersion, options: Mapping[str, OptionValue]) -> Facts:
    assert version.traits is not None
    return Facts(version.traits, 1, options)


def _measure(version: ModelVersion, spec: MetricSpec, requested: Mapping[str, object]) -> Measure:
    by_name, read = {option.name: option for option in spec.options}, spec.defaults()
    names = [*by_name, *([REPLACE] if spec.removes else [])]
    for name, value in requested.items():
        if name == REPLACE and spec.removes:
            continue
        if name not in by_name:
            detail = f"{spec.name} has no option {abridged(name)}; {known('options', names)}{did_you_mean(name, names)}"
            raise invalid(Kind.UNKNOWN_OPTION, pointer_to("options", spec.name, name), detail)
        try:
            read[name] = by_name[name].read(value, NO_COMPONENTS)
        except ValueError as error:
            raise invalid(Kind.WRONG_VALUE, pointer_to("options", spec.name, name), str(error)) from None
    removal = _removal(version, spec, requested.get(REPLACE)) if spec.removes else None
    return Measure(spec.name, removal, tuple(sorted(read.items())))


def _removal(version: ModelVersion, spec: MetricSpec, requested: object) -> str:
    names = version.manifest.inputs.removals
    if requested is None:
        return names[0]
    if not isinstance(requested, str) or requested not in names:
        detail = f"{REPLACE} {abridged(requested)} is none of this model's inputs; {known('replacements', names)}"
        near = did_you_mean(requested, names)
        raise invalid(Kind.WRONG_VALUE, pointer_to("options", spec.name, REPLACE), detail + near)
    return requested


def expected_cost(version: ModelVersion, plan: Plan, measures: Sequence[Measure], *, is_explained: bool) -> int:
    """The points that an evaluation is expected to cost: those of the explanation, unless `is_explained`, of all that
    are explained anew, and the rows that measures ask for."""
    points = expected_points(version, plan)
    cost = 0 if is_explained else points
    for measure in measures:
        spec, facts = BY_NAME[measure.metric], _facts(version, dict(measure.options))
        cost += spec.expected_points(facts, points)
    return max(1, cost)
