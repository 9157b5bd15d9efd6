"""Whoever is told to come back is told when."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from service.api import problems
from service.app import create_app
from service.engine.protocol import Stats
from service.errors import AnswerableError, QuotaSpent
from service.lifecycle.serving.registries.registry import FolderRegistry
from service.lifecycle.serving.repository import read_catalog
from service.settings import Settings
from tests.conftest import MODELS


def classes(error: type[AnswerableError] = AnswerableError) -> Iterator[type[AnswerableError]]:
    """All that a client can meet, those of the ledger too, which the app imports."""
    yield error
    for one in error.__subclasses__():
        yield from classes(one)


COME_BACK = sorted((one for one in classes() if one.status in (429, 503)), key=lambda one: one.__name__)


def test_they_are_all_there() -> None:
    names = {one.__name__ for one in COME_BACK}
    assert names >= {
        "Overloaded",
        "LedgerFull",
        "QuotaSpent",
        "ModelNotReady",
        "Unkept",
        "LedgerUnavailable",
        "WorkerLost",
    }


@pytest.mark.parametrize("error", COME_BACK, ids=lambda one: one.__name__)
async def test_every_429_and_503_says_when(error: type[AnswerableError]) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def fail() -> None:
        raise error("not now")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/")
    assert answer.status_code == error.status
    assert int(answer.headers["retry-after"]) >= 1


def test_others_do_not() -> None:
    assert all("Retry-After" not in one("no").headers for one in classes() if one.status == 422)
    assert QuotaSpent("spent", 40).headers == {"Retry-After": "40"}


async def test_a_service_that_is_not_ready_says_when() -> None:
    app = create_app(Settings(_env_file=None, models=MODELS))
    app.state.services = SimpleNamespace(
        catalog=read_catalog(FolderRegistry(MODELS)),
        repository=SimpleNamespace(problems=[]),
        engine=SimpleNamespace(stats=lambda: Stats({}, False, 0, 0, {})),
        ledger=None,
        ledger_mode="required",
        ledger_notices=[],
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/v2/health/ready")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert int(answer.headers["retry-after"]) >= 1
