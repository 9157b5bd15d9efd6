"""What is served: models, their versions, inputs, outputs, methods and baseline sets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.api.auth import needs
from service.api.problems import answers
from service.catalog.manifest import BaselineSet, Feature
from service.catalog.versions import Catalog, ModelVersion
from service.methods.registry import METHODS, MethodEntry

router = APIRouter(tags=["Models"], responses=answers(401, 403, 404))


def _catalog(request: Request) -> Catalog:
    catalog: Catalog = request.app.state.catalog
    return catalog


@router.get("/v1/models")
@needs("explain")
async def list_models(request: Request) -> dict[str, list[str]]:
    """The names of all models."""
    return {"models": _catalog(request).names}


@router.get("/v1/models/{model}")
@needs("explain")
async def show_model(request: Request, model: str) -> dict[str, Any]:
    """What a model takes and gives, and one complete, valid instance. Of the newest ready version, if there is one."""
    versions = _catalog(request).versions(model)
    shown = next((version for version in reversed(versions) if version.is_ready), versions[-1])
    manifest = shown.manifest
    return {
        "name": model,
        "ready": shown.is_ready,
        "title": manifest.title,
        "description": manifest.description,
        "owner": manifest.owner,
        "versions": [_version(version) for version in versions],
        "inputs": [_feature(feature) for feature in manifest.inputs.features],
        "outputs": {
            "labels": manifest.outputs.labels,
            "adverse": manifest.outputs.adverse,
            "spaces": list(manifest.outputs.tensors),
            "default_space": manifest.outputs.default_space,
        },
        "methods": [_method(method, shown) for method in METHODS],
        "baselines": [_baseline(baseline) for baseline in manifest.baselines],
        "defaults": manifest.defaults.model_dump(),
        "example": dict(manifest.example),
    }


@router.get("/v1/models/{model}/baselines")
@needs("explain")
async def list_baselines(request: Request, model: str) -> dict[str, Any]:
    """The model's baseline sets with their digests and sizes."""
    versions = _catalog(request).versions(model)
    return {
        "baselines": [
            {**_baseline(baseline), "model_version": version.key.version}
            for version in versions
            for baseline in version.manifest.baselines
        ]
    }


def _version(version: ModelVersion) -> dict[str, Any]:
    shown: dict[str, Any] = {"version": version.key.version, "digest": version.key.digest, "ready": version.is_ready}
    if version.parity is not None:
        shown["parity"] = version.parity
    return shown


def _feature(feature: Feature) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": feature.name,
        "title": feature.title,
        "unit": feature.unit,
        "range": feature.range,
        "protected": feature.protected,
    }
    return shown if feature.missing is None else {**shown, "missing": feature.missing}


def _method(method: MethodEntry, version: ModelVersion) -> dict[str, Any]:
    return {
        "name": method.name,
        "description": method.description,
        "completeness": method.completeness,
        "options": [
            {
                "name": option.name,
                "default": option.default,
                "choices": [c for c in option.choices if c != "exact" or version.obstacle is None],
                "description": option.description,
            }
            for option in method.options
        ],
        "citation": method.citation,
    }


def _baseline(baseline: BaselineSet) -> dict[str, Any]:
    return {
        "name": baseline.name,
        "version": baseline.version,
        "digest": "sha256:" + baseline.sha256,
        "size": baseline.size,
        "description": baseline.description,
    }
