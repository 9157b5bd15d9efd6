"""The log: one line a request, with what an operator needs, and nothing of what was asked or answered."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from service.monitoring import request_log
from service.monitoring.request_log import RequestLine, RequestLog
from service.monitoring.timings import Spent

if TYPE_CHECKING:
    from tests.conftest import MakeKey, Service, Until

EXPLAIN = "/v1/models/loan/versions/1:explain"


@pytest.fixture
def written(service: Service) -> Iterator[list[bytes]]:
    """What the service logs of its requests during the test."""
    pieces: list[bytes] = []
    service.app.state.request_log = RequestLog(pieces.append)
    yield pieces
    service.app.state.request_log = None


def lines(written: list[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in b"".join(written).splitlines()]


async def test_every_request_leaves_one_line_without_a_word_of_what_was_asked(
    service: Service, make_key: MakeKey, instance: dict[str, Any], written: list[bytes], until: Until
) -> None:
    mark = uuid.uuid4().hex
    key = make_key(tenant=f"tenant-{mark}")
    amounts = [round(100 + number / 7.1, 12) for number in range(1, 25)]
    context = {"subject": f"s-{mark}", "decision_id": f"d-{mark}", "cohort": {"channel": f"c-{mark}"}}
    attributions: list[str] = []

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        body = {"instances": [{**instance, "applicant_income": amounts[number]}], "context": context}
        if number % 6 == 5:
            body["parameters"] = {"method": f"m-{mark}"}
        reply = await client.post(EXPLAIN, json=body)
        for explanation in reply.json().get("explanations", []):
            attributions.extend(map(repr, explanation["attributions"].values()))
        return reply.headers["x-request-id"]

    async with service.client(key) as client:
        ids = await asyncio.gather(*(ask(client, number) for number in range(len(amounts))))
        found = (await client.get("/v1/explanations", params={"subject": f"s-{mark}"})).json()["explanations"]
        for path in ("/v2/health/live", "/metrics", "/openapi.json", f"/v1/models/x-{mark}"):
            await client.get(path)
        await client.post(f"/v1/explanations/{found[0]['id']}:review", json={"verdict": "accepted", "note": mark})
    await until(lambda: len(lines(written)) >= len(ids) + 3)

    told = lines(written)
    assert len(told) == len(ids) + 3
    by_id = {line["id"]: line for line in told}
    for number, request_id in enumerate(ids):
        line = by_id[request_id]
        assert line["route"] == "POST /v1/models/{model}/versions/{version}:explain"
        if number % 6 == 5:
            assert (line["status"], line["model"], line["method"]) == (422, "loan", "unknown")
        else:
            assert (line["status"], line["method"], line["version"]) == (200, "integrated_gradients", "1")
            assert (line["explanations"], line["computed"]) == (1, 1)
            assert set(line["ms"]) == {"queue", "compute", "ledger", "total"}
            assert 0 <= line["ms"]["queue"] + line["ms"]["compute"] + line["ms"]["ledger"] <= line["ms"]["total"] + 0.01
        assert line["time"].endswith("Z")
    text = b"".join(written).decode()
    assert attributions
    personal = (mark, key.secret, key.id, *map(repr, amounts), *attributions, *(record["id"] for record in found))
    for secret in personal:
        assert secret not in text, secret
    routes = {line["route"] for line in told}
    assert {"GET /v1/models/{model}", "POST /v1/explanations/{explanation}:review"} < routes


async def test_who_loads_and_unloads_models_leaves_a_line(
    client: httpx.AsyncClient, written: list[bytes], until: Until
) -> None:
    replies = [
        await client.post(f"/v2/repository/{path}") for path in ("index", "models/loan/load", "models/none/unload")
    ]
    await until(lambda: len(lines(written)) == len(replies))

    assert [(line["id"], line["route"], line["status"]) for line in lines(written)] == [
        (reply.headers["x-request-id"], f"POST /v2/repository/{route}", status)
        for reply, route, status in zip(
            replies, ("index", "models/{model}/load", "models/{model}/unload"), (200, 200, 404), strict=True
        )
    ]


def line_of(request_id: str) -> RequestLine:
    return RequestLine(request_id, "POST", "/v1/models/{model}:explain", 200, "loan", "saliency", Spent(), 0.1)


async def test_a_reader_that_stops_stops_nobody(monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    monkeypatch.setattr(request_log, "EVERY_SECONDS", 0)
    monkeypatch.setattr(request_log, "MOST_WAITING", 100)
    goes_on, written = threading.Event(), list[bytes]()

    def write(content: bytes) -> None:
        assert goes_on.wait(30)
        written.append(content)

    log = RequestLog(write)
    log.add(line_of("0"))
    await until(lambda: not log._waiting)  # the thread has it, and stands still
    for number in range(1, 151):
        log.add(line_of(str(number)))
    goes_on.set()
    await log.close()

    told = lines(written)
    assert [line.get("id") for line in told] == [*map(str, range(101)), None]
    assert told[-1]["event"] == "dropped"
    assert told[-1]["lines"] == 50


async def test_no_line_is_lost_that_comes_as_the_writer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "EVERY_SECONDS", 0)
    written: list[bytes] = []
    log = RequestLog(written.append)
    log.add(line_of("0"))
    writing = log._writing
    assert writing is not None
    while not writing.done():  # noqa: ASYNC110 - at the first turn of the loop, before any callback of the task
        await asyncio.sleep(0)
    log.add(line_of("1"))
    await log.close()

    assert [line["id"] for line in lines(written)] == ["0", "1"]
