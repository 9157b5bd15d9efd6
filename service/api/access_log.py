"""Every look-up of stored explanations is itself recorded, before it is answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from service.api.requests import ApiRequest
from service.errors import LedgerUnavailable
from service.ledger.entries import LOOKUP
from service.ledger.searches import Page, Search

LOG = logging.getLogger("answerable.lookups")
OF_AN_EXPLANATION = "/v1/explanations/{explanation}"


async def record_lookup(request: ApiRequest, about: str | None, details: Mapping[str, Any] | None = None) -> None:
    """Records who read what, and by which route.

    Raises LedgerUnavailable where records are required, NotFound where no ledger is kept.
    """
    path = request.scope["route"].path_format
    action = path.removeprefix(OF_AN_EXPLANATION).strip("/:") or "get"
    caller, ledger = request.caller, request.services.need_ledger().ledger
    try:
        await ledger.append_event(LOOKUP, caller.tenant, caller.key_id, about, {"action": action, **(details or {})})
    except LedgerUnavailable:
        if request.services.ledger_mode == "required":
            raise LedgerUnavailable("The look-up could not be recorded, so it is not answered.") from None
        LOG.exception("a look-up was answered without a record")


def search_details(page: Page) -> dict[str, Any]:
    """The details of a search for the log: its conditions, people by their tokens, and the places of its results."""
    search = page.asked
    if search is None:
        return {"action": "search", "conditions": {"subject": "nobody that is known"}, "seen": []}
    values = {field.name: getattr(search, field.name) for field in fields(Search)}
    conditions = {name: value for name, value in values.items() if value is not None and value != ()}
    return {"action": "search", "conditions": conditions, "seen": [stored.seq for stored in page.entries]}
