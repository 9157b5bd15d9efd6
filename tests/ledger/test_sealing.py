"""Keys derived from a master key: those of RFC 5869, and for ever the same, or what is stored could not be opened."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.ledger import Vault

MASTER = bytes(range(32))


def extract_and_expand(secret: bytes, purpose: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, for one block."""
    pseudorandom = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(pseudorandom, purpose + b"\1", hashlib.sha256)


def test_keys_of_the_data_folders_there_are_open_what_is_in_them() -> None:
    """Both are HKDF's expansion of the master key, spelled out here."""
    pseudonyms, wrapping = (
        hmac.digest(MASTER, b"answerable ledger " + purpose + b"\1", hashlib.sha256)
        for purpose in (b"pseudonym", b"wrap")
    )
    vault, nonce = Vault(MASTER), bytes(12)

    assert vault.lookup("bank", "Ada") == hmac.digest(pseudonyms, b"subject\0bank\0Ada", hashlib.sha256).hex()
    assert vault.unwrap(nonce + AESGCM(wrapping).encrypt(nonce, b"a key", b"owner"), "owner") == b"a key"


def test_keys_for_other_purposes_are_extracted_and_expanded() -> None:
    for purpose in ("cache", "erasures"):
        assert Vault(MASTER).derived(purpose) == extract_and_expand(MASTER, b"answerable " + purpose.encode())
