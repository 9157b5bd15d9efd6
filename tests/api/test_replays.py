"""Replay: what was explained under load is computed again, alone, bit for bit; and what no longer can be says so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from safetensors.numpy import load_file

from service.catalog.versions import ModelVersion
from service.domain import ChunkShapes, Conditions
from service.usecases.planning import Parameters, expected_points, make_plan
from tests.api.tampering import changed_record, tampered
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.api.conftest import AssertProblem, Explain
    from tests.conftest import Service

AT_ONCE = 24
TABULAR = {"loan": ["1", "2"]}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "integrated_gradients": {},
    "expected_gradients": {"seed": 3},
    "guided_ig": {},
    "idgi": {},
    "saliency": {},
    "input_x_gradient": {},
    "deconvnet": {},
    "boundary_ig": {},
    "neflag": {"seed": 5},
    "directional_ig": {"options": {"groups": [[0, 1], [2]]}},
}
IMAGES = ("integrated_gradients", "grad_cam", "guided_backprop", "fullgrad", "blur_ig")


def question(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body: a model, a row of it that training never saw, and parameters."""
    if draw.random() < 0.25:
        model, version, method, more = "digits", "1", draw.choice(IMAGES), dict[str, Any]()
    else:
        model, version = "loan", draw.choice(TABULAR["loan"])
        method = draw.choice(list(METHODS))
        more = dict(METHODS[method])
    rows = load_file(MODELS / model / version / "heldout.safetensors")["rows"].astype(float)
    row = rows[draw.randrange(len(rows))]
    parameters: dict[str, Any] = {
        "method": method,
        "output_space": draw.choice(["probability", "logit"]),
        "tolerance": draw.choice([0.1, 0.03, 0.01]),
        "target": draw.choice([0, 1, "predicted"]),
        **more,
    }
    if method in ("integrated_gradients", "saliency") and draw.random() < 0.3:
        parameters |= {"noise": {"kind": draw.choice(["smoothgrad", "vargrad"]), "samples": 4}, "seed": 9}
    if method == "integrated_gradients":
        parameters["options"] = {"rule": draw.choice(["auto", "midpoint", "gauss_legendre"])}
        if draw.random() < 0.3:
            parameters["baseline"] = row_as_instance(model, rows[draw.randrange(len(rows))])
    body = {"instances": [row_as_instance(model, row)], "parameters": parameters}
    return f"/v1/models/{model}/versions/{version}:explain", body


def row_as_instance(model: str, row: Any) -> Any:
    return row.tolist() if model == "loan" else row.reshape(8, 8).tolist()


async def replayed(client: httpx.AsyncClient, explanation: str) -> dict[str, Any]:
    response = await client.post(f"/v1/explanations/{explanation}:replay")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@contextmanager
def served_as(service: Service, **changes: Any) -> Iterator[None]:
    """The loan model's first version with other facts about it."""
    catalog = service.services.catalog
    version: ModelVersion = catalog.find("loan", "1")
    catalog.put(replace(version, **changes))
    try:
        yield
    finally:
        catalog.put(version)


@pytest.mark.parametrize("many", [50, pytest.param(200, marks=pytest.mark.slow)])
async def test_what_was_explained_under_load_is_replayed_bit_for_bit(client: httpx.AsyncClient, many: int) -> None:
    draw = random.Random(20)
    room = asyncio.Semaphore(AT_ONCE)

    async def made() -> str:
        path, body = question(draw)
        async with room:
            response = await client.post(path, json=body, headers={"Cache-Control": "no-cache"})
        assert response.status_code == 200, (body["parameters"], response.text)
        return str(response.json()["explanations"][0]["id"])

    made_ids = await asyncio.gather(*(made() for _ in range(many)))

    verdicts = [await replayed(client, one) for one in made_ids]
    assert [v for v in verdicts if v["verdict"] != "bit_exact"] == []
    assert all(
        v == {"id": v["id"], "verdict": "bit_exact", "numbers": "equal", "max_difference": 0, "fields": [],
              "differences": []}
        for v in verdicts
    )  # fmt: skip


async def test_an_explanation_that_its_deadline_ended(client: httpx.AsyncClient, fresh: dict[str, Any]) -> None:
    parameters = {
        "method": "expected_gradients",
        "tolerance": 1e-9,
        "max_evaluations": 65_536,
        "deadline_ms": 150,
        "output_space": "probability",
        "noise": {"kind": "smoothgrad", "samples": 60},
    }
    body = {"instances": [fresh], "parameters": parameters}
    response = await client.post("/v1/models/loan/versions/1:explain", json=body)
    assert response.status_code == 200, response.text
    (explanation,) = response.json()["explanations"]
    assert explanation["reason"] == "deadline"

    assert (await replayed(client, explanation["id"]))["verdict"] == "bit_exact"


@pytest.mark.parametrize("shapes", [ChunkShapes(16, 256), ChunkShapes(64, 64)])
async def test_another_calibration_since_then_changes_nothing(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any], shapes: ChunkShapes
) -> None:
    """The record of an explanation that was computed at these shapes; the worker's are others."""
    plain: dict[str, Any] = {"method": "expected_gradients", "tolerance": 0.001, "output_space": "probability"}
    (explanation,) = (await explain([fresh], **plain))["explanations"]
    version = service.services.catalog.find("loan", "1")
    plan = make_plan(version, tuple(map(float, fresh.values())), Parameters(**plain))
    conditions = Conditions(shapes, None)
    other = service.call(service.services.engine.repeat(version.ref, plan, expected_points(version, plan), conditions))
    assert other.chunk_rows == str(shapes)
    record = (await client.get(f"/v1/explanations/{explanation['id']}")).json()
    assert record["environment"]["chunk_rows"] != str(shapes)

    def computed_there(record: dict[str, Any]) -> None:
        record["environment"]["chunk_rows"] = str(shapes)
        names = version.manifest.inputs.names
        record["attributions"] = dict(zip(names, other.attributions or (), strict=True))
        for name in ("output", "baseline_output", "completeness_error", "attribution_error", "evaluations"):
            record[name] = getattr(other, name)
        record["standard_error"] = dict(zip(names, other.standard_error or (), strict=True))

    changed_record(service, explanation["id"], computed_there)
    assert (await replayed(client, explanation["id"]))["verdict"] == "bit_exact"


async def test_another_environment(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    (explanation,) = (await explain([fresh]))["explanations"]
    now = dict(service.services.catalog.find("loan", "1").environment or {})

    with served_as(service, environment=now | {"torch": "2.99.0", "device": "another"}):
        verdict = await replayed(client, explanation["id"])

    assert verdict["verdict"] == "environment_differs"
    assert verdict["differences"] == [
        {"what": "environment.device", "recorded": now["device"], "now": "another"},
        {"what": "environment.torch", "recorded": now["torch"], "now": "2.99.0"},
    ]
    assert (verdict["numbers"], verdict["max_difference"]) == ("equal", 0)  # what the environment did not change
    assert (await replayed(client, explanation["id"]))["verdict"] == "bit_exact"


async def test_another_artefact_and_another_baseline_set(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    (explanation,) = (await explain([fresh]))["explanations"]
    version = service.services.catalog.find("loan", "1")
    training, *others = version.manifest.baselines
    retouched = version.manifest.model_copy(
        update={"baselines": (training.model_copy(update={"sha256": "0" * 64}), *others)}
    )
    other_key = replace(version.key, digest="sha256:" + "1" * 64)

    with served_as(service, key=other_key):
        artefact = await replayed(client, explanation["id"])
    with served_as(service, manifest=retouched):
        baseline = await replayed(client, explanation["id"])

    digests = {"recorded": version.key.digest, "now": other_key.digest}
    for verdict in (artefact, baseline):
        assert verdict["verdict"] == "environment_differs"
        assert not {"numbers", "max_difference"} & set(verdict)  # nothing was computed
    assert artefact["differences"] == [{"what": "artefact", **digests}]
    recorded = "sha256:" + training.sha256
    assert baseline["differences"] == [{"what": "baseline", "recorded": recorded, "now": "sha256:" + "0" * 64}]


async def test_a_manifest_that_changed_matters_where_the_numbers_do(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    (explanation,) = (await explain([fresh]))["explanations"]
    changed_record(service, explanation["id"], lambda record: record.update(manifest="sha256:" + "2" * 64))
    assert (await replayed(client, explanation["id"]))["verdict"] == "bit_exact"

    changed_record(service, explanation["id"], lambda record: record.update(manifest="sha256:" + "3" * 64, output=0.5))
    verdict = await replayed(client, explanation["id"])
    assert verdict["verdict"] == "environment_differs"
    assert [one["what"] for one in verdict["differences"]] == ["manifest"]


@pytest.mark.parametrize(
    ("change", "verdict", "fields"),
    [
        (tampered("attributions.public_record", 0.5), "differs", ["attributions"]),
        (tampered("output", 0.1), "differs", ["output"]),
        (tampered("prediction.label", "approved"), "differs", ["prediction"]),
        (tampered("target.label", "approved"), "differs", ["target"]),
        (tampered("converged", False), "within_tolerance", ["converged"]),
        (tampered("parameters.tolerance", 0.5), "differs", ["plan"]),
        (tampered("parameters.seed", "one"), "differs", ["plan"]),
        (tampered("environment.chunk_rows", "many"), "differs", ["record"]),
        (tampered("environment.chunk_rows", "1+1000000000"), "differs", ["record"]),
        (tampered("parameters", {}), "differs", ["record"]),
        (tampered("attributions", "x"), "differs", ["attributions"]),
        (tampered("attributions", {"a": "b"}), "differs", ["attributions"]),
        (tampered("attributions", [1, 2]), "differs", ["attributions"]),
        (tampered("environment", 5), "differs", ["record"]),
        (tampered("model.name", ["loan"]), "differs", ["record"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
async def test_a_record_that_was_changed(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any],
    change: Any, verdict: str, fields: list[str],
) -> None:  # fmt: skip
    (explanation,) = (await explain([fresh], target="denied"))["explanations"]
    changed_record(service, explanation["id"], change)

    found = await replayed(client, explanation["id"])

    assert (found["verdict"], found["fields"], found["differences"]) == (verdict, fields, [])


async def test_an_image_of_other_values(service: Service, explain: Explain, client: httpx.AsyncClient) -> None:
    """Its shape and the number of noisy copies are numbers, but none that a tolerance could be relative to."""
    image = load_file(MODELS / "digits" / "1" / "heldout.safetensors")["rows"][0].astype(float)
    asked = {"noise": {"kind": "smoothgrad", "samples": 25}, "tolerance": 0.1, "path": "/v1/models/digits:explain"}
    (explanation,) = (await explain([row_as_instance("digits", image)], **asked))["explanations"]

    def negated(record: dict[str, Any]) -> None:
        values = record["attributions"]["values"]
        record["attributions"]["values"] = [-value for value in values]

    for change, field in ((negated, "attributions"), (tampered("noise.output", 2.0), "noise")):
        changed_record(service, explanation["id"], change)
        found = await replayed(client, explanation["id"])
        assert (found["verdict"], found["numbers"]) == ("differs", "differ")
        assert field in found["fields"]


async def test_a_difference_within_the_tolerance_says_how_large_it_is(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any]
) -> None:
    (explanation,) = (await explain([fresh], tolerance=0.01))["explanations"]
    size = sum(map(abs, explanation["attributions"].values()))
    name, value = next(iter(explanation["attributions"].items()))

    changed_record(service, explanation["id"], tampered(f"attributions.{name}", value + 0.009 * size))
    near = await replayed(client, explanation["id"])
    changed_record(service, explanation["id"], tampered(f"attributions.{name}", value + 0.02 * size))
    far = await replayed(client, explanation["id"])

    assert (near["verdict"], near["numbers"]) == ("within_tolerance", "within_tolerance")
    assert near["max_difference"] == pytest.approx(0.009 * size)
    assert (far["verdict"], far["numbers"]) == ("differs", "differ")
    assert far["max_difference"] == pytest.approx(0.02 * size)


async def test_what_is_not_served_any_more(
    service: Service, explain: Explain, client: httpx.AsyncClient, fresh: dict[str, Any], assert_problem: AssertProblem
) -> None:
    (explanation,) = (await explain([fresh]))["explanations"]
    path = f"/v1/explanations/{explanation['id']}:replay"

    with served_as(service, environment=None):
        assert assert_problem(await client.post(path), 503) == "loan@1 is not ready"
    changed_record(service, explanation["id"], tampered("model.version", "77"))
    assert "loan@77 is not served here" in assert_problem(await client.post(path), 409)
