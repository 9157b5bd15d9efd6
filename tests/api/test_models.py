"""What is served, and the description of the whole interface: what it shows runs as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import yaml
from pydantic import TypeAdapter

from service.answers.encoding import encode
from service.answers.replies import ExplainReply, PredictReply
from service.errors import AnswerableError
from service.methods.registry import METHODS as METHODS_KNOWN
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem
    from tests.conftest import Service

LOAN = MODELS / "loan"
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="session")
def newest() -> dict[str, Any]:
    """The manifest of the loan model's newest version."""
    manifest: dict[str, Any] = yaml.safe_load((LOAN / "2" / "manifest.yaml").read_bytes())
    return manifest


def operations(service: Service) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of every operation."""
    paths = service.app.openapi()["paths"]
    return [(path, method, one) for path, each in paths.items() for method, one in each.items() if method in METHODS]


def statuses(kind: type[AnswerableError]) -> set[str]:
    return {str(kind.status)}.union(*(statuses(one) for one in kind.__subclasses__()))


async def test_list_of_models(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models")

    assert response.status_code == 200
    assert "loan" in response.json()["models"]


async def test_what_becomes_of_image_files_is_said(client: httpx.AsyncClient) -> None:
    (shown,) = (await client.get("/v1/models/digits")).json()["inputs"]
    assert shown["files"].endswith(
        "then 0 to 255 stretched over the range 0 to 16, for the manifest has no `normalise`"
    )
    assert "turned as its EXIF orientation says" in shown["files"]


async def test_a_model_by_its_name(client: httpx.AsyncClient, loan: dict[str, Any], newest: dict[str, Any]) -> None:
    model = (await client.get("/v1/models/loan")).json()

    assert (model["name"], model["ready"], model["title"]) == ("loan", True, loan["title"])
    assert {"version": "1", "digest": f"sha256:{loan['artefact']['sha256']}", "ready": True}.items() <= model[
        "versions"
    ][0].items()
    assert [version["version"] for version in model["versions"]] == ["1", "2"]
    assert [feature["name"] for feature in model["inputs"]] == [
        feature["name"] for feature in newest["inputs"]["features"]
    ]
    assert all({"name", "unit", "range", "protected"} <= set(feature) for feature in model["inputs"])
    assert not any(feature["protected"] for feature in model["inputs"])
    assert model["example"] == newest["example"]
    assert model["outputs"]["labels"] == ["approved", "denied"]
    assert model["outputs"]["adverse"] == "denied"
    named = [one["name"] for one in (*model["methods"], *model["unavailable_methods"])]
    assert sorted(named) == sorted(entry.name for entry in METHODS_KNOWN)
    assert named[:2] == ["integrated_gradients", "expected_gradients"]
    for method in model["methods"]:
        assert {
            "name",
            "description",
            "completeness",
            "cost",
            "least_points",
            "options",
            "citation",
            "measured",
        } == set(method)
        for option in method["options"]:
            assert {"name", "default", "description"} < set(option) or option["name"] == "groups"
    assert {one["name"] for one in model["unavailable_methods"]} >= {
        "grad_cam",
        "blur_ig",
        "xrai",
        "integrated_hessians",
    }
    assert all(one["reason"] for one in model["unavailable_methods"])
    assert [baseline["name"] for baseline in model["baselines"][:2]] == ["training", "approved"]
    assert model["defaults"]["method"] == "integrated_gradients"


async def test_one_version_by_its_number(
    client: httpx.AsyncClient, loan: dict[str, Any], newest: dict[str, Any]
) -> None:
    meant = (await client.get("/v1/models/loan")).json()
    first, second = [(await client.get(f"/v1/models/loan/versions/{number}")).json() for number in (1, 2)]

    assert second == meant
    assert (first["version"], second["version"]) == ("1", "2")
    assert first["newest"] == "2"
    assert first["versions"] == second["versions"]
    assert (first["example"], second["example"]) == (loan["example"], newest["example"])
    own = first["baselines"][: len(loan["baselines"])]  # behind them are those that other tests have uploaded
    assert [one["digest"] for one in own] == [f"sha256:{one['sha256']}" for one in loan["baselines"]]
    assert first["inputs"] != [] != second["inputs"]


async def test_a_models_baselines(client: httpx.AsyncClient, loan: dict[str, Any], newest: dict[str, Any]) -> None:
    response = await client.get("/v1/models/loan/baselines")

    sets = [*loan["baselines"], *newest["baselines"]]
    expected = [(one["name"], one["version"], one["size"], f"sha256:{one['sha256']}") for one in sets]
    found = [one for one in response.json()["baselines"] if one["source"] == "manifest"]
    assert [(one["name"], one["version"], one["size"], one["digest"]) for one in found] == expected


async def test_every_models_example_is_a_valid_instance(client: httpx.AsyncClient) -> None:
    for name in (await client.get("/v1/models")).json()["models"]:
        example = (await client.get(f"/v1/models/{name}")).json()["example"]
        response = await client.post(f"/v1/models/{name}:explain", json={"instances": [example]})
        assert response.status_code == 200, response.text


async def test_every_method_and_option_that_a_model_shows_is_accepted(
    client: httpx.AsyncClient, instance: dict[str, Any]
) -> None:
    model = (await client.get("/v1/models/loan")).json()

    asked = [
        {"method": method["name"], "options": {option["name"]: choice}}
        for method in model["methods"]
        for option in method["options"]
        for choice in option.get("choices", [option["default"]])
    ]
    asked += [{"method": method["name"]} for method in model["methods"]]
    asked += [{"output_space": space} for space in model["outputs"]["spaces"]]
    asked += [{"target": label} for label in model["outputs"]["labels"]]
    asked += [{"baseline": f"{baseline['name']}@{baseline['version']}"} for baseline in model["baselines"]]

    for parameters in asked:
        body = {"instances": [instance], "parameters": parameters}
        response = await client.post("/v1/models/loan/versions/1:explain", json=body)
        assert response.status_code == 200, (parameters, response.text)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/loan/versions/99",
        "/v1/models/nothing/versions/1",
        "/v1/models/nothing",
        "/v1/models/nothing/baselines",
        "/v1/models/..%2f..%2fetc",
    ],
)
async def test_a_model_that_is_not_there(client: httpx.AsyncClient, assert_problem: AssertProblem, path: str) -> None:
    assert_problem(await client.get(path), 404)


async def test_every_example_of_a_model_runs_and_its_reply_has_the_described_shape(
    service: Service, client: httpx.AsyncClient
) -> None:
    ran = 0
    for path, method, operation in operations(service):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        of_models = content.get("examples", {}) if path.endswith((":explain", ":predict")) else {}
        for name, example in of_models.items():
            model, _, version = name.partition("@")
            asked = path.format(model=model, version=version)
            response = await client.request(method, asked, json=example["value"])
            assert response.status_code == 200, response.text
            assert example["value"]["context"]["subject"]
            assert "Answerable-Hint" not in response.headers
            reply = PredictReply if path.endswith("predict") else ExplainReply
            described = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert described == {"$ref": f"#/components/schemas/{reply.__name__}"}
            # Nothing is missing, of another type, or there without being described.
            parsed = TypeAdapter(reply).validate_json(response.content, strict=True)
            assert orjson.loads(encode(parsed)) == response.json()
            ran += 1
    assert ran >= 4


def test_every_operation_that_takes_a_body_has_an_example(service: Service) -> None:
    for path, _, operation in operations(service):
        if "requestBody" in operation:
            assert operation["requestBody"]["content"]["application/json"]["examples"], path


def test_errors_are_described_as_the_problems_they_are(service: Service) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    described = service.app.openapi()["components"]["schemas"]["Problem"]

    assert set(described["required"]) == {"type", "title", "status", "detail", "error", "request_id"}
    for path, method, operation in operations(service):
        for status, response in operation["responses"].items():
            if status >= "400" and (path, status) != ("/v2/health/ready", "503"):
                assert response["content"] == problem, (method, path, status)


def test_explaining_describes_every_error_it_can_end_in(service: Service) -> None:
    paths = service.app.openapi()["paths"]
    nobody_reads, elsewhere = {"499"}, {"409", "410"}

    for path in paths:
        if path.endswith((":explain", ":predict")):
            possible = statuses(AnswerableError) - nobody_reads - elsewhere | {"415"}
            assert possible <= set(paths[path]["post"]["responses"]), path
