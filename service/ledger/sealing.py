"""Personal data is sealed with AES-256-GCM under a key of each person's own, which erasure destroys.

From one master key, in a file, the key that wraps all other keys is derived, and the key of the
pseudonyms (HMAC-SHA-256) by which subjects and decisions are found. A subject has a random token and a random key in
the table `subjects`; an explanation that names no subject has a key of its own. The sealed part of an explanation is

    version (1 byte: 1) | token (16) | decision (32) | wrapped key (60) | nonce (12) | ciphertext with its tag

where token, decision and wrapped key are zeros if there is none. The record in the log holds the SHA-256 of these bytes
and a salted commitment to the plaintext, so that after erasure it says nothing about them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from sqlalchemy import Connection, Engine, insert, inspect, select, update

from service.errors import LedgerUnavailable, SetupError
from service.ledger.database import database_in_reach, serialised, what_is_wrong
from service.ledger.entries import RequestKey
from service.ledger.migrations import upgrade
from service.ledger.naming import normal, spellings
from service.ledger.secret_files import SecretFileError, create_secret, read_secret
from service.ledger.tables import subjects

KEY_BYTES = 32
NONCE_BYTES = 12
NO_TOKEN = "0" * 32
"""Nobody's token. The row of `subjects` with it holds no person's key; it identifies the master key."""

_VERSION = b"\1"
_NO_DECISION = bytes(32)
_WRAPPED_BYTES = NONCE_BYTES + KEY_BYTES + 16
_NO_KEY = bytes(_WRAPPED_BYTES)
_HEAD_BYTES = 1 + 16 + 32 + _WRAPPED_BYTES + NONCE_BYTES


class WrongMasterKey(SetupError):
    """The master key is not the one that this database was sealed with; the message says what to do."""


class CannotBeOpened(Exception):
    """A sealed part, or a wrapped key, was changed, or its key is gone."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A person, as the ledger knows them: a random token, and the key under which all of their data is sealed."""

    token: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """The parts of a sealed part. `token` and `decision` are hexadecimal, None if there is none."""

    token: str | None
    decision: str | None
    wrapped: bytes | None
    nonce: bytes
    ciphertext: bytes


def unpack(sealed: bytes) -> Sealed:
    """Splits a sealed part. Raises CannotBeOpened for other bytes."""
    if len(sealed) < _HEAD_BYTES + 16 or sealed[:1] != _VERSION:
        raise CannotBeOpened("the personal part does not have the format of a sealed part")
    token, decision, wrapped = sealed[1:17], sealed[17:49], sealed[49 : 49 + _WRAPPED_BYTES]
    return Sealed(
        token.hex() if any(token) else None,
        decision.hex() if any(decision) else None,
        wrapped if any(wrapped) else None,
        sealed[_HEAD_BYTES - NONCE_BYTES : _HEAD_BYTES],
        sealed[_HEAD_BYTES:],
    )


class Vault:
    """Seals and opens personal data under one master key of 32 bytes."""

    def __init__(self, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes")
        self._master = master
        self._wrapping = AESGCM(_derived(master, b"wrap"))
        self._pseudonyms = _derived(master, b"pseudonym")

    def __reduce__(self) -> tuple[type[Vault], tuple[bytes]]:
        """Pickles the vault for the process of the ledger's writer, which gets it over a private socket."""
        return Vault, (self._master,)

    def lookup(self, tenant: str, subject: str) -> str:
        """The pseudonym by which a tenant's subject is found, hexadecimal; the same for every spelling."""
        return self._pseudonym(b"subject", tenant, normal(subject)).hex()

    def lookups(self, tenant: str, subject: str) -> tuple[str, ...]:
        """That pseudonym, then those that earlier versions used for other spellings of the subject."""
        return tuple(self._pseudonym(b"subject", tenant, name).hex() for name in spellings(subject))

    def decision(self, tenant: str, decision_id: str) -> str:
        """The pseudonym by which a tenant's decision is found, hexadecimal."""
        return self._pseudonym(b"decision", tenant, decision_id).hex()

    def request_key(self, tenant: str, key: str, sent: str) -> RequestKey:
        """The pseudonym of a client's `Idempotency-Key`, and a digest of what was sent with it, keyed with the client's
        key, which is stored nowhere."""
        lookup = self._pseudonym(b"request key", tenant, key)
        return RequestKey(lookup.hex(), self._pseudonym(b"request", key, sent).hex())

    def new_subject(self) -> Subject:
        """A subject with a new random token and key."""
        return Subject(os.urandom(16).hex(), os.urandom(KEY_BYTES))

    def wrap(self, key: bytes, owner: str) -> bytes:
        """Seals a key under the master key, so that it can be unwrapped for its `owner` only."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._wrapping.encrypt(nonce, key, owner.encode())

    def unwrap(self, wrapped: bytes, owner: str) -> bytes:
        """The key in what `wrap` returned. Raises CannotBeOpened."""
        try:
            return self._wrapping.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError) as error:
            raise CannotBeOpened("a wrapped key is not what was written") from error

    def seal(self, plaintext: bytes, explanation_id: str, subject: Subject | None, decision: str | None) -> bytes:
        """Seals the personal part of an explanation, under the subject's key or, without one, a key of its own."""
        if subject is None:
            key = os.urandom(KEY_BYTES)
            head = bytes(16), self.wrap(key, explanation_id)
        else:
            key = subject.key
            head = bytes.fromhex(subject.token), _NO_KEY
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = AESGCM(key).encrypt(nonce, plaintext, explanation_id.encode())
        pseudonym = _NO_DECISION if decision is None else bytes.fromhex(decision)
        return b"".join((_VERSION, head[0], pseudonym, head[1], nonce, ciphertext))

    def open(self, sealed: bytes, explanation_id: str, subject_key: bytes | None) -> bytes:
        """The plaintext; `subject_key` is that of the subject it names, if it names one. Raises CannotBeOpened."""
        parts = unpack(sealed)
        if parts.token is None and parts.wrapped is not None:
            key: bytes | None = self.unwrap(parts.wrapped, explanation_id)
        else:
            key = subject_key
        if key is None:
            raise CannotBeOpened("the key of a sealed part is gone")
        try:
            return AESGCM(key).decrypt(parts.nonce, parts.ciphertext, explanation_id.encode())
        except (InvalidTag, ValueError) as error:
            raise CannotBeOpened("a sealed part is not what was written") from error

    def derived(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose outside the ledger's tables (HKDF, RFC 5869)."""
        return HKDF(SHA256(), KEY_BYTES, None, b"answerable " + purpose.encode()).derive(self._master)

    def _pseudonym(self, kind: bytes, tenant: str, name: str) -> bytes:
        message = b"\0".join((kind, tenant.encode(), name.encode()))
        return hmac.digest(self._pseudonyms, message, hashlib.sha256)


def owner_of(token: str, lookup: str) -> str:
    """The owner for whom a subject's key is wrapped: its row in `subjects`."""
    return f"{token} {lookup}"


def prepare_database(engine: Engine, master_key: Path) -> Vault:
    """Brings the database to the newest schema and opens its vault. A new database gets a master key, in a new file.

    Raises WrongMasterKey when the database was sealed with another key, SecretFileError when the file cannot be used,
    SetupError when the database is damaged, cannot be written or is of a later version, LedgerUnavailable when it does
    not answer.
    """
    try:
        return _prepared(engine, master_key)
    except LedgerUnavailable as error:
        if (wrong := what_is_wrong(error.__cause__)) is not None:
            raise SetupError(f"{engine.url.database}: {wrong}") from error
        raise


def _prepared(engine: Engine, master_key: Path) -> Vault:
    with database_in_reach(), serialised(engine).begin() as connection:
        if _mark(connection) is None:
            create_secret(master_key, os.urandom(KEY_BYTES).hex().encode() + b"\n")
    vault = _load(master_key)
    upgrade(engine, vault=vault)
    with database_in_reach(), serialised(engine).begin() as connection:
        # Changes nothing, but fails now where nothing can be written, and not at the first record.
        connection.execute(update(subjects).where(subjects.c.token == NO_TOKEN).values(token=NO_TOKEN))
        mark = _mark(connection)
        if mark is None:
            lookup = vault.lookup("", "")
            wrapped = vault.wrap(os.urandom(KEY_BYTES), owner_of(NO_TOKEN, lookup))
            connection.execute(insert(subjects).values(token=NO_TOKEN, lookup=lookup, key=wrapped))
        else:
            _refuse_another(vault, mark, master_key)
    return vault


def open_vault(engine: Engine, master_key: Path) -> Vault:
    """The vault of a database whose schema is up to date; changes nothing. Raises as `prepare_database` does."""
    vault = _load(master_key)
    with database_in_reach(), engine.connect() as connection:
        mark = _mark(connection)
    if mark is not None:  # verification reports a missing one
        _refuse_another(vault, mark, master_key)
    return vault


def _refuse_another(vault: Vault, mark: tuple[str, bytes], master_key: Path) -> None:
    try:
        vault.unwrap(mark[1], owner_of(NO_TOKEN, mark[0]))
    except CannotBeOpened:
        raise _wrong(master_key) from None


def _mark(connection: Connection) -> tuple[str, bytes] | None:
    """The row that identifies the master key; None in a database without one so far."""
    if not inspect(connection).has_table(subjects.name):
        return None
    row = connection.execute(select(subjects.c.lookup, subjects.c.key).where(subjects.c.token == NO_TOKEN)).first()
    return None if row is None else (row.lookup, row.key)


def _load(path: Path) -> Vault:
    try:
        return Vault(bytes.fromhex(read_secret(path).decode().strip()))
    except FileNotFoundError:
        raise _wrong(path) from None
    except ValueError as error:
        raise SecretFileError(f"{path} does not hold a master key, which is 64 hexadecimal digits") from error


def _wrong(path: Path) -> WrongMasterKey:
    return WrongMasterKey(
        f"this database is not sealed with the master key in {path}: copy the key's file from the host that "
        "has it, or name it with ANSWERABLE_MASTER_KEY; without it the personal data cannot be read again"
    )


def _derived(master: bytes, purpose: bytes) -> bytes:
    """HKDF-Expand (RFC 5869) alone: the master key is random already, and what is stored was derived so."""
    return HKDFExpand(SHA256(), KEY_BYTES, b"answerable ledger " + purpose).derive(master)
