"""Connections that send too much, too slowly or nothing, that do not read, and that are too many."""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response

from service.api.connections import Connections, Limits, connections_within, raise_descriptor_limit
from service.cli.serve import configured
from service.settings import Settings
from tests.conftest import PATIENCE_SECONDS

GET = b"GET /here HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"POST /read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
LARGE = b"x" * (64 * 1024 * 1024)
"""A quarter of it is more than the system holds between two sockets."""

QUICK = Limits(head_seconds=0.1, reply_seconds=0.1, idle_seconds=0.1, check_seconds=0.01)


class Served:
    """A server of three routes, on a thread and an event loop of its own; `held` is what `/held` waits for."""

    def __init__(self, limits: Limits) -> None:
        self.connections = Connections(limits)
        self.held = threading.Event()
        self.asked = 0
        self.loop: asyncio.AbstractEventLoop
        config = configured(self._app(), self.connections, Settings(_env_file=None))
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._run)

    def _app(self) -> FastAPI:
        app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

        @app.get("/here")
        async def here() -> str:
            return "here"

        @app.post("/unread")
        async def unread() -> str:
            return "unread"

        @app.post("/read")
        async def read(request: Request) -> int:
            self.asked += 1
            return len(await request.body())

        @app.get("/held")
        async def held() -> str:
            self.asked += 1
            await asyncio.to_thread(self.held.wait, PATIENCE_SECONDS)
            return "held"

        @app.get("/large")
        async def large() -> Response:
            self.asked += 1
            return Response(LARGE)

        return app

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self.connections.watch())
        await self.server.serve([self.socket])
        watching.cancel()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def answers(self, sent: bytes) -> bytes:
        """All that comes back on one connection until the service closes it."""
        async with asyncio.timeout(PATIENCE_SECONDS), self.connected() as (reader, writer):
            writer.write(sent)
            return await reader.read()


@contextmanager
def served(limits: Limits) -> Iterator[Served]:
    one = Served(limits)
    one.thread.start()
    try:
        yield one
    finally:
        one.held.set()
        one.server.should_exit = True
        one.thread.join(PATIENCE_SECONDS)
        assert not one.thread.is_alive()


@pytest.fixture(scope="module")
def patient() -> Iterator[Served]:
    """Within the limits that a service has."""
    with served(Limits()) as one:
        yield one


@pytest.fixture(scope="module")
def quick() -> Iterator[Served]:
    """Within the same sizes, and tenths of a second."""
    with served(QUICK) as one:
        yield one


def problem(answer: bytes) -> tuple[int, dict[str, Any], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    content = json.loads(body)
    status = int(head.split()[1])
    assert content["status"] == status
    assert f"\r\nX-Request-Id: {content['request_id']}\r\n".encode() in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    return status, content, head


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        pytest.param(b"GET /" + b"a" * 70_000 + GET[9:], 414, "address-too-long", id="address"),
        pytest.param(b"GET /" + b"a" * 70_000, 414, "address-too-long", id="address-unfinished"),
        pytest.param(GET[:-2] + b"a: " + b"b" * 70_000 + b"\r\n\r\n", 431, "headers-too-large", id="header"),
        pytest.param(GET[:-2] + b"a: " + b"b" * 70_000, 431, "headers-too-large", id="header-unfinished"),
        pytest.param(GET[:-2] + b"a" * 70_000, 431, "headers-too-large", id="name-unfinished"),
        pytest.param(GET[:-2] + b"a: b\r\n" * 100 + b"\r\n", 431, "headers-too-large", id="headers"),
        pytest.param(GET[:-2] + b"a: b\r\n" * 101, 431, "headers-too-large", id="headers-unfinished"),
        pytest.param(b"\r\n" * 40_000, 431, "headers-too-large", id="empty-lines"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", 400, "not-http", id="tls"),
        pytest.param(CHUNKED + b"zz\r\n", 400, "not-http", id="chunk"),
    ],
)
async def test_what_is_no_request_or_too_much_of_one_is_refused_and_ends(
    patient: Served, sent: bytes, status: int, kind: str
) -> None:
    answered, content, head = problem(await patient.answers(sent))

    assert answered == status
    assert content["type"] == f"urn:answerable:problem:{kind}"
    assert b"\r\nConnection: close" in head


@pytest.mark.parametrize("begun", [b"0\r\na: ", b"1;"], ids=["trailer", "extension of a chunk"])
async def test_what_is_no_body_has_the_limit_of_a_head(patient: Served, begun: bytes) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), patient.connected() as (reader, writer):
        before = patient.asked
        writer.write(CHUNKED + begun)
        while patient.asked == before:  # noqa: ASYNC110 - it happens on another thread
            await asyncio.sleep(0.01)
        writer.write(b"b" * 70_000)
        answer = await reader.read()

    assert problem(answer)[0] == 431


@pytest.mark.parametrize(
    "sent",
    [
        GET[:-2] + b"a: " + b"b" * 65_000 + b"\r\n\r\n",
        GET[:-2] + b"a: b\r\n" * 99 + b"\r\n",
        CHUNKED + b"1\r\nx\r\n" * 40_000 + b"0\r\na: b\r\n\r\n",
        CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: 200000") + b"x" * 200_000,
    ],
    ids=["header", "headers", "chunks", "body"],
)
async def test_what_is_within_the_limits_is_answered(patient: Served, sent: bytes) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), patient.connected() as (reader, writer):
        for _ in range(3):
            writer.write(sent)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            await reader.readexactly(5 if b"chunked" in sent else 6)


async def test_requests_that_are_sent_before_the_answers_are_answered_in_order(patient: Served) -> None:
    answers = await patient.answers(GET * 31 + GET[:-2] + b"Connection: close\r\n\r\n")

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(b'"here"') == 32


async def test_too_many_requests_before_their_answers_end_the_connection(patient: Served) -> None:
    """And no refusal is written between the answers, where it would be taken for one of them."""
    answers = b""
    with suppress(ConnectionResetError):
        answers = await patient.answers(GET * 1000)

    assert answers.count(b"HTTP/1.1 ") <= 32
    assert b"problem" not in answers
    assert b"200 OK" in await patient.answers(GET[:-2] + b"Connection: close\r\n\r\n")


@pytest.mark.parametrize("sent", [GET[:-2], GET[:10], b"\r\n"], ids=["headers", "address", "empty line"])
async def test_a_head_that_does_not_arrive(quick: Served, sent: bytes) -> None:
    answer = await quick.answers(sent)

    if sent == b"\r\n":  # nothing to answer to
        assert answer == b""
    else:
        status, content, _ = problem(answer)
        assert (status, content["type"]) == (408, "urn:answerable:problem:head-too-slow")


async def test_a_head_that_arrives_byte_by_byte(quick: Served) -> None:
    """Each byte in time is not a head in time."""
    async with asyncio.timeout(PATIENCE_SECONDS), quick.connected() as (reader, writer):
        writer.write(GET[:-2])
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait([answer], timeout=0.02)

    assert problem(answer.result())[0] == 408


async def test_a_connection_that_says_nothing_ends(quick: Served) -> None:
    assert await quick.answers(b"") == b""


@pytest.mark.parametrize("more", [b"", b"\r\n", b"GE"], ids=["nothing", "an empty line", "half a word"])
async def test_a_connection_that_says_nothing_more_ends(quick: Served, more: bytes) -> None:
    answers = await quick.answers(GET + more)

    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_the_rest_of_a_body_that_nobody_waits_for_is_not_waited_for(quick: Served) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), quick.connected() as (reader, writer):
        writer.write(POST)
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait([answer], timeout=0.02)

    assert answer.result().endswith(b'"unread"')


async def test_a_reply_that_is_not_read_ends(quick: Served) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), quick.connected() as (_, writer):
        before = quick.asked
        writer.write(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
        while quick.asked == before:  # noqa: ASYNC110 - it happens on another thread
            await asyncio.sleep(0.01)
        while quick.connections.count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_reply_that_is_read_slowly_goes_on_until_it_stands_still() -> None:
    """A client that takes an hour for each part of a reply, by the clock that the service is told."""
    with served(Limits(check_seconds=PATIENCE_SECONDS)) as one:
        hours = itertools.count(1e6, 3600)

        def look() -> None:
            one.loop.call_soon_threadsafe(one.connections.check, next(hours))

        async with asyncio.timeout(PATIENCE_SECONDS), one.connected() as (reader, writer):
            writer.write(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
            for _ in range(3):
                await reader.readexactly(len(LARGE) // 4)
                look()
            look()
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(len(LARGE))


async def test_a_request_under_way_is_not_hurried(quick: Served) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), quick.connected() as (reader, writer):
        before = quick.asked
        writer.write(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
        while quick.asked == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await quick.answers(b"") == b""  # as long as any other connection is let be
        quick.held.set()
        assert (await reader.readuntil(b'"held"')).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_silent_connections_keep_out_nobody() -> None:
    with served(Limits(connections=4)) as one:
        async with asyncio.timeout(PATIENCE_SECONDS), AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(one.connected()) for _ in range(20)]
            for reader, _ in silent[:16]:
                assert await reader.read() == b""
            async with one.connected() as (reader, writer):
                writer.write(GET)
                assert (await reader.readuntil(b'"here"')).startswith(b"HTTP/1.1 200 OK\r\n")
            assert one.connections.count <= 4


async def test_a_newcomer_is_refused_where_all_connections_have_a_request_under_way() -> None:
    with served(Limits(connections=2)) as one:
        async with asyncio.timeout(PATIENCE_SECONDS), one.connected() as busy, one.connected() as busy_too:
            for _, writer in (busy, busy_too):
                writer.write(b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n")
            while one.asked < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            status, content, head = problem(await one.answers(b""))
            one.held.set()
            for reader, _ in (busy, busy_too):
                assert (await reader.readuntil(b'"held"')).startswith(b"HTTP/1.1 200 OK\r\n")
            async with one.connected() as (reader, writer):
                writer.write(GET)
                assert (await reader.readuntil(b'"here"')).startswith(b"HTTP/1.1 200 OK\r\n")

    assert (status, content["type"]) == (503, "urn:answerable:problem:too-many-connections")
    assert b"\r\nRetry-After: 1\r\n" in head


@pytest.mark.parametrize(
    ("descriptors", "wanted", "most"), [(65_536, 1024, 1024), (1024, 1024, 768), (300, 1024, 150), (1, 1, 1)]
)
def test_connections_leave_descriptors_for_the_stores(descriptors: int, wanted: int, most: int) -> None:
    assert connections_within(descriptors, wanted) == most


def test_the_limit_of_descriptors_is_raised_to_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((1024, 4096), (1024, resource.RLIM_INFINITY), (70_000, 80_000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        asked.append((raise_descriptor_limit(), 0))

    assert asked == [(4096, 4096), (4096, 0), (65_536, resource.RLIM_INFINITY), (65_536, 0), (70_000, 0)]
