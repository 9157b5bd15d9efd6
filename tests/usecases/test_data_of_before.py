"""A data folder that version 0.2.0 made, at schema 0013 of the ledger: every later version opens it, and reads, shows,
verifies, repeats and replays what is in it as it was. How it was made is in `tests/fixtures/data_of_schema_13/make.py`.

Figures are compared bit by bit where the libraries and the processor are those it was made with, and by a tolerance
where they are others.
"""

from __future__ import annotations

import base64
import csv
import io
import lzma
import math
import tarfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import pytest_asyncio
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy import update

from service.answers.cache import plan_cache_digest
from service.app import create_app
from service.ledger.export_checking import check_export
from service.ledger.opening import opened_ledger
from service.ledger.tables import remembered
from service.ledger.verifying import verify_ledger
from service.processes.embedded_redis import EmbeddedRedis
from service.settings import Settings
from tests.conftest import MODELS, MakeCache
from tests.forked import fork_worker

FOLDER = Path(__file__).parents[1] / "fixtures" / "data_of_schema_13"
TENANT = "bank"
TOLERANCE = 1e-4
"""Of one figure, where another machine computed the other."""
OF_NO_PATH = {"saliency", "grad_cam", "input_x_gradient"}
"""Methods whose figures are the same, bit for bit, whatever rule integrals are taken by."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    """What was sent and answered when it was made."""
    answers: dict[str, Any] = orjson.loads(lzma.decompress((FOLDER / "answers.json.xz").read_bytes()))
    return answers


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Those of a service with a copy of the folder."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(FOLDER / "data.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    models = folder / "models"
    models.mkdir()
    for model in (*(MODELS / name for name in ("loan", "digits")), *(FOLDER / "models").iterdir()):
        (models / model.name).symlink_to(model)
    return Settings(
        _env_file=None,
        data=folder / "data",
        models=models,
        workers=1,
        logs="text",
        stability_share=0,
        ledger="required",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """A service with a copy of the folder, which it brings up to date."""
    app = create_app(settings, [fork_worker(0)])
    async with app.router.lifespan_context(app):
        await app.state.services.loading
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with httpx.AsyncClient(base_url="http://here", transport=httpx.ASGITransport(app), timeout=300) as client:
        yield client


def by(before: Mapping[str, Any], key: str = "writer") -> dict[str, str]:
    """The header of a key of then, by its name."""
    return {"Authorization": f"Bearer {before['keys'][key]}"}


async def get(client: httpx.AsyncClient, path: str, headers: dict[str, str], **query: str) -> Any:
    response = await client.get(path, headers=headers, params=query)
    assert response.status_code == 200, response.text
    return response.json()


def is_same_machine(app: FastAPI, record: Mapping[str, Any]) -> bool:
    """Whether all that decides the last bits of this record's figures is as it was."""
    version = app.state.services.catalog.find(record["model"]["name"], record["model"]["version"])
    made_in = {name: value for name, value in record["environment"].items() if name not in ("chunk_rows", "answerable")}
    return bool(made_in == {name: value for name, value in version.environment.items() if name != "answerable"})


def is_same_here(app: FastAPI, before: Mapping[str, Any]) -> bool:
    return all(is_same_machine(app, record) for record in before["records"]["all"].values())


ERRORS = {"completeness_error", "attribution_error", "attribution_errors", "standard_error"}


def same(now: Any, then: Any, tolerance: float = 0.0) -> bool:
    """Whether two answers are equal: in every name and type, and in every figure exactly or within the tolerance."""
    if type(now) is not type(then):
        return False
    if isinstance(then, dict):
        return now.keys() == then.keys() and all(
            is_rounded_up(now[name], then[name])
            if name in ERRORS and not tolerance
            else same(now[name], then[name], tolerance)
            for name in then
        )
    if isinstance(then, list):
        return len(now) == len(then) and all(same(a, b, tolerance) for a, b in zip(now, then, strict=True))
    if isinstance(then, float) and tolerance:
        return math.isclose(now, then, rel_tol=tolerance, abs_tol=tolerance)
    return bool(orjson.dumps(now) == orjson.dumps(then))  # -0.0 is not 0.0


def is_rounded_up(now: Any, then: Any) -> bool:
    """Whether an error is what it was, or what a policy's digits round up where they rounded to the nearest before."""
    if isinstance(then, dict | list):
        pairs = zip(now.values(), then.values(), strict=True) if isinstance(then, dict) else zip(now, then, strict=True)
        return all(is_rounded_up(*pair) for pair in pairs)
    return same(now, then) or bool(type(now) is type(then) is float and then <= now <= 1.2 * then + 0.1001)


async def test_the_log_is_what_was_signed(app: FastAPI, settings: Settings) -> None:
    with opened_ledger(settings, to_read=True) as ledger:
        report = verify_ledger(ledger.engine, ledger.vault, shipped=settings.data / "checkpoints.jsonl")
    assert report.is_valid, report
    assert len(await app.state.services.ledger.signing_keys()) == 2  # one key was replaced


@pytest.mark.parametrize("key", ["all", "top", "digits", "hidden"])
async def test_records_are_read_and_shown_as_they_were(
    client: httpx.AsyncClient, before: dict[str, Any], key: str
) -> None:
    then = before["records"][key]
    page = await get(client, "/v1/explanations", by(before, key), limit="200")
    now = {one["id"]: one for one in page["explanations"]}

    assert then.keys() <= now.keys()
    for name, record in then.items():
        assert same(now[name], record), (now[name], record)
        alone = await get(client, f"/v1/explanations/{name}", by(before, key))
        assert same(alone, record)


async def test_searches_find_what_they_found(client: httpx.AsyncClient, before: dict[str, Any]) -> None:
    for search in before["searches"]:
        page = await get(client, "/v1/explanations", by(before, "all"), **search["query"])
        found = {one["id"] for one in page["explanations"]}
        if "limit" in search["query"]:
            assert len(found) == len(search["ids"])
        else:  # beside those that other tests made
            assert found & before["records"]["all"].keys() == set(search["ids"])


async def test_reasons_and_hints_are_what_they_were(
    app: FastAPI, client: httpx.AsyncClient, before: dict[str, Any]
) -> None:
    for key, reasons in before["reasons"].items():
        for name, then in reasons.items():
            now = await get(client, f"/v1/explanations/{name}/reasons", by(before, key))
            if not is_same_here(app, before):  # the hint asks the model
                now, then = ({**one, "counterfactual": None} for one in (now, then))
            assert same(now, then), (now, then)


async def test_every_record_is_verified(client: httpx.AsyncClient, before: dict[str, Any]) -> None:
    for name in before["records"]["all"]:
        response = await client.post(f"/v1/explanations/{name}:verify", headers=by(before))
        assert response.status_code == 200
        assert response.json()["valid"], response.text


async def test_every_record_is_replayed(app: FastAPI, client: httpx.AsyncClient, before: dict[str, Any]) -> None:
    for name, record in before["records"]["all"].items():
        response = await client.post(f"/v1/explanations/{name}:replay", headers=by(before))
        assert response.status_code == 200, response.text
        replay = response.json()
        # Later versions place nodes otherwise: each answer is within its error of the true one, not of the other.
        assert replay["verdict"] == "environment_differs", replay
        # Nor did the standard error of before hold for few rows.
        is_other = record["rule"] == "midpoint" or not record["converged"] or "standard_error" in record
        assert replay["numbers"] in ("equal", "within_tolerance", *(["differ"] if is_other else [])), replay
        if is_same_machine(app, record):
            assert {each["what"] for each in replay["differences"]} <= {"environment.answerable", "manifest"}
            if record["method"] in OF_NO_PATH:
                assert replay["numbers"] == "equal", replay


async def test_the_same_questions_are_answered_as_they_were(
    app: FastAPI, client: httpx.AsyncClient, before: dict[str, Any]
) -> None:
    tolerance = 0.0 if is_same_here(app, before) else TOLERANCE
    for request in before["requests"]:
        headers = by(before) | {"Cache-Control": "no-cache"}
        response = await client.post(request["path"], json=request["body"], headers=headers)
        assert response.status_code == 200, response.text
        now, then = response.json(), request["reply"]
        assert same(now["predictions"], then["predictions"], tolerance)
        for new, old in zip(now["explanations"], then["explanations"], strict=True):
            assert new["timings_ms"].keys() == old["timings_ms"].keys()
            assert new.keys() == old.keys()
            for name in ("target", "method", "model", "baseline", "completeness", "output_space"):
                assert same(new[name], old[name], tolerance), name
            values, earlier = (np.array(_values(each["attributions"])) for each in (new, old))
            errors = sum(each.get("attribution_error", 0.0) for each in (new, old)) + TOLERANCE
            assert np.abs(values - earlier).sum() <= errors * np.abs(earlier).sum(), (new, old)


def _values(attributions: Any) -> list[float]:
    """In their order, of every kind of input."""
    if isinstance(attributions, list):
        return [each["attribution"] for each in attributions]
    return attributions["values"] if "shape" in attributions else [attributions[name] for name in sorted(attributions)]


async def test_a_request_that_is_sent_again_is_answered_by_its_record(
    settings: Settings, client: httpx.AsyncClient, before: dict[str, Any]
) -> None:
    """What is remembered of it is kept for a day, which it is made to be within."""
    with opened_ledger(settings, to_read=False) as ledger, ledger.engine.begin() as connection:
        connection.execute(update(remembered).values(created=time.time_ns() // 1000))
    repeated = before["repeated"]
    for key, then in (("writer", repeated["reply"]), ("hidden", repeated["limited"])):
        headers = by(before, key) | {"Idempotency-Key": repeated["key"]}
        response = await client.post(repeated["path"], json=repeated["body"], headers=headers)
        assert response.status_code == 200, response.text
        assert same(response.json(), then)


async def test_the_job_is_as_it_ended(client: httpx.AsyncClient, before: dict[str, Any]) -> None:
    assert await get(client, before["job"]["path"], by(before)) == before["job"]["reply"]


async def test_the_erased_are_gone_and_the_held_are_held(client: httpx.AsyncClient, before: dict[str, Any]) -> None:
    response = await client.get(f"/v1/explanations/{before['erased']}", headers=by(before))
    assert response.status_code == 410
    assert response.json()["tombstone"]["reason"] == "they asked for it"
    response = await client.post("/v1/subjects/Eve:erase", json={"reason": "asked"}, headers=by(before))
    assert response.status_code == 409


async def test_a_table_of_the_records_is_as_it_was(client: httpx.AsyncClient, before: dict[str, Any]) -> None:
    response = await client.post("/v1/exports", json={"format": "csv"}, headers=by(before))
    assert response.status_code == 202, response.text
    path = response.headers["location"]
    while "ended" not in (await get(client, path, by(before))):
        pass
    now = (await client.get(f"{path}/file", headers=by(before))).text
    rows, then = ({row["id"]: row for row in csv.DictReader(io.StringIO(text))} for text in (now, before["table"]))
    assert len(then) == len(before["records"]["all"]) + 1
    for name, row in then.items():
        if name == before["erased"]:
            assert (rows[name]["erased"], rows[name]["input"], rows[name]["attributions"]) == ("true", "", "")
        else:
            prediction = rows[name].pop("prediction")  # which tables did not have
            assert rows[name].pop("damaged") == "false"
            assert rows[name] == row
            assert orjson.loads(prediction) == before["records"]["all"][name]["prediction"]


async def test_the_export_is_verified(app: FastAPI, before: dict[str, Any]) -> None:
    first, _ = await app.state.services.ledger.signing_keys()
    verdict = check_export(io.BytesIO((FOLDER / "export.zip").read_bytes()), first.public_key)
    assert verdict.is_valid, verdict
    assert verdict.records == len(before["searches"][0]["ids"])


async def test_what_the_cache_held_is_read_or_dropped(
    app: FastAPI, before: dict[str, Any], make_cache: MakeCache, redis: EmbeddedRedis
) -> None:
    """And never misread: a version whose results are of another form, or whose plans have other digests, finds none."""
    made = make_cache(secret=app.state.services.vault.derived("cache"))
    cache = made.cache
    async with Redis.from_url(redis.url) as server:
        for key, value in before["cache"].items():
            await server.set(key, base64.b64decode(value))
    for record in before["records"]["all"].values():
        stored = await app.state.services.ledger.get(TENANT, record["id"])
        environment = {name: value for name, value in record["environment"].items() if name != "chunk_rows"}
        digest = plan_cache_digest(orjson.loads(stored.personal)["plan_digest"], record["manifest"], environment)
        found = await cache.result(TENANT, digest)
        assert found is None or (found.output, found.evaluations) == (record["output"], record["evaluations"])
    assert {result for _, result in made.observed} <= {"hit", "miss", "foreign"}
