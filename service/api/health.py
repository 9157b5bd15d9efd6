"""Liveness, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from service import __version__
from service.api.auth import PUBLIC, needs
from service.api.problems import answers
from service.catalog.versions import Catalog
from service.engine.protocol import Engine
from service.ledger.ledger import Ledger
from service.monitoring.instruments import CONTENT_TYPE

router = APIRouter(tags=["Health"])


class ServerItem(BaseModel):
    """The server, as the V2 protocol has it."""

    name: str = Field(description="of the server")
    version: str = Field(description="of the server")
    extensions: list[str] = Field(description="of the protocol that are served")


@router.get("/")
@needs(PUBLIC)
async def alive() -> dict[str, str]:
    """Whether the process answers, where KServe's V1 protocol asks."""
    return {"status": "alive"}


@router.get("/v2/health/live")
@needs(PUBLIC)
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@router.get("/v2/health/ready", responses={503: {"description": "Not ready"}})
@needs(PUBLIC)
async def ready(request: Request, response: Response) -> dict[str, bool | list[str]]:
    """Whether the models are loaded, on every worker, at least one can be served, and what is answered is recorded.

    `recording` is false while the ledger's database takes no records; where these are required, nothing is answered
    then. `loading` names the versions that are still to be loaded at the start. `failed` names those that cannot be
    served, which keep no other from it; the index of the model repository says why. `ledger` is there where this start
    found that the ledger's database is not what was signed, or that a file beside it was torn: sentences for the
    operator. What can be served is served all the same.
    """
    catalog: Catalog = request.app.state.catalog
    engine: Engine = request.app.state.engine
    ledger: Ledger | None = request.app.state.ledger
    is_recording = ledger is None or ledger.is_recording
    can_answer = is_recording or request.app.state.ledger_mode != "required"
    is_ready = catalog.is_ready and engine.stats().is_complete and can_answer
    if not is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    named = {
        "loading": catalog.loading,
        "failed": catalog.failed,
        "ledger": request.app.state.ledger_notices,
    }
    recording = {} if is_recording else {"recording": False}
    return {"ready": is_ready, **recording, **{what: found for what, found in named.items() if found}}


@router.get("/v2/models/{model}/ready", responses=answers(404, 503))
@needs(PUBLIC)
async def model_ready(request: Request, model: str) -> dict[str, str | bool]:
    """Whether the version that the bare name means answers."""
    return _ready(request, model, None)


@router.get("/v2/models/{model}/versions/{version}/ready", responses=answers(404, 503))
@needs(PUBLIC)
async def version_ready(request: Request, model: str, version: str) -> dict[str, str | bool]:
    """Whether that version answers."""
    return _ready(request, model, version)


def _ready(request: Request, model: str, version: str | None) -> dict[str, str | bool]:
    catalog: Catalog = request.app.state.catalog
    found = catalog.find(model, version)
    return {"name": found.key.name, "version": found.key.version, "ready": True}


@router.get("/v2")
@needs(PUBLIC)
async def server() -> ServerItem:
    """The server's name and version."""
    return ServerItem(name="answerable", version=__version__, extensions=["model_repository"])


@router.get("/metrics", response_class=PlainTextResponse, responses=answers(401, 403))
@needs("metrics")
async def metrics(request: Request) -> Response:
    """All figures, for Prometheus."""
    content = request.app.state.render_metrics()
    return Response(content, media_type=CONTENT_TYPE)
