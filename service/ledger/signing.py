"""The keys that sign checkpoints (Ed25519, RFC 8032), and the chain from one to the next.

The private key is in a file; every public key ever used is kept in the database as a statement:

    {"schema": 1, "type": "signing-key", "place": 2, "public_key": "...", "previous": "...", "from_size": 1234,
     "created": 1790000000000000}

signed by the key itself and, except for the first, endorsed by the key before it. So trust in one key of the chain
extends to all of them, and no key may sign for a log larger than it was when the next key took over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from sqlalchemy import Connection, insert, select

from service.errors import SetupError
from service.ledger.clock import machine_time
from service.ledger.secret_files import SecretFileError, create_secret, read_secret
from service.ledger.tables import signing_keys

_log = logging.getLogger(__name__)


class NotTheSigner(SetupError):
    """This host's key is not the one that the log is signed with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key (hexadecimal, 64 characters) and its statement, signature and endorsement."""

    place: int
    public_key: str
    previous: str | None
    from_size: int
    created: int
    statement: bytes
    signature: bytes
    endorsement: bytes | None

    @property
    def line(self) -> dict[str, str | None]:
        """The statement and its signatures as JSON, for exports."""
        endorsement = None if self.endorsement is None else self.endorsement.hex()
        return {"statement": self.statement.decode(), "signature": self.signature.hex(), "endorsement": endorsement}


def read_key_line(line: Any) -> SigningKey:
    """Reads what `SigningKey.line` holds. Raises ValueError, TypeError, KeyError or AttributeError."""
    endorsement = None if line["endorsement"] is None else bytes.fromhex(line["endorsement"])
    return read_statement(line["statement"].encode(), bytes.fromhex(line["signature"]), endorsement)


def read_statement(statement: bytes, signature: bytes, endorsement: bytes | None) -> SigningKey:
    """Reads a stored statement without verifying it. Raises ValueError, TypeError or KeyError for anything else."""
    content = orjson.loads(statement)
    if (content["schema"], content["type"]) != (1, "signing-key"):
        raise ValueError("not the statement of a signing key")
    return SigningKey(
        int(content["place"]),
        str(content["public_key"]),
        content["previous"],
        int(content["from_size"]),
        int(content["created"]),
        statement,
        signature,
        endorsement,
    )


def signed_by(public_key: str, signature: bytes, content: bytes) -> bool:
    """Whether the key (hexadecimal) signed exactly these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def chain_faults(chain: Sequence[SigningKey]) -> list[str]:
    """What is wrong with a chain of keys, the oldest first; nothing when each key endorses the next."""
    faults = []
    before: SigningKey | None = None
    for place, key in enumerate(chain, 1):
        name = f"signing key {place}"
        if key.place != place:
            faults.append(f"{name} is missing from the chain, or has another number")
        if not signed_by(key.public_key, key.signature, key.statement):
            faults.append(f"{name} has not signed its own statement")
        if before is None:
            if key.previous is not None or key.endorsement is not None or key.from_size != 0:
                faults.append(f"{name} is the first, but says that there was a key before it")
        elif (
            key.previous != before.public_key
            or key.endorsement is None
            or not signed_by(before.public_key, key.endorsement, key.statement)
            or key.from_size < before.from_size
        ):
            faults.append(f"{name} is not endorsed by the key before it")
        before = key
    return faults


def signer_faults(chain: Sequence[SigningKey], public_key: str, size: int) -> list[str]:
    """Why this key may not sign for a log of that size; nothing when it may."""
    for key, following in zip(chain, [*chain[1:], None], strict=True):
        if key.public_key == public_key:
            if following is not None and size > following.from_size:
                return [f"signing key {key.place} signed for {size} rows, after the next key had taken over"]
            return []
    return ["it is signed by a key that is not in the chain"]


def read_chain(connection: Connection) -> list[SigningKey]:
    """Every key, the oldest first. Raises ValueError, TypeError or KeyError for a statement that cannot be read, or is
    stored under another number."""
    rows = connection.execute(select(signing_keys).order_by(signing_keys.c.place)).all()
    chain = [read_statement(row.statement, row.signature, row.endorsement) for row in rows]
    if [key.place for key in chain] != [row.place for row in rows]:
        raise ValueError("a signing key is stored under another number")
    return chain


class Signer:
    """Signs with the private key in a file, which is created when the log has no key yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._private: Ed25519PrivateKey | None = None

    def enrol(self, connection: Connection) -> SigningKey:
        """The newest key of the log, whose private half this signer has; a new log gets its first key here.

        `connection` holds the write lock. Raises NotTheSigner when the log is signed with another key than the file's,
        SecretFileError when the file cannot be used.
        """
        chain = read_chain(connection)
        if not chain:
            create_secret(self._path, _pem(Ed25519PrivateKey.generate()))
            self._private = self._load()
            return self._store(connection, None, 0, machine_time(), self._private)
        newest = chain[-1]
        if self._private is None or public_key_of(self._private) != newest.public_key:
            self._private = self._find(newest.public_key)
        return newest

    def sign(self, content: bytes) -> bytes:
        """The signature of the newest key, 64 bytes; after `enrol`."""
        assert self._private is not None
        return self._private.sign(content)

    def rotate(self, connection: Connection, from_size: int, now: int) -> SigningKey:
        """Stores a new key, endorsed by the one before; `finish_rotation` must follow once that is committed.

        `now` is in microseconds since the epoch, UTC.
        """
        before = self.enrol(connection)
        old, new = self._private, Ed25519PrivateKey.generate()
        assert old is not None
        self._next.unlink(missing_ok=True)
        create_secret(self._next, _pem(new))
        return self._store(connection, before, from_size, now, new, old)

    def finish_rotation(self) -> None:
        """Replaces the file of the old key with that of the new one."""
        self._next.replace(self._path)
        self._private = self._load()

    @property
    def _next(self) -> Path:
        return self._path.with_name(self._path.name + ".next")

    def _store(
        self,
        connection: Connection,
        before: SigningKey | None,
        from_size: int,
        now: int,
        new: Ed25519PrivateKey,
        old: Ed25519PrivateKey | None = None,
    ) -> SigningKey:
        place = 1 if before is None else before.place + 1
        statement = orjson.dumps(
            {
                "schema": 1,
                "type": "signing-key",
                "place": place,
                "public_key": public_key_of(new),
                "previous": None if before is None else before.public_key,
                "from_size": from_size,
                "created": now,
            }
        )
        key = read_statement(statement, new.sign(statement), None if old is None else old.sign(statement))
        connection.execute(
            insert(signing_keys).values(
                place=place, statement=statement, signature=key.signature, endorsement=key.endorsement
            )
        )
        return key

    def _find(self, public_key: str) -> Ed25519PrivateKey:
        """The private half of the key, from the file, or from the file of a rotation that was interrupted."""
        private = None
        try:
            private = self._load()
        except FileNotFoundError:
            _log.warning("there is no file %s", self._path.name)
        if private is not None and public_key_of(private) == public_key:
            return private
        if self._next.exists() and public_key_of(self._load(self._next)) == public_key:
            self.finish_rotation()
            return self._load()
        raise NotTheSigner(
            f"the log is signed with the key {public_key[:16]}…, which is not in {self._path}: copy that key's file "
            "from the host that has it, or name it with ANSWERABLE_SIGNING_KEY"
        )

    def _load(self, path: Path | None = None) -> Ed25519PrivateKey:
        path = path or self._path
        try:
            key = load_pem_private_key(read_secret(path), password=None)
        except ValueError as error:
            raise SecretFileError(f"{path} holds no private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SecretFileError(f"{path} holds no Ed25519 key")
        return key


def public_key_of(private: Ed25519PrivateKey) -> str:
    """The public half, hexadecimal."""
    return private.public_key().public_bytes_raw().hex()


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
