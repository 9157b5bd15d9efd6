"""What a service answers while its models are loaded, and beside versions that cannot be."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.catalog.calibrations import Calibration
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.manifest import read_manifest
from service.catalog.traits import Traits
from service.domain import ChunkShapes, VersionRef
from service.engine.client.local_engine import LocalEngine
from service.engine.protocol import Loaded, Source, Stats
from service.settings import Settings
from tests.conftest import MODELS, PATIENCE_SECONDS

KEY = "a key that the operator chose"
TRAITS = Traits(TabularInputs.axes, (38,), 2, None, ("relu",), True, False, "minimum")
LOAN = MODELS / "loan" / "1"


@asynccontextmanager
async def started(models: Path, tmp_path: Path) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    settings = Settings(
        _env_file=None, data=tmp_path / "data", models=models, key=KEY, workers=1, logs="text", stability_share=0
    )
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            base_url="http://here",
            transport=httpx.ASGITransport(app),
            headers={"Authorization": f"Bearer {KEY}"},
        ) as client,
    ):
        yield app, client


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Keeps the engine, a stand-in that loads whatever it is given, from loading the second version."""
    opened = asyncio.Event()

    async def load(_: LocalEngine, version: VersionRef, source: Source, *__: Any, **___: Any) -> Loaded:
        if version.version == "2":
            await opened.wait()
        return Loaded(read_manifest(source.folder)[1], {}, Calibration(ChunkShapes(1, 1)), TRAITS, 0.0)

    async def nothing(_: LocalEngine) -> None:
        pass

    monkeypatch.setattr(LocalEngine, "load", load)
    monkeypatch.setattr(LocalEngine, "start", nothing)
    monkeypatch.setattr(LocalEngine, "stats", lambda _: Stats({}, True, 1, 0, {}))
    return opened


def write(models: Path, version: str) -> Path:
    shutil.copytree(LOAN, models / "loan" / version)
    path = models / "loan" / version / "manifest.yaml"
    path.write_text(path.read_text().replace('version: "1"', f'version: "{version}"', 1))
    return path


async def test_it_answers_while_models_are_loaded(gate: asyncio.Event, tmp_path: Path, instance: Any) -> None:
    models = tmp_path / "models"
    for version in ("1", "2"):
        write(models, version)
    async with started(models, tmp_path) as (app, client):
        assert (await client.get("/v2/health/live")).status_code == 200
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (waiting := (await client.get("/v2/health/ready")).json())["loading"] != ["loan@2"]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert waiting == {"ready": False, "loading": ["loan@2"]}
        asked = await client.post("/v1/models/loan/versions/1:explain", json={"instances": [instance]})
        assert (asked.status_code, asked.json()["title"]) == (503, "Model not ready")
        assert "being loaded" in asked.json()["detail"]
        assert (await client.get("/v2/models/loan/versions/1/ready")).status_code == 503
        gate.set()
        await app.state.services.loading
        ready = await client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"ready": True})
        one = await client.get("/v2/models/loan/versions/2/ready")
        assert (one.status_code, one.json()) == (200, {"name": "loan", "version": "2", "ready": True})


async def test_closing_while_it_loads_ends_that(gate: asyncio.Event, tmp_path: Path) -> None:
    write(tmp_path / "models", "2")
    async with started(tmp_path / "models", tmp_path) as (app, _):
        assert not app.state.services.loading.done()

    assert app.state.services.loading.cancelled()
    assert not gate.is_set()


BROKEN = {
    "empty": "",
    "cut": "name: [",
    "lacking": "name: loan\n",
    "list": "- 1\n",
    "circle": "a: &a [x, x]\nb: *a\n",
    "folder": None,
}
"""What manifest.yaml of a broken model holds; None where it is a folder."""


async def test_a_broken_version_is_named_and_keeps_no_other_from_serving(gate: asyncio.Event, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models, "1")
    for name, content in BROKEN.items():
        manifest = models / name / "7" / "manifest.yaml"
        manifest.parent.mkdir(parents=True)
        if content is None:
            manifest.mkdir()
        else:
            manifest.write_text(content)
    gate.set()
    async with started(models, tmp_path) as (app, client):
        await app.state.services.loading
        ready = await client.get("/v2/health/ready")
        failed = [f"{name}@7" for name in sorted(BROKEN)]
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "failed": failed})
        assert (await client.get("/v2/models/loan/versions/1/ready")).status_code == 200
        index = (await client.post("/v2/repository/index")).json()
        for name in BROKEN:
            for path in (f"/v2/models/{name}/ready", f"/v2/models/{name}/versions/7/ready"):
                assert (await client.get(path)).status_code == 503
            (one,) = [state for state in index if state["name"] == name]
            assert one["state"] == "UNAVAILABLE"
            assert one["reason"].startswith(f"{name}/7/manifest.yaml: ")
            assert str(tmp_path) not in one["reason"]
            assert "http" not in one["reason"]

        for name in BROKEN:
            shutil.rmtree(models / name)
            assert (await client.post(f"/v2/repository/models/{name}/load")).status_code == 404
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}


async def test_what_cannot_be_looked_into_is_named(gate: asyncio.Event, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models, "1")
    (models / "README.md").write_text("no model\n")
    (models / "endless").symlink_to("endless")
    (models / "loan" / "3").symlink_to("3")
    (models / "unbuilt" / "1").mkdir(parents=True)
    gate.set()
    async with started(models, tmp_path) as (app, client):
        await app.state.services.loading
        assert (await client.get("/v2/health/ready")).json() == {"ready": True, "failed": ["endless@*", "loan@3"]}
        index = (await client.post("/v2/repository/index")).json()
        reasons = {(one["name"], one["version"]): one["reason"] for one in index}
        assert reasons["endless", "*"] == "endless/*/manifest.yaml: Too many levels of symbolic links"


async def test_no_model_at_all_is_not_ready(gate: asyncio.Event, tmp_path: Path) -> None:
    gate.set()
    async with started(tmp_path / "models", tmp_path) as (app, client):
        await app.state.services.loading
        ready = await client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})
