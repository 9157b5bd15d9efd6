"""JSON bodies: read only from those who may send them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from service.api.auth import authorise
from service.api.idempotency import PARAMETER, is_repeatable, keep_key
from service.api.queries import refuse_repeated
from service.api.strict_json import read
from service.api.transport import bodies_of, read_body
from service.errors import MalformedBody

BRIEF_BYTES = 64 * 1024
"""A body that is read at once; a larger one is read in a thread, since looking for what is wrong in it takes longer."""


class StrictRoute(APIRoute):
    """A route with a JSON body, which FastAPI describes and does not run.

    The handler gets the request, whose caller is known by then, the path's parameters and `body`, of the model that it
    annotates, and gives the response; of a body without a required field the whole may be absent. What FastAPI would do
    between these steps (dependencies, exit stacks, forms) costs more than all of them; and it would read a stranger's
    body first, and answer 400 where 401 is due.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if is_repeatable(endpoint):
            extra = options.get("openapi_extra") or {}
            options["openapi_extra"] = {**extra, "parameters": [*extra.get("parameters", []), PARAMETER]}
        super().__init__(path, endpoint, **options)
        self._body: type[BaseModel] = get_type_hints(endpoint)["body"]
        self._may_be_absent = all(not field.is_required() for field in self._body.model_fields.values())
        self._may_be_untyped = path.startswith("/v2/")  # Triton's client says no Content-Type

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods and scope["method"] not in self.methods:
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        await authorise(request)
        refuse_repeated(request)
        content = await _read_json(request, may_be_absent=self._may_be_absent, may_be_untyped=self._may_be_untyped)
        body = _validated(self._body, content)
        if is_repeatable(self.endpoint):
            keep_key(request, content)
        response = await self.endpoint(request, body=body, **scope["path_params"])
        await response(scope, receive, send)


async def _read_json(request: Request, *, may_be_absent: bool, may_be_untyped: bool) -> Any:
    with bodies_of(request).holding() as hold:  # until it is no text any more
        body = await read_body(request, hold)
        if not body:
            if may_be_absent:
                return {}
            raise MalformedBody("a body is required")
        content_type = request.headers.get("content-type")
        if not _is_json(content_type or "") and not (content_type is None and may_be_untyped):
            raise MalformedBody("the body is read as JSON only; send it with Content-Type: application/json")
        return read(body) if len(body) <= BRIEF_BYTES else await asyncio.to_thread(read, body)


def _is_json(content_type: str) -> bool:
    essence = content_type.partition(";")[0].strip().lower()
    return essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))


def _validated(model: type[BaseModel], content: Any) -> BaseModel:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None
