"""`/openapi.json` and `/docs`, a page that needs nothing from outside; public, with each model's example in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service.api import problems
from service.api.auth import PUBLIC, needs
from service.api.schemas import Nothing
from service.catalog.versions import Catalog

ASSETS = "/docs/assets"
EXAMPLE_CONTEXT = {"subject": "applicant-4711", "decision_id": "application-2026-118"}
"""What an explanation belongs to: without a subject nobody can find, hold or erase it by person."""
EMPTY = f"#/components/schemas/{Nothing.__name__}"


def install(app: FastAPI, catalog: Catalog) -> None:
    """Adds the page and its assets to `app`, which must have been made without pages of its own."""
    app.mount(ASSETS, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))

    @app.get("/docs", include_in_schema=False)
    @needs(PUBLIC)
    async def show_documentation() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Answerable",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
            swagger_ui_parameters={"persistAuthorization": True, "defaultModelsExpandDepth": -1},
        )

    generate = app.openapi
    app.openapi = cache(lambda: _description(generate(), catalog))  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    @needs(PUBLIC)
    async def show_description() -> dict[str, Any]:
        return app.openapi()


def _description(schema: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    problems.describe(schema)
    schema["components"]["schemas"].pop(Nothing.__name__, None)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _declare_key(path, operation)
            _drop_empty_body(operation)
            _add_examples(path, operation, catalog)
    return schema


def _declare_key(path: str, operation: dict[str, Any]) -> None:
    if not path.startswith("/v2"):
        operation["security"] = [{"key": []}]


def _drop_empty_body(operation: dict[str, Any]) -> None:
    """Of a route whose body may only be empty."""
    if EMPTY in str(operation.get("requestBody")):
        del operation["requestBody"]


def _add_examples(path: str, operation: dict[str, Any], catalog: Catalog) -> None:
    """Examples that run as they stand: each model's as a body, and the first model as the path's parameter.

    Where the path has no version the body is of the version that the bare name means, as is the answer.
    """
    for parameter in operation.get("parameters", []):
        first = next(iter(catalog), None)
        if first is not None and parameter["in"] == "path" and parameter["name"] in ("model", "version"):
            parameter["example"] = first.key.name if parameter["name"] == "model" else first.key.version
    if path.endswith((":explain", ":predict")):
        versioned = "{version}" in path
        shown = [one for one in catalog if versioned or one is (catalog.meant(one.key.name) or one)]
        operation["requestBody"]["content"]["application/json"]["examples"] = {
            str(version.key) if versioned else version.key.name: {
                "value": {"instances": [version.manifest.example], "context": EXAMPLE_CONTEXT}
            }
            for version in shown
        }
    elif path.startswith("/v2/repository/models/"):
        operation["requestBody"]["content"]["application/json"]["examples"] = {
            str(version.key): {"value": {"parameters": {"version": version.key.version}}} for version in catalog
        }
    elif path.endswith("/baselines") and "requestBody" in operation:
        shown = [one for one in catalog if one is (catalog.meant(one.key.name) or one)]
        operation["requestBody"]["content"]["application/json"]["examples"] = {
            version.key.name: {"value": {"name": "mine", "rows": [version.manifest.example]}} for version in shown
        }
    elif path == "/v2/repository/index":
        examples = {"everything": {"value": {}}, "ready": {"value": {"ready": True}}}
        operation["requestBody"]["content"]["application/json"]["examples"] = examples
