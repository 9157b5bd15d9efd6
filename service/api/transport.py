"""Pure ASGI middleware around every request: ids, and bodies that are bounded in size and time.

Not Starlette's BaseHTTPMiddleware, behind which a client's disconnect is never seen.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from uuid import uuid4

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_SECONDS = 30.0
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives every response the caller's `X-Request-Id`, or a new one, and the `traceparent` that came in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        added = [(b"x-request-id", request_id)]
        if b"traceparent" in headers:
            added.append((b"traceparent", headers[b"traceparent"]))

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_ids)


class BoundedBodies:
    """Refuses bodies over `max_bytes`, counted as decompressed while they stream, and bodies that do not arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._app(scope, _Body(scope, receive, self._max_bytes).receive, send)


class _Body:
    """One request's body, passed on in pieces."""

    def __init__(self, scope: Scope, receive: Receive, max_bytes: int) -> None:
        encoding = dict(scope["headers"]).get(b"content-encoding", b"identity").strip().lower()
        self._receive = receive
        self._left = max_bytes
        self._left_encoded = max_bytes
        self._complete = False
        self._deadline: float | None = None
        self._encoding = encoding
        self._gunzip = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding == b"gzip" else None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        message = await self._next()
        if message["type"] != "http.request":
            return message
        self._complete = not message.get("more_body", False)
        encoded = message.get("body", b"")
        self._left_encoded -= len(encoded)
        body = self._decoded(encoded)
        self._left -= len(body)
        if self._left < 0 or self._left_encoded < 0:
            raise HTTPException(413, "the body is larger than this service accepts")
        return {**message, "body": body}

    async def _next(self) -> Message:
        now = asyncio.get_running_loop().time()
        self._deadline = self._deadline or now + BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive in time", {"Connection": "close"}) from None

    def _decoded(self, body: bytes) -> bytes:
        if self._gunzip is None:
            if self._encoding != b"identity" and body:
                raise HTTPException(415, "the content encoding must be gzip or identity")
            return body
        try:
            decoded = self._gunzip.decompress(body, self._left + 1)
        except zlib.error:
            raise HTTPException(400, "the body is not gzip") from None
        if self._gunzip.unused_data:
            raise HTTPException(400, "the gzip body goes on after its end")
        if self._complete and len(decoded) <= self._left and not self._gunzip.eof:
            raise HTTPException(400, "the gzip body ends early")
        return decoded
