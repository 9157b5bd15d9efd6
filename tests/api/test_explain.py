from __future__ import annotations
import httpx
from typing import Any

async def test_x(client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    r = await client.post("/v1/models/loan:explain", json={"instances": [instance]})
    print(r.status_code, r.headers, r.text)
    assert r.status_code == 200
