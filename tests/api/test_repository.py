"""Loading and unloading over the wire, in the shapes of the V2 protocol's model repository extension."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import MakeKey, Service

REPOSITORY = "/v2/repository"


async def test_the_index_lists_every_version(client: httpx.AsyncClient) -> None:
    whole = (await client.post(f"{REPOSITORY}/index")).json()
    ready = (await client.post(f"{REPOSITORY}/index", json={"ready": True})).json()

    assert {"name": "loan", "version": "1", "state": "READY", "reason": ""} in whole
    assert [one for one in whole if one["state"] == "READY"] == ready
    assert {tuple(one) for one in whole} == {("name", "version", "state", "reason")}
    assert "model_repository" in (await client.get("/v2")).json()["extensions"]


async def test_what_has_not_changed_is_not_loaded_again(service: Service, client: httpx.AsyncClient) -> None:
    workers = service.engine.separation.shared.supervisor.workers
    (worker,) = workers.values()
    reply = await client.post(f"{REPOSITORY}/models/loan/load")

    assert [(one["version"], one["state"]) for one in reply.json()] == [("1", "READY"), ("2", "READY")]
    assert [*workers.values()] == [worker]


async def test_a_body_without_a_type_is_read_as_tritons_client_sends_it(client: httpx.AsyncClient) -> None:
    reply = await client.post(f"{REPOSITORY}/index", content=b'{"ready": true}')

    assert "content-type" not in reply.request.headers
    assert reply.status_code == 200
    typed = await client.post(f"{REPOSITORY}/index", content=b"{}", headers={"Content-Type": "text/plain"})
    assert typed.status_code == 400


async def test_what_is_unloaded_and_served_is_logged_by_digest(
    service: Service, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    version = service.services.catalog.find("loan", "1")
    body = {"parameters": {"version": "1"}}
    with caplog.at_level(logging.INFO, "answerable"):
        for action in ("unload", "load"):
            reply = await client.post(f"{REPOSITORY}/models/loan/{action}", json=body, timeout=PATIENCE_SECONDS)
            assert reply.status_code == 200, reply.text

    told = [record.getMessage() for record in caplog.records if record.name == "answerable"]
    digests = f"artefact {version.key.digest}, manifest {version.manifest_digest}"
    assert [line for line in told if digests in line] == [
        f"loan@1 is unloaded: {digests}",
        f"loan@1 is served: {digests}",
    ]


async def test_the_shipped_versions_have_passed(client: httpx.AsyncClient) -> None:
    model = (await client.get("/v1/models/loan")).json()

    assert model["newest"] == "2"
    assert [(one["version"], one["check"]["passed"], one["check"]["against"]) for one in model["versions"]] == [
        ("1", True, None),
        ("2", True, "loan@1"),
    ]
    assert "rank correlation" in [check["check"] for check in model["versions"][1]["check"]["checks"]]


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize(
    ("model", "body", "status"),
    [
        ("nothing", {}, 404),
        ("loan", {"parameters": {"version": "99"}}, 404),
        ("loan", {"parameters": {"version": "../1"}}, 404),
        ("..", {}, 404),
        ("%2e%2e%2floan", {}, 404),
        ("loan", {"parameters": {"config": "{}"}}, 400),
        ("loan", {"parameters": {"version": 1}}, 422),
    ],
)
async def test_what_cannot_be_asked(
    client: httpx.AsyncClient, assert_problem: AssertProblem, action: str, model: str, body: Any, status: int
) -> None:
    reply = await client.post(f"{REPOSITORY}/models/{model}/{action}", json=body)

    assert reply.status_code == status
    assert_problem(reply, status)


async def test_it_takes_its_own_scope(service: Service, make_key: MakeKey, assert_problem: AssertProblem) -> None:
    async with service.client(make_key("explain", "ledger:read", "metrics")) as client:
        for path in ("index", "models/loan/load", "models/loan/unload"):
            assert_problem(await client.post(f"{REPOSITORY}/{path}"), 403)
