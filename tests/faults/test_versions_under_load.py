"""Versions loaded, reloaded and unloaded while clients ask: nobody meets an error, each answer is of one version."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from service.catalog.assessments import Assessment, keep_beside
from service.catalog.manifest import read_manifest
from tests.conftest import MODELS, PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.faults.conftest import Program, Start

SECRET = "a key that the operator chose"
CLIENTS = 12
THINKING_SECONDS = 0.5
"""After the answers: what is started beside the load needs its share of the machine."""
WORKER = "service.engine.worker.worker"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models with version 1 of the loan model, and the same network as version 2, both with a verdict."""
    models = tmp_path / "models"
    shutil.copytree(MODELS / "loan" / "1", models / "loan" / "1")
    make_version(models, "2", shift=0.0)
    give_verdict(models / "loan" / "2", models / "loan" / "1")
    return models


def make_version(models: Path, version: str, shift: float) -> str:
    """Version 1 with its last bias shifted, written over what is there of `version`; the digest of its artefact."""
    folder = models / "loan" / version
    shutil.copytree(MODELS / "loan" / "1", folder, dirs_exist_ok=True)
    (folder / "check.json").unlink()
    model, manifest = onnx.load(folder / "model.onnx"), yaml.safe_load((folder / "manifest.yaml").read_text())
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "bias_3")
    shifted = numpy_helper.to_array(bias) + np.array([shift, 0], dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(shifted, "bias_3"))
    model.doc_string = version
    onnx.save(model, folder / "model.onnx")
    manifest["version"] = version
    manifest["artefact"]["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return "sha256:" + str(manifest["artefact"]["sha256"])


def give_verdict(folder: Path, before: Path, *failed: str) -> None:
    """A check against the version in `before`, in which these failed."""
    _, key, manifest = read_manifest(folder)
    _, other, other_manifest = read_manifest(before)
    against = str(other), (other.digest, other_manifest)
    keep_beside(
        folder, Assessment(key.name, key.version, key.digest, manifest, against[0], failed, (), {}, None, against[1])
    )


@dataclass(slots=True)
class Traffic:
    """Who answered by the path that was asked: the request's number, and (version, digest). An error is an answer that
    is no 200 or adds up to something else."""

    answered: dict[str, list[tuple[int, tuple[str, str]]]] = field(default_factory=dict)
    asked: int = 0
    errors: list[str] = field(default_factory=list)
    is_over: bool = False

    async def from_now_on(self, path: str, answers: int = 20) -> set[tuple[str, str]]:
        """Who gives the next answers to a path, of those that were asked after now."""
        answered, now = self.answered[path], self.asked
        start = len(answered)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(found := [who for number, who in answered[start:] if number >= now]) < answers:
                assert not self.errors
                await asyncio.sleep(0.02)
        return set(found)


@asynccontextmanager
async def traffic(program: Program, *paths: str) -> AsyncIterator[Traffic]:
    """Clients who ask the paths in turn, all at once, again and again."""
    found = Traffic({path: [] for path in paths})
    example = yaml.safe_load((MODELS / "loan" / "1" / "manifest.yaml").read_text())["example"]

    async def ask(client: httpx.AsyncClient, path: str) -> None:
        asked, found.asked = found.asked, found.asked + 1
        instance = {**example, "loan_amount": 1 + asked % 9000 / 10}
        reply = await client.post(path, json={"instances": [instance], "parameters": {"deadline_ms": 120_000}})
        if reply.status_code == 200:
            (explanation,) = reply.json()["explanations"]
            change = explanation["output"] - explanation["baseline_output"]
            if sum(explanation["attributions"].values()) != pytest.approx(change, abs=0.01):
                found.errors.append(f"{path}: {explanation}")
            model = explanation["model"]
            found.answered[path].append((asked, (model["version"], model["digest"])))
        else:
            found.errors.append(f"{path}: {reply.text}")

    async def ask_on_and_on(client: httpx.AsyncClient) -> None:
        for first in itertools.count():
            if found.is_over:
                return
            async with asyncio.TaskGroup() as together:
                for number in range(CLIENTS):
                    together.create_task(ask(client, paths[(first + number) % len(paths)]))
            await asyncio.sleep(THINKING_SECONDS)

    async with program.client(SECRET) as client, asyncio.TaskGroup() as group:
        group.create_task(ask_on_and_on(client))
        try:
            yield found
        finally:
            found.is_over = True


@pytest.mark.slow  # one step after the other in `engine/client/test_local_engine.py` and `lifecycle/test_repository.py`
async def test_load_reload_and_unload_under_load(start: Start, models: Path) -> None:
    program = start("serve", "--models", str(models), key=SECRET)
    bare, first, second = (f"/v1/models/loan{path}:explain" for path in ("", "/versions/1", "/versions/2"))
    async with program.client(SECRET) as client:

        async def ask(action: str, version: str, status: int = 200) -> Any:
            path = f"/v2/repository/models/loan/{action}"
            reply = await client.post(path, json={"parameters": {"version": version}})
            assert reply.status_code == status, reply.text
            return reply.json()

        before = f"sha256:{read_manifest(models / 'loan' / '2')[0].artefact.sha256}"
        async with traffic(program, bare, first, second) as load:
            assert await load.from_now_on(bare) == {("2", before)}
            old = shutil.copytree(models / "loan" / "2", models.parent / "old" / "loan" / "2")
            reloaded = make_version(models, "2", shift=-4.0)  # on the disk only: nothing has changed for anybody
            (worker,) = program.children(WORKER)
            os.kill(worker, signal.SIGKILL)
            assert await load.from_now_on(second) == {("2", before)}

            give_verdict(models / "loan" / "2", old, "flips")
            assert await ask("load", "2") == [{"name": "loan", "version": "2", "state": "READY", "reason": ""}]
            assert await load.from_now_on(second) == {("2", reloaded)}
            assert await load.from_now_on(bare) == {("2", before)}  # the new one has a bad verdict

            third = make_version(models, "3", shift=2.0)
            give_verdict(models / "loan" / "3", old)
            whole = (models / "loan" / "3" / "model.onnx").read_bytes()
            (models / "loan" / "3" / "model.onnx").write_bytes(whole + b"!")
            assert (await ask("load", "3", 422))["detail"].startswith("loan@3: model.onnx has the sha256 ")
            (models / "loan" / "3" / "model.onnx").write_bytes(whole)
            await ask("load", "3")
            assert await load.from_now_on(bare) == {("3", third)}

            await ask("unload", "3")
            assert {version for version, _ in await load.from_now_on(bare)} <= {"1", "2"}
        assert load.errors == []
        assert {version for _, (version, _) in load.answered[first]} == {"1"}
        unloaded = {"name": "loan", "version": "3", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert (await client.post("/v2/repository/index")).json()[2] == unloaded
        assert (await client.get("/v2/health/ready")).status_code == 200
    assert program.end(signal.SIGTERM) == 0
    assert "Traceback" not in program.errors
    assert not program.children()


@pytest.mark.slow  # in `catalog/test_repository.py` with verdicts at once, in `test_commands.py` with a real check
@pytest.mark.timeout(600)  # a check gives way to everything else on the machine
async def test_a_bare_name_does_not_move_to_a_version_that_failed_its_check(start: Start, models: Path) -> None:
    make_version(models, "3", shift=-4.0)
    program = start("serve", "--models", str(models), key=SECRET)
    async with program.client(SECRET) as client:

        async def shown() -> Any:
            return (await client.get("/v1/models/loan")).json()

        while (check := (await shown())["versions"][2]["check"]) is None:  # noqa: ASYNC110 - by another process
            await asyncio.sleep(0.1)
        assert check["failed"] == ["flips"]
        assert (await shown())["newest"] == "2"
        instance = (await shown())["example"]
        explained = await client.post("/v1/models/loan/versions/3:explain", json={"instances": [instance]})
        assert explained.json()["explanations"][0]["model"]["version"] == "3"
    assert program.end(signal.SIGTERM) == 0

    again = start("serve", "--models", str(models), key=SECRET)  # the verdict was kept
    async with again.client(SECRET) as client:
        found = (await client.get("/v1/models/loan")).json()
    assert found["newest"] == "2"
    assert [one["check"]["passed"] for one in found["versions"]] == [True, True, False]
    assert again.end(signal.SIGTERM) == 0
