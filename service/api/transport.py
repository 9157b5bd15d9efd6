"""Below the routes: ids on every answer, limits on bodies, and clients that leave.

The middleware is pure ASGI: behind Starlette's BaseHTTPMiddleware a client's disconnect is never seen.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from secrets import token_hex
from typing import TypeVar

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ClientGone, Overloaded

BODY_SECONDS = 30.0
UNWATCHED_SECONDS = 0.25
MAX_BODIES = 4
"""How many bodies of the largest size may be in memory at once, before they are parsed: by default 32 MiB."""
UNCOUNTED_BYTES = 64 * 1024
"""The first bytes of each body, so that large bodies do not keep out small ones; connections bound these."""
TOO_LARGE = "the body is larger than this service accepts"
IDENTITY = "identity"
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

T = TypeVar("T")


class RequestIds:
    """Gives every response the caller's `X-Request-Id`, or a new one, and the `traceparent` that came in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        callers_id = headers.get(b"x-request-id", b"")
        request_id = callers_id if REQUEST_ID.fullmatch(callers_id) else token_hex(16).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        added = [(b"x-request-id", request_id)]
        if b"traceparent" in headers:
            added.append((b"traceparent", headers[b"traceparent"]))

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_ids)


class Bodies:
    """Limits the bytes of the bodies that are in memory, of each and of all together.

    `counted` is the size of all, without the first `UNCOUNTED_BYTES` of each.
    """

    def __init__(self, max_each: int) -> None:
        self.max_each = max_each
        self._max_all = MAX_BODIES * max_each
        self.counted = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that counts the next bytes of one body; it raises Overloaded if that makes too many."""
        size = counted = 0

        def hold(more: int) -> None:
            nonlocal size, counted
            size += more
            to_count = max(0, size - UNCOUNTED_BYTES) - counted
            if self.counted + to_count > self._max_all:
                raise Overloaded("the service is reading as many large bodies as it can hold; send it again")
            counted += to_count
            self.counted += to_count

        try:
            yield hold
        finally:
            self.counted -= counted


async def read_body(request: Request, bodies: Bodies, hold: Callable[[int], None]) -> bytes:
    """The whole body, decoded, within `BODY_SECONDS` and the size that one may have, as sent and as decoded.

    `hold` is given the size of each piece before it is kept; see `Bodies`.
    Raises HTTPException 400, 408, 413 or 415, Overloaded, ClientGone.
    """
    max_size = bodies.max_each
    if int(request.headers.get("content-length", 0)) > max_size:  # digits only: the parser saw to it
        raise HTTPException(413, TOO_LARGE)
    decode = _decoder(request.headers.get("content-encoding", IDENTITY))
    pieces: list[bytes] = []
    size = encoded_size = 0
    is_complete = False
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while not is_complete:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the client closed the connection")
                encoded = message.get("body", b"")
                is_complete = not message.get("more_body", False)
                piece = decode(encoded, is_complete, max_size - size + 1)
                size += len(piece)
                encoded_size += len(encoded)
                if max(size, encoded_size) > max_size:
                    raise HTTPException(413, TOO_LARGE)
                hold(len(piece))
                pieces.append(piece)
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None
    return b"".join(pieces)


def _decoder(content_encoding: str) -> Callable[[bytes, bool, int], bytes]:
    """A function that decodes a piece of a body, given whether it is the last and how many bytes to return at most."""
    encoding = content_encoding.strip().lower()
    if encoding == IDENTITY:
        return lambda piece, _is_last, _max_size: piece
    if encoding == "gzip":
        return partial(_gunzip, zlib.decompressobj(zlib.MAX_WBITS | 16))
    return _refuse


def _refuse(piece: bytes, _is_last: bool, _max_size: int) -> bytes:
    if piece:
        raise HTTPException(415, "the content encoding must be gzip or identity")
    return piece


def _gunzip(stream: zlib._Decompress, piece: bytes, is_last: bool, max_size: int) -> bytes:
    try:
        decoded = stream.decompress(piece, max_size)
    except zlib.error:
        raise HTTPException(400, "the body is not gzip") from None
    if stream.unused_data:
        raise HTTPException(400, "the gzip body goes on after its end")
    if is_last and len(decoded) < max_size and not stream.eof:
        raise HTTPException(400, "the gzip body ends early")
    return decoded


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves: ClientGone.

    Watching takes a task, which costs as much as reading the body, so it begins after `UNWATCHED_SECONDS`. That is more
    than requests wait when the service is busy, which is when it can least afford the cost.
    """
    loop = asyncio.get_running_loop()
    presence = asyncio.timeout(None)
    watchers: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (message := await request.receive())["type"] != "http.disconnect":
            if not message.get("more_body", False):  # some servers repeat the last message rather than wait
                await asyncio.sleep(UNWATCHED_SECONDS)
        presence.reschedule(loop.time())

    start = loop.call_later(UNWATCHED_SECONDS, lambda: watchers.append(loop.create_task(watch())))
    try:
        async with presence:
            return await work
    except TimeoutError:
        if presence.expired():
            raise ClientGone("the client closed the connection") from None
        raise
    finally:
        start.cancel()
        for watcher in watchers:
            watcher.cancel()
