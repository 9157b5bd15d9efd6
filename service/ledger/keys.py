"""Callers' keys. A key is 256 random bits, so storing a plain SHA-256 of it is enough.

Every change of a key is an event in the log of its tenant, in the transaction of the change. The events of a key hold
all that its row does, so that the row can be compared with them (`key_history`). A secret that somebody chose might be
guessed from its hash, which is therefore in the row only, with a salt: the log holds a commitment to the two.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.access.permissions import OPEN, Policy, Quota
from service.ledger.clock import ledger_time
from service.ledger.database import database_in_reach, serialised
from service.ledger.entries import KEY_CHANGED, KEY_CREATED, KEY_REVOKED, KEY_ROTATED, Event
from service.ledger.events import insert_event
from service.ledger.key_history import committed, written_permissions
from service.ledger.tables import keys

SCOPES = frozenset({"explain", "ledger:read", "ledger:write", "models:write", "metrics"})
OPERATOR = "operator"
"""Who changes keys according to the log: whoever can use the database, since no route changes them."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a key may do, how much of it, and for how long. Times are microseconds since the epoch, UTC.

    `account` is the id of the first of the keys that replace one another; quotas are theirs together.
    """

    id: str
    tenant: str
    name: str
    scopes: frozenset[str]
    created: int
    expires: int | None
    revoked: int | None
    account: str
    quota: Quota | None = None
    policy: Policy = OPEN

    def is_valid(self, now: int) -> bool:
        """Whether the key is valid at `now`, the ledger's time in microseconds since the epoch, UTC."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Keys:
    """The stored keys. Every call blocks on the database and raises LedgerUnavailable when it does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        tenant: str,
        scopes: Iterable[str],
        expires: int | None = None,
        quota: Quota | None = None,
        policy: Policy = OPEN,
    ) -> tuple[Key, str]:
        """Creates a key; returns it with its secret, `ak_` and 43 characters, which cannot be read again.

        `expires` is in microseconds since the epoch, UTC. Raises ValueError for an unknown scope.
        """
        checked, secret = _checked(scopes), _new_secret()
        with self._writing() as connection:
            key = _new(connection, name, tenant, checked, expires, quota, policy)
            _enter(connection, KEY_CREATED, key, _hash(secret))
        return key, secret

    def add(self, secret: str, name: str, tenant: str, scopes: Iterable[str], expires: int | None = None) -> Key:
        """Stores a key whose secret the operator chose. A known one stays as it is, even if it was revoked.

        Raises ValueError for an empty secret or an unknown scope.
        """
        if not secret:
            raise ValueError("a key cannot be empty")
        checked = _checked(scopes)
        for _ in range(2):
            if (known := self.find(secret)) is not None:
                return known
            try:
                with self._writing() as connection:
                    key = _new(connection, name, tenant, checked, expires, None, OPEN)
                    _enter(connection, KEY_CREATED, key, _hash(secret), salt=secrets.token_hex(16))
            except IntegrityError:  # another process added it in between
                continue
            return key
        raise RuntimeError("a key exists, but cannot be found")

    def identity(self, key_id: str, name: str, tenant: str) -> Key:
        """The key of an identity whose requests are authenticated elsewhere; created when it is first asked for.

        It has no secret, so nobody can send it, and no scopes: these come with each request.
        """
        for _ in range(2):
            if (known := self.get(key_id)) is not None:
                return known
            try:
                with self._writing() as connection:
                    key = Key(key_id, tenant, name, frozenset(), ledger_time(connection), None, None, key_id)
                    _enter(connection, KEY_CREATED, key, _hash(_new_secret()))
            except IntegrityError:  # another process created it in between
                continue
            return key
        raise RuntimeError("an identity exists, but cannot be found")

    def rotate(self, key_id: str, overlap: int) -> tuple[Key, str] | None:
        """Creates a key that replaces another, with the same rights, quota and policy; None when that is not valid.

        The old key stays valid for `overlap` microseconds, or until it expires, whichever comes first. The new key
        expires when the old one would have.
        """
        with self._writing() as connection:
            old, now = _read(connection, key_id), ledger_time(connection)
            if old is None or not old.is_valid(now):
                return None
            key, secret = replace(old, id=str(uuid.uuid4()), created=now), _new_secret()
            ends = now + overlap if old.expires is None else min(old.expires, now + overlap)
            _enter(connection, KEY_ROTATED, key, _hash(secret), {"replaces": old.id, "old_expires": ends})
            connection.execute(update(keys).where(keys.c.id == old.id).values(expires=ends))
        return key, secret

    def change(self, key_id: str, quota: Quota | None, policy: Policy) -> bool:
        """Gives a key another quota and policy; returns whether there is one of this id."""
        with self._writing() as connection:
            key = _read(connection, key_id)
            if key is None:
                return False
            changed = replace(key, quota=quota, policy=policy)
            _append_event(connection, KEY_CHANGED, changed, {"before": _permissions(key), **_permissions(changed)})
            connection.execute(update(keys).where(keys.c.id == key_id).values(_permission_columns(changed)))
        return True

    def find(self, secret: str) -> Key | None:
        """The key of this secret, valid or not; None when there is none."""
        digest = _hash(secret)
        with database_in_reach(), self._engine.connect() as connection:
            row = connection.execute(select(keys).where(keys.c.hash == digest)).one_or_none()
        # The database compares in its own way; this comparison takes the same time whatever was sent.
        return _key(row) if row is not None and hmac.compare_digest(row.hash, digest) else None

    def list(self) -> list[Key]:
        """All keys, the oldest first."""
        with database_in_reach(), self._engine.connect() as connection:
            return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created, keys.c.id))]

    def revoke(self, key_id: str) -> bool:
        """Revokes a key for good; returns whether there is one of this id."""
        with self._writing() as connection:
            key, now = _read(connection, key_id), ledger_time(connection)
            if key is not None and key.revoked is None:
                _append_event(connection, KEY_REVOKED, key, {"name": key.name, "revoked": now})
                connection.execute(update(keys).where(keys.c.id == key_id).values(revoked=now))
        return key is not None

    def get(self, key_id: str) -> Key | None:
        """The key of this id, valid or not; None when there is none."""
        with database_in_reach(), self._engine.connect() as connection:
            return _read(connection, key_id)

    def now(self) -> int:
        """The time by which keys expire: the ledger's, in microseconds since the epoch, UTC."""
        with database_in_reach(), self._engine.connect() as connection:
            return ledger_time(connection)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock, so that what is read in it stays true until it commits."""
        with database_in_reach(), serialised(self._engine).begin() as connection:
            yield connection


def _read(connection: Connection, key_id: str) -> Key | None:
    row = connection.execute(select(keys).where(keys.c.id == key_id)).one_or_none()
    return None if row is None else _key(row)


def _enter(
    connection: Connection,
    kind: str,
    key: Key,
    digest: str,
    details: Mapping[str, Any] | None = None,
    salt: str | None = None,
) -> None:
    """Stores a key; its event holds every column, with a commitment in place of a salted hash."""
    columns = {"name": key.name, "scopes": sorted(key.scopes), "expires": key.expires, **_permissions(key)}
    secret = {"hash": digest} if salt is None else {"commitment": committed(salt, digest)}
    _append_event(
        connection, kind, key, {**columns, "created": key.created, "account": key.account, **secret, **(details or {})}
    )
    connection.execute(insert(keys).values(_row(key, digest, salt)))


def _append_event(connection: Connection, kind: str, key: Key, details: Mapping[str, Any]) -> None:
    insert_event(connection, Event(kind=kind, tenant=key.tenant, key_id=OPERATOR, about=key.id, details=details))


def _new(
    connection: Connection,
    name: str,
    tenant: str,
    scopes: frozenset[str],
    expires: int | None,
    quota: Quota | None,
    policy: Policy,
) -> Key:
    key_id = str(uuid.uuid4())
    return Key(key_id, tenant, name, scopes, ledger_time(connection), expires, None, key_id, quota, policy)


def _new_secret() -> str:
    return f"ak_{secrets.token_urlsafe(32)}"


def _checked(scopes: Iterable[str]) -> frozenset[str]:
    checked = frozenset(scopes)
    if unknown := checked - SCOPES:
        raise ValueError(f"unknown scopes: {', '.join(sorted(unknown))}; known are {', '.join(sorted(SCOPES))}")
    return checked


def _permissions(key: Key) -> dict[str, Any]:
    quota = {} if key.quota is None else key.quota.written()
    return {"quota": quota, "policy": key.policy.written()}


def _permission_columns(key: Key) -> dict[str, str | None]:
    return {name: written_permissions(limits) for name, limits in _permissions(key).items()}


def _row(key: Key, digest: str, salt: str | None) -> dict[str, Any]:
    return {
        "id": key.id,
        "hash": digest,
        "tenant": key.tenant,
        "scopes": " ".join(sorted(key.scopes)),
        "name": key.name,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "account": key.account,
        "salt": salt,
        **_permission_columns(key),
    }


def _key(row: Row[Any]) -> Key:
    return Key(
        row.id,
        row.tenant,
        row.name,
        frozenset(row.scopes.split()),
        row.created,
        row.expires,
        row.revoked,
        row.account or row.id,
        None if row.quota is None else Quota.read(orjson.loads(row.quota)),
        OPEN if row.policy is None else Policy.read(orjson.loads(row.policy)),
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
