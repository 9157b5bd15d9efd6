"""What the row of every key must be, by the events of the log.

An event that makes a key holds every column of its row, the later ones what they changed. A row that no event made was
added behind the log's back. Keys that are older than such events have one that says how they stood when these began:
what became of them before that, nobody can tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from sqlalchemy import Row

from service.ledger.entries import KEY_CHANGED, KEY_CREATED, KEY_KEPT, KEY_REVOKED, KEY_ROTATED

KEY_KINDS = frozenset({KEY_CREATED, KEY_ROTATED, KEY_CHANGED, KEY_REVOKED, KEY_KEPT})

_AS_THEY_ARE = ("name", "created", "expires", "account")
_PERMISSIONS = ("quota", "policy")
_SECRET = ("hash", "salt", "commitment")


def committed(salt: str, digest: str) -> str:
    """What the log says of the hash of a secret that somebody chose; without the salt it helps nobody to guess it."""
    return hashlib.sha256(f"{salt}{digest}".encode()).hexdigest()


def written_permissions(said: Mapping[str, Any]) -> str | None:
    """A quota or a policy as its column has it; None where nothing is limited."""
    return orjson.dumps(said).decode() if said else None


class KeyHistory:
    """Follows the events of keys in the order of the log."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self.kept: set[str] = set()
        """Ids of the keys that are older than the events that hold all of a row."""
        self.kept_at: int | None = None
        """When those events began, in microseconds since the epoch, UTC."""

    def follow(self, event: Mapping[str, Any]) -> list[str]:
        """Takes the next event of a key; returns what it says that cannot be, by those before it.

        Raises KeyError, TypeError or AttributeError for one that tells of no key.
        """
        key_id, details = event["about"], event["details"]
        if event["kind"] in (KEY_CREATED, KEY_ROTATED, KEY_KEPT):
            return self._make(event, key_id, details) if "created" in details else []
        if (row := self._rows.get(key_id)) is None:
            return []  # of a key that is older, and whose row was not kept yet
        if event["kind"] == KEY_REVOKED:
            row["revoked"] = details["revoked"]
        else:
            row.update({name: written_permissions(details[name]) for name in _PERMISSIONS})
        return []

    def faults(self, rows: Iterable[Row[Any]]) -> Iterator[str]:
        """What of all the stored rows is not what the events say."""
        awaited = dict(self._rows)
        for row in rows:
            expected = awaited.pop(row.id, None)
            if expected is None:
                yield f"key {row.id}: no event of the log tells of it"
                continue
            for name in _differing(row, expected):
                yield f"key {row.id}: the column {name} is not what its events say"
        yield from (f"key {key_id} is missing" for key_id in awaited)

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
            return [f"key {key_id}: the column {name} was not kept as it was" for name in changed]
        if details.get("replaces") in self._rows:
            self._rows[details["replaces"]]["expires"] = details["old_expires"]
        return [] if before is None else [f"key {key_id}: it was made twice"]


def _row_of(event: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a key by the event that made or kept it, and the commitment to its hash and salt."""
    return {
        "tenant": event["tenant"],
        "scopes": " ".join(details["scopes"]),
        "revoked": details.get("revoked"),
        **{name: details[name] for name in _AS_THEY_ARE},
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
