"""Paths: how names in them are matched, and which methods a path has."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, StringConvertor, register_url_convertor


class NameConvertor(Convertor[str]):
    """A name as in `/v1/models/{model:name}`: without it `GET /v1/models/loan:explain` would ask for a model, and be
    answered 404 where 405 is right."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class TextConvertor(StringConvertor):
    """Any text, as in `/v1/subjects/{subject:text}:erase`. Names may hold slashes, and old ones line breaks."""

    regex = "(?s:.*)"


register_url_convertor("name", NameConvertor())
register_url_convertor("text", TextConvertor())


def routes_of(app: FastAPI) -> Iterator[APIRoute]:
    """All operations of the app."""
    return (route for route in app.routes if isinstance(route, APIRoute))


def allowed_methods(request: Request) -> list[str]:
    """The methods of a request's path, of all its routes."""
    path = request.scope["path"]
    return sorted(
        {method for route in routes_of(request.app) if route.path_regex.match(path) for method in route.methods or ()}
    )
