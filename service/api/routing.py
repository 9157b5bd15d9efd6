"""The one kind of route, and how to add another.

    router = new_router("Models")

    @router.get("/v1/models/{model}/baselines", responses=answers(404))
    @needs("explain")
    async def list_sets(request: ApiRequest, model: str, query: Annotated[PageQuery, Query()]) -> SetsReply: ...

A handler takes the request, the parameters of its path by name, and, if it has them, `query` (a `QueryModel`) and
`body` (a pydantic model). It returns the model of its reply, or a `Reply` with that model where the answer has a status
or headers of its own, or a whole `Response`. Errors are raised (`service.errors`). List the router in `service.app`.

FastAPI describes these routes from the handler's signature, and this class runs them, in this order: who sends the
request and whether they may (a handler without `needs` is closed), the query, the body, the handler. Run by FastAPI,
with the same checks before it, a whole cached `:explain` took 18% more of the front's time, and the client waited 11%
longer (medians of 40 rounds of 200 requests in turns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.types import Receive, Scope, Send

from service.api.auth import PUBLIC, authorise, needs_operator, scope_of
from service.api.idempotency import PARAMETER, is_repeatable, read_key
from service.api.parsing import read_json, validated
from service.api.problems import answers
from service.api.queries import QueryModel, read_query
from service.api.requests import ApiRequest

T = TypeVar("T")

AUTHORISING = (401, 403, 422, 429)
READING_BODY = (400, 408, 413, 415, 422, 429)
"""The statuses of errors found before the handler is called: in the key and the query, and in the body."""


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """The content of a reply that has headers, or another status than the route."""

    content: T
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Route(APIRoute):
    """A route of this API; see the docstring of the module."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        hints = get_type_hints(endpoint)
        self._body: type[BaseModel] | None = hints.get("body")
        self._query: type[QueryModel] = hints.get("query", QueryModel)
        self._scope = scope_of(endpoint)
        self._needs_operator = needs_operator(endpoint)
        self._is_repeatable = is_repeatable(endpoint)
        self._may_be_absent = self._body is not None and not any(
            each.is_required() for each in self._body.model_fields.values()
        )
        self._may_be_untyped = path.startswith("/v2/")  # Triton's client says no Content-Type
        self._reply = _reply_of(hints.get("return"))
        self._adapter = None if self._reply is None else TypeAdapter(self._reply)
        if self._is_repeatable:
            extra = options.get("openapi_extra") or {}
            options["openapi_extra"] = {**extra, "parameters": [*extra.get("parameters", []), PARAMETER]}
        options["responses"] = {**answers(*self._early_errors()), **(options.get("responses") or {})}
        super().__init__(path, endpoint, **{**options, "response_model": self._reply})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request of this path. What FastAPI puts around a handler is for dependencies, which there are
        none of; of the time that the app took for a cached `:explain`, that was a tenth (by samples)."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self._answer(ApiRequest(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: ApiRequest) -> Response:
        services = request.services
        if self._scope != PUBLIC:
            request.caller = await authorise(request, services.authenticator, self._scope, self._needs_operator)
        parameters = dict(request.path_params)
        if self._query is not QueryModel:
            parameters["query"] = read_query(request, self._query)
        elif self._scope != PUBLIC and request.scope["query_string"]:  # health probes may add any query
            read_query(request, self._query)
        if self._body is not None:
            content = await read_json(
                request, services.bodies, may_be_absent=self._may_be_absent, may_be_untyped=self._may_be_untyped
            )
            parameters["body"] = validated(self._body, content)
            if self._is_repeatable:
                request.key = read_key(request, content)
        return self._response(await self.endpoint(request, **parameters))

    def _response(self, result: object) -> Response:
        """The reply as JSON; optional fields are left out where they have their default, null."""
        if isinstance(result, Response):
            return result
        reply = result if isinstance(result, Reply) else Reply(result)
        assert self._adapter is not None
        content = self._adapter.dump_json(reply.content, by_alias=True, exclude_defaults=True)
        status = reply.status or self.status_code or 200
        return Response(content, status, reply.headers, media_type="application/json")

    def _early_errors(self) -> set[int]:
        """The statuses of what this route may refuse before its handler is called."""
        statuses: set[int] = set()
        if self._scope != PUBLIC:
            statuses |= {*AUTHORISING}
        if any(each.is_required() for each in self._query.model_fields.values()):
            statuses.add(400)
        if self._body is not None:
            statuses |= {*READING_BODY}
        return statuses


def new_router(tag: str) -> APIRouter:
    """A router of such routes; `tag` is the heading that the documentation has them under."""
    return APIRouter(route_class=Route, tags=[tag])


async def guard(request: Request) -> None:
    """For routes of FastAPI's own kind, which nothing here makes: they too are closed unless they declare a scope."""
    endpoint = request.scope["endpoint"]
    scope = scope_of(endpoint)
    if scope != PUBLIC:
        await authorise(request, request.app.state.services.authenticator, scope, needs_operator(endpoint))


def _reply_of(annotation: Any) -> Any:
    """The model of what a handler returns; None where it returns a whole response."""
    if get_origin(annotation) is Reply:
        return get_args(annotation)[0]
    is_response = annotation is None or (isinstance(annotation, type) and issubclass(annotation, Response))
    return None if is_response else annotation
