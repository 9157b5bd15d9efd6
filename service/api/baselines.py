"""Baseline sets: what there is for a model, and new versions of a set, from rows."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field, StrictBool, StrictStr

from service.api.auth import CallerOf, caller_of, needs
from service.api.parsing import StrictRoute
from service.api.problems import answers
from service.api.schemas import Strict, Subject
from service.catalog.baselines import MOST_ROWS, KeptSet
from service.catalog.inputs.instances import read_instances
from service.catalog.manifest import BaselineSet
from service.catalog.versions import Catalog, ModelVersion
from service.errors import Forbidden, Gone, InvalidRequest, Kind, invalid
from service.ledger.set_subjects import SetSubjects
from service.lifecycle.repository import Repository, Rows

ERRORS = answers(400, 401, 403, 404, 408, 413, 415, 422, 503)
ModelName = Annotated[str, Path(max_length=64)]

router = APIRouter(tags=["Models"], responses=answers(401, 403, 404))
posting = APIRouter(route_class=StrictRoute, tags=["Models"])


class BaselineBody(Strict):
    """A new version of a set: its rows are given as instances of an explanation are."""

    name: StrictStr = Field(max_length=64, description="of the set; a new one, or one that gets a new version")
    rows: list[Any] = Field(min_length=1, max_length=MOST_ROWS, description="instances of the model")
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


@router.get("/v1/models/{model}/baselines", response_model=SetsReply, response_model_exclude_none=True)
@needs("explain")
async def list_baselines(request: Request, model: str, caller: CallerOf) -> dict[str, Any]:
    """Every baseline set of the model that you can name, with its digest, size and age: the manifests', and those kept
    since, by your tenant or for all.

    A set is for the version of the model that it was made for; for any other it is refused, with the reason.
    """
    catalog: Catalog = request.app.state.catalog
    versions = catalog.versions(model)
    listed = await asyncio.to_thread(
        lambda: [_of_manifest(version, one) for version in versions for one in version.manifest.baselines]
    )
    meant = catalog.meant(model) or versions[-1]
    kept = versions[-1].sets_of(caller.tenant)
    return {"baselines": [*listed, *(_kept(one, _stale(one, versions, meant)) for one in kept)]}


@posting.post("/v1/models/{model}/baselines", status_code=201, responses={201: {"model": SetItem}, **ERRORS})
@needs("models:write")
async def keep_baseline(request: Request, model: ModelName, body: BaselineBody) -> Response:
    """Keeps a new version of a baseline set, which requests can name, as `name@version`, from the answer on.

    It is your tenant's: for others it is not there. One that is `shared` is everybody's.
    """
    caller = caller_of(request)
    if body.shared and not caller.is_operator:
        raise Forbidden("only a key of the operator's tenant keeps sets for all tenants")
    catalog: Catalog = request.app.state.catalog
    repository: Repository = request.app.state.repository
    version = catalog.find(model, body.model_version)
    named = body.subjects or []
    if named and len(named) != len(body.rows):
        raise invalid(Kind.WRONG_VALUE, "/subjects", f"there are {len(body.rows)} rows and {len(named)} subjects")
    rows = await asyncio.to_thread(_rows, version, body.rows)
    set_subjects: SetSubjects = request.app.state.set_subjects
    tokens = await asyncio.to_thread(set_subjects.enter, caller.tenant, named)
    tenant = None if body.shared else caller.tenant
    try:
        kept = await repository.keep_set(version, body.name, rows, body.description, tenant=tenant, subjects=tokens)
    except InvalidRequest:
        await asyncio.to_thread(set_subjects.drop, tokens)
        raise
    return Response(orjson.dumps(_kept(kept, None)), status_code=201, media_type="application/json")


@router.delete(
    "/v1/models/{model}/baselines/{baseline}",
    response_model=SetItem,
    response_model_exclude_none=True,
    responses=answers(409, 410, 503),
)
@needs("models:write")
async def remove_baseline(request: Request, model: str, baseline: str, caller: CallerOf) -> dict[str, Any]:
    """Removes the rows of a version of a set, for good: `name@version`. An event of the log says so.

    Its name stays, so that a replay can say why it is impossible. A set that is shared is the operator's to remove; 409
    while a row of it is a person's whose data is under a legal hold.
    """
    repository: Repository = request.app.state.repository
    set_subjects: SetSubjects = request.app.state.set_subjects
    found = await asyncio.to_thread(repository.find_set, model, caller.tenant, baseline)
    if found.tenant is None and not caller.is_operator:
        raise Forbidden("the set is for all tenants; only a key of the operator's tenant removes it")
    if not found.size:
        raise Gone("the set was erased before")
    about, details = f"{model}/{baseline}", {"digest": found.digest, "rows": found.size}
    await asyncio.to_thread(set_subjects.remove, caller.tenant, caller.key_id, about, details, found.subjects)
    return _kept(await repository.remove_set(found), None)


def _rows(version: ModelVersion, instances: list[Any]) -> Rows:
    read = read_instances(version.manifest, instances, version.folder, called="row", pointer="/rows")
    return [row.values for row in read]


def _stale(one: KeptSet, versions: list[ModelVersion], meant: ModelVersion) -> str | None:
    """Why no served version can use the set: the reason of the one that the bare name means."""
    if any(one.stale_for(version.key, version.manifest) is None for version in versions):
        return None
    return one.stale_for(meant.key, meant.manifest)


def _kept(one: KeptSet, stale: str | None) -> dict[str, Any]:
    age = max(0.0, time.time() - one.created / 1e6)
    shown = {
        **_shown(one),
        "model_version": one.model_version,
        "source": "kept",
        "shared": one.tenant is None,
        "age_seconds": round(age, 3),
    }
    shown |= {"erased": one.erased} if one.erased else {}
    return shown if stale is None else {**shown, "stale": stale}


def _of_manifest(version: ModelVersion, one: BaselineSet) -> dict[str, Any]:
    """As old as its file."""
    try:
        age = max(0.0, time.time() - (version.folder / one.file).stat().st_mtime)
    except OSError:
        age = 0.0
    return {
        **_shown(one),
        "model_version": version.key.version,
        "source": "manifest",
        "shared": True,
        "age_seconds": round(age, 3),
    }


def _shown(one: BaselineSet | KeptSet) -> dict[str, Any]:
    return {
        "name": one.name,
        "version": one.version,
        "digest": "sha256:" + one.sha256,
        "size": one.size,
        "description": one.description,
    }
