"""Paths: names in them end where a verb begins, and every path knows its methods."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor


class NameConvertor(Convertor[str]):
    """A name as in `/v1/models/{model:name}`: without it `GET /v1/models/loan:explain` would ask for a model, and be
    answered 404 where 405 is right."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", NameConvertor())


def routes_of(app: FastAPI) -> Iterator[APIRoute]:
    """All operations of the app, those of included routers too."""
    for route in app.routes:
        included = getattr(route, "original_router", None)  # where FastAPI does not copy the routes of a router
        for one in [route] if included is None else included.routes:
            if isinstance(one, APIRoute):
                yield one


def allowed_methods(request: Request) -> list[str]:
    """What the path of a request can be asked with, whatever the route."""
    path = request.scope["path"]
    return sorted(
        {method for one in routes_of(request.app) if one.path_regex.match(path) for method in one.methods or ()}
    )
