"""The private Redis: it ends with its parent, however that ends, and nothing needs it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from service.processes import embedded_redis
from service.processes.embedded_redis import EmbeddedRedis, find_redis_server, start_embedded_redis
from tests.conftest import PATIENCE_SECONDS, is_alive

if TYPE_CHECKING:
    from tests.conftest import Until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARENT = """
import asyncio
from service.processes.embedded_redis import start_embedded_redis

async def main():
    redis = await start_embedded_redis()
    print(redis.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def is_private_socket(path: Path) -> bool:
    return path.is_socket() and path.parent.stat().st_mode & 0o077 == 0


async def test_it_is_reached_through_its_socket_only(redis: EmbeddedRedis) -> None:
    assert is_private_socket(Path(redis.url.removeprefix("unix://")))
    async with Redis.from_url(redis.url) as client:
        assert await client.ping()
        assert (await client.config_get("port"))["port"] == "0"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_ends_with_its_parent(number: signal.Signals, until: Until) -> None:
    pid = started_and_ended(number)
    await until(lambda: not is_alive(pid))


def started_and_ended(number: signal.Signals) -> int:
    """The process id of the Redis of a program that got the signal."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(number)
    return pid


async def test_closing_ends_it_and_removes_its_folder() -> None:
    started = await start_embedded_redis()
    assert started is not None
    folder = Path(started.url.removeprefix("unix://")).parent
    await started.close()
    assert not is_alive(started.pid)
    assert not os.access(folder, os.F_OK)


async def test_one_that_is_killed_is_replaced_on_the_same_socket_and_its_folder_goes_in_the_end(
    until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    started = await start_embedded_redis()
    assert started is not None
    folder, first = Path(started.url.removeprefix("unix://")).parent, started.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: "the private Redis is running again" in caplog.text or started.pid != first)
    async with Redis.from_url(started.url, retry=None, single_connection_client=False) as client:
        await answering(client)
    assert is_private_socket(Path(started.url.removeprefix("unix://")))
    assert "the private Redis ended with -9; results are not cached until it is restarted" in caplog.text

    os.kill(started.pid, signal.SIGKILL)
    await started.close()
    assert not os.access(folder, os.F_OK)


async def answering(client: Redis) -> None:
    """Waits until the server answers: its socket is there a moment earlier."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(ConnectionError):
                if await client.ping():
                    return
            await asyncio.sleep(0.01)


async def test_one_that_does_not_come_up_again_is_tried_until_it_does(
    until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "RESTART_SECONDS", 0.01)
    started = await start_embedded_redis()
    assert started is not None
    program, started._program = started._program, "/bin/false"
    os.kill(started.pid, signal.SIGKILL)
    await until(lambda: caplog.text.count("the private Redis does not start") > 1)
    started._program = "/bin/no-such-program"
    await until(lambda: "the private Redis cannot be started: No such file" in caplog.text)
    started._program = program
    async with Redis.from_url(started.url) as client:
        await answering(client)
    await started.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room: that of a unix socket has at most 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_folders_of_services_that_were_killed_are_removed_and_those_of_others_are_not(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    (short_path / "answerable-redis-left").mkdir()
    (short_path / "answerable-redis-left" / "dump.rdb").write_text("")
    (short_path / "precious").mkdir()
    (short_path / "answerable-redis-link").symlink_to(short_path / "precious")
    first, second = await start_embedded_redis(), await start_embedded_redis()
    assert first is not None
    assert second is not None
    left = set(os.listdir(short_path))  # noqa: PTH208
    assert left == {
        "precious",
        "answerable-redis-link",
        *(Path(one.url.removeprefix("unix://")).parent.name for one in (first, second)),
    }
    async with Redis.from_url(first.url) as client:
        await answering(client)
    await first.close()
    await second.close()


async def test_a_hung_one_is_closed_all_the_same() -> None:
    started = await start_embedded_redis()
    assert started is not None
    os.kill(started.pid, signal.SIGSTOP)
    before = time.monotonic()
    await started.close()
    assert time.monotonic() - before < 20
    assert not is_alive(started.pid)


async def test_no_program_no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "find_redis_server", lambda: None)
    assert await start_embedded_redis() is None


async def test_a_program_that_does_not_start_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "find_redis_server", lambda: "/bin/false")
    assert await start_embedded_redis() is None


async def test_the_one_on_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == str(program)
    monkeypatch.setenv("PATH", "")
    carried = find_redis_server()
    assert carried is not None
    assert os.access(carried, os.X_OK)
