"""JSON bodies: read only from those who may send them, by orjson, which knows neither NaN nor unbounded nesting."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from service.api.auth import authorise


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _refusal(body, error) from None


def _refusal(body: bytes, error: orjson.JSONDecodeError) -> HTTPException:
    """Numbers that JSON can spell and nobody can compute with are impossible (422); the rest is malformed (400)."""
    if "depth" in error.msg:
        return HTTPException(400, "the body is nested too deep")
    if "infinity" in error.msg or _holds_constants(body):
        return HTTPException(422, "numbers must be finite")
    return HTTPException(400, f"the body is not JSON: {error.msg}")


def _holds_constants(body: bytes) -> bool:
    """Whether the body would be JSON but for NaN and Infinity, which Python's parser accepts."""
    constants: list[str] = []
    try:
        json.loads(body.decode(), parse_constant=constants.append)
    except (ValueError, RecursionError):
        return False
    return bool(constants)


class StrictRoute(APIRoute):
    """A route whose JSON bodies are parsed strictly, and not before the caller is known: FastAPI alone would read a
    stranger's body first, and answer 400 where 401 is due."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            await authorise(request)
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
