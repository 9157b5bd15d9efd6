"""Errors on the wire: `application/problem+json` (RFC 9457), with `error` for KServe clients."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from service.api.paths import allowed_methods
from service.api.schemas import UNKNOWN_FIELD, Problem
from service.errors import MAX_FAULTS, AnswerableError, Fault, Kind, kind_of, pointer_to
from service.wording import others_listed, sentence_of_fault

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


TYPE = "urn:answerable:problem:"
INTERNAL = "internal-error"
KIND_OF_STATUS = {
    400: "malformed-body",
    404: "not-found",
    405: "method-not-allowed",
    408: "body-too-slow",
    413: "body-too-large",
    415: "unsupported-encoding",
}
"""The kinds of errors that FastAPI, or the layer below the routes, raises with nothing but a status."""
FASTAPI_SCHEMAS = ("HTTPValidationError", "ValidationError")
PROBLEM_SCHEMAS = tuple(f"#/components/schemas/{name}'" for name in ("Problem", *FASTAPI_SCHEMAS))
NOT_AN_OBJECT = {"model_type", "model_attributes_type", "dict_type"}
BRANCHES = {"ContextBody", "list[ContextBody]"}
"""Parts of an error's location that are not names in the request but members of a union."""


def problem(
    request: Request,
    status: int,
    kind: str,
    detail: str,
    headers: dict[str, str] | None = None,
    members: dict[str, object] | None = None,
    faults: Sequence[Fault] = (),
    title: str | None = None,
) -> Response:
    """The answer to an error. `detail` is for the client to read: no paths, traces or keys."""
    content = {
        **content_of_problem(getattr(request.state, "request_id", ""), status, kind, detail, title),
        **({"errors": [_to_json(fault) for fault in faults[:MAX_FAULTS]]} if faults else {}),
        **(members or {}),
    }
    return Response(orjson.dumps(content), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def content_of_problem(
    request_id: str, status: int, kind: str, detail: str, title: str | None = None
) -> dict[str, object]:
    """The members that every problem has."""
    return {
        "type": TYPE + kind,
        "title": title or kind.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "error": detail,
        "request_id": request_id,
    }


def _to_json(fault: Fault) -> dict[str, str]:
    place = {"pointer": fault.pointer} if fault.parameter is None else {"parameter": fault.parameter}
    return {"type": TYPE + fault.kind, **place, "detail": fault.detail}


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


def all_kinds() -> list[str]:
    """What the type of a problem may end in."""
    errors = [AnswerableError]
    for error in errors:
        errors += error.__subclasses__()
    return sorted({*Kind, *map(kind_of, errors[1:]), *KIND_OF_STATUS.values(), INTERNAL})


def describe(schema: dict[str, Any]) -> None:
    """Corrects an OpenAPI schema where FastAPI describes errors as plain JSON or in its own shape."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                if any(name in str(response.get("content")) for name in PROBLEM_SCHEMAS):
                    response["content"] = content
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    problem_schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem_schema.pop("$defs")
    problem_schema["properties"]["type"]["examples"] = [TYPE + kind for kind in all_kinds()]
    schemas["Problem"] = problem_schema
    for unused in FASTAPI_SCHEMAS:
        schemas.pop(unused, None)


async def _answerable(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnswerableError)
    title = None if error.faults else error.title
    return problem(request, error.status, error.kind, str(error), error.headers, error.members, error.faults, title)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    first = max(errors, key=lambda fault: len(fault["loc"]))  # of a union, the branch that got furthest
    others = BRANCHES - set(first["loc"]) if BRANCHES & set(first["loc"]) else set()
    same_branch = [fault for fault in errors if fault is not first and others.isdisjoint(fault["loc"])]
    faults = [fault for each in (first, *same_branch) for fault in _faults(each)]
    status = 400 if first["type"] in WRONG_SHAPE else 422
    detail = faults[0].detail + others_listed(len(faults) - 1)
    return problem(request, status, faults[0].kind, detail, faults=faults)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    headers = dict(error.headers) if error.headers else None
    kind = KIND_OF_STATUS.get(error.status_code, INTERNAL)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # FastAPI names the methods of only one of the path's routes
        headers = {"Allow": ", ".join(allowed_methods(request))}
        detail = f"{request.method} is not a method of this path; its methods are {headers['Allow']}"
    return problem(request, error.status_code, kind, detail, headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    route = getattr(request.scope.get("route"), "path_format", "no route")  # the path itself may name a person
    LOG.error("unexpected error in %s %s", request.method, route, exc_info=error)
    # Starlette answers these outside of all middleware, which therefore cannot add the headers.
    headers = {"X-Request-Id": getattr(request.state, "request_id", "")}
    if "traceparent" in request.headers:
        headers["traceparent"] = request.headers["traceparent"]
    detail = "an unexpected error; the request id leads to it in the log"
    return problem(request, 500, INTERNAL, detail, headers)


def _faults(error: dict[str, Any]) -> list[Fault]:
    """What pydantic found at one place: several unknown names, or one thing else."""
    places = [place for place in error["loc"] if place not in BRANCHES]
    parameter = str(places[1])[:64] if len(places) > 1 and places[0] in ("query", "path") else None
    if parameter is not None:
        kind = Kind.MISSING_FIELD if error["type"] == "missing" else Kind.WRONG_VALUE
        return [Fault(kind, "", sentence_of_fault(parameter, error), parameter)]
    where = ".".join(str(place)[:64] for place in places)
    if error["type"] == UNKNOWN_FIELD:
        inside = f"{where}." if where else ""
        return [
            Fault(Kind.UNKNOWN_FIELD, pointer_to(*places, name), f"{inside}{name} is not a known field{hint}")
            for name, hint in error["ctx"]["unknown"]
        ]
    kind, detail = Kind.WRONG_VALUE, sentence_of_fault(where, error)
    if error["type"] in NOT_AN_OBJECT:
        kind, detail = Kind.WRONG_SHAPE, f"{where or 'the body'} must be a JSON object"
    elif error["type"] == "missing":
        kind, detail = Kind.MISSING_FIELD, f"{where or 'a body'} is required"
    elif error["type"] in WRONG_SHAPE:
        kind = Kind.WRONG_SHAPE
    return [Fault(kind, pointer_to(*places), detail)]
