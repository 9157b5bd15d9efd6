"""Errors on the wire: `application/problem+json` (RFC 9457), with `error` for KServe clients."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from service.api.schemas import UNKNOWN_FIELD, Problem
from service.errors import AnswerableError

LOG = logging.getLogger("answerable.api")
MEDIA_TYPE = "application/problem+json"
WRONG_SHAPE = {
    "extra_forbidden",
    UNKNOWN_FIELD,
    "missing",
    "model_type",
    "model_attributes_type",
    "dict_type",
    "list_type",
    "json_invalid",
}
"""Kinds of validation errors that are about the body's shape (400) and not about a value (422)."""


NOT_AN_OBJECT = {"model_type", "model_attributes_type", "dict_type"}
NOT_PLACES = {"body", "query", "path", "ContextBody", "list[ContextBody]"}
"""Parts of an error's location that are no names in the request."""


def problem(
    request: Request,
    status: int,
    title: str,
    detail: str,
    headers: dict[str, str] | None = None,
    members: dict[str, object] | None = None,
) -> Response:
    """The answer to an error. `detail` is for the client to read: no paths, traces or keys."""
    content = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "error": detail,
        "request_id": getattr(request.state, "request_id", ""),
        **(members or {}),
    }
    return Response(orjson.dumps(content), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Makes `app` answer every error as a problem."""
    app.add_exception_handler(AnswerableError, _answerable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of routes that answer with these errors."""
    return {status: {"model": Problem} for status in statuses}


def describe(schema: dict[str, Any]) -> None:
    """Corrects an OpenAPI schema, where FastAPI would have errors leave as plain JSON or in its own shape."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400" and "content" in response:
                    response["content"] = content
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


async def _answerable(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnswerableError)
    return problem(request, error.status, error.title, str(error), error.headers, error.members)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union, the branch that got furthest
    status = 400 if first["type"] in WRONG_SHAPE else 422
    return problem(request, status, HTTPStatus(status).phrase, _sentence(first))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    headers = dict(error.headers) if error.headers else None
    return problem(request, error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail), headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    route = getattr(request.scope.get("route"), "path", "no route")  # the path itself may name a person
    LOG.error("unexpected error in %s %s", request.method, route, exc_info=error)
    # Starlette answers these outside of all middleware, which therefore cannot add the headers.
    headers = {"X-Request-Id": getattr(request.state, "request_id", "")}
    if "traceparent" in request.headers:
        headers["traceparent"] = request.headers["traceparent"]
    detail = "an unexpected error; the request id leads to it in the log"
    return problem(request, 500, "Internal error", detail, headers)


def _sentence(error: dict[str, Any]) -> str:
    where = ".".join(str(part)[:64] for part in error["loc"] if part not in NOT_PLACES)
    if error["type"] == UNKNOWN_FIELD:
        name, meant = error["ctx"]["name"], error["ctx"]["meant"]
        hint = f"; did you mean {meant}?" if meant else ""
        return f"{where}.{name} is not a known field{hint}" if where else f"{name} is not a known field{hint}"
    if error["type"] in NOT_AN_OBJECT:
        return f"{where or 'the body'} must be a JSON object"
    if error["type"] == "missing":
        return f"{where or 'a body'} is required"
    return f"{where}: {error['msg']}" if where else str(error["msg"])
