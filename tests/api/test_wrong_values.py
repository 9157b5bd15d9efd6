"""Every field of every body and every parameter of every query, with values of all other kinds: the refusal is this
service's own sentence, never the validator's, and names the field."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic_core._pydantic_core import list_all_errors

from tests.api.conftest import TYPE, filled
from tests.conftest import Service

OWN = ("json_invalid", "json_type", "is_instance_of", "recursion_loop", "frozen_field", "frozen_instance")
"""Kinds of errors that never come of JSON read before; their templates say little else than a word."""
TEMPLATES = {
    each["type"]: re.compile(
        ".+?".join(map(re.escape, re.split(r"\{[^}]*\}", each["message_template_python"]))), re.IGNORECASE
    )
    for each in list_all_errors()
    if each["type"] not in OWN
}
WRONG: list[Any] = [None, True, -1, 1.5, 2**70, "", "x" * 501, [], {"x": 1}, ["x"] * 1025]
"""Of all kinds of JSON; longer than any text or list may be."""
WRONG_IN_QUERIES = ["", "x", "-1", "0", "1.5", "true", "99999999999999999999", "x" * 500, "2026-13-01", "%00"]

Schema = dict[str, Any]


def leaks(text: str) -> list[str]:
    """The kinds of pydantic's errors whose sentences are in the text."""
    return [kind for kind, template in TEMPLATES.items() if template.search(text)]


def resolved(document: Schema, schema: Schema) -> list[Schema]:
    """The alternatives of a schema, none of which is a reference."""
    if "$ref" in schema:
        return resolved(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    branches = schema.get("anyOf") or schema.get("oneOf")
    return [one for branch in branches for one in resolved(document, branch)] if branches else [schema]


def sample(document: Schema, schema: Schema) -> Any:
    """A value that fits as far as the schema says."""
    one = resolved(document, schema)[0]
    match one.get("type"):
        case "object":
            return {name: sample(document, one["properties"][name]) for name in one.get("required", ())}
        case "array":
            return [sample(document, one.get("items", {}))]
        case "integer" | "number":
            return one.get("minimum", 1)
        case "boolean":
            return True
        case _:
            return one.get("const") or (one.get("enum") or ["loan"])[0]


def spoilt(document: Schema, schema: Schema, seen: set[str]) -> Iterator[Any]:
    """Values with one wrong place. Of a schema that is there under a name, what is within is spoilt once."""
    yield from WRONG
    for one in resolved(document, schema):
        name = one.get("title", "")
        if "properties" in one and name in seen:
            continue
        seen.add(name)
        whole = sample(document, one)
        if one.get("type") == "array":
            yield from ([inner] for inner in spoilt(document, one.get("items", {}), seen))
        for name, of_property in one.get("properties", {}).items():
            yield from ({**whole, name: inner} for inner in spoilt(document, of_property, seen))
        for name in one.get("required", ()):
            yield {other: value for other, value in whole.items() if other != name}


def bodies(document: Schema) -> Iterator[tuple[str, str, Any]]:
    """Of every operation with a body: its method and path, and bodies with one wrong place."""
    seen: set[str] = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                yield from ((method, filled(path), body) for body in spoilt(document, schema, seen))


def queries(document: Schema) -> Iterator[tuple[str, str, str, str]]:
    """Of every operation with a query: its method and path, a parameter, and a wrong value."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    yield from ((method, filled(path), parameter["name"], wrong) for wrong in WRONG_IN_QUERIES)


@pytest.fixture(scope="module")
def document(service: Service) -> Schema:
    schema: Schema = service.app.openapi()
    return schema


async def refusals(
    client: httpx.AsyncClient, requests: list[httpx.Request]
) -> list[tuple[httpx.Request, httpx.Response]]:
    """The refused ones of the requests, some of which are sent beside each other."""
    turns = asyncio.Semaphore(8)

    async def send(request: httpx.Request) -> tuple[httpx.Request, httpx.Response]:
        async with turns:
            return request, await client.send(request)

    answers = await asyncio.gather(*map(send, requests))
    assert [response.status_code for _, response in answers if response.status_code >= 500] == []
    return [(request, response) for request, response in answers if response.status_code in (400, 422)]


async def test_no_wrong_body_is_told_in_the_validators_words(client: httpx.AsyncClient, document: Schema) -> None:
    requests = [client.build_request(method, path, json=body) for method, path, body in bodies(document)]
    refused = await refusals(client, requests)
    assert len(refused) > 0.8 * len(requests) > 400
    told, unnamed = {}, {}
    for request, response in refused:
        problem = response.json()
        for fault in problem.get("errors", ()):
            name = fault.get("pointer", "").rpartition("/")[2]
            if not name.isdecimal() and name not in fault["detail"]:
                unnamed[fault["detail"]] = fault["pointer"]
        assert TYPE.fullmatch(problem["type"])
        for text in (problem["detail"], *(fault["detail"] for fault in problem.get("errors", ()))):
            for kind in leaks(text):
                told[f"{kind}: {text[:120]}"] = f"{request.method} {request.url.path} {request.content[:80]!r}"
    assert told == {}
    assert unnamed == {}


async def test_no_wrong_query_is_told_in_the_validators_words(client: httpx.AsyncClient, document: Schema) -> None:
    cases = [*queries(document)]
    refused = await refusals(
        client, [client.build_request(method, f"{path}?{name}={value}") for method, path, name, value in cases]
    )
    assert len(refused) > 50
    told = {}
    for request, response in refused:
        detail = response.json()["detail"]
        for kind in leaks(detail):
            told[f"{kind}: {detail[:120]}"] = str(request.url)[-80:]
    assert told == {}
