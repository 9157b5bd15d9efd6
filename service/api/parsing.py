"""JSON bodies: read within limits, and validated as the model that a handler names."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.api.strict_json import read
from service.api.transport import Bodies, read_body
from service.errors import MalformedBody

SMALL_BYTES = 64 * 1024
"""Larger bodies are parsed in a thread, since finding what is wrong in them may take long."""


async def read_json(request: Request, bodies: Bodies, *, may_be_absent: bool, may_be_untyped: bool) -> Any:
    """The parsed body. Raises MalformedBody, InvalidRequest, and what `read_body` raises."""
    with bodies.holding() as hold:  # until it is parsed
        body = await read_body(request, bodies, hold)
        if not body:
            if may_be_absent:
                return {}
            raise MalformedBody("a body is required")
        content_type = request.headers.get("content-type")
        if not _is_json(content_type or "") and not (content_type is None and may_be_untyped):
            raise MalformedBody("the body is read as JSON only; send it with Content-Type: application/json")
        return read(body) if len(body) <= SMALL_BYTES else await asyncio.to_thread(read, body)


def validated(model: type[BaseModel], content: Any) -> BaseModel:
    """The content as the model. Raises RequestValidationError."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


def _is_json(content_type: str) -> bool:
    essence = content_type.partition(";")[0].strip().lower()
    return essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))
