"""Liveness, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from service import __version__
from service.api.auth import PUBLIC, needs
from service.api.problems import answers
from service.catalog.versions import Catalog
from service.engine.pool import Pool
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
async def ready(request: Request, response: Response) -> dict[str, bool]:
    """Whether every configured model answers a real forward pass on every worker."""
    catalog: Catalog = request.app.state.catalog
    engine: Pool = request.app.state.engine
    is_ready = catalog.is_ready and engine.is_complete
    if not is_ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return {"ready": is_ready}


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
