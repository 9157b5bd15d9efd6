"""The description of the interface: valid, complete, as things are now, and good enough to generate clients from."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import orjson
import pytest
from openapi_python_client import generate
from openapi_python_client.config import Config, ConfigFile, MetaType
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import TypeAdapter

from service.answers.encoding import encode
from service.answers.record import RecordItem
from service.answers.replies import ReasonsReply, SearchReply
from service.api.documentation import EXAMPLE_CONTEXT
from service.api.model_schemas import ModelReply
from service.api.problems import all_kinds
from service.app import create_app
from service.ledger.moments import written_moment
from service.lifecycle.serving.registries.registry import FolderRegistry
from service.lifecycle.serving.repository import read_catalog
from service.settings import Settings
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import Explain
    from tests.conftest import Service

HTTP_PAGE = Path(__file__).parents[2] / "service" / "api" / "README.md"


@pytest.fixture(scope="module")
def described(service: Service) -> dict[str, Any]:
    return service.app.openapi()


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of every operation."""
    return [(path, method, one) for path, each in described["paths"].items() for method, one in each.items()]


def test_it_is_a_valid_description(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1")
    assert [error.message for error in OpenAPIV31SpecValidator(described).iter_errors()] == []


def test_every_schema_field_operation_and_parameter_says_what_it_is(described: dict[str, Any]) -> None:
    silent = [name for name, schema in described["components"]["schemas"].items() if not schema.get("description")]
    silent = [name for name in silent if "enum" not in described["components"]["schemas"][name]]
    silent += [
        f"{name}.{field}"
        for name, schema in described["components"]["schemas"].items()
        for field, value in schema.get("properties", {}).items()
        if not value.get("description")
    ]
    for path, method, operation in operations(described):
        if not operation.get("description"):
            silent.append(f"{method} {path}")
        silent += [f"{path} {one['name']}" for one in operation.get("parameters", []) if not one.get("description")]

    assert silent == []


def test_every_answer_has_a_schema(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                schema = content["schema"]
                assert schema, (method, path, status)
                assert schema.get("additionalProperties") is not True, (method, path, status)


def test_every_operation_names_its_scope_and_has_a_name_of_its_own(service: Service, described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(names)) == len(names)
    assert {"explain_newest", "list_models", "show_version"} < set(names)

    secured = {(path, method): one["security"] for path, method, one in operations(described)}
    assert secured["/v2/repository/index", "post"] == [{"key": ["models:write"]}]
    assert secured["/v1/models/{model}:explain", "post"] == [{"key": ["explain"]}]
    assert secured["/v2/health/ready", "get"] == []
    assert set(described["components"]["securitySchemes"]) == {"key"}


def test_every_kind_of_problem_is_named(described: dict[str, Any]) -> None:
    kinds = described["components"]["schemas"]["Problem"]["properties"]["type"]["examples"]
    page = HTTP_PAGE.read_text()

    assert {f"urn:answerable:problem:{kind}" for kind in all_kinds()} == set(kinds)
    assert len(kinds) >= 30
    for kind in kinds:
        assert f"`{kind.rpartition(':')[2]}`" in page, kind


def test_examples_are_those_of_the_models_that_there_are_now(tmp_path: Path) -> None:
    catalog = read_catalog(FolderRegistry(MODELS))
    app = create_app(Settings(_env_file=None, models=MODELS, data=tmp_path), catalog=catalog)

    def shown() -> dict[str, Any]:
        body = app.openapi()["paths"]["/v1/models/{model}:explain"]["post"]["requestBody"]
        examples: dict[str, Any] = body["content"]["application/json"]["examples"]
        return examples

    before, first = shown(), app.openapi()
    assert app.openapi() is first
    version = next(one for one in catalog if one.key.name == "loan")
    manifest = version.manifest.model_copy(update={"name": "another", "example": {"age": 5}})
    catalog.put(replace(version, key=replace(version.key, name="another"), manifest=manifest))

    assert shown() == {**before, "another": {"value": {"instances": [{"age": 5}], "context": EXAMPLE_CONTEXT}}}


async def test_no_example_harms_anything(
    service: Service, client: httpx.AsyncClient, explain: Explain, instance: dict[str, Any], described: dict[str, Any]
) -> None:
    kept = (await explain([instance], context={"subject": "somebody"}))["explanations"][0]["id"]
    states = (await client.post("/v2/repository/index")).json()
    ran = 0
    for path, method, operation in operations(described):
        places = {one["name"]: one["example"] for one in operation.get("parameters", []) if "example" in one}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        is_costly = path.endswith((":explain", ":predict", "/load", "/baselines")) or path in (
            "/v1/jobs",
            "/v1/exports",
        )
        if (
            method == "get"
            or is_costly
            or any(one["in"] == "path" and one["name"] not in places for one in operation.get("parameters", []))
        ):
            continue
        for example in body.get("examples", {}).values():
            response = await client.request(method, path.format_map(places), json=example["value"])
            assert response.status_code in (200, 201, 404), (path, response.text)
            ran += 1

    assert ran >= 6
    assert (await client.post("/v2/repository/index")).json() == states
    assert (await client.get(f"/v1/explanations/{kept}")).json()["subject"] == "somebody"
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


T = TypeVar("T")


def read(described: type[T], response: httpx.Response) -> T:
    """The answer, if it is of the described shape: every field of the described type, none missing."""
    return TypeAdapter(described).validate_json(response.content, strict=True)


async def test_stored_explanations_have_the_described_shape(
    client: httpx.AsyncClient, explain: Explain, fresh: dict[str, Any], described: dict[str, Any]
) -> None:
    noise = {"kind": "smoothgrad", "samples": 2}
    context = {"subject": "shape-1", "cohort": {"channel": "web"}}
    asked: list[dict[str, Any]] = [{}, {"noise": noise}, {"baseline": fresh}, {"method": "directional_ig"}]
    for parameters in asked:
        (await explain([fresh], context=context, **parameters))

    page = await client.get("/v1/explanations?subject=shape-1")

    found = read(SearchReply, page)
    assert orjson.loads(encode(found)) == page.json()
    assert len(found.explanations) == len(asked)
    known = set(described["components"]["schemas"]["RecordItem"]["properties"])
    for record in page.json()["explanations"]:
        assert set(record) <= known
        one = await client.get(f"/v1/explanations/{record['id']}")
        assert orjson.loads(encode(read(RecordItem, one))) == one.json()
        if "reasons" in record:
            reasons = await client.get(f"/v1/explanations/{record['id']}/reasons")
            assert orjson.loads(encode(read(ReasonsReply, reasons))) == reasons.json()

    await client.post("/v1/subjects/shape-1:erase")
    since = written_moment(min(record["created"] for record in page.json()["explanations"]))
    erased = await client.get("/v1/explanations", params={"model": "loan", "from": since})
    listed = read(SearchReply, erased)
    assert len(listed.explanations) == len(asked)
    assert all(record.ledger.tombstone for record in listed.explanations)


async def test_models_have_the_described_shape(client: httpx.AsyncClient) -> None:
    for name in (await client.get("/v1/models")).json()["models"]:
        shown = await client.get(f"/v1/models/{name}")
        read = ModelReply.model_validate_json(shown.content, strict=True)
        assert read.model_dump(exclude_unset=True) == shown.json()


@pytest.fixture(scope="module")
def generated(described: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A client as openapi-python-client makes it of the description, imported."""
    folder = tmp_path_factory.mktemp("client")
    path = folder / "openapi.json"
    path.write_text(json.dumps(described))
    config = Config.from_sources(
        ConfigFile(post_hooks=[], project_name_override="answerable_client"),
        MetaType.NONE,
        document_source=path,
        file_encoding="utf-8",
        overwrite=False,
        output_path=folder / "answerable_client",
    )
    assert generate(config=config) == []
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("answerable_client")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == "answerable_client"]:
            del sys.modules[name]


def part(name: str) -> Any:
    return importlib.import_module(f"answerable_client.{name}")


async def test_a_generated_client_explains_and_reads_the_record(
    generated: ModuleType, service: Service, fresh: dict[str, Any]
) -> None:
    models = part("models")
    body = models.ExplainBody(
        instances=[fresh],
        parameters=models.ExplainParameters(method="integrated_gradients"),
        context=models.ContextBody(subject="generated-1"),
    )
    async with generated.AuthenticatedClient(base_url=service.url, token=service.key.secret) as client:
        explain = part("api.predict_and_explain.explain_version")
        reply = await explain.asyncio("loan", "1", client=client, body=body)
        (explanation,) = reply.explanations
        record = await part("api.stored_explanations.show_explanation").asyncio(explanation.id, client=client)
        page = await part("api.stored_explanations.search_explanations").asyncio(client=client, subject="generated-1")
        model = await part("api.models.show_version").asyncio("loan", "1", client=client)
        refused = await explain.asyncio("loan", "1", client=client, body=models.ExplainBody(instances=[{}]))

    assert explanation.converged is True
    assert explanation.attributions["loan_amount"] == record.attributions["loan_amount"]
    assert explanation.target.label == record.target.label == reply.predictions[0].label
    assert [one.id for one in page.explanations] == [explanation.id]
    assert model.inputs[0].name == "loan_amount"
    assert (refused.type_, refused.errors[0].pointer) == (
        "urn:answerable:problem:missing-feature",
        "/instances/0/loan_amount",
    )
