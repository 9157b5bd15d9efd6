"""The front's end of a worker's socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from service.engine.frames import Unframer, frame
from service.engine.messages import Reply, Request


class Connection(asyncio.Protocol):
    """The front's end of one worker's socket. Requests of one turn of the event loop travel in one frame."""

    def __init__(self, receive: Callable[[Reply], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._unframer = Unframer()
        self._outbox: list[Request] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for reply in self._unframer.feed(data):
            self._receive(reply)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._lost()

    def send(self, request: Request) -> None:
        """Sends the request with the others of this turn."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(request)

    def _flush(self) -> None:
        batch, self._outbox = self._outbox, []
        if self._transport is not None:
            self._transport.write(frame(batch))

    def close(self) -> None:
        """Closes the socket, on which the worker ends."""
        if self._transport is not None:
            self._transport.close()
