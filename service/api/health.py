"""Liveness, readiness, metrics."""

from __future__ import annotations

from fastapi import Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from service import __version__
from service.api.auth import PUBLIC, needs
from service.api.problems import answers
from service.api.requests import ApiRequest
from service.api.routing import Reply, new_router
from service.monitoring.instruments import CONTENT_TYPE

router = new_router("Health")


class ServerItem(BaseModel):
    """The server, as the V2 protocol has it."""

    name: str = Field(description="of the server")
    version: str = Field(description="of the server")
    extensions: list[str] = Field(description="of the protocol that are served")


class AliveReply(BaseModel):
    """The process answers."""

    status: str = Field(description="`alive`")


class LiveReply(BaseModel):
    """The process answers."""

    live: bool = Field(description="true")


class ReadyReply(BaseModel):
    """Whether requests can be answered; what keeps them from it is named."""

    ready: bool = Field(description="whether they can")
    recording: bool | None = Field(None, description="false while the ledger's database takes no records")
    loading: list[str] | None = Field(None, description="versions that are still to be loaded at the start")
    failed: list[str] | None = Field(None, description="versions that cannot be served")
    registry: list[str] | None = Field(None, description="what could not be looked up or fetched, in sentences")
    ledger: list[str] | None = Field(None, description="sentences for the operator about the ledger")


class ModelReadyReply(BaseModel):
    """The version answers."""

    name: str = Field(description="of the model")
    version: str = Field(description="of the model")
    ready: bool = Field(description="true")


@router.get("/")
@needs(PUBLIC)
async def alive(_request: ApiRequest) -> AliveReply:
    """Whether the process answers, where KServe's V1 protocol asks."""
    return AliveReply(status="alive")


@router.get("/v2/health/live")
@needs(PUBLIC)
async def live(_request: ApiRequest) -> LiveReply:
    """Whether the process answers."""
    return LiveReply(live=True)


@router.get("/v2/health/ready", responses={503: {"description": "Not ready", "model": ReadyReply}})
@needs(PUBLIC)
async def ready(request: ApiRequest) -> Reply[ReadyReply]:
    """Whether the models are loaded, on every worker, at least one can be served, and what is answered is recorded.

    `recording` is false while the ledger's database takes no records; where these are required, nothing is answered
    then. `loading` names the versions that are still to be loaded at the start. `failed` names those that cannot be
    served, which keep no other from it; the index of the model repository says why. `registry` says what could not be
    looked up or fetched where the models come from; what was fetched before is served meanwhile. `ledger` is
    there where this start found that the ledger's database is not what was signed, or that a file beside it was torn:
    sentences for the operator. What can be served is served all the same.
    """
    services = request.services
    catalog = services.catalog
    is_recording = services.ledger is None or services.ledger.is_recording
    can_answer = is_recording or services.ledger_mode != "required"
    reply = ReadyReply(
        ready=catalog.is_ready and services.engine.stats().is_complete and can_answer,
        recording=None if is_recording else False,
        loading=catalog.loading or None,
        failed=catalog.failed or None,
        registry=[*services.repository.problems] or None,
        ledger=[*services.ledger_notices] or None,
    )
    return Reply(reply) if reply.ready else Reply(reply, 503, {"Retry-After": "1"})


@router.get("/v2/models/{model}/ready", responses=answers(404, 503))
@needs(PUBLIC)
async def model_ready(request: ApiRequest, model: str) -> ModelReadyReply:
    """Whether the version that the bare name means answers."""
    return _ready(request, model, None)


@router.get("/v2/models/{model}/versions/{version}/ready", responses=answers(404, 503))
@needs(PUBLIC)
async def version_ready(request: ApiRequest, model: str, version: str) -> ModelReadyReply:
    """Whether that version answers."""
    return _ready(request, model, version)


def _ready(request: ApiRequest, model: str, version: str | None) -> ModelReadyReply:
    key = request.services.catalog.find(model, version).key
    return ModelReadyReply(name=key.name, version=key.version, ready=True)


@router.get("/v2")
@needs(PUBLIC)
async def server(_request: ApiRequest) -> ServerItem:
    """The server's name and version."""
    return ServerItem(name="answerable", version=__version__, extensions=["model_repository"])


@router.get("/metrics", response_class=PlainTextResponse)
@needs("metrics")
async def metrics(request: ApiRequest) -> Response:
    """All figures, for Prometheus."""
    return Response(request.services.render_metrics(), media_type=CONTENT_TYPE)
