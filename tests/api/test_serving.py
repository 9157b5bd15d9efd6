"""How answers leave: the head and the body of one together."""

from __future__ import annotations

import asyncio
from typing import cast

from service.serving import _OneWrite


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


def made() -> tuple[ListTransport, _OneWrite]:
    transport = ListTransport()
    return transport, _OneWrite(cast(asyncio.Transport, transport), asyncio.get_running_loop())


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
