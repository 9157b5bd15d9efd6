"""Liveness, readiness, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from service import __version__
from service.api.auth import PUBLIC, needs
from service.api.problems import answers
from service.catalog.versions import Catalog
from service.engine.pool import Pool
from service.monitoring.instruments import CONTENT_TYPE

router = APIRouter(tags=["Health"])


@router.get("/v2/health/live")
@needs(PUBLIC)
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@router.get("/v2/health/ready", responses={503: {"description": "Not ready"}})
@needs(PUBLIC)
async def ready(request: Request, response: Response) -> dict[str, Any]:
    """Whether every configured model answers a real forward pass on every worker.

    `ledger` is there where this start found that the ledger's database is not what was signed, or that a file beside it
    was torn: sentences for the operator. What can be served is served all the same.
    """
    catalog: Catalog = request.app.state.catalog
    engine: Pool = request.app.state.engine
    is_ready = catalog.is_ready and engine.is_complete
    if not is_ready:
        response.status_code = 503
    notices = getattr(request.app.state, "ledger_notices", None)
    return {"ready": is_ready, "ledger": notices} if notices else {"ready": is_ready}


@router.get("/v2")
@needs(PUBLIC)
async def server() -> dict[str, object]:
    """The server's name and version."""
    return {"name": "answerable", "version": __version__, "extensions": ["model_repository"]}


@router.get("/metrics", response_class=PlainTextResponse, responses=answers(401, 403))
@needs("metrics")
async def metrics(request: Request) -> Response:
    """All figures, for Prometheus."""
    content = request.app.state.render_metrics()
    return Response(content, media_type=CONTENT_TYPE)
