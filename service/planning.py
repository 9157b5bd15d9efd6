"""From a request and a manifest to plans: frozen, complete, hashable. Impossible requests end here, with the reason."""

from __future__ import annotations

import difflib
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as abridged

from service.catalog.manifest import BaselineSet, Feature, Manifest
from service.catalog.versions import ModelVersion
from service.domain import BaselineChoice, OutputSpace, Plan
from service.errors import InvalidRequest
from service.methods.registry import BY_NAME, MethodEntry

MOST_EVALUATIONS = 65_536
ZEROS = "zeros"
INLINE = "inline"
PREDICTED = "predicted"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The `parameters` of a request; None stands for the manifest's default."""

    method: str | None = None
    target: str | int = PREDICTED
    output_space: str | None = None
    baseline: object = None
    tolerance: float | None = None
    max_evaluations: int | None = None
    seed: int = 0
    deadline_ms: int | None = None
    strict: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


def make_plan(version: ModelVersion, row: tuple[float, ...], parameters: Parameters) -> Plan:
    """The plan for one input row. Raises InvalidRequest."""
    manifest = version.manifest
    method = _method(parameters.method or manifest.defaults.method)
    space = output_space(manifest, parameters.output_space)
    baseline = _baseline(manifest, parameters.baseline)
    budget = manifest.defaults.max_evaluations if parameters.max_evaluations is None else parameters.max_evaluations
    if not 1 <= budget <= MOST_EVALUATIONS:
        raise InvalidRequest(f"max_evaluations is {budget}; it must lie between 1 and {MOST_EVALUATIONS}")
    least = method.least_points(baseline.size)
    if least > budget:
        raise InvalidRequest(
            f"{method.name} with a baseline set of {baseline.size} rows needs at least {least} evaluations, "
            f"max_evaluations is {budget}"
        )
    tolerance = manifest.defaults.tolerance if parameters.tolerance is None else parameters.tolerance
    if not 0 < tolerance <= 1:
        raise InvalidRequest(f"tolerance is {tolerance:g}; it must be over 0 and at most 1")
    if parameters.seed < 0:
        raise InvalidRequest("seed must not be negative")
    return Plan(
        model=version.key,
        method=method.name,
        options=_options(version, method, parameters.options),
        input=row,
        target=_target(manifest, parameters.target),
        output_space=space,
        baseline=baseline,
        tolerance=tolerance,
        max_evaluations=budget,
        seed=parameters.seed if method.draws else 0,
        floor=manifest.floor.get(space),
    )


def read_instance(manifest: Manifest, instance: object) -> tuple[float, ...]:
    """The model's input row for one instance: an object by feature name, or a list in feature order, in raw units.

    Raises InvalidRequest, naming the features that are missing, unknown, not numbers or out of their range.
    """
    features = manifest.inputs.features
    if isinstance(instance, Mapping):
        values: Sequence[object] = _by_name(manifest.inputs.names, instance)
    elif isinstance(instance, Sequence) and not isinstance(instance, str):
        if len(instance) != len(features):
            raise InvalidRequest(f"the instance has {len(instance)} values, the model has {len(features)} features")
        values = instance
    else:
        raise InvalidRequest("an instance is an object by feature name, or a list in feature order")
    return tuple([_number(feature, value) for feature, value in zip(features, values, strict=True)])


def output_space(manifest: Manifest, name: str | None) -> OutputSpace:
    """The output space of that name, or the manifest's default. Raises InvalidRequest."""
    if name is None:
        return manifest.outputs.default_space
    if name not in set(OutputSpace):
        raise InvalidRequest(f"output_space {abridged(name)} is not known; {_known('spaces', OutputSpace)}")
    return OutputSpace(name)


def _by_name(names: Sequence[str], instance: Mapping[str, object]) -> list[object]:
    missing = [name for name in names if name not in instance]
    if not missing and len(instance) == len(names):
        return [instance[name] for name in names]
    known = set(names)
    unknown = [name for name in instance if name not in known]
    hint = _did_you_mean(unknown, missing or names)
    if missing:
        also = f"; not known: {_listed(unknown)}" if unknown else ""
        raise InvalidRequest(f"missing: {_listed(missing)}{also}{hint}")
    raise InvalidRequest(f"the model has no feature {_listed(unknown)}{hint}")


def _number(feature: Feature, value: object) -> float:
    if value is None and feature.missing is not None:
        return feature.missing
    if type(value) is not float and type(value) is not int:
        wanted = "a number" if feature.missing is None else "a number or null"
        raise InvalidRequest(f"{feature.name} must be {wanted}")
    low, high = feature.range
    if not low <= value <= high:
        unit = "" if feature.unit == "1" else f" ({feature.unit})"
        raise InvalidRequest(f"{feature.name} is {value:g}, outside its range from {low:g} to {high:g}{unit}")
    return float(value)


def _method(name: str) -> MethodEntry:
    if name not in BY_NAME:
        raise InvalidRequest(f"method {abridged(name)} is not known; {_known('methods', BY_NAME)}")
    return BY_NAME[name]


def _target(manifest: Manifest, target: str | int) -> int | None:
    labels = manifest.outputs.labels
    if target == PREDICTED:
        return None
    if isinstance(target, int):
        if not 0 <= target < len(labels):
            raise InvalidRequest(f"target {target} is not a label's index; it must lie between 0 and {len(labels) - 1}")
        return target
    if target not in labels:
        raise InvalidRequest(f"target {abridged(target)} is not a label; {_known('labels', [*labels, PREDICTED])}")
    return labels.index(target)


def _baseline(manifest: Manifest, asked: object) -> BaselineChoice:
    if asked is None:
        asked = manifest.defaults.baseline
    if asked == ZEROS:
        return _inline(ZEROS, (0.0,) * len(manifest.inputs.features))
    if isinstance(asked, str):
        found = _baseline_set(manifest, asked)
        return BaselineChoice(found.name, found.version, "sha256:" + found.sha256, found.size)
    try:
        return _inline(INLINE, read_instance(manifest, asked))
    except InvalidRequest as error:
        raise InvalidRequest(f"baseline: {error}") from error


def _inline(name: str, row: tuple[float, ...]) -> BaselineChoice:
    digest = hashlib.sha256(struct.pack(f"<{len(row)}d", *row)).hexdigest()
    return BaselineChoice(name, "1", f"sha256:{digest}", 1, row)


def _baseline_set(manifest: Manifest, asked: str) -> BaselineSet:
    """The set `name@version`, or the last version that the manifest lists of `name`."""
    name, at, version = asked.partition("@")
    found = [s for s in manifest.baselines if s.name == name and (not at or s.version == version)]
    if not found:
        names = [f"{s.name}@{s.version}" for s in manifest.baselines]
        raise InvalidRequest(f"baseline {abridged(asked)} is not known; {_known('baselines', [*names, ZEROS])}")
    return found[-1]


def _options(
    version: ModelVersion, method: MethodEntry, asked: Mapping[str, object]
) -> tuple[tuple[str, str | float | int], ...]:
    known = {option.name: option for option in method.options}
    for name, value in asked.items():
        if name not in known:
            raise InvalidRequest(f"{method.name} has no option {abridged(name)}; {_known('options', known)}")
        if value not in known[name].choices:
            raise InvalidRequest(f"option {name} is {abridged(value)}; {_known('values', known[name].choices)}")
    chosen = {name: str(asked.get(name, option.default)) for name, option in known.items()}
    if chosen.get("rule") == "exact" and version.obstacle is not None:
        raise InvalidRequest(
            f"the exact rule does not apply to this model: {version.obstacle}; use auto, gauss_legendre or midpoint"
        )
    return tuple(sorted(chosen.items()))


def _known(what: str, names: Iterable[str]) -> str:
    listed = ", ".join(str(name) for name in names)
    return f"the {what} are {listed}" if listed else f"there are no {what}"


def _did_you_mean(unknown: Sequence[str], names: Iterable[str]) -> str:
    close = difflib.get_close_matches(unknown[0][:64], list(names), 1) if unknown else []
    return f"; did you mean {close[0]}?" if close else ""


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(str(name)[:64] for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def deadline_of(parameters: Parameters, now: float) -> float | None:
    """The moment, on the clock of `now` in seconds, by which an answer is due. Raises InvalidRequest."""
    if parameters.deadline_ms is None:
        return None
    if parameters.deadline_ms < 1 or not math.isfinite(parameters.deadline_ms):
        raise InvalidRequest("deadline_ms must be at least 1")
    return now + parameters.deadline_ms / 1000
