"""The request that a route's handler gets."""

from __future__ import annotations

from functools import cached_property

from fastapi import Request

from service.access.callers import Caller
from service.api.services import Services
from service.api.traffic import ObservedRequest
from service.ledger.entries import RequestKey


class ApiRequest(Request):
    """A request that has passed its route's checks.

    `caller` is who sent it; a public route has none. `key` is the `Idempotency-Key`, if the route takes one and it was
    sent.
    """

    caller: Caller
    key: RequestKey | None = None

    @cached_property
    def services(self) -> Services:
        """What the service consists of."""
        services: Services = self.app.state.services
        return services

    @cached_property
    def observed(self) -> ObservedRequest:
        """What the log, the metrics and the traces will say of this request; the handler fills it in."""
        observed: ObservedRequest = self.scope["state"].setdefault("observed", ObservedRequest())
        return observed
