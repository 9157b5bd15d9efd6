"""Targets that refer to another instance, such as the one that an input is to be similar to.

The deployed artefact is asked about that instance first, in a worker, as for a prediction. Its outputs are part of the
plan, and so of the record: a replay needs nothing else. Where a target says so, it is the other instance that is
explained, by its similarity to the request's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.catalog.inputs.kind import Detail, Row
from service.catalog.outputs.kind import Outputs
from service.catalog.versions import ModelVersion
from service.domain import Plan
from service.errors import InvalidRequest, pointer_to
from service.usecases.planning import Parameters, RequestedTarget, make_plans, of_target, with_baseline_read

Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Referring:
    """A requested target that refers to an instance, and the row of that."""

    requested: RequestedTarget
    row: Row


def with_instances_read(version: ModelVersion, parameters: Parameters) -> Parameters:
    """The parameters; instances in them, the baseline and those that targets refer to, are read into rows, which takes
    time for texts and images.

    Raises InvalidRequest.
    """
    parameters = with_baseline_read(version, parameters)
    detail, requested = parameters.detail, enumerate(parameters.requested)
    read = [_read(version, target, parameters.place_of(number), detail) for number, target in requested]
    return replace(parameters, target=read[0]) if parameters.targets is None else replace(parameters, targets=read)


def _read(
    version: ModelVersion, target: RequestedTarget, place: Sequence[str | int], detail: Detail
) -> RequestedTarget:
    manifest = version.manifest
    if isinstance(target, Referring):
        return target
    try:
        found = manifest.outputs.reference_in(target)
    except InvalidRequest as error:
        raise of_target(error, place) from None
    if found is None:
        return target
    name, instance = found
    try:
        row = manifest.inputs.read(instance, version.folder)
        if manifest.outputs.explains_reference(target):
            manifest.inputs.check_explained(row, detail)
        return Referring(target, row)
    except InvalidRequest as error:
        raise error.under(pointer_to("parameters", *place, name), name) from error


def referred_rows(version: ModelVersion, rows: Sequence[Row], parameters: Parameters) -> list[Values]:
    """Of which rows the outputs have to be known before there can be plans, each once; `rows` are the request's."""
    needed: dict[Values, None] = {}
    for target in parameters.requested:
        if isinstance(target, Referring):
            explains_it = version.manifest.outputs.explains_reference(target.requested)
            needed |= dict.fromkeys(row.values for row in (rows if explains_it else [target.row]))
    return list(needed)


def plans_of(
    version: ModelVersion,
    rows: Sequence[Row],
    parameters: Parameters,
    outputs: Mapping[Values, Outputs],
    tenant: str | None = None,
) -> list[tuple[Row, Plan]]:
    """Plans, each with the row that it explains, in the order of `make_plans`; `outputs` are those of the
    `referred_rows`.

    Raises what `make_plan` raises.
    """
    requested = parameters.requested
    if not any(isinstance(target, Referring) for target in requested):
        plans = make_plans(version, [row.values for row in rows], parameters, tenant)
        return list(zip((row for row in rows for _ in requested), plans, strict=True))
    kind, planned = version.manifest.outputs, list[tuple[Row, Plan]]()
    for row in rows:
        for number, target in enumerate(requested):
            explained = row
            if isinstance(target, Referring):
                other = target.row
                if kind.explains_reference(target.requested):
                    explained, other = other, row
                target = kind.with_reference(target.requested, outputs[other.values])
            own = replace(parameters, target=target, targets=None)
            try:
                planned += [(explained, plan) for plan in make_plans(version, [explained.values], own, tenant)]
            except InvalidRequest as error:
                raise of_target(error, parameters.place_of(number)) from None
    return planned


def check_explained(
    version: ModelVersion, rows: Sequence[Row], parameters: Parameters, numbers: Sequence[int] | None = None
) -> None:
    """Raises InvalidRequest for the first row that can be predicted, but not explained as the parameters ask; `numbers`
    are those of the rows among the request's instances, None where these are all."""
    inputs, detail = version.manifest.inputs, parameters.detail
    for number, row in zip(numbers or range(len(rows)), rows, strict=True):
        try:
            inputs.check_explained(row, detail)
        except InvalidRequest as error:
            raise error.under(pointer_to("instances", number)) from None


def check_request(version: ModelVersion, row: Row, parameters: Parameters, tenant: str | None) -> None:
    """Raises InvalidRequest for parameters with which the row cannot be explained. What the artefact would answer for
    instances that targets refer to is left open."""
    read = with_instances_read(version, parameters)
    anything = (1.0,) * len(version.manifest.outputs.names)
    plans_of(version, [row], read, dict.fromkeys(referred_rows(version, [row], read), anything), tenant)
