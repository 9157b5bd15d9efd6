"""Keys and scopes: what is open to whom."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.routing import Mount

from service.access.quotas import Quotas
from service.api import auth, problems
from service.api.auth import Authenticator, WrongKeys, needs
from service.api.routing import Route, guard
from service.api.schemas import PredictBody
from service.api.transport import Bodies, RequestIds
from service.ledger import SCOPES, clock
from service.ledger.spent_quotas import SpentQuotas
from tests.api.conftest import filled

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import MakeKey, Service

PUBLIC = {("get", "/"), ("get", "/v2"), ("get", "/v2/health/live"), ("get", "/v2/health/ready")} | {
    ("get", f"/v2/models/{{model}}{version}/ready") for version in ("", "/versions/{version}")
}
DOCUMENTATION = {"/openapi.json", "/docs", "/docs/assets"}
EXPLAIN = "/v1/models/loan/versions/1:explain"


def expected_scope(method: str, path: str) -> str:
    if path == "/metrics":
        return "metrics"
    if path.endswith(":review") or (method == "post" and path.startswith("/v1/subjects")):
        return "ledger:write"
    if path.startswith("/v2/repository") or (method != "get" and "/baselines" in path):
        return "models:write"
    return (
        "ledger:read"
        if path.startswith(
            ("/v1/explanations", "/v1/exports", "/v1/checkpoint", "/v1/consistency", "/v1/events", "/v1/subjects")
        )
        else "explain"
    )


def operations(service: Service) -> list[tuple[str, str]]:
    """Method and path of everything that is described."""
    return [(method, path) for path, each in service.app.openapi()["paths"].items() for method in each]


async def answers(service: Service, headers: dict[str, str], **body: Any) -> dict[tuple[str, str], httpx.Response]:
    """What every operation but the public ones answers."""
    found = {}
    async with service.client() as client:
        for method, path in operations(service):
            if (method, path) not in PUBLIC:
                asked = filled(path)
                found[method, path] = await client.request(method, asked, headers=headers, **body)
    assert len(found) >= 10
    return found


async def test_what_is_public(service: Service, assert_problem: AssertProblem) -> None:
    assert set(operations(service)) > PUBLIC

    async with service.client() as client:
        for method, path in operations(service):
            response = await client.request(method, filled(path))
            assert (response.status_code == 200) is ((method, path) in PUBLIC), path


def test_nothing_else_is_served_than_what_is_described_and_the_pages_that_describe_it(service: Service) -> None:
    routes = [*service.app.routes]
    paths = {re.sub(":(name|path|text)}", "}", str(route.path)) for route in routes if hasattr(route, "path")}
    described = {path for _, path in operations(service)}
    included = {
        re.sub(":(path|text)}", "}", r.path_format)
        for route in routes
        for r in getattr(getattr(route, "original_router", None), "routes", [])
    }

    assert paths - described == DOCUMENTATION
    assert included <= described


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer ak_" + "x" * 43},
        {"Authorization": "Bearer " + "x" * 10_000},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"X-Api-Key": "wrong"},
    ],
    ids=lambda headers: str(headers)[:40],
)
async def test_no_key_or_a_wrong_one(
    service: Service, assert_problem: AssertProblem, credentials: dict[str, str]
) -> None:
    for response in (await answers(service, credentials)).values():
        assert_problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"


async def test_the_operators_key_under_another_scheme(service: Service, assert_problem: AssertProblem) -> None:
    for response in (await answers(service, {"Authorization": f"Basic {service.key.secret}"})).values():
        assert_problem(response, 401)


@pytest.mark.parametrize("body", [b"{", b"[" * 250_000, b'{"instances": [NaN]}', b"\xff" * 1000])
async def test_a_strangers_body_is_not_read(service: Service, assert_problem: AssertProblem, body: bytes) -> None:
    """The same body from somebody with a key is a 400 or 422."""
    found = await answers(service, {"Content-Type": "application/json"}, content=body)

    for response in found.values():
        assert_problem(response, 401)


async def test_an_expired_key(service: Service, make_key: MakeKey, assert_problem: AssertProblem) -> None:
    expired, lasting = make_key(expires_in=-1), make_key(expires_in=3600)

    for response in (await answers(service, expired.headers)).values():
        assert assert_problem(response, 401) == "the key is not valid"
    for response in (await answers(service, lasting.headers)).values():
        assert response.status_code not in (401, 403)


async def test_a_key_ends_while_it_is_in_use(
    service: Service, make_key: MakeKey, assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(expires_in=600)
    async with service.client(key) as client:
        assert (await client.get("/v1/models")).status_code == 200
        now = clock.machine_time()
        monkeypatch.setattr(clock, "machine_time", lambda: now + 601_000_000)
        assert_problem(await client.get("/v1/models"), 401)


async def test_a_revoked_key(
    service: Service, make_key: MakeKey, assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    for response in (await answers(service, key.headers)).values():
        assert response.status_code not in (401, 403)

    service.services.keys.revoke(key.id)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + auth.FRESH_SECONDS, time_ns=time.time_ns)
    monkeypatch.setattr(auth, "time", later)

    for response in (await answers(service, key.headers)).values():
        assert assert_problem(response, 401) == "the key is not valid"


async def test_every_operation_opens_to_its_own_scope_and_no_other(
    service: Service, make_key: MakeKey, assert_problem: AssertProblem
) -> None:
    opened: dict[tuple[str, str], set[str]] = {}
    for scope in sorted(SCOPES):
        for operation, response in (await answers(service, make_key(scope).headers)).items():
            if response.status_code not in (401, 403):
                opened.setdefault(operation, set()).add(scope)
            else:
                sentence = assert_problem(response, 403)
                assert sentence == f"the key lacks the scope {expected_scope(*operation)}"

    assert opened == {one: {expected_scope(*one)} for one in operations(service) if one not in PUBLIC}


@pytest.mark.parametrize("route_class", [APIRoute, Route])
async def test_a_new_route_is_closed_until_it_declares_a_scope(
    service: Service, make_key: MakeKey, assert_problem: AssertProblem, route_class: type[APIRoute]
) -> None:
    app = FastAPI(dependencies=[Depends(guard)])
    problems.install(app)
    app.router.route_class = route_class
    app.add_middleware(RequestIds)
    authenticator = Authenticator(service.services.keys, Quotas(SpentQuotas(service.database)))
    app.state.services = SimpleNamespace(authenticator=authenticator, bodies=Bodies(1000))

    @app.post("/undeclared")
    async def undeclared(request: Request, body: PredictBody) -> Response:
        return JSONResponse("open")

    @app.post("/declared")
    @needs("metrics")
    async def declared(request: Request, body: PredictBody) -> Response:
        return JSONResponse("open")

    transport = httpx.ASGITransport(app)
    body = {"instances": [1]}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        everything = make_key().headers
        assert_problem(await client.post("/undeclared", json=body), 401)
        closed = await client.post("/undeclared", json=body, headers=everything)
        assert assert_problem(closed, 403) == "this route is closed"
        assert_problem(await client.post("/declared", json=body), 401)
        assert (await client.post("/declared", json=body, headers=everything)).json() == "open"


async def test_every_route_is_of_the_one_kind(service: Service) -> None:
    """Others would read bodies of any size, for as long as it takes, and before they know who sends them."""
    routes = [*service.app.routes]
    included = [r for route in routes for r in getattr(getattr(route, "original_router", None), "routes", [])]
    taking = [route for route in [*routes, *included] if getattr(route, "body_field", None) is not None]

    assert len(taking) >= 4
    assert {type(route) for route in [*routes, *included]} == {Route, Mount}
    assert [route.path for route in routes if isinstance(route, Mount)] == ["/docs/assets"]


def test_a_scope_that_does_not_exist_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="unknown scope everything"):
        needs("everything")


async def test_a_key_is_never_in_an_answer(service: Service, make_key: MakeKey, instance: dict[str, Any]) -> None:
    key = make_key()
    bodies: list[dict[str, Any]] = [{"json": {"instances": [instance]}}, {"content": b"{"}]

    for body in bodies:
        for response in (await answers(service, key.headers, **body)).values():
            assert key.secret not in response.text
            assert key.secret not in str(response.headers)


async def test_wrong_keys_do_not_pile_up(service: Service, make_key: MakeKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of them is bounded, and they crowd no right key out for good."""
    monkeypatch.setattr(auth, "MAX_REMEMBERED", 3)
    key = make_key()
    async with service.client() as client:
        for number in range(10):
            wrong = await client.get("/v1/models", headers={"Authorization": f"Bearer {number}"})
            right = await client.get("/v1/models", headers=key.headers)
            assert (wrong.status_code, right.status_code) == (401, 200)


async def test_many_wrong_keys_from_one_address_are_told_to_come_back(
    service: Service, make_key: MakeKey, assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no right key is refused, whether it was used before or is new: the address may be a proxy's."""
    monkeypatch.setattr(auth, "WRONG_SECONDS", 3600.0)  # however long the rest takes
    monkeypatch.setattr(service.services.authenticator, "_wrong", WrongKeys())
    used, unused = make_key(), make_key()
    async with service.client() as client:

        async def get(secret: str) -> httpx.Response:
            return await client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})

        assert (await get(used.secret)).status_code == 200
        assert {(await get(f"wrong {number}")).status_code for number in range(auth.MAX_WRONG_KEYS)} == {401}
        refused = await get("another")
        assert "is not valid" in assert_problem(refused, 429)
        assert refused.json()["type"] == "urn:answerable:problem:too-many-wrong-keys"
        assert int(refused.headers["retry-after"]) > 0
        assert [(await get(key.secret)).status_code for key in (used, unused)] == [200, 200]

        over = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600, time_ns=time.time_ns)
        monkeypatch.setattr(auth, "time", over)
        assert_problem(await get("another"), 401)


async def test_a_client_that_goes_on_with_one_wrong_key_is_told_that_it_is_wrong(
    service: Service, assert_problem: AssertProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.services.authenticator, "_wrong", WrongKeys())
    async with service.client() as client:
        for _ in range(2 * auth.MAX_WRONG_KEYS):
            assert_problem(await client.get("/v1/models", headers={"Authorization": "Bearer of an old key"}), 401)


def test_addresses_with_wrong_keys_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_ADDRESSES", 3)
    wrong = WrongKeys()
    for _ in range(auth.MAX_WRONG_KEYS):
        wrong.count("first")
    assert 0 < wrong.seconds_left("first") <= auth.WRONG_SECONDS
    for number in range(2):
        wrong.count(f"{number}")
    assert wrong.seconds_left("first") > 0
    wrong.count("one more")
    assert wrong.seconds_left("first") == 0
