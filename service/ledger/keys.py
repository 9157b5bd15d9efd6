"""Keys of the callers. A key is 256 random bits, so a plain SHA-256 of it is all that has to be stored."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.ledger.database import database_in_reach
from service.ledger.tables import keys

SCOPES = frozenset({"explain", "ledger:read", "ledger:write", "models:write", "metrics"})


@dataclass(frozen=True, slots=True)
class Key:
    """What a key may do, and for how long. Times are microseconds since the epoch, UTC."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[str]
    created: int
    expires: int | None
    revoked: int | None

    def is_valid(self, now: int) -> bool:
        """Whether the key opens anything at `now`, in microseconds since the epoch, UTC."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Keys:
    """The stored keys. Every call blocks on the database and raises LedgerUnavailable when it does not
    answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str, tenant: str, scopes: Iterable[str], expires: int | None = None) -> tuple[Key, str]:
        """Makes a key; returns it with its secret, `ak_` and 43 characters, which cannot be read again.

        `expires` is in microseconds since the epoch, UTC. Raises ValueError for an unknown scope.
        """
        secret = f"ak_{secrets.token_urlsafe(32)}"
        return self._insert(secret, name, tenant, scopes, expires), secret

    def add(self, secret: str, name: str, tenant: str, scopes: Iterable[str], expires: int | None = None) -> Key:
        """Stores a key that the operator chose. One that is known stays as it is, also when it was revoked.

        Raises ValueError for an empty secret or an unknown scope.
        """
        if not secret:
            raise ValueError("a key cannot be empty")
        try:
            return self.find(secret) or self._insert(secret, name, tenant, scopes, expires)
        except IntegrityError:  # another process added it in between
            return self.find(secret) or self._insert(secret, name, tenant, scopes, expires)

    def find(self, secret: str) -> Key | None:
        """The key of this secret, valid or not; None when there is none."""
        with database_in_reach(), self._engine.connect() as connection:
            row = connection.execute(select(keys).where(keys.c.hash == _hash(secret))).one_or_none()
        return None if row is None else _key(row)

    def list(self) -> list[Key]:
        """All keys, the oldest first."""
        with database_in_reach(), self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created, keys.c.id))]

    def revoke(self, key_id: str) -> bool:
        """Ends a key for good; returns whether there is one of this id. One that is revoked stays so."""
        with database_in_reach(), self._engine.begin() as connection:
            is_valid = (keys.c.id == key_id) & keys.c.revoked.is_(None)
            connection.execute(update(keys).where(is_valid).values(revoked=_now()))
            return connection.scalar(select(keys.c.id).where(keys.c.id == key_id)) is not None

    def _insert(self, secret: str, name: str, tenant: str, scopes: Iterable[str], expires: int | None) -> Key:
        key = Key(str(uuid.uuid4()), tenant, name, _known(scopes), _now(), expires, None)
        with database_in_reach(), self._engine.begin() as connection:
            connection.execute(insert(keys).values(_row(key, secret)))
        return key


def _known(scopes: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(scopes)
    if unknown := wanted - SCOPES:
        raise ValueError(f"unknown scopes: {', '.join(sorted(unknown))}; known are {', '.join(sorted(SCOPES))}")
    return wanted


def _row(key: Key, secret: str) -> dict[str, Any]:
    return {
        "id": key.id,
        "hash": _hash(secret),
        "tenant": key.tenant,
        "scopes": " ".join(sorted(key.scopes)),
        "name": key.name,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
    }


def _key(row: Row[Any]) -> Key:
    return Key(row.id, row.tenant, row.name, frozenset(row.scopes.split()), row.created, row.expires, row.revoked)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> int:
    return time.time_ns() // 1000
