"""Below the routes: ids, bodies that are too large, too slow or no gzip, and clients that leave."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import Request

from service.api import transport
from service.errors import ClientGone

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain, Figures
    from tests.conftest import Service, Until

EXPLAIN = "/v1/models/loan/versions/1:explain"
JSON = {"Content-Type": "application/json"}
NO_CACHE = {"Cache-Control": "no-cache"}
GZIP = {**JSON, "Content-Encoding": "gzip"}
MOST_BYTES = 8 * 1024 * 1024
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PATIENCE_SECONDS = 60
"""How long a test waits for what must happen at once; no measure of how fast it does."""


@asynccontextmanager
async def socket_to(service: Service) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def head_of_post(service: Service, length: int, *, key: bool = True) -> bytes:
    """The head of a POST whose body is `length` bytes."""
    authorization = f"Authorization: Bearer {service.key.secret}\r\n" if key else ""
    return (
        f"POST {EXPLAIN} HTTP/1.1\r\nHost: test\r\n{authorization}"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def total(figures: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, own), value in figures.items() if found == name and wanted <= own)


@pytest.mark.parametrize("path", ["/v2/health/live", "/v1/models", "/v1/models/nothing", "/nothing"])
async def test_every_answer_has_an_id(client: httpx.AsyncClient, path: str) -> None:
    first, second = [await client.get(path) for _ in range(2)]

    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "traceparent" not in first.headers


@pytest.mark.parametrize("path", ["/v2/health/live", "/v1/models", "/v1/models/nothing", "/nothing"])
async def test_the_callers_ids_come_back(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-Id": "mine-1", "traceparent": TRACE})

    assert response.headers.get_list("x-request-id") == ["mine-1"]
    assert response.headers.get_list("traceparent") == [TRACE]


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, b"\xff"])
async def test_an_id_that_could_not_be_logged_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/v2/health/live", headers={"X-Request-Id": given})

    assert len(response.headers["x-request-id"]) == 32


async def test_a_gzip_body(client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    body = gzip.compress(json.dumps({"instances": [instance]}).encode())

    response = await client.post(EXPLAIN, content=body, headers=GZIP)

    assert response.status_code == 200


async def test_a_gzip_body_in_single_bytes(client: httpx.AsyncClient, instance: dict[str, Any]) -> None:
    body = gzip.compress(json.dumps({"instances": [instance]}).encode())

    async def bytes_of_it() -> AsyncIterator[bytes]:
        for byte in body:
            yield bytes([byte])

    response = await client.post(EXPLAIN, content=bytes_of_it(), headers=GZIP)

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"not gzip", "the body is not gzip"),
        (zlib.compress(b"{}"), "the body is not gzip"),
        (gzip.compress(b'{"instances": []}', mtime=0)[:-9], "the gzip body ends early"),
        (b"", "the gzip body ends early"),
        (gzip.compress(b'{"instances": []}', mtime=0) + b"more", "the gzip body goes on after its end"),
        (gzip.compress(b'{"instances": []}', mtime=0) * 2, "the gzip body goes on after its end"),
    ],
)
async def test_a_broken_gzip_body(
    client: httpx.AsyncClient, assert_problem: AssertProblem, body: bytes, sentence: str
) -> None:
    response = await client.post(EXPLAIN, content=body, headers=GZIP)

    assert assert_problem(response, 400) == sentence


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x"])
async def test_an_encoding_that_is_not_served(
    client: httpx.AsyncClient, assert_problem: AssertProblem, encoding: str
) -> None:
    response = await client.post(EXPLAIN, content=b"{}", headers={**JSON, "Content-Encoding": encoding})

    assert assert_problem(response, 415) == "the content encoding must be gzip or identity"


async def in_pieces(piece: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


async def test_a_body_over_the_limit(client: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    response = await client.post(EXPLAIN, content=b" " * (MOST_BYTES + 1), headers=JSON)

    assert_problem(response, 413)


async def test_a_body_at_the_limit(
    client: httpx.AsyncClient, instance: dict[str, Any], assert_problem: AssertProblem
) -> None:
    body = json.dumps({"instances": [instance]}).encode().ljust(MOST_BYTES)

    assert (await client.post(EXPLAIN, content=body, headers=JSON)).status_code == 200
    assert_problem(await client.post(EXPLAIN, content=body + b" ", headers=JSON), 413)


async def test_a_body_over_the_limit_without_a_length(client: httpx.AsyncClient, assert_problem: AssertProblem) -> None:
    response = await client.post(EXPLAIN, content=in_pieces(b" " * 65_536, 129), headers=JSON)

    assert_problem(response, 413)


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(service: Service) -> None:
    async with socket_to(service) as (reader, writer):
        writer.write(head_of_post(service, MOST_BYTES + 1))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE_SECONDS)

    assert head.startswith(b"HTTP/1.1 413 ")


async def test_bodies_in_parallel_have_a_bound_together(
    service: Service,
    client: httpx.AsyncClient,
    instance: dict[str, Any],
    assert_problem: AssertProblem,
    until: Until,
) -> None:
    """Four of the largest are held; the fifth is refused at once, and small ones are not kept out."""
    body = json.dumps({"instances": [instance]}).encode()
    large = body.ljust(MOST_BYTES)
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(socket_to(service)) for _ in range(4)]
        for _, writer in held:
            writer.write(head_of_post(service, MOST_BYTES) + large[:-1])
            await writer.drain()
        await until(lambda: service.services.bodies.counted == 4 * (MOST_BYTES - transport.UNCOUNTED_BYTES - 1))
        refused = await client.post(EXPLAIN, content=large, headers=JSON)
        assert_problem(refused, 429)
        assert refused.headers["retry-after"] == "1"
        assert (await client.post(EXPLAIN, content=body, headers=JSON)).status_code == 200

        for reader, writer in held:
            writer.write(large[-1:])
            head = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE_SECONDS)
            assert head.startswith(b"HTTP/1.1 200 ")
    assert service.services.bodies.counted == 0
    assert (await client.post(EXPLAIN, content=large, headers=JSON)).status_code == 200


@pytest.mark.parametrize("count", [1, 1000])
async def test_a_gzip_bomb(client: httpx.AsyncClient, assert_problem: AssertProblem, count: int) -> None:
    bomb = gzip.compress(b" " * 100_000_000, 6, mtime=0)
    size = -(-len(bomb) // count)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(bomb), size):
            yield bomb[start : start + size]

    response = await client.post(EXPLAIN, content=pieces(), headers=GZIP)

    assert_problem(response, 413)


async def test_a_gzip_body_that_is_larger_than_what_it_holds(
    client: httpx.AsyncClient, assert_problem: AssertProblem
) -> None:
    """Empty blocks: they decompress to nothing, for ever."""
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    head = compressor.compress(b"{") + compressor.flush(zlib.Z_FULL_FLUSH)
    empty = b"\x00\x00\x00\xff\xff" * 100_000

    async def pieces() -> AsyncIterator[bytes]:
        yield head
        for _ in range(20):
            yield empty

    response = await client.post(EXPLAIN, content=pieces(), headers=GZIP)

    assert_problem(response, 413)


async def test_a_body_that_does_not_arrive(
    service: Service, client: httpx.AsyncClient, instance: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BODY_SECONDS", 0.2)
    body = json.dumps({"instances": [instance]}).encode()
    async with socket_to(service) as (reader, writer):
        writer.write(head_of_post(service, len(body)) + body[:-1])
        answer = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)  # to the end: the connection is closed

    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in head
    assert json.loads(content)["detail"] == "the body did not arrive in time"
    assert (await client.get("/v1/models")).status_code == 200


async def test_a_body_that_arrives_byte_by_byte(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte in time is not a body in time."""
    monkeypatch.setattr(transport, "BODY_SECONDS", 0.2)
    async with socket_to(service) as (reader, writer):
        writer.write(head_of_post(service, 10_000))
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b" ")
            await asyncio.wait([answer], timeout=0.02)

    assert answer.result().startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_server_that_repeats_its_last_message_is_not_asked_without_end(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(transport, "UNWATCHED_SECONDS", 0.001)
    asked, was_asked_often = 0, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 5:
            was_asked_often.set()
        if asked == (10 if leaves else 1_000):  # without a turn for anybody else it is asked so often
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def work() -> str:
        await was_asked_often.wait()
        if leaves:
            await asyncio.Event().wait()
        return "done"

    working = transport.while_connected(Request({"type": "http"}, receive), work())

    if leaves:
        with pytest.raises(ClientGone):
            await asyncio.wait_for(working, PATIENCE_SECONDS)
    else:
        assert await asyncio.wait_for(working, PATIENCE_SECONDS) == "done"
        assert asked < 1_000


async def test_a_strangers_body_is_not_waited_for(service: Service) -> None:
    async with socket_to(service) as (reader, writer):
        writer.write(head_of_post(service, 1_000_000, key=False))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE_SECONDS)

    assert head.startswith(b"HTTP/1.1 401 ")


async def test_a_client_that_leaves_takes_its_work_along(
    service: Service,
    client: httpx.AsyncClient,
    explain: Explain,
    figures: Figures,
    instance: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "UNWATCHED_SECONDS", 0.01)  # a fast machine computes all this in 0.2
    endless = {"method": "expected_gradients", "tolerance": 1e-12, "max_evaluations": 65_536}
    several = [{**instance, "loan_amount": 100 + number} for number in range(3)]
    body = json.dumps({"instances": several, "parameters": endless}).encode()
    before = await figures()
    expected_points = 0.0

    async with asyncio.timeout(PATIENCE_SECONDS):
        async with socket_to(service) as (_, writer):
            writer.write(head_of_post(service, len(body)) + body)
            while not expected_points:
                expected_points = total(await figures(), "answerable_queue_points")
            meanwhile = await explain([instance], headers=NO_CACHE)
        while expected_points:
            expected_points = total(await figures(), "answerable_queue_points")
        afterwards = await explain([instance], headers=NO_CACHE)
        # Long chunks have a thread of their own: behind this one there is none of those that were under way.
        await explain([instance], method="expected_gradients", headers=NO_CACHE)
        idle = await figures()
        alone = await explain([instance], method="expected_gradients", headers=NO_CACHE)
        after = await figures()

    points = "answerable_gradient_points_total"
    assert total(after, points) - total(idle, points) == alone["explanations"][0]["evaluations"]
    assert meanwhile["explanations"][0]["attributions"] == afterwards["explanations"][0]["attributions"]
    outcomes = {"model": "loan", "method": "expected_gradients", "outcome": "499"}
    assert total(after, "answerable_requests_total", **outcomes) == 1 + total(
        before, "answerable_requests_total", **outcomes
    )
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("callers", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_half_of_the_callers_leave(
    service: Service,
    explain: Explain,
    figures: Figures,
    instance: dict[str, Any],
    callers: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Each asks for something else; what those who stay are answered is what it would be without the others."""
    costly = {"method": "expected_gradients", "tolerance": 1e-12, "max_evaluations": 1024}

    def asked(number: int) -> dict[str, Any]:
        return {**instance, "net_worth": 5000 + callers + number}

    async with asyncio.timeout(3 * PATIENCE_SECONDS), AsyncExitStack() as leaving:
        for number in range(0, callers, 2):
            body = json.dumps({"instances": [asked(number)], "parameters": costly}).encode()
            _, writer = await leaving.enter_async_context(socket_to(service))
            writer.write(head_of_post(service, len(body)) + body)
        staying = [asyncio.ensure_future(explain([asked(number)], headers=NO_CACHE)) for number in range(1, callers, 2)]
        while not total(await figures(), "answerable_queue_points"):
            pass
        await leaving.aclose()
        replies = await asyncio.gather(*staying)
        while total(await figures(), "answerable_queue_points"):
            pass
        alone = [await explain([asked(number)], headers=NO_CACHE) for number in range(1, callers, 2)]

    def attributions(reply: dict[str, Any]) -> Any:
        return reply["explanations"][0]["attributions"]

    assert list(map(attributions, replies)) == list(map(attributions, alone))
    record_property("of those who stayed, answered as each alone", f"{len(replies)} of {callers // 2}")


async def test_clients_that_leave_harm_nobody_who_asks_the_same(
    service: Service, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    """Identical requests share one computation; it goes on for those who stay."""
    body = json.dumps({"instances": [fresh], "parameters": {"method": "expected_gradients", "seed": 5}}).encode()

    async def leave() -> None:
        async with socket_to(service) as (_, writer):
            writer.write(head_of_post(service, len(body)) + body)
            await writer.drain()

    async def stay() -> httpx.Response:
        return await client.post(EXPLAIN, content=body, headers=JSON)

    async with asyncio.timeout(PATIENCE_SECONDS):
        results = await asyncio.gather(*(one() for _ in range(10) for one in (leave, stay)))

    replies = [result.json() for result in results if isinstance(result, httpx.Response)]
    assert len(replies) == 10
    attributions = [reply["explanations"][0]["attributions"] for reply in replies]
    assert all(one == attributions[0] for one in attributions)
