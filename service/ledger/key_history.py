"""What the row of every key must be, according to the events of the log.

The event that creates a key holds every column of its row, later events what they changed. A row that no event created
was added without the log. Keys older than these events have one, `key_kept`, that holds their row as it was when the
events began; what happened to them before is not recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from sqlalchemy import Row

from service.ledger.entries import KEY_CHANGED, KEY_CREATED, KEY_KEPT, KEY_REVOKED, KEY_ROTATED

KEY_KINDS = frozenset({KEY_CREATED, KEY_ROTATED, KEY_CHANGED, KEY_REVOKED, KEY_KEPT})

_PLAIN_COLUMNS = ("name", "created", "expires", "account")
_PERMISSIONS = ("quota", "policy")
_SECRET = ("hash", "salt", "commitment")


def committed(salt: str, digest: str) -> str:
    """The log's commitment to the hash of a chosen secret; without the salt it is of no use for guessing the secret."""
    return hashlib.sha256(f"{salt}{digest}".encode()).hexdigest()


def written_permissions(limits: Mapping[str, Any]) -> str | None:
    """A quota or a policy as its column holds it; None where nothing is limited."""
    return orjson.dumps(limits).decode() if limits else None


class KeyHistory:
    """Follows the events of keys in the order of the log."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self.kept: set[str] = set()
        """Ids of the keys that are older than the events that hold a whole row."""
        self.kept_at: int | None = None
        """When those events began, in microseconds since the epoch, UTC."""

    def follow(self, event: Mapping[str, Any]) -> list[str]:
        """Takes the next event of a key; returns what in it contradicts the events before it.

        Raises KeyError, TypeError or AttributeError for an event that is not about a key.
        """
        key_id, details = event["about"], event["details"]
        if event["kind"] in (KEY_CREATED, KEY_ROTATED, KEY_KEPT):
            return self._make(event, key_id, details) if "created" in details else []
        if (row := self._rows.get(key_id)) is None:
            return []  # an older key, whose `key_kept` event comes later
        if event["kind"] == KEY_REVOKED:
            row["revoked"] = details["revoked"]
        else:
            row.update({name: written_permissions(details[name]) for name in _PERMISSIONS})
        return []

    def faults(self, rows: Iterable[Row[Any]]) -> Iterator[str]:
        """Where the stored rows differ from what the events say."""
        expected_rows = dict(self._rows)
        for row in rows:
            expected = expected_rows.pop(row.id, None)
            if expected is None:
                yield f"key {row.id}: no event in the log created it"
                continue
            for name in _differing(row, expected):
                yield f"key {row.id}: column {name} differs from its events in the log"
        yield from (f"key {key_id} is missing" for key_id in expected_rows)

    def _make(self, event: Mapping[str, Any], key_id: str, details: Mapping[str, Any]) -> list[str]:
        made = _row_of(event, details)
        before = self._rows.get(key_id)
        self._rows[key_id] = made
        if event["kind"] == KEY_KEPT:
            self.kept_at = event["created"]
            if before is None:
                self.kept.add(key_id)
                return []
            made.update({name: before[name] for name in _SECRET if name in before and name not in made})
            changed = [name for name, value in before.items() if name not in _SECRET and value != made[name]]
            return [
                f"key {key_id}: column {name} had been changed before the event {KEY_KEPT} recorded it"
                for name in changed
            ]
        if details.get("replaces") in self._rows:
            self._rows[details["replaces"]]["expires"] = details["old_expires"]
        return [] if before is None else [f"key {key_id}: two events created it"]


def _row_of(event: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a key's row as the event that created or kept it holds them, and the commitment to its hash."""
    return {
        "tenant": event["tenant"],
        "scopes": " ".join(details["scopes"]),
        "revoked": details.get("revoked"),
        **{name: details[name] for name in _PLAIN_COLUMNS},
        **{name: written_permissions(details[name]) for name in _PERMISSIONS},
        **{name: details[name] for name in _SECRET if name in details},
    }


def _differing(row: Row[Any], expected: Mapping[str, Any]) -> Iterator[str]:
    yield from (name for name, value in expected.items() if name != "commitment" and getattr(row, name) != value)
    commitment = expected.get("commitment")
    if commitment is None:
        if row.salt is not None:
            yield "salt"
    elif row.salt is None or committed(row.salt, row.hash) != commitment:
        yield "hash or salt"
    if commitment is None and "hash" not in expected:
        yield "hash"
