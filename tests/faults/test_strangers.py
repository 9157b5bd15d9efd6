"""What somebody without a key can do to a running service: take its memory, its connections, or others' time.

Each fault is injected into one process, whose memory is read from the system. The bounds are wide: without limits each
of these took hundreds of MiB.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PATIENCE_SECONDS
from tests.faults.conftest import Measure, Program, p99_of, starting

SECRET = "a key that the operator chose"
EXPLAIN = "/v1/models/loan/versions/1:explain"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
MIB = 1024 * 1024
DESCRIPTORS = 256
CONNECTIONS = DESCRIPTORS // 2
"""So many it has then: half the descriptors, where there are so few."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, loan_only: Path) -> Iterator[Program]:
    """A service that may open few files, half of them only when it asks for more; all these tests share it."""
    with starting(tmp_path_factory.mktemp("strangers"), loan_only) as start:
        one = start("serve", key=SECRET)
        resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS // 2, DESCRIPTORS))
        assert one.address
        yield one


def resident(program: Program) -> int:
    """Bytes of its memory that are in use."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def peak(program: Program) -> int:
    """The most bytes of its memory that were in use since this was asked before."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    Path(f"/proc/{program.pid}/clear_refs").write_text("5")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def open_files(program: Program) -> int:
    return len(list(Path(f"/proc/{program.pid}/fd").iterdir()))


@asynccontextmanager
async def connected(program: Program) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = httpx.URL(program.address)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def flood(program: Program, begin: bytes, piece: bytes, pieces: int) -> None:
    """Sends all that the service takes on one connection, and reads nothing."""
    async with connected(program) as (_, writer):
        writer.write(begin)
        with suppress(ConnectionError):
            for _ in range(pieces):
                writer.write(piece)
                await writer.drain()
            pytest.fail("it took everything")


async def live(program: Program) -> None:
    async with program.client(None) as client:
        assert (await client.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("begin", "piece", "pieces"),
    [
        pytest.param(b"", GET * 1500, 1000, id="requests whose answers are not read"),
        pytest.param(GET[:-2], b"".join(b"a%d: b\r\n" % n for n in range(10_000)), 1000, id="headers"),
        pytest.param(GET[:-2] + b"a: ", b"b" * MIB, 100, id="one header"),
        pytest.param(b"GET /", b"a" * MIB, 100, id="an address"),
    ],
)
async def test_what_is_sent_and_is_no_request_takes_no_memory(
    program: Program, begin: bytes, piece: bytes, pieces: int
) -> None:
    await live(program)
    before = resident(program)
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(5):
            await flood(program, begin, piece, pieces)

    await live(program)
    assert resident(program) - before < 32 * MIB


@pytest.mark.parametrize("declared", [True, False])
async def test_a_hundred_bodies_in_parallel_take_no_more_memory_than_is_said(program: Program, declared: bool) -> None:
    """Of 9 MiB each, where one may have 8."""
    before, most = resident(program), 0
    piece = b" " * 65_536
    chunk = piece if declared else b"10000\r\n" + piece + b"\r\n"
    told = f"Content-Length: {9 * MIB}" if declared else "Transfer-Encoding: chunked"
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {SECRET}\r\n{told}\r\n\r\n"

    async def post() -> int:
        nonlocal most
        async with connected(program) as (reader, writer):
            writer.write(head.encode())
            for _ in range(9 * 16):
                writer.write(chunk)
                await writer.drain()
                most = max(most, resident(program))
            writer.write(b"" if declared else b"0\r\n\r\n")
            status = (await reader.readuntil(b"\r\n")).split()[1]
            return int(status)

    async with asyncio.timeout(PATIENCE_SECONDS):
        statuses = Counter(await asyncio.gather(*(post() for _ in range(100))))

    assert set(statuses) <= ({413} if declared else {413, 429})
    assert statuses[413] > 0
    assert most - before < (16 if declared else 96) * MIB


@pytest.mark.slow
async def test_a_hundred_gzip_bombs_take_no_more_memory_than_is_said(
    program: Program, record_property: Callable[[str, object], None]
) -> None:
    """Of 256 MiB each, ten at a time; what is left of them afterwards, and the most that was there meanwhile."""
    bomb = gzip.compress(b" " * (256 * MIB), 9)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    turns = asyncio.Semaphore(10)
    async with program.client(SECRET) as client:

        async def post() -> int:
            async with turns:
                return (await client.post(EXPLAIN, content=bomb, headers=headers)).status_code

        await post()
        before = resident(program)
        peak(program)
        async with asyncio.timeout(PATIENCE_SECONDS):
            statuses = Counter(await asyncio.gather(*(post() for _ in range(100))))
    most, left = peak(program), resident(program) - before
    record_property("answers", dict(statuses))
    record_property("MiB at most, and left", f"{(most - before) / MIB:.1f}, {left / MIB:.1f}")
    assert set(statuses) <= {413, 429}
    assert statuses[413] > 0
    assert left < 32 * MIB
    assert most - before < 96 * MIB


@pytest.mark.slow
async def test_a_million_chunks_of_one_byte_take_no_memory(
    program: Program, record_property: Callable[[str, object], None]
) -> None:
    head = f"POST {EXPLAIN} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {SECRET}\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"1\r\n \r\n" * 10_000
    before = resident(program)
    peak(program)
    async with asyncio.timeout(PATIENCE_SECONDS), connected(program) as (reader, writer):
        writer.write(head.encode())
        for _ in range(100):
            writer.write(piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        status = int((await reader.readuntil(b"\r\n")).split()[1])
    most = peak(program)
    record_property("answer, and MiB at most", f"{status}, {(most - before) / MIB:.1f}")
    assert 400 <= status < 500
    assert most - before < 32 * MIB
    await live(program)


@pytest.mark.slow
async def test_others_beside_a_hundred_clients_at_a_byte_a_second(
    program: Program, instance: dict[str, Any], measure: Measure, record_property: Callable[[str, object], None]
) -> None:
    numbers = itertools.count()
    async with program.client(SECRET) as client, AsyncExitStack() as stack:

        async def ask() -> None:
            asked = {"instances": [{**instance, "net_worth": 7000 + next(numbers) / 10}]}
            assert (await client.post(EXPLAIN, json=asked)).status_code == 200

        await p99_of(ask, 20)
        idle = await p99_of(ask, 200)
        slow = [await stack.enter_async_context(connected(program)) for _ in range(100)]

        async def trickle() -> None:
            for byte in GET:
                for _, writer in slow:
                    writer.write(bytes([byte]))
                await asyncio.sleep(1)

        trickling = asyncio.create_task(trickle())
        beside = await p99_of(ask, 200)
        async with asyncio.timeout(PATIENCE_SECONDS):
            ended = await asyncio.gather(*(reader.read() for reader, _ in slow))
        trickling.cancel()
    record_property("slow ones that were closed", len(ended))
    measure("p99 of others, of that without them", beside / idle, 1.1)


async def test_silent_connections_keep_nobody_out(program: Program, instance: dict[str, Any]) -> None:
    """More of them than the service has descriptors; it still answers, and still opens its own files."""
    async with asyncio.timeout(PATIENCE_SECONDS), AsyncExitStack() as stack:
        for _ in range(2 * DESCRIPTORS):
            await stack.enter_async_context(connected(program))
        async with program.client(SECRET) as client:
            reply = await client.post(EXPLAIN, json={"instances": [{**instance, "loan_amount": time.time() % 500}]})
            assert reply.status_code == 200
            number = reply.json()["explanations"][0]["id"]
            stored = await client.post(f"/v1/explanations/{number}:verify")
            assert stored.status_code == 200
            assert stored.json()["valid"] is True
        assert open_files(program) < CONNECTIONS + 64
