"""What a row of the log says, as bytes: written once, hashed, and never written again."""

from __future__ import annotations

import hashlib
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


def leaf_hash(record: bytes) -> bytes:
    """The hash of a leaf: SHA-256(0x00 || record), 32 bytes (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\0" + record).digest()
