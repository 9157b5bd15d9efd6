"""Asking for explanations, and reading figures and errors, the way a client does."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

EXPLAIN = "/v1/models/loan/versions/1:explain"

TYPE = re.compile("urn:answerable:problem:[a-z-]+")

Explain = Callable[..., Awaitable[dict[str, Any]]]
AssertProblem = Callable[..., str]
Figures = Callable[[], Awaitable[dict[tuple[str, frozenset[tuple[str, str]]], float]]]


class _Places(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "nothing"


def filled(path: str) -> str:
    """A path of the description with its parameters filled in: the loan model's first version, and nothing else that
    exists; and not even that where it could be unloaded."""
    return path.format_map(_Places(model="nothing" if path.startswith("/v2/repository") else "loan", version="1"))


@pytest.fixture
def explain(client: httpx.AsyncClient) -> Explain:
    """Asks for explanations and gives the reply: `explain([instance], target="denied")`.

    Keywords are the request's `parameters`, but for `context`, `headers`, `path` and `by`, another client.
    """

    async def ask(
        instances: list[Any],
        *,
        context: object = None,
        headers: dict[str, str] | None = None,
        path: str = EXPLAIN,
        by: httpx.AsyncClient | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"instances": instances, "parameters": parameters}
        if context is not None:
            body["context"] = context
        response = await (by or client).post(path, json=body, headers=headers)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply

    return ask


@pytest.fixture
def fresh(instance: dict[str, Any]) -> dict[str, Any]:
    """An instance that nobody has asked about."""
    return {**instance, "applicant_income": 1500 + uuid.uuid4().int % 10**9 / 1e7}


@pytest.fixture
def approved(instance: dict[str, Any]) -> dict[str, Any]:
    """An instance that the model approves."""
    return {**instance, "consumer_credit_grade": 1, "public_record": 0, "obligations_ratio": 30}


@pytest.fixture
def assert_problem() -> AssertProblem:
    """Checks that an answer is a complete problem of that status, and gives its sentence."""

    def check(response: httpx.Response, status: int) -> str:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        faults = problem.pop("errors", None)
        assert set(problem) == {"type", "title", "status", "detail", "error", "request_id"}
        assert TYPE.fullmatch(problem["type"])
        assert problem["title"]
        assert problem["status"] == status
        assert problem["detail"] == problem["error"] != ""
        assert problem["request_id"] == response.headers["x-request-id"] != ""
        assert len(json.dumps(problem)) < 2000
        if faults is not None:
            assert 1 <= len(faults) <= 20
            assert faults[0]["type"] == problem["type"]
            for fault in faults:
                assert set(fault) in ({"type", "pointer", "detail"}, {"type", "parameter", "detail"})
                assert TYPE.fullmatch(fault["type"])
                assert len(json.dumps(fault)) < 1000
        for secret in ("Traceback", "/work", "/tmp", ".py", "site-packages", "ak_", "test-"):
            assert secret not in response.text
        return str(problem["detail"])

    return check


@pytest.fixture
def figures(client: httpx.AsyncClient) -> Figures:
    """The service's metrics: by name and labels, the value."""

    async def scrape() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        response = await client.get("/metrics")
        assert response.status_code == 200
        families = text_string_to_metric_families(response.text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    return scrape
