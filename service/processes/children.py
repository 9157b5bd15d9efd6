"""Child processes of the service and the sockets to them, on which messages travel as frames.

A frame is a length and a pickle: both ends are this program's own processes. A child ends when its socket closes.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

HEADER = struct.Struct("!I")
REAP_SECONDS = 5


class AwakeClock:
    """Counts the seconds in which this process was awake, from its `tick`s, one every `pause` seconds.

    A process that was stopped, or whose machine slept, received nothing meanwhile, though others may have sent.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ticked = clock()
        self.now = 0.0

    def tick(self, pause: float) -> None:
        """A tick that was due after `pause` seconds; of a later one at most twice that is counted."""
        before, self._ticked = self._ticked, self._clock()
        self.now += min(self._ticked - before, 2 * pause)


def frame(message: object) -> bytes:
    """The frame of a message."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(content)) + content


class Unframer:
    """Splits the bytes that arrive into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Any]:
        """The messages that `data` completes, in order."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield pickle.loads(content)  # noqa: S301


class Connection(asyncio.Protocol):
    """The service's end of a child's socket. Messages sent in one turn of the event loop go into one frame, as a list.

    Messages sent before the connection is made wait for it; those sent after it is lost are dropped.
    """

    def __init__(self, receive: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._unframer = Unframer()
        self._outbox: list[object] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        for reply in self._unframer.feed(data):
            self._receive(reply)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._lost()

    def send(self, message: object) -> None:
        """Sends a message, together with the others of this turn of the event loop."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        if self._transport is not None and self._outbox:
            batch, self._outbox = self._outbox, []
            self._transport.write(frame(batch))

    def finish(self) -> None:
        """Sends what is queued, and nothing more; the child answers what it has received, then ends."""
        self._flush()
        if self._transport is not None:
            self._transport.write_eof()

    def close(self) -> None:
        """Closes the socket, so that the child ends."""
        if self._transport is not None:
            self._transport.close()


def start_child(
    module: str, theirs: socket.socket, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Runs the module's `main` on its end of the socket; in a session of its own, since Ctrl-C is for the service."""
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-m", "service.processes.child", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )


def reap(process: subprocess.Popen[bytes], seconds: float = REAP_SECONDS) -> None:
    """Waits for a child that is to end, for instance since its socket is closed; kills it if it has not ended in time.

    A timer kills it, since `wait` with a timeout polls until a time of the clock, which fails where the clock is
    changed.
    """
    killing = threading.Timer(seconds, process.kill)
    killing.daemon = True
    killing.start()
    try:
        process.wait()
    finally:
        killing.cancel()
