"""The keys that sign checkpoints (Ed25519, RFC 8032), and the chain from one to the next.

The private key lies in a file; every public key that ever was is kept in the database as a statement:

    {"schema": 1, "type": "signing-key", "place": 2, "public_key": "...", "previous": "...", "from_size": 1234,
     "created": 1790000000000000}

signed by the key itself and, but for the first, endorsed by the key before it. So whoever trusts any one key of the
chain can trust all of them, and a key signs nothing about a log larger than where the next one took over.
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
    """A public key (hexadecimal, 64 characters) and what is said of it."""

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
        """The statement and its signatures as JSON can hold them, in exports."""
        endorsement = None if self.endorsement is None else self.endorsement.hex()
        return {"statement": self.statement.decode(), "signature": self.signature.hex(), "endorsement": endorsement}


def read_key_line(line: Any) -> SigningKey:
    """The key that `SigningKey.line` wrote. Raises ValueError, TypeError, KeyError or AttributeError."""
    endorsement = None if line["endorsement"] is None else bytes.fromhex(line["endorsement"])
    return read_statement(line["statement"].encode(), bytes.fromhex(line["signature"]), endorsement)


def read_statement(statement: bytes, signature: bytes, endorsement: bytes | None) -> SigningKey:
    """What a stored statement says; nothing is verified yet. Raises ValueError, TypeError or KeyError for another."""
    said = orjson.loads(statement)
    if (said["schema"], said["type"]) != (1, "signing-key"):
        raise ValueError("this is no statement of a signing key")
    return SigningKey(
        int(said["place"]),
        str(said["public_key"]),
        said["previous"],
        int(said["from_size"]),
        int(said["created"]),
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
    """What is wrong with a chain of keys, the oldest first; nothing when each vouches for the next."""
    faults = []
    before: SigningKey | None = None
    for place, key in enumerate(chain, 1):
        name = f"signing key {place}"
        if key.place != place:
            faults.append(f"{name} is missing from the chain, or stands at another place")
        if not signed_by(key.public_key, key.signature, key.statement):
            faults.append(f"{name} did not sign its own statement")
        if before is None:
            if key.previous is not None or key.endorsement is not None or key.from_size != 0:
                faults.append(f"{name} says that there was one before it")
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
    """Why this key of the chain may not have signed something about a log of that size; nothing when it may."""
    for key, following in zip(chain, [*chain[1:], None], strict=True):
        if key.public_key == public_key:
            if following is not None and size > following.from_size:
                return [f"signing key {key.place} signed for {size} rows, when another had taken over"]
            return []
    return ["it is signed with a key that is not in the chain"]


def read_chain(connection: Connection) -> list[SigningKey]:
    """Every key, the oldest first. Raises ValueError, TypeError or KeyError for a statement that is none, or is not
    where it belongs."""
    rows = connection.execute(select(signing_keys).order_by(signing_keys.c.place)).all()
    chain = [read_statement(row.statement, row.signature, row.endorsement) for row in rows]
    if [key.place for key in chain] != [row.place for row in rows]:
        raise ValueError("a signing key is not stored at its place")
    return chain


class Signer:
    """The private key in a file, made there when the log has no key yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._private: Ed25519PrivateKey | None = None

    def enrol(self, connection: Connection) -> SigningKey:
        """The newest key of the log, whose private half this is; of a new log, made and entered here.

        `connection` holds the write lock. Raises NotTheSigner when the log is signed with another key than the file's,
        SecretFileError when the file cannot be used.
        """
        chain = read_chain(connection)
        if not chain:
            create_secret(self._path, _pem(Ed25519PrivateKey.generate()))
            self._private = self._load()
            return self._enter(connection, None, 0, machine_time(), self._private)
        newest = chain[-1]
        if self._private is None or public_key_of(self._private) != newest.public_key:
            self._private = self._find(newest.public_key)
        return newest

    def sign(self, content: bytes) -> bytes:
        """The signature of the newest key, 64 bytes; after `enrol`."""
        assert self._private is not None
        return self._private.sign(content)

    def rotate(self, connection: Connection, from_size: int, now: int) -> SigningKey:
        """A new key from here on, endorsed by the one before; `finish_rotation` follows, once that is committed.

        `now` is in microseconds since the epoch, UTC.
        """
        before = self.enrol(connection)
        old, new = self._private, Ed25519PrivateKey.generate()
        assert old is not None
        self._next.unlink(missing_ok=True)
        create_secret(self._next, _pem(new))
        return self._enter(connection, before, from_size, now, new, old)

    def finish_rotation(self) -> None:
        """Puts the new key's file in the place of the old one's, which is gone then."""
        self._next.replace(self._path)
        self._private = self._load()

    @property
    def _next(self) -> Path:
        return self._path.with_name(self._path.name + ".next")

    def _enter(
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
        """The private half of the key, from the file, or from one that a rotation left half done."""
        found = None
        try:
            found = self._load()
        except FileNotFoundError:
            _log.warning("there is no file %s", self._path.name)
        if found is not None and public_key_of(found) == public_key:
            return found
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
