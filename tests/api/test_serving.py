"""How answers leave, the head and the body of one together, and how long a connection stays for the next."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
from types import SimpleNamespace
from typing import cast

import pytest
from fastapi import FastAPI

from service.api.transports import OneWrite
from service.cli import serve as serving
from service.errors import SetupError
from service.settings import Settings
from tests.conftest import PATIENCE_SECONDS


class ListTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return name


def made() -> tuple[ListTransport, OneWrite]:
    transport = ListTransport()
    return transport, OneWrite(cast(asyncio.Transport, transport), asyncio.get_running_loop())


async def test_a_head_and_its_body_are_one_write() -> None:
    transport, one = made()
    one.write(b"head ")
    one.write(b"body")
    assert transport.written == [b"head body"]
    await asyncio.sleep(0)
    assert transport.written == [b"head body"]


async def test_a_head_alone_does_not_wait_for_a_body() -> None:
    transport, one = made()
    one.write(b"head")
    await asyncio.sleep(0)
    assert transport.written == [b"head"]


async def test_what_is_written_last_is_sent_before_the_end() -> None:
    transport, one = made()
    one.write(b"head")
    one.close()
    await asyncio.sleep(0)
    assert (transport.written, transport.closed) == ([b"head"], True)


async def test_nothing_is_written_to_a_client_that_left() -> None:
    transport, one = made()
    one.write(b"head")
    transport.closed = True
    await asyncio.sleep(0)
    assert transport.written == []


async def test_everything_else_is_the_transports_own() -> None:
    _, one = made()
    assert one.get_extra_info("peername") == "peername"


async def test_an_idle_connection_stays_open_as_long_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Settings(_env_file=None).keep_alive_seconds > 60  # what proxies keep theirs, mostly

    app = FastAPI()
    app.get("/")(lambda: "here")
    loading = asyncio.get_running_loop().create_future()
    loading.set_result(None)
    app.state.services = SimpleNamespace(bootstrap_key=None, loading=loading)
    monkeypatch.setattr(serving, "create_app", lambda *_: app)
    thresholds = gc.get_threshold()
    settings = Settings(_env_file=None, port=0, logs="text", keep_alive_seconds=1)
    running = asyncio.create_task(serving.serve(settings, [], None))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (found := re.search(r"http://127\.0\.0\.1:(\d+)", capsys.readouterr().out)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
                assert (await reader.readuntil(b'"here"')).startswith(b"HTTP/1.1 200 OK")
            assert await reader.read() == b""  # its end
            writer.close()
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running == 0
    finally:
        gc.set_threshold(*thresholds)


def test_a_host_that_is_not_here_is_a_sentence() -> None:
    with pytest.raises(SetupError, match=r"^nothing can listen on 192\.0\.2\.1 port 0: .*; choose others with ANSW"):
        serving.listen("192.0.2.1", 0)


def test_it_listens_on_every_address_of_the_host_at_one_port() -> None:
    sockets = serving.listen("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
    finally:
        for one in sockets:
            one.close()
