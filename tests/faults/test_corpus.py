"""What fuzzing has found, asked and read again: answered as the description says, refused in our sentences, or right.

Files are those that it has spoilt and that are right all the same: what is wrong with them is easily overlooked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.errors import CatalogError
from tests.faults.mutated_files import CORPUS, KINDS, refused_or_right

if TYPE_CHECKING:
    from tests.conftest import MakeKey, Service

FILES = sorted(path for path in CORPUS.iterdir() if path.suffix != ".json")
REQUESTS: list[dict[str, Any]] = json.loads((CORPUS / "requests.json").read_text())


def described(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = service.app.openapi()["paths"][asked["path"]][asked["method"].lower()]["responses"]
    return responses


@pytest.mark.parametrize("asked", REQUESTS, ids=lambda asked: asked["target"])
async def test_a_request(service: Service, client: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    response = await client.request(asked["method"], asked["target"], json=asked.get("body"))

    assert response.status_code < 500
    documented = described(service, asked)[str(response.status_code)]["content"]
    assert response.headers["content-type"].partition(";")[0] in documented


async def test_what_is_sent_again_of_somebody_who_was_erased(
    service: Service, make_key: MakeKey, instance: dict[str, Any]
) -> None:
    """Found by schemathesis, which sent a request again with its idempotency key after it had erased the person."""
    path = "/v1/models/{model}/versions/{version}:explain"
    body = {"instances": [instance], "context": {"subject": "Ann"}}
    async with service.client(make_key(tenant="corpus")) as client:
        headers = {"Idempotency-Key": "once"}
        first = await client.post("/v1/models/loan/versions/1:explain", json=body, headers=headers)
        assert first.status_code == 200
        erased = await client.post("/v1/subjects/Ann:erase", json={"reason": "asked for by the person"})
        assert erased.status_code == 200
        again = await client.post("/v1/models/loan/versions/1:explain", json=body, headers=headers)
    assert again.status_code == 410
    assert "410" in described(service, {"path": path, "method": "post"})


async def test_the_file_of_an_export_has_a_type_that_is_described(service: Service) -> None:
    content = described(service, {"path": "/v1/exports/{export}/file", "method": "get"})["200"]["content"]
    assert set(content) == {"text/csv", "application/vnd.apache.parquet", "application/zip"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file(path: Path, tmp_path: Path) -> None:
    kind = KINDS[path.name.partition("-")[0]](tmp_path)
    assert refused_or_right(kind, path.read_bytes()) in ("refused", "right")


@pytest.mark.parametrize("name", ["manifest", "tokenizer", "baselines"])
def test_a_whole_file_is_right_and_half_of_it_is_refused(name: str, tmp_path: Path) -> None:
    kind = KINDS[name](tmp_path)
    assert refused_or_right(kind, kind.whole_content) == "right"
    with pytest.raises(CatalogError):
        kind.read(kind.whole_content[: len(kind.whole_content) // 2])
