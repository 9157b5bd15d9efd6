"""What is served: models, their versions, inputs, outputs, methods and baseline sets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from service.api.auth import needs
from service.api.evaluations import figure_items
from service.api.model_schemas import (
    CheckItem,
    DefaultsItem,
    ListedSet,
    MethodItem,
    ModelReply,
    ModelsReply,
    OptionItem,
    UnfitItem,
    VersionItem,
)
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.catalog.assessments import Assessment
from service.catalog.manifest import PARITY, BaselineSet
from service.catalog.versions import ModelVersion
from service.faithfulness.summary import Figure
from service.lifecycle.serving.evaluations import Evaluated, latest_of
from service.methods.registry import METHODS
from service.methods.spec import Choice, Facts, MethodSpec, Number, Option

router = new_router("Models")


@router.get("/v1/models")
@needs("explain")
async def list_models(request: ApiRequest) -> ModelsReply:
    """The names of all models."""
    return ModelsReply(models=request.services.catalog.names)


@router.get("/v1/models/{model:name}", responses=answers(404))
@needs("explain")
async def show_model(request: ApiRequest, model: str) -> ModelReply:
    """What a model takes and gives, and one complete, valid instance: of the version that the bare name means.

    That is the newest ready one that has passed its check; `newest` names it. Without one, what is shown is the last's.
    """
    catalog = request.services.catalog
    version = catalog.default_version(model) or catalog.versions(model)[-1]
    return await _description(request, version)


@router.get("/v1/models/{model:name}/versions/{version:name}", responses=answers(404))
@needs("explain")
async def show_version(request: ApiRequest, model: str, version: str) -> ModelReply:
    """What one version of a model takes and gives, in the same form as the model's description."""
    catalog = request.services.catalog
    return await _description(request, catalog.named(model, version))


async def _description(request: ApiRequest, version: ModelVersion) -> ModelReply:
    """The description of a version, with the baseline sets that the tenant can name, and what was measured of it."""
    catalog, tenant = request.services.catalog, request.caller.tenant
    model, manifest = version.key.name, version.manifest
    find = request.services.evaluations.find
    evaluated = await asyncio.to_thread(find, version.key, version.manifest_digest, tenant)
    default = catalog.default_version(model)
    methods, unavailable_methods = _methods(version, evaluated)
    sets = [*manifest.baselines, *(kept.listed for kept in version.fitting_sets(tenant))]
    return ModelReply(
        name=model,
        version=version.key.version,
        ready=version.is_ready,
        newest=None if default is None else default.key.version,
        title=manifest.title,
        description=manifest.description,
        owner=manifest.owner,
        versions=[_version(listed) for listed in catalog.versions(model)],
        inputs=manifest.inputs.described(),
        outputs=manifest.outputs.described(),
        methods=methods,
        unavailable_methods=unavailable_methods,
        baselines=[_baseline(baseline) for baseline in sets],
        defaults=DefaultsItem(**manifest.defaults.model_dump()),
        example=manifest.example,
    )


def _version(version: ModelVersion) -> VersionItem:
    allowed = version.manifest.parity
    return VersionItem(
        version=version.key.version,
        digest=version.key.digest,
        ready=version.is_ready,
        parity=version.parity,
        parity_allowed=None if allowed == PARITY else allowed,
        check=None if version.assessment is None else _check(version.assessment),
    )


def _check(assessment: Assessment) -> CheckItem:
    """What `answerable models check` found, and when, in microseconds since the epoch."""
    return CheckItem(
        passed=assessment.passed,
        failed=list(assessment.failed),
        against=assessment.against,
        checked=assessment.checked,
        checks=list(assessment.checks),
    )


def _methods(version: ModelVersion, evaluated: Sequence[Evaluated]) -> tuple[list[MethodItem], list[UnfitItem]]:
    """The methods that this model can serve, with what was measured of each, and those that it cannot."""
    served: list[MethodItem] = []
    unavailable: list[UnfitItem] = []
    if version.traits is None:
        return served, unavailable
    for method in METHODS:
        facts = Facts(version.traits, _default_size(version), method.defaults())
        reason = method.not_applicable(facts)
        if reason is None:
            served.append(_method(method, facts, latest_of(evaluated, method.name)))
        else:
            unavailable.append(UnfitItem(name=method.name, reason=reason))
    return served, unavailable


def _default_size(version: ModelVersion) -> int:
    """The rows of the default baseline."""
    name = version.manifest.defaults.baseline
    return next((baseline.size for baseline in reversed(version.manifest.baselines) if baseline.name == name), 1)


def _method(method: MethodSpec, facts: Facts, measured: Sequence[Figure]) -> MethodItem:
    return MethodItem(
        name=method.name,
        description=method.description,
        completeness=[kind.value for kind in method.completeness],
        cost=method.cost,
        least_points=method.least_points(facts),
        options=[_option(method, option, facts) for option in method.options],
        citation=method.citation,
        measured=figure_items(measured),
    )


def _option(method: MethodSpec, option: Option, facts: Facts) -> OptionItem:
    """An option with its bounds; of a choice, only what this model can be asked for."""
    item = OptionItem(name=option.name, default=option.default, description=option.description)
    match option:
        case Choice():
            item.choices = [
                choice
                for choice in option.choices
                if method.not_applicable(replace(facts, options={**facts.options, option.name: choice})) is None
            ]
        case Number():
            item.low, item.high, item.whole = option.low, option.high, option.is_whole
    return item


def _baseline(baseline: BaselineSet) -> ListedSet:
    return ListedSet(
        name=baseline.name,
        version=baseline.version,
        digest="sha256:" + baseline.sha256,
        size=baseline.size,
        description=baseline.description,
    )
