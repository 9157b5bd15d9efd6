"""`/openapi.json` and `/docs`, a page that needs nothing from outside; public, with each model's example in them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import fastapi_offline
import orjson
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service.api import problems
from service.api.auth import PUBLIC, needs, scope_of
from service.api.paths import routes_of
from service.api.requests import ApiRequest
from service.api.schemas import Nothing
from service.catalog.versions import Catalog, ModelVersion

ASSETS = "/docs/assets"
EXAMPLE_CONTEXT = {"subject": "applicant-4711", "decision_id": "application-2026-118"}
"""What an explanation belongs to: without a subject nobody can find, hold or erase it by person."""
EMPTY = f"#/components/schemas/{Nothing.__name__}"
NOBODY = "nobody-1"
NO_MODEL = "a-model-no-longer-needed"
PARAMETERS = {
    "model": "the name of a model",
    "version": "a version of the model",
    "explanation": "the id of an explanation",
    "job": "the id of a job",
    "export": "the id of an export",
    "baseline": "a version of a baseline set, `name@version`",
    "subject": "the person, as requests named them in `context.subject`",
}
"""What the parameters of paths are, by name; those of a query are described where they are declared."""


def install(app: FastAPI, catalog: Catalog) -> None:
    """Adds the page and its assets to `app`, which must have been made without pages of its own."""
    app.mount(ASSETS, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))

    @app.get("/docs", include_in_schema=False)
    @needs(PUBLIC)
    async def show_documentation(_request: ApiRequest) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Answerable",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
            swagger_ui_parameters={"persistAuthorization": True, "defaultModelsExpandDepth": -1},
        )

    document = OpenApiDocument(app, app.openapi, catalog)
    app.openapi = document.schema  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    @needs(PUBLIC)
    async def show_description(_request: ApiRequest) -> Response:
        return Response(document.content(), media_type="application/json")


class OpenApiDocument:
    """The description with examples of the current models; it is generated again when these have changed."""

    def __init__(self, app: FastAPI, generate: Callable[[], dict[str, Any]], catalog: Catalog) -> None:
        self._app = app
        self._generate = generate
        self._catalog = catalog
        self._files: object = None
        self._schema: dict[str, Any] = {}
        self._content = b""

    def schema(self) -> dict[str, Any]:
        """The current description, as a dictionary that callers must not change."""
        files = [(each.files, each is self._catalog.default_version(each.key.name)) for each in self._catalog]
        if files != self._files:
            self._schema = _description(deepcopy(self._generate()), self._app, self._catalog)
            self._content, self._files = orjson.dumps(self._schema), files
        return self._schema

    def content(self) -> bytes:
        """The same, as JSON."""
        self.schema()
        return self._content


def _description(schema: dict[str, Any], app: FastAPI, catalog: Catalog) -> dict[str, Any]:
    problems.describe(schema)
    schema["components"]["schemas"].pop(Nothing.__name__, None)
    schema["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "a key with the scope that the operation names, or a token with it of the OpenID Connect "
            "issuer that the service trusts, if any",
        }
    }
    routes = {
        (route.path_format, method.lower()): route
        for route in routes_of(app)
        for method in route.methods or ()
        if route.include_in_schema
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            route = routes[path, method]
            operation["operationId"] = route.name  # what generated clients call it
            scope = scope_of(route.endpoint)
            operation["security"] = [] if scope == PUBLIC else [{"key": [scope]}]
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["description"] = PARAMETERS[parameter["name"]]
            _drop_empty_body(operation)
            _add_examples(path, operation, catalog)
    return schema


def _drop_empty_body(operation: dict[str, Any]) -> None:
    """Of a route whose body may only be empty."""
    if EMPTY in str(operation.get("requestBody")):
        del operation["requestBody"]


def _add_examples(path: str, operation: dict[str, Any], catalog: Catalog) -> None:
    """Examples that run as they stand and harm nothing: each model's as a body, the first model as the path's
    parameter; but nobody is erased by trying it out, and no model unloaded.

    Where the path has no version the body is of the default version, as is the answer.
    """
    first = next(iter(catalog), None)
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path" and parameter["name"] == "subject":
            parameter["example"] = NOBODY
        elif parameter["in"] == "path" and parameter["name"] == "model" and path.endswith("/unload"):
            parameter["example"] = NO_MODEL
        elif first is not None and parameter["in"] == "path" and parameter["name"] in ("model", "version"):
            parameter["example"] = first.key.name if parameter["name"] == "model" else first.key.version
    examples: dict[str, Any] = {}
    if path.endswith((":explain", ":predict")):
        for version in catalog if "{version}" in path else _default_versions(catalog):
            name = str(version.key) if "{version}" in path else version.key.name
            examples[name] = {"value": {"instances": [version.manifest.example], "context": EXAMPLE_CONTEXT}}
    elif path.startswith("/v2/repository/models/"):
        examples["one version"] = {"value": {"parameters": {"version": "1"}}}
    elif path.endswith("/baselines") and "requestBody" in operation:
        for version in _default_versions(catalog):
            examples[version.key.name] = {"value": {"name": "mine", "rows": [version.manifest.example]}}
    elif path == "/v2/repository/index":
        examples = {"everything": {"value": {}}, "ready": {"value": {"ready": True}}}
    if examples:
        operation["requestBody"]["content"]["application/json"]["examples"] = examples


def _default_versions(catalog: Catalog) -> list[ModelVersion]:
    """The default version of each model; of a model without one, all its versions."""
    return [version for version in catalog if version is (catalog.default_version(version.key.name) or version)]
