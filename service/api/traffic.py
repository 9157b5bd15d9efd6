"""Around every request: counted by what came of it, refusals included, logged in one line, and traced if wanted.

Requests for health, metrics and pages of documentation are neither counted, logged nor traced.
"""

from __future__ import annotations

import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.methods.registry import BY_NAME
from service.monitoring.labels import PREDICT, UNKNOWN
from service.monitoring.metrics import Metrics
from service.monitoring.request_log import RequestLine, RequestLog
from service.monitoring.timings import Spent
from service.monitoring.tracing import Tracing

COUNTED = (":explain", ":predict")
TOLD = ("/v1/", "/v2/repository/")
"""Where the paths begin of requests that are logged and traced: all that explain, tell or change something."""
NOTHING = Spent()


def name_for_metrics(request: Request, model: str, method: str) -> None:
    """Says whose request this is, once the model is known; a label must not take whatever a client sends."""
    request.state.model = model
    request.state.method = method if method in BY_NAME or method == PREDICT else UNKNOWN


class ObservedRequests:
    """The middleware; requests of models that are not known are counted under `unknown`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(TOLD):
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 500

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            _tell(scope, status, began, time.monotonic())


def _tell(scope: Scope, status: int, began: float, ended: float) -> None:
    seen, app = scope.get("state", {}), scope["app"].state
    model, method = seen.get("model", UNKNOWN), seen.get("method", UNKNOWN)
    if scope["path"].endswith(COUNTED):
        metrics: Metrics = app.metrics
        metrics.observe_request(model, method, status, ended - began)
    log: RequestLog | None = app.request_log
    tracing: Tracing | None = app.tracing
    if log is None and tracing is None:
        return
    spent: Spent = seen.get("spent", NOTHING)
    route = getattr(scope.get("route"), "path_format", UNKNOWN)
    if log is not None:
        request_id = seen.get("request_id", "")
        log.add(RequestLine(request_id, scope["method"], route, status, model, method, spent, ended - began))
    if tracing is not None:
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "answerable.model": model,
            "answerable.method": method,
        }
        traceparent = dict(scope["headers"]).get(b"traceparent")
        said = None if traceparent is None else traceparent.decode("latin-1")
        tracing.trace(f"{scope['method']} {route}", said, (began, ended), attributes, spent)
