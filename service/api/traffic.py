"""Counts every call of `:explain` and `:predict` by what came of it, refusals included."""

from __future__ import annotations

import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.methods.registry import BY_NAME
from service.monitoring.labels import PREDICT, UNKNOWN
from service.monitoring.metrics import Metrics

COUNTED = (":explain", ":predict")


def name_for_metrics(request: Request, model: str, method: str) -> None:
    """Says whose request this is, once the model is known; a label must not take whatever a client sends."""
    request.state.model = model
    request.state.method = method if method in BY_NAME or method == PREDICT else UNKNOWN


class CountedRequests:
    """The middleware; requests of models that are not known are counted under `unknown`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(COUNTED):
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            state = scope.get("state", {})
            labels = (state.get("model", UNKNOWN), state.get("method", UNKNOWN))
            metrics: Metrics = scope["app"].state.metrics
            metrics.observe_request(*labels, status, time.monotonic() - started)
