"""The request that a route's handler gets."""

from __future__ import annotations

from fastapi import Request
from starlette.types import Receive, Scope

from service.access.callers import Caller
from service.api.services import Services
from service.api.traffic import ObservedRequest
from service.ledger.entries import RequestKey


class ApiRequest(Request):
    """A request that has passed its route's checks.

    `caller` is who sent it; a public route has none. `key` is the `Idempotency-Key`, if the route takes one and it was
    sent. `services` is what the service consists of. `observed` is what the log, the metrics and the traces will say of
    this request; the handler fills it in.
    """

    caller: Caller
    key: RequestKey | None = None

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self.services: Services = scope["app"].state.services
        self.observed: ObservedRequest = scope.get("state", {}).get("observed") or ObservedRequest()
