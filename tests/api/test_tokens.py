"""Tokens of an issuer: a real one, of two documents behind a server, whose tokens are signed here without the library
that the service checks them with."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from service.access.permissions import Policy, Quota
from service.access.quotas import Quotas
from service.api import tokens
from service.api.auth import FINDERS, MAX_WRONG_KEYS, Authenticator
from service.api.tokens import Issuer, SigningKeys, Tokens, find_claim, identity_id
from service.errors import IssuerUnavailable, Unauthenticated
from service.ledger.spent_quotas import SpentQuotas
from service.ledger.verifying import verify_ledger
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import Service

AUDIENCE = "https://answerable.example"
PATH = "/v1/models/loan/versions/1:explain"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, size: int) -> str:
    return _base64url(value.to_bytes(size, "big"))


@dataclass
class RsaKey:
    id: str
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    algorithm: str = "RS256"

    def public(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        return {"kty": "RSA", "kid": self.id, "use": "sig", "n": _number(numbers.n, 256), "e": _number(numbers.e, 3)}

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, padding.PKCS1v15(), SHA256())


@dataclass
class CurveKey:
    id: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    algorithm: str = "ES256"

    def public(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        return {"kty": "EC", "crv": "P-256", "kid": self.id, "x": _number(numbers.x, 32), "y": _number(numbers.y, 32)}

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class RealIssuer:
    """Publishes what an issuer publishes: its description and its keys."""

    def __init__(self, *keys: RsaKey | CurveKey) -> None:
        self.keys = list(keys)
        self.asked: list[str] = []
        self.is_down = False
        self.described: dict[str, Any] = {}
        handler = self._handler()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                documents = {
                    "/.well-known/openid-configuration": {
                        "issuer": issuer.url,
                        "jwks_uri": f"{issuer.url}/keys",
                        **issuer.described,
                    },
                    "/keys": {"keys": [key.public() for key in issuer.keys]},
                }
                body = json.dumps(documents.get(self.path, {})).encode()
                self.send_response(503 if issuer.is_down else 200 if self.path in documents else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        return Handler

    def token(self, key: RsaKey | CurveKey | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token of somebody of the tenant `bank` who may explain; claims that are None are left out."""
        signer = key or self.keys[0]
        usual: dict[str, Any] = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "clerk-7",
            "exp": time.time() + 600,
            "tenant": "bank",
            "scope": "openid explain",
        }
        said = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        parts = {"alg": signer.algorithm, "kid": signer.id, **(header or {})}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (parts, said))
        return f"{signed}.{_base64url(signer.sign(signed.encode()))}"


@pytest.fixture(scope="module")
def real_issuer() -> Iterator[RealIssuer]:
    issuer = RealIssuer(RsaKey("rsa"), CurveKey("curve"))
    issuer.thread.start()
    yield issuer
    issuer.server.shutdown()
    issuer.thread.join()
    issuer.server.server_close()


@pytest.fixture
def issuer(real_issuer: RealIssuer) -> RealIssuer:
    real_issuer.is_down, real_issuer.described = False, {}
    real_issuer.asked.clear()
    return real_issuer


@pytest_asyncio.fixture
async def accepting(service: Service, issuer: RealIssuer) -> AsyncIterator[Service]:
    """The service, which accepts the issuer's tokens."""
    services = service.services
    authenticator = Authenticator(
        services.keys, Quotas(SpentQuotas(service.database)), tokens=Tokens(Issuer(issuer.url, AUDIENCE), services.keys)
    )
    with service.changed(authenticator=authenticator):
        yield service
    authenticator.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("place", [0, 1], ids=["RS256", "ES256"])
async def test_a_token_opens_what_its_scopes_say_and_is_on_record(
    accepting: Service, issuer: RealIssuer, client: httpx.AsyncClient, instance: dict[str, Any], place: int
) -> None:
    tenant = uuid.uuid4().hex
    token = issuer.token(
        issuer.keys[place], tenant=tenant, scope=["explain", "ledger:read", "fly", {"name": "metrics"}]
    )

    explained = await client.post(PATH, json={"instances": [instance]}, headers=bearer(token))
    assert explained.status_code == 200, explained.text
    record_id = explained.json()["explanations"][0]["id"]

    record = await client.get(f"/v1/explanations/{record_id}", headers=bearer(token))
    assert record.status_code == 200
    assert (await client.get(f"/v1/explanations/{record_id}")).status_code == 404  # the operator is another tenant
    assert (await client.get("/metrics", headers=bearer(token))).status_code == 403
    (key,) = [key for key in accepting.services.keys.list() if key.tenant == tenant]
    assert key.id == identity_id(issuer.url, tenant, "clerk-7")
    assert key.name == f"clerk-7 ({issuer.url})"
    assert not key.scopes
    faults = verify_ledger(accepting.database, accepting.services.vault).faults
    assert not [fault for fault in faults if key.id in fault]


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"exp": 1_600_000_000}, "has expired"),
        ({"aud": "https://another.example"}, "another audience"),
        ({"iss": "https://another.example"}, "another issuer"),
        ({"tenant": None}, "names no tenant"),
        ({"tenant": ["bank"]}, "names no tenant"),
        ({"tenant": "bank\0clerk"}, "names no tenant"),
        ({"sub": "7\0clerk"}, "names nobody"),
        ({"sub": "\ud800"}, "names nobody"),
        ({"sub": ""}, "names nobody"),
        ({"exp": None}, "lacks the claim exp"),
        ({"sub": None}, "lacks the claim sub"),
    ],
)
async def test_a_token_that_does_not_fit_is_refused_saying_why(
    accepting: Service,
    issuer: RealIssuer,
    client: httpx.AsyncClient,
    assert_problem: AssertProblem,
    claims: dict[str, Any],
    says: str,
) -> None:
    reply = await client.get("/v1/models", headers=bearer(issuer.token(**claims)))

    assert says in assert_problem(reply, 401)


async def test_nobody_else_can_sign(
    accepting: Service, issuer: RealIssuer, client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    true = issuer.token()
    head, body, signature = true.split(".")
    none = _base64url(json.dumps({"alg": "none"}).encode())
    symmetric = _base64url(json.dumps({"alg": "HS256", "kid": "rsa"}).encode())
    changed = _base64url(
        json.dumps({**json.loads(base64.urlsafe_b64decode(body + "==")), "tenant": "default"}).encode()
    )
    nested = _base64url(b'{"alg":' + 20_000 * b"[")
    forged = [
        issuer.token(RsaKey("rsa")),  # another key of the same name
        issuer.token(RsaKey("unknown")),
        f"{none}.{body}.",
        f"{symmetric}.{body}.{signature}",
        f"{head}.{changed}.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        "eyJ.eyJ.eyJ",
        f"{nested}.{body}.{signature}",
    ]

    assert (await client.get("/v1/models", headers=bearer(true))).status_code == 200
    for token in forged:
        assert_problem(await client.get("/v1/models", headers=bearer(token)), 401)


async def test_a_token_that_is_repeated_is_no_guess(
    accepting: Service, issuer: RealIssuer, client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    """As of a client that has not noticed that its token has expired; it is told so each time."""
    token = issuer.token(exp=1_600_000_000)
    for _ in range(MAX_WRONG_KEYS + 2):
        reply = await client.get("/v1/models", headers=bearer(token))
        assert "has expired" in assert_problem(reply, 401)


async def test_a_key_is_accepted_as_before(accepting: Service, client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 200


async def test_an_identity_is_limited_and_revoked_like_a_key(
    accepting: Service, issuer: RealIssuer, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    keys, tenant = accepting.services.keys, uuid.uuid4().hex
    headers = bearer(issuer.token(tenant=tenant))
    assert (await client.get("/v1/models", headers=headers)).status_code == 200
    key_id = identity_id(issuer.url, tenant, "clerk-7")

    assert keys.change(key_id, Quota(2, None, "day"), Policy(top=1))
    headers = bearer(issuer.token(tenant=tenant, jti="2"))  # another token, so that nothing is remembered
    limited = await client.post(PATH, json={"instances": [fresh]}, headers=headers)
    assert len(limited.json()["explanations"][0]["attributions"]) == 1
    await client.get("/v1/models", headers=headers)
    assert (await client.get("/v1/models", headers=headers)).status_code == 429

    assert keys.revoke(key_id)
    assert (await client.get("/v1/models", headers=bearer(issuer.token(tenant=tenant, jti="3")))).status_code == 401
    assert keys.rotate(key_id, 0) is None


async def test_a_job_of_a_token_runs_when_the_token_has_ended(
    accepting: Service, issuer: RealIssuer, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    headers = bearer(issuer.token(tenant=uuid.uuid4().hex, exp=time.time() + 3))
    made = await client.post("/v1/jobs", json={"model": "loan", "version": "1", "instances": [fresh]}, headers=headers)
    assert made.status_code == 202, made.text

    key_id = accepting.services.keys.list()[-1].id
    key = accepting.services.keys.get(key_id)
    assert key is not None
    assert key.is_valid(accepting.services.keys.now() + 10**12)


class TestSigningKeys:
    """When the issuer is asked, and what holds while it does not answer."""

    @pytest.fixture
    def clock(self) -> list[float]:
        return [1e6]

    @pytest.fixture
    def signing(self, issuer: RealIssuer, clock: list[float]) -> Iterator[SigningKeys]:
        with httpx.Client() as client:
            yield SigningKeys(issuer.url, client, lambda: clock[0])

    def test_keys_are_fetched_once_and_again_when_they_are_old(
        self, issuer: RealIssuer, signing: SigningKeys, clock: list[float]
    ) -> None:
        for _ in range(5):
            assert signing.find("rsa").key_id == "rsa"
        assert len(issuer.asked) == 2
        clock[0] += tokens.FRESH_SECONDS + 1
        signing.find("rsa")
        assert len(issuer.asked) == 4

    def test_a_new_key_is_found_and_unknown_ones_do_not_become_requests(
        self, issuer: RealIssuer, signing: SigningKeys, clock: list[float]
    ) -> None:
        signing.find("rsa")
        issuer.keys.append(CurveKey("next"))
        for _ in range(20):
            with pytest.raises(Unauthenticated, match="does not list"):
                signing.find("next")
        assert len(issuer.asked) == 2
        clock[0] += tokens.RETRY_SECONDS
        assert signing.find("next").key_id == "next"
        issuer.keys.pop()

    def test_known_keys_outlast_an_issuer_that_does_not_answer_by_a_day(
        self, issuer: RealIssuer, signing: SigningKeys, clock: list[float]
    ) -> None:
        signing.find("rsa")
        issuer.is_down = True
        clock[0] += tokens.USABLE_SECONDS - 1
        assert signing.find("rsa").key_id == "rsa"
        clock[0] += 2
        with pytest.raises(IssuerUnavailable):
            signing.find("rsa")
        issuer.is_down = False
        clock[0] += tokens.RETRY_SECONDS
        assert signing.find("rsa").key_id == "rsa"

    def test_a_key_that_is_known_does_not_wait_for_the_issuer(
        self, signing: SigningKeys, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        signing.find("rsa")
        asked, answers = threading.Event(), threading.Event()

        def wait() -> dict[str | None, Any]:
            asked.set()
            assert answers.wait(PATIENCE_SECONDS)
            raise ValueError

        monkeypatch.setattr(signing, "_fetch", wait)
        clock[0] += tokens.FRESH_SECONDS + 1
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(signing.find, "curve")
            assert asked.wait(PATIENCE_SECONDS)
            assert signing.find("rsa").key_id == "rsa"
            answers.set()
            assert waiting.result().key_id == "curve"

    def test_what_cannot_have_signed_is_left_out(
        self, signing: SigningKeys, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A symmetric key that is published can be used by everybody."""
        symmetric = {"kty": "oct", "kid": "oct", "k": _base64url(b"k" * 32)}
        get = signing._get

        def with_others(address: str, ends: float) -> dict[str, Any]:
            found = get(address, ends)
            return {**found, "keys": [symmetric, "none", *found["keys"]]} if "keys" in found else found

        monkeypatch.setattr(signing, "_get", with_others)
        assert signing.find("rsa").key_id == "rsa"
        with pytest.raises(Unauthenticated, match="does not list"):
            signing.find("oct")
        clock[0] += tokens.FRESH_SECONDS + 1
        monkeypatch.setattr(signing, "_get", lambda *asked: {**get(*asked), "keys": [symmetric]})
        assert signing.find("rsa").key_id == "rsa"  # as while it does not answer

    @pytest.mark.parametrize(
        "described",
        [
            {"issuer": "http://127.0.0.1:1"},
            {"jwks_uri": "http://keys.example/"},
            {"jwks_uri": 5},
            {"jwks_uri": "https://a:b/"},
        ],
    )
    def test_a_description_that_leads_elsewhere_is_not_followed(
        self, issuer: RealIssuer, signing: SigningKeys, described: dict[str, Any]
    ) -> None:
        issuer.described = described

        with pytest.raises(IssuerUnavailable):
            signing.find("rsa")
        assert issuer.asked == ["/.well-known/openid-configuration"]


async def test_keys_are_found_while_the_issuer_does_not_answer(
    service: Service, issuer: RealIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, answers = service.services, threading.Event()
    of_issuer = Tokens(Issuer(issuer.url, AUDIENCE), services.keys)

    def wait(_token: str) -> None:
        answers.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(of_issuer, "find", wait)
    authenticator = Authenticator(services.keys, Quotas(SpentQuotas(service.database)), tokens=of_issuer)
    checking = [asyncio.ensure_future(authenticator.find(issuer.token(jti=f"{number}"))) for number in range(FINDERS)]
    await asyncio.sleep(0)
    found = await authenticator.find(service.key.secret)
    answers.set()
    await asyncio.gather(*checking, return_exceptions=True)
    authenticator.close()

    assert found is not None
    assert found.id == service.key.id


async def test_an_issuer_that_is_down_is_503(
    accepting: Service, issuer: RealIssuer, client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    issuer.is_down = True

    reply = await client.get("/v1/models", headers=bearer(issuer.token()))

    assert "issuer" in assert_problem(reply, 503)
    assert reply.headers["retry-after"] == "10"


def test_a_claim_may_lie_deep() -> None:
    claims = {"realm_access": {"roles": ["explain"]}, "https://bank.example/tenant": "bank"}

    assert find_claim(claims, "realm_access.roles") == ["explain"]
    assert find_claim(claims, "https://bank.example/tenant") == "bank"
    assert find_claim(claims, "realm_access.roles.none") is None
