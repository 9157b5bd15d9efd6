"""Baseline sets: what there is for a model, and new versions of a set, from rows."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field, StrictBool, StrictStr

from service.api.auth import needs
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import new_router
from service.api.schemas import Strict, Subject
from service.catalog.baselines import MAX_ROWS, KeptSet
from service.catalog.inputs.instances import read_instances
from service.catalog.manifest import BaselineSet
from service.catalog.versions import ModelVersion
from service.errors import Forbidden, Gone, InvalidRequest, Kind, invalid
from service.lifecycle.serving.served_sets import Rows
from service.wording import number_of

ModelName = Annotated[str, Path(max_length=64)]

router = new_router("Models")


class BaselineBody(Strict):
    """A new version of a set: its rows are given as instances of an explanation are."""

    name: StrictStr = Field(max_length=64, description="of the set; a new one, or one that gets a new version")
    rows: list[Any] = Field(min_length=1, max_length=MAX_ROWS, description="instances of the model")
    model_version: StrictStr | None = Field(None, max_length=64, description="default: the one the bare name means")
    description: StrictStr = Field("", max_length=500, description="what its rows are, for those who choose it")
    subjects: list[Subject | None] | None = Field(
        None, description="for each row the person whose it is, as in `context.subject`; null where it is nobody's"
    )
    shared: StrictBool = Field(False, description="for all tenants, not yours alone; takes a key of the operator's")


class SetItem(BaseModel):
    """One version of a set. A `stale` one says why no request can name it for the newest version of the model."""

    name: str = Field(description="of the set; `name@version` names it in a request")
    version: str = Field(description="of the set, from 1")
    digest: str = Field(description="the SHA-256 of its file")
    size: int = Field(description="rows")
    description: str = Field(description="what its rows are")
    model_version: str = Field(description="the version of the model that it was made for")
    source: Literal["manifest", "kept"] = Field(description="the model's own, or added since")
    shared: bool = Field(description="whether all tenants can name it, or yours alone")
    age_seconds: float = Field(description="since it was made")
    erased: list[str] | None = Field(
        None, description="digests that it had before rows were removed from it; of size 0 it is erased as a whole"
    )
    stale: str | None = Field(None, description="why no request can name it now")


class SetsReply(BaseModel):
    """Every version of every set."""

    baselines: list[SetItem] = Field(description="the manifests' first, then those added since")


@router.get("/v1/models/{model}/baselines", responses=answers(404))
@needs("explain")
async def list_baselines(request: ApiRequest, model: str) -> SetsReply:
    """Every baseline set of the model that you can name, with its digest, size and age: the manifests', and those kept
    since, by your tenant or for all.

    A set is for the version of the model that it was made for; for any other it is refused, with the reason.
    """
    catalog = request.services.catalog
    versions = catalog.versions(model)
    listed = await asyncio.to_thread(
        lambda: [_manifest_item(version, baseline) for version in versions for baseline in version.manifest.baselines]
    )
    default = catalog.default_version(model) or versions[-1]
    kept = versions[-1].sets_of(request.caller.tenant)
    return SetsReply(baselines=[*listed, *(_kept_item(each, _stale(each, versions, default)) for each in kept)])


@router.post("/v1/models/{model}/baselines", status_code=201, responses=answers(404, 503))
@needs("models:write")
async def keep_baseline(request: ApiRequest, model: ModelName, body: BaselineBody) -> SetItem:
    """Keeps a new version of a baseline set, which requests can name, as `name@version`, from the answer on.

    It is your tenant's: for others it is not there. One that is `shared` is everybody's.
    """
    caller, services = request.caller, request.services
    if body.shared and not caller.is_operator:
        raise Forbidden("only a key of the operator's tenant keeps sets for all tenants")
    version = services.catalog.find(model, body.model_version)
    subjects = body.subjects or []
    if subjects and len(subjects) != len(body.rows):
        detail = f"the set has {number_of(len(body.rows), 'row')} and {number_of(len(subjects), 'subject')}"
        raise invalid(Kind.WRONG_VALUE, "/subjects", detail)
    rows = await asyncio.to_thread(_rows, version, body.rows)
    tokens = await asyncio.to_thread(services.set_subjects.enter, caller.tenant, subjects)
    tenant = None if body.shared else caller.tenant
    try:
        kept = await services.repository.sets.keep(
            version, body.name, rows, body.description, tenant=tenant, subjects=tokens
        )
    except InvalidRequest:
        await asyncio.to_thread(services.set_subjects.drop, tokens)
        raise
    return _kept_item(kept, None)


@router.delete("/v1/models/{model}/baselines/{baseline}", responses=answers(404, 409, 410, 503))
@needs("models:write")
async def remove_baseline(request: ApiRequest, model: str, baseline: str) -> SetItem:
    """Removes the rows of a version of a set, for good: `name@version`. An event of the log says so.

    Its name stays, so that a replay can say why it is impossible. A set that is shared is the operator's to remove; 409
    while a row of it is a person's whose data is under a legal hold.
    """
    caller, repository = request.caller, request.services.repository
    kept = await asyncio.to_thread(repository.sets.find, model, caller.tenant, baseline)
    if kept.tenant is None and not caller.is_operator:
        raise Forbidden("the set is for all tenants; only a key of the operator's tenant removes it")
    if not kept.size:
        raise Gone("the set was erased before")
    about, details = f"{model}/{baseline}", {"digest": kept.digest, "rows": kept.size}
    set_subjects = request.services.set_subjects
    await asyncio.to_thread(set_subjects.remove, caller.tenant, caller.key_id, about, details, kept.subjects)
    return _kept_item(await repository.sets.remove(kept), None)


def _rows(version: ModelVersion, instances: list[Any]) -> Rows:
    read = read_instances(version.manifest, instances, version.folder, called="row", pointer="/rows")
    return [row.values for row in read]


def _stale(kept: KeptSet, versions: list[ModelVersion], default: ModelVersion) -> str | None:
    """Why no served version can use the set: the reason of the default version. None if one can."""
    if any(kept.stale_for(version.key, version.manifest) is None for version in versions):
        return None
    return kept.stale_for(default.key, default.manifest)


def _kept_item(kept: KeptSet, stale: str | None) -> SetItem:
    age = max(0.0, time.time() - kept.created / 1e6)
    return _item(
        kept,
        model_version=kept.model_version,
        source="kept",
        shared=kept.tenant is None,
        age_seconds=round(age, 3),
        erased=[*kept.erased] or None,
        stale=stale,
    )


def _manifest_item(version: ModelVersion, baseline: BaselineSet) -> SetItem:
    """A set of the manifest, whose age is that of its file."""
    try:
        age = max(0.0, time.time() - (version.folder / baseline.file).stat().st_mtime)
    except OSError:
        age = 0.0
    return _item(baseline, model_version=version.key.version, source="manifest", shared=True, age_seconds=round(age, 3))


def _item(baseline: BaselineSet | KeptSet, **others: Any) -> SetItem:
    return SetItem(
        name=baseline.name,
        version=baseline.version,
        digest="sha256:" + baseline.sha256,
        size=baseline.size,
        description=baseline.description,
        **others,
    )
