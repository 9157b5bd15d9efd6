"""The log: one line a request, with what an operator needs, and nothing of what was asked or answered."""

from __future__ import annotations

import asyncio
import errno
import threading
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from service.monitoring import request_log
from service.monitoring.request_log import RequestLine, RequestLog
from service.monitoring.timings import RequestTimings
from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.conftest import MakeKey, Service, Until

EXPLAIN = "/v1/models/loan/versions/1:explain"


class Lines:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines that are complete."""
        return [orjson.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture
def written(service: Service) -> Iterator[Lines]:
    """What the service logs of its requests during the test."""
    stream = Lines()
    log = RequestLog(stream)
    with service.changed(request_log=log):
        yield stream
    asyncio.run(log.close())


async def test_every_request_leaves_one_line_without_a_word_of_what_was_asked(
    service: Service, make_key: MakeKey, instance: dict[str, Any], written: Lines, until: Until
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
    await until(lambda: len(written.lines) >= len(ids) + 3)

    told = written.lines
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
    text = written.text
    assert attributions
    personal = (mark, key.secret, key.id, *map(repr, amounts), *attributions, *(record["id"] for record in found))
    for secret in personal:
        assert secret not in text, secret
    routes = {line["route"] for line in told}
    assert {"GET /v1/models/{model}", "POST /v1/explanations/{explanation}:review"} < routes


async def test_who_loads_and_unloads_models_leaves_a_line(
    client: httpx.AsyncClient, written: Lines, until: Until
) -> None:
    replies = [
        await client.post(f"/v2/repository/{path}") for path in ("index", "models/loan/load", "models/none/unload")
    ]
    await until(lambda: len(written.lines) == len(replies))

    assert [(line["id"], line["route"], line["status"]) for line in written.lines] == [
        (reply.headers["x-request-id"], f"POST /v2/repository/{route}", status)
        for reply, route, status in zip(
            replies, ("index", "models/{model}/load", "models/{model}/unload"), (200, 200, 404), strict=True
        )
    ]


def line_of(request_id: str) -> RequestLine:
    return RequestLine(request_id, "POST", "/v1/models/{model}:explain", 200, "loan", "saliency", RequestTimings(), 0.1)


async def test_a_reader_that_stops_stops_nobody(monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 100)
    stopped, goes_on, stream = threading.Event(), threading.Event(), Lines()

    class Stopping(Lines):
        def write(self, text: str) -> None:
            stopped.set()
            assert goes_on.wait(PATIENCE_SECONDS)
            stream.write(text)

    log = RequestLog(Stopping())
    log.add(line_of("0"))
    await until(stopped.is_set)  # the thread has it, and stands still
    for number in range(1, 151):
        log.add(line_of(str(number)))
    goes_on.set()
    await log.close()

    told = stream.lines
    assert [line.get("id") for line in told] == [*map(str, range(101)), None]
    assert told[-1]["event"] == "dropped"
    assert told[-1]["lines"] == 50


async def test_a_reader_that_does_not_come_back_does_not_keep_the_service(
    monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(request_log, "CLOSE_SECONDS", 0)
    stopped, goes_on = threading.Event(), threading.Event()

    class Stopping(Lines):
        def write(self, text: str) -> None:
            stopped.set()
            goes_on.wait()
            super().write(text)

    log = RequestLog(Stopping())
    log.add(line_of("0"))
    await until(stopped.is_set)
    await log.close()
    goes_on.set()


async def test_lines_that_were_dropped_are_told_as_soon_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 2)
    stopped, goes_on, stream = threading.Event(), threading.Event(), Lines()

    class Stopping(Lines):
        def write(self, text: str) -> None:
            stopped.set()
            assert goes_on.wait(PATIENCE_SECONDS)
            stream.write(text)

    log = RequestLog(Stopping())
    log.add(line_of("0"))
    await until(stopped.is_set)
    for number in range(1, 6):
        log.add(line_of(str(number)))
    goes_on.set()
    await until(lambda: len(stream.lines) == 3)
    log.add(line_of("6"))
    await until(lambda: len(stream.lines) == 5)
    await log.close()

    assert [line.get("id", line.get("lines")) for line in stream.lines] == ["0", "1", "2", "6", 3]


async def test_a_disk_that_was_full_does_not_end_the_log(monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    monkeypatch.setattr(request_log, "GATHER_SECONDS", 0)
    tried: list[str] = []

    class Full(Lines):
        def write(self, text: str) -> None:
            tried.append(text)
            if len(tried) <= 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(text)

    stream = Full()
    log = RequestLog(stream)
    for number in range(3):
        log.add(line_of(str(number)))
        await until(lambda count=number + 1: len(tried) == count)  # type: ignore[misc]
    await log.close()

    assert [line.get("id", line.get("lines")) for line in stream.lines] == ["2", 2]


async def test_no_line_is_lost_that_comes_as_the_log_is_closed() -> None:
    stream = Lines()
    log = RequestLog(stream)
    for number in range(500):
        log.add(line_of(str(number)))
    await log.close()

    assert [line["id"] for line in stream.lines] == [*map(str, range(500))]
