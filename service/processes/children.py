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
    """Seconds in which this process was awake, as far as its `tick`s tell: one every `pause` seconds.

    A process that was stopped, or whose machine slept, has heard nobody meanwhile; that is not the others' silence.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ticked = clock()
        self.now = 0.0

    def tick(self, pause: float) -> None:
        """A tick that was due after `pause` seconds; where it comes later, twice as long counts at most."""
        before, self._ticked = self._ticked, self._clock()
        self.now += min(self._ticked - before, 2 * pause)


def frame(message: object) -> bytes:
    """The frame that carries `message`."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(content)) + content


class Unframer:
    """Puts what arrives together into messages."""

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
    """The front's end of one child's socket. What is sent in one turn of the event loop travels in one frame, a list.

    What is sent before there is a connection waits for it; what is sent after it is lost is dropped.
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
        """Sends the message with the others of this turn."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        if self._transport is not None and self._outbox:
            batch, self._outbox = self._outbox, []
            self._transport.write(frame(batch))

    def finish(self) -> None:
        """Sends what is left and nothing after it; the child answers what it has, then ends."""
        self._flush()
        if self._transport is not None:
            self._transport.write_eof()

    def close(self) -> None:
        """Closes the socket, on which the child ends."""
        if self._transport is not None:
            self._transport.close()


def start_child(
    module: str, theirs: socket.socket, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Runs the module's `main` on its end of the socket; in a session of its own, for Ctrl-C is the front's."""
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-m", "service.processes.child", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )


def reap(process: subprocess.Popen[bytes], seconds: float = REAP_SECONDS) -> None:
    """Waits for a child that was told to end, whose socket is closed say; one that does not in that time is killed.

    It is not asked for now and then, as `wait` with a timeout does: that sleeps until a time of a clock, which fails
    where clocks are not what they seem.
    """
    killing = threading.Timer(seconds, process.kill)
    killing.daemon = True
    killing.start()
    try:
        process.wait()
    finally:
        killing.cancel()
