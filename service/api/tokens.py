"""Bearer tokens of an OpenID Connect issuer, beside keys of our own.

A token is a JSON Web Token (RFC 7519) signed by the issuer (OpenID Connect Core 1.0, section 3.1.3.7). Its holder is
stored as a key without a secret when it first comes: so what an operator may do to a key, revoke it or give it a quota
and a policy, works for such an identity, and records name it as they name keys. Tenant and scopes come with each token.
"""

from __future__ import annotations

import hashlib
import threading
import time
import unicodedata
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import jwt

from service.errors import IssuerUnavailable, Unauthenticated
from service.ledger.entries import MAX_TEXT_LENGTH
from service.ledger.keys import SCOPES, Key, Keys
from service.settings import is_confidential

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a private key only: with a symmetric one, whoever checks tokens could make them."""
CLOCK_LEEWAY_SECONDS = 30
FETCH_SECONDS = 2.0
"""How long the issuer may take to answer, less than a look-up may take in all."""
FRESH_SECONDS = 600.0
"""How long keys are used before they are fetched again."""
USABLE_SECONDS = 86_400.0
"""How long they are used while the issuer does not answer."""
RETRY_SECONDS = 10.0
"""The shortest time between two fetches: tokens with keys that nobody knows must not become requests to the issuer."""
MAX_DOCUMENT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are accepted, for which audience, and which claims hold the tenant and the scopes."""

    url: str
    audience: str
    tenant_claim: str = "tenant"
    scopes_claim: str = "scope"


class SigningKeys:
    """The public keys of the issuer by id, found through its discovery document. Calls block, on any thread."""

    def __init__(self, issuer: str, client: httpx.Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._fetched = -USABLE_SECONDS
        self._tried = -RETRY_SECONDS

    def find(self, key_id: str | None) -> jwt.PyJWK:
        """The key of this id; of None, the only key. Raises Unauthenticated where the issuer has no such key, and
        IssuerUnavailable."""
        keys, now = self._keys, self._clock()
        if key_id in keys and now - self._fetched <= USABLE_SECONDS and self._lock.locked():
            return keys[key_id]  # without waiting for the issuer, which somebody is asking
        with self._lock:
            now = self._clock()
            is_due = key_id not in self._keys or now - self._fetched > FRESH_SECONDS
            if is_due and now - self._tried >= RETRY_SECONDS:
                self._tried = now
                try:
                    self._keys, self._fetched = self._fetch(), now
                except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
                    if now - self._fetched > USABLE_SECONDS:
                        raise IssuerUnavailable(
                            "the issuer of tokens does not answer, so none can be checked"
                        ) from error
            if now - self._fetched > USABLE_SECONDS:
                raise IssuerUnavailable("the issuer of tokens does not answer, so none can be checked")
        if (key := self._keys.get(key_id)) is None:
            raise Unauthenticated("the token is signed by a key that its issuer does not list")
        return key

    def _fetch(self) -> Mapping[str | None, jwt.PyJWK]:
        ends = time.monotonic() + FETCH_SECONDS  # of both; httpx has limits for each piece only
        described = self._get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", ends)
        if described["issuer"] != self._issuer:
            raise ValueError("the discovery document is of another issuer")
        address = str(described["jwks_uri"])
        if not is_confidential(address):
            raise ValueError("the address of the issuer's keys is not https")
        listed = [key for key in self._get(address, ends)["keys"] if isinstance(key, dict)]
        keys: dict[str | None, jwt.PyJWK] = {
            key.key_id: key
            for key in jwt.PyJWKSet(listed).keys
            if key.public_key_use in (None, "sig") and key.algorithm_name in ALGORITHMS
        }
        if not keys:
            raise ValueError("the issuer lists no key that could have signed a token")
        return keys | {None: next(iter(keys.values()))} if len(keys) == 1 else keys

    def _get(self, address: str, ends: float) -> dict[str, Any]:
        with self._client.stream("GET", address) as reply:
            reply.raise_for_status()
            body = b""
            for piece in reply.iter_bytes():
                body += piece
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise ValueError("the issuer's document is too large")
                if time.monotonic() > ends:
                    raise ValueError("the issuer's document does not arrive in time")
        document = httpx.Response(200, content=body).json()
        if not isinstance(document, dict):
            raise ValueError("the issuer's document is not an object")
        return document


class Tokens:
    """Finds the stored identity of a token's holder. Calls block; any thread may call."""

    def __init__(self, issuer: Issuer, keys: Keys, client: httpx.Client | None = None) -> None:
        self._issuer = issuer
        self._keys = keys
        self._client = client or httpx.Client(timeout=FETCH_SECONDS, follow_redirects=False)
        self._signing_keys = SigningKeys(issuer.url, self._client)

    def close(self) -> None:
        self._client.close()

    def find(self, token: str) -> Key:
        """The holder's key, with the scopes of the token and valid as long as it is.

        Raises Unauthenticated, saying why, IssuerUnavailable, LedgerUnavailable.
        """
        claims = self._verified(token)
        tenant, scopes = find_claim(claims, self._issuer.tenant_claim), find_claim(claims, self._issuer.scopes_claim)
        if not isinstance(tenant, str) or len(tenant) > MAX_TEXT_LENGTH or not _is_name(tenant):
            raise Unauthenticated(f"the token names no tenant in its claim {self._issuer.tenant_claim}")
        words = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else []
        issuer, subject = self._issuer.url, str(claims["sub"])
        if not _is_name(subject):
            raise Unauthenticated("the token names nobody in its claim sub")
        identity = self._keys.identity(
            identity_id(issuer, tenant, subject), f"{subject} ({issuer})"[:MAX_TEXT_LENGTH], tenant
        )
        expires = (int(claims["exp"]) + CLOCK_LEEWAY_SECONDS) * 1_000_000
        return replace(
            identity,
            scopes=frozenset(word for word in words if isinstance(word, str) and word in SCOPES),
            expires=expires if identity.expires is None else min(expires, identity.expires),
        )

    def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self._signing_keys.find(header.get("kid")),
                algorithms=ALGORITHMS,
                audience=self._issuer.audience,
                issuer=self._issuer.url,
                leeway=CLOCK_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated("the token is of another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"the token lacks the claim {error.claim}") from None
        except (jwt.PyJWTError, RecursionError):  # JSON may be nested deeper than it can be read
            raise Unauthenticated("the token is not one that its issuer signed") from None
        return claims


def is_token(secret: str) -> bool:
    """Whether this is a JSON Web Token rather than a key of ours, which has no dots."""
    return secret.count(".") == 2 and secret.startswith("ey")


def _is_name(text: str) -> bool:
    """Whether a text can be stored and is told apart from others by `identity_id`, which has a control character
    between them."""
    return bool(text) and not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def identity_id(issuer: str, tenant: str, subject: str) -> str:
    """The id of an identity, on every host the same: a UUID of version 8 (RFC 9562) from a SHA-256 of all three."""
    digest = bytearray(hashlib.sha256("\0".join((issuer, tenant, subject)).encode()).digest()[:16])
    digest[6], digest[8] = (digest[6] & 0x0F) | 0x80, (digest[8] & 0x3F) | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def find_claim(claims: Mapping[str, Any], name: str) -> object:
    """A claim by its name; where there is none, by a path whose steps are separated by dots."""
    if name in claims:
        return claims[name]
    value: object = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
