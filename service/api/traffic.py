"""Observes every request: counts it by its outcome, refusals included, logs one line, and traces it if configured.

Requests for health, metrics and pages of documentation are neither counted, logged nor traced.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.services import Services
from service.methods.registry import BY_NAME
from service.monitoring.labels import PREDICT, UNKNOWN
from service.monitoring.request_log import RequestLine
from service.monitoring.timings import RequestTimings

COUNTED = (":explain", ":predict")
OBSERVED = ("/v1/", "/v2/repository/")
"""The prefixes of paths that are logged and traced: all that explain, show or change something."""


@dataclass(slots=True)
class ObservedRequest:
    """What is known of a request when it ends. The model is `unknown` until it is known to exist."""

    model: str = UNKNOWN
    method: str = UNKNOWN
    timings: RequestTimings = field(default_factory=RequestTimings)

    def name(self, model: str, method: str) -> None:
        """Sets the labels; an unknown method stays `unknown`, for clients may send anything."""
        self.model = model
        self.method = method if method in BY_NAME or method == PREDICT else UNKNOWN


class ObservedRequests:
    """The middleware; requests of models that are not known are counted under `unknown`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(OBSERVED):
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        observed = scope.setdefault("state", {})["observed"] = ObservedRequest()
        status = 500

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            _observe(scope, observed, status, began, time.monotonic())


def _observe(scope: Scope, observed: ObservedRequest, status: int, began: float, ended: float) -> None:
    services: Services = scope["app"].state.services
    if scope["path"].endswith(COUNTED):
        services.metrics.observe_request(observed.model, observed.method, status, ended - began)
    log, tracing = services.request_log, services.tracing
    if log is None and tracing is None:
        return
    route = getattr(scope.get("route"), "path_format", UNKNOWN)
    if log is not None:
        line = RequestLine(
            scope["state"].get("request_id", ""),
            scope["method"],
            route,
            status,
            observed.model,
            observed.method,
            observed.timings,
            ended - began,
        )
        log.add(line)
    if tracing is not None:
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "answerable.model": observed.model,
            "answerable.method": observed.method,
        }
        traceparent = dict(scope["headers"]).get(b"traceparent")
        parent = None if traceparent is None else traceparent.decode("latin-1")
        tracing.trace(f"{scope['method']} {route}", parent, (began, ended), attributes, observed.timings)
