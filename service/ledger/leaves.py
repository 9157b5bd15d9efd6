"""What a row of the log says, as bytes: written once, hashed, and never written again."""

from __future__ import annotations

from typing import Any

import orjson

from service.ledger.entries import Event

SCHEMA = 1
"""The version of the records written here. Explanations recorded before there was one have no `schema`."""


def event_record(event: Event) -> bytes:
    """The record of an event, as JSON."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": event.kind,
        "tenant": event.tenant,
        "created": event.created,
        "key_id": event.key_id,
        "about": event.about,
        "details": dict(event.details),
    }
    return orjson.dumps(content)
