"""The notes of reviews, sealed under the key of the explanation that they are about: the subject's, or its own.

An event stays in the log for good, but its note can no longer be read once that key is destroyed, by an erasure or by
age. Reviews recorded by the oldest versions have their notes in clear.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, select

from service.ledger.entries import LogChanged
from service.ledger.sealing import NONCE_BYTES, CannotBeOpened, Vault, unpack
from service.ledger.searching import subject_keys
from service.ledger.tables import explanations

_SEALED = "sealed_note"


def review_details(
    connection: Connection, vault: Vault, explanation_id: str, seq: int, verdict: str, note: str
) -> dict[str, Any]:
    """The details of a review's event. The note is left out where the explanation was erased meanwhile."""
    details = {"verdict": verdict}
    key = _key_of(connection, vault, explanation_id, seq) if note else None
    if key is None:
        return details
    nonce = os.urandom(NONCE_BYTES)
    sealed = nonce + AESGCM(key).encrypt(nonce, note.encode(), _bound_to(explanation_id))
    return {**details, _SEALED: sealed.hex()}


def open_note(
    connection: Connection, vault: Vault, explanation_id: str, seq: int, details: Mapping[str, Any]
) -> str | None:
    """The note of a review, empty where there was none; None where its key is gone. Raises LogChanged."""
    if _SEALED not in details:
        return str(details.get("note", ""))
    key = _key_of(connection, vault, explanation_id, seq)
    if key is None:
        return None
    sealed = bytes.fromhex(details[_SEALED])
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(explanation_id)).decode()
    except (InvalidTag, ValueError) as error:
        raise LogChanged(f"the note of a review of {explanation_id} is not what was written") from error


def _key_of(connection: Connection, vault: Vault, explanation_id: str, seq: int) -> bytes | None:
    """The key under which the personal part of the explanation is sealed; None once it was erased."""
    personal = connection.scalar(select(explanations.c.personal).where(explanations.c.seq == seq))
    if personal is None:
        return None
    try:
        sealed = unpack(personal)
        if sealed.token is not None:
            return subject_keys(connection, vault, {sealed.token}).get(sealed.token)
        return None if sealed.wrapped is None else vault.unwrap(sealed.wrapped, explanation_id)
    except CannotBeOpened as error:
        raise LogChanged(f"the personal part of {explanation_id} is not what was written") from error


def _bound_to(explanation_id: str) -> bytes:
    """The associated data of a note, so that it cannot pass for a personal part or for another explanation's note."""
    return f"review of {explanation_id}".encode()
