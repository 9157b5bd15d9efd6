"""Limits on connections: how many are open, how much each may send before it is a request, how long it may wait.

uvicorn has no such limits of its own: its `limit_concurrency` refuses requests and leaves silent sockets open, its
`timeout_keep_alive` begins with the first answer, and it has no option for the size or the time of a request's head,
for requests without an answer on one connection, or for a reply that nobody reads. So the class that its option `http`
takes is here a subclass of its own protocol. It relies on the callbacks of `asyncio.Protocol` and of httptools' parser,
and of uvicorn's class on `on_response_complete`, `send_400_response`, and the attributes `headers`, `cycle`, `pipeline`
and `flow`. It could do without these if uvicorn had a limit on heads over httptools, and callbacks for the beginning of
a request and for its complete answer. The limits take 6 microseconds of a request; uvicorn's protocol over h11, which
does limit heads, takes 140 more than the one over httptools.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from secrets import token_hex
from typing import Any, Protocol, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.problems import MEDIA_TYPE, content_of_problem
from service.api.transports import REPLY_STEP, OneWrite
from service.errors import (
    AddressTooLong,
    AnswerableError,
    HeadersTooLarge,
    HeadTooSlow,
    NotHttp,
    TooManyConnections,
)

MAX_DESCRIPTORS = 65_536
"""The limit that is set where the system allows more: some programs iterate up to the limit, which may be billions."""

RESERVED_DESCRIPTORS = 256
"""For stores, workers, files and sockets that are being closed: fewer than 60 are open when nobody is connected."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a connection may send, how long it may take, and how many there may be.

    `head_bytes` and `headers` bound the address and the headers of a request, `pipelined` the requests on a connection
    that have no answer yet. `head_seconds` is for a head, from its first byte or from the start of the connection, and
    for the rest of a body whose request is answered already; `reply_seconds` for the next `REPLY_STEP` of a reply;
    `closing_seconds` for the other side's agreement, in TLS, that the connection ends: who keeps it for a later request
    may not look at it before.
    """

    connections: int = 1024
    idle_seconds: float = 75.0
    head_bytes: int = 64 * 1024
    headers: int = 100
    pipelined: int = 32
    head_seconds: float = 28.0  # 30, less the time between two checks and some margin
    reply_seconds: float = 28.0
    closing_seconds: float = 1.0
    check_seconds: float = 1.0


def raise_descriptor_limit() -> int:
    """Raises the limit of open files as far as the system allows, up to `MAX_DESCRIPTORS`; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return allowed
    return allowed if soft == resource.RLIM_INFINITY else soft


def connections_within(descriptors: int, wanted: int) -> int:
    """How many connections may be open at once, so that enough descriptors remain for the rest of the service."""
    return max(1, min(wanted, descriptors - min(RESERVED_DESCRIPTORS, descriptors // 2)))


class _Stopped(Exception):
    """Ends the parser's work on what a connection sent."""


class Open(Protocol):
    """One open connection."""

    def check(self, now: float) -> None:
        """Ends it if it has made no progress for too long. `now` is the event loop's time, in seconds."""
        ...

    def drop(self) -> None:
        """Ends it at once, whatever was still to be sent."""
        ...


class Connections:
    """All open connections. When the limit is reached, the one that has been without a request longest is closed.

    So nobody is kept out by clients that open sockets and send nothing. A new connection is refused only when all
    others have a request under way.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[Open] = set()
        self._without_request: dict[Open, None] = {}

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

    def admit(self, connection: Open) -> bool:
        """Adds a connection; returns whether there is room for it."""
        if len(self._open) >= self.limits.connections:
            longest = next(iter(self._without_request), None)
            if longest is None:
                return False
            longest.drop()
        self._open.add(connection)
        self.has_no_request(connection)
        return True

    def forget(self, connection: Open) -> None:
        self._open.discard(connection)
        self._without_request.pop(connection, None)

    def has_request(self, connection: Open) -> None:
        self._without_request.pop(connection, None)

    def has_no_request(self, connection: Open) -> None:
        if connection in self._open:
            self._without_request[connection] = None

    async def watch(self) -> None:
        """Closes those that have made no progress for too long; runs until it is cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.limits.check_seconds)
            self.check(clock())

    def check(self, now: float) -> None:
        """Closes those that have made no progress for too long. `now` is the event loop's time, in seconds."""
        for connection in list(self._open):
            connection.check(now)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, within limits; one for each connection."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._limits = connections.limits
        self._sending = cast(OneWrite, None)
        self.url = b""
        self._head_bytes = 0  # an upper bound for the bytes of the head that is being received
        self._is_in_head = False
        self._is_in_body = False
        self._requests = 0
        self._answers = 0
        self._refusal: AnswerableError | None = None
        self._waits_for: tuple[object, ...] = ()
        self._waits_since = 0.0
        self.before_made: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.before_made()
        self._sending = OneWrite(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._sending))
        if not self._connections.admit(self):
            self._refuse(TooManyConnections("all connections are in use; come back in a second"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        is_large = self._head_bytes > self._limits.head_bytes
        if (is_large or (self._is_in_head and len(self.headers) > self._limits.headers)) and not self._is_ending:
            self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.headers) > self._limits.headers:
            self._stop(self._too_large())
        if self._head_bytes > self._limits.head_bytes:  # or a body began in the same piece: the exact size decides
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self._limits.head_bytes:
                self._stop(self._too_large())
        if self._requests - self._answers >= self._limits.pipelined:
            raise _Stopped
        super().on_headers_complete()
        self._head_bytes = 0
        self._is_in_head, self._is_in_body = False, True
        self._requests += 1
        self._connections.has_request(self)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """For a chunked body; what follows the last chunk (trailers) counts as a head."""
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answers += 1
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()
        elif self._answers == self._requests:
            self._connections.has_no_request(self)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's, for whatever the parser did not take
        self._refuse(self._refusal or NotHttp("what was sent is not a request of HTTP/1.1"))

    def check(self, now: float) -> None:
        """Ends it if it has made no progress for too long. `now` is the event loop's time, in seconds."""
        waits_for, seconds = self._wait()
        if waits_for != self._waits_for:
            self._waits_for, self._waits_since = waits_for, now
        elif now - self._waits_since >= seconds:
            if self._is_in_head and not self._is_ending:
                self._refuse(HeadTooSlow("the address and the headers did not arrive in time"))
            else:
                self.drop()

    def drop(self) -> None:
        """Ends it at once, whatever was still to be sent."""
        self._connections.forget(self)
        self.transport.abort()

    def _wait(self) -> tuple[tuple[object, ...], float]:
        """What is waited for, which changes with every bit of progress, and for how many seconds at most."""
        if self._sending.has_unsent:
            return ("reply", self._sending.received // REPLY_STEP), self._limits.reply_seconds
        if self._is_ending:
            return ("close",), self._limits.closing_seconds
        if self._answers < self._requests:
            return ("us",), float("inf")
        if self._is_in_head or not self._requests:
            return ("head", self._requests), self._limits.head_seconds
        if self._is_in_body:
            return ("the rest", self._requests), self._limits.head_seconds
        return ("request", self._requests), self._limits.idle_seconds

    @property
    def _is_ending(self) -> bool:
        return self.transport.is_closing()

    def _too_large(self) -> AnswerableError:
        limit = self._limits.head_bytes
        if len(self.url) > limit // 2:
            return AddressTooLong(f"the address and the headers of a request have {limit} bytes together; ask for less")
        return HeadersTooLarge(f"a request has {self._limits.headers} headers, and {limit} bytes before its body")

    def _stop(self, refusal: AnswerableError) -> None:
        """Stops the parser, whose caller then calls `send_400_response`."""
        self._refusal = refusal
        raise _Stopped

    def _refuse(self, refusal: AnswerableError) -> None:
        """Answers and closes; closes without an answer where it would be taken for the answer to another request."""
        unanswered = self._requests - self._answers
        if unanswered == 0 or (unanswered == 1 and self._is_in_body and not self.cycle.response_started):
            self.transport.write(_answer(refusal))
            self.transport.close()
        else:
            self.drop()


def _answer(refusal: AnswerableError) -> bytes:
    """The whole answer, the last one of its connection."""
    request_id = token_hex(16)
    content = content_of_problem(request_id, refusal.status, refusal.kind, str(refusal), refusal.title)
    body = orjson.dumps(content)
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "X-Request-Id": request_id,
        **refusal.headers,
        "Connection": "close",
    }
    status = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{status}{lines}\r\n".encode() + body
