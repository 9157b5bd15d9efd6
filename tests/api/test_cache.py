"""The result cache, as callers notice it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Explain
    from tests.conftest import MakeKey, Service

PATIENCE_SECONDS = 30
"""A result is stored behind the reply, so that the next request may still miss it; and after trouble with Redis, in
whatever test came before, the cache rests for two seconds."""


async def hit(explain: Explain, instance: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """The first answer from the cache."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            (explanation,) = (await explain([instance], **asked))["explanations"]
            if explanation["cached"]:
                return dict(explanation)


def computed(explanation: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in explanation.items() if name not in ("id", "cached", "timings_ms")}


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients"])
async def test_a_repeated_request_gets_the_same_bits_and_a_record_of_its_own(
    explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any], method: str
) -> None:
    (first,) = (await explain([fresh], method=method))["explanations"]
    second = await hit(explain, fresh, method=method)

    assert first["cached"] is False
    assert computed(second) == computed(first)
    assert second["id"] != first["id"]
    for explanation in (first, second):
        record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
        assert record["id"] == explanation["id"]
        assert record["cached"] is explanation["cached"]
        assert record["attributions"] == first["attributions"]


async def test_no_cache_computes_once_more(explain: Explain, fresh: dict[str, Any]) -> None:
    await hit(explain, fresh)

    (again,) = (await explain([fresh], headers={"Cache-Control": "no-cache"}))["explanations"]

    assert again["cached"] is False


async def test_another_parameter_is_another_result(explain: Explain, fresh: dict[str, Any]) -> None:
    await hit(explain, fresh)

    for parameters in ({"tolerance": 0.02}, {"target": "approved"}, {"output_space": "logit"}):
        (explanation,) = (await explain([fresh], **parameters))["explanations"]
        assert explanation["cached"] is False, parameters


async def test_a_tenant_does_not_see_what_another_has_asked(
    explain: Explain, service: Service, make_key: MakeKey, fresh: dict[str, Any]
) -> None:
    await hit(explain, fresh)

    async with service.client(make_key(tenant="rival")) as rival:
        (explanation,) = (await explain([fresh], by=rival))["explanations"]
        assert explanation["cached"] is False
        assert (await hit(explain, fresh, by=rival))["attributions"] == explanation["attributions"]


async def test_a_context_is_not_part_of_the_result(explain: Explain, fresh: dict[str, Any]) -> None:
    await hit(explain, fresh, context={"subject": "Ada"})

    assert (await hit(explain, fresh, context={"subject": "Grace"}))["cached"]
