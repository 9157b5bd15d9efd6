"""A layer between a connection's protocol and asyncio's transport."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

REPLY_STEP = 64 * 1024
"""A client's time for receiving a reply starts again after each so many bytes."""


class OneWrite:
    """A transport that sends together what is written in one iteration of the event loop, and counts it.

    uvicorn writes the head and the body of an answer separately, each with a system call and a wake-up of the client,
    which took 8% of the front's time and of the client's wait.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._held.append(data)
        if len(self._held) == 1:
            self._loop.call_soon(self._send)
        else:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait in this process that the system does not take yet."""
        return self._transport.get_write_buffer_size() > 0

    @property
    def received(self) -> int:
        """How many bytes the other side has acknowledged."""
        descriptor = self._transport.get_extra_info("socket").fileno()
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
        return self._written - self._transport.get_write_buffer_size() - int(unacknowledged)

    def _send(self) -> None:
        held, self._held = self._held, []
        if not held or self._transport.is_closing():
            return
        if len(held[-1]) < REPLY_STEP:
            self._transport.write(b"".join(held))
        else:  # not copied: a page that a thousand clients ask for and do not read is in memory once
            self._transport.writelines(held)
