"""The engine with real worker processes: death and recovery, workers that hang, versions that are loaded beside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import torch
import yaml
from safetensors.numpy import load_file, save

from service.catalog.manifest import BaselineSet, read_manifest
from service.domain import BaselineChoice, ChunkShapes, Conditions, Explanation, Noise, NoiseKind, Plan
from service.engine.client import dispatcher, worker_supervisor
from service.engine.client.local_engine import LocalEngine
from service.engine.client.worker_processes import StartedWorker
from service.engine.protocol import Source
from service.engine.worker.device import put_on_device
from service.errors import CatalogError, DeadlineExceeded, InvalidRequest, ModelNotReady, WorkerLost
from tests.conftest import PATIENCE_SECONDS
from tests.engine.conftest import (
    CALIBRATION,
    LOAN,
    LOAN_REF,
    LocalEngineUnderTest,
    ref_of,
    source_of,
    start_local,
)
from tests.engine.spoiling import copy_of_loan, wrong_digest
from tests.forked import fork_worker

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.conftest import MakePlan

pytestmark = pytest.mark.asyncio(loop_scope="module")


def big(make_plan: MakePlan, number: int = 0) -> Plan:
    """Hundreds of thousands of points: seconds of work."""
    return make_plan(number, method="expected_gradients", tolerance=1e-9, max_evaluations=400_000)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """The folder of a second version, with the same network."""
    return copy_of_loan(tmp_path, "2")


async def test_a_deadline_holds_while_no_worker_answers(
    shared: LocalEngineUnderTest, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "DEADLINE_GRACE_SECONDS", 0.0)
    stopped = shared.worker.process.pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded):
            await shared.explain(make_plan(0), seconds_left=0.05)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert shared.engine.stats().queued_points == 0
    assert not shared.worker.tasks
    assert (await shared.explain(make_plan(0))).converged


async def test_a_killed_worker_is_replaced_and_everything_answered_but_what_was_cancelled_meanwhile(
    shared: LocalEngineUnderTest, make_plan: MakePlan, until: Until
) -> None:
    plans = [make_plan(number, method="expected_gradients") for number in range(16)]
    plans.append(make_plan(16, method="expected_gradients", tolerance=1e-9, max_evaluations=100_000))  # takes longest
    alone = [await shared.explain(plan) for plan in plans]
    first = shared.worker.process
    under_way = [asyncio.create_task(shared.explain(plan)) for plan in plans]
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    assert not all(task.done() for task in under_way)
    first.kill()
    await until(lambda: not shared.engine.stats().is_complete)
    meanwhile = [asyncio.create_task(shared.explain(plan)) for plan in plans[:8]]
    cancelled = asyncio.create_task(shared.explain(make_plan(0), 10_000))
    await until(lambda: shared.engine.stats().queued_points > 10_000)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert shared.engine.stats().queued_points < 10_000

    assert await asyncio.gather(*under_way) == alone
    assert await asyncio.gather(*meanwhile) == alone[:8]
    await until(lambda: shared.engine.stats().is_complete)
    assert shared.worker.process.pid != first.pid
    assert shared.restarts == ["died"]
    shared.restarts.clear()
    await until(lambda: first.returncode is not None)
    assert shared.engine.stats().queued_points == 0
    assert not shared.worker.tasks


async def test_a_worker_that_hangs_is_replaced_and_its_work_run_again_but_not_a_third_time(
    shared: LocalEngineUnderTest, make_plan: MakePlan, until: Until
) -> None:
    hanging = shared.worker.process
    os.kill(hanging.pid, signal.SIGSTOP)
    small, large = (asyncio.create_task(shared.explain(plan)) for plan in (make_plan(0), big(make_plan)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_supervisor, "SILENCE_SECONDS", 0.5)
        await until(lambda: hanging not in [worker.process for worker in shared.workers])
    assert (await small).converged
    assert shared.restarts == ["died"]

    second = shared.worker.process
    assert second.pid != hanging.pid
    assert not large.done()
    second.kill()
    with pytest.raises(WorkerLost):
        await large
    await until(lambda: shared.engine.stats().is_complete)
    assert shared.restarts == ["died", "died"]
    shared.restarts.clear()
    assert (await shared.explain(make_plan(0))).converged
    assert shared.engine.stats().queued_points == 0


async def test_a_worker_that_cannot_start_is_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    engine = LocalEngine(2, 1000)
    with pytest.raises(WorkerLost, match="before it was ready"):
        await engine.start()
    await engine.close()


async def test_a_version_whose_file_was_spoilt_does_not_keep_the_worker_from_coming_back(
    shared: LocalEngineUnderTest, make_plan: MakePlan, second: Path, until: Until
) -> None:
    ref = ref_of(second)
    loaded = await shared.engine.load(ref, source_of(second), {}, CALIBRATION)
    plan = make_plan(0)
    assert (await shared.explain(replace(plan, model=loaded.key), version=ref)).converged
    wrong_digest(second)
    first = shared.worker.process
    first.kill()
    await until(lambda: not shared.engine.stats().is_complete)

    assert (await shared.explain(plan)).converged
    assert not shared.engine.stats().is_complete
    with pytest.raises(ModelNotReady):
        await shared.explain(replace(plan, model=loaded.key), version=ref)
    shared.engine.unload(ref)
    assert shared.engine.stats().is_complete
    assert shared.restarts == ["died"]
    shared.restarts.clear()


async def test_a_version_is_loaded_beside_what_is_under_way(
    shared: LocalEngineUnderTest, make_plan: MakePlan, second: Path, until: Until
) -> None:
    before, ref, supervisor = shared.worker, ref_of(second), shared.engine.separation.shared.supervisor
    loading = asyncio.create_task(shared.engine.load(ref, source_of(second), {}, CALIBRATION, beside=True))
    await until(lambda: len(supervisor.all_workers) == 2)
    (loads,) = (worker.process.pid for worker in supervisor.all_workers if worker is not before)
    os.kill(loads, signal.SIGSTOP)  # however long it takes
    for _ in range(6):
        await asyncio.gather(*(shared.explain(make_plan(n, method="expected_gradients")) for n in range(8)))
    assert not loading.done()
    os.kill(loads, signal.SIGCONT)
    loaded = await loading
    assert shared.worker is not before
    assert (await shared.explain(replace(make_plan(0), model=loaded.key), version=ref)).converged
    assert (await shared.explain(make_plan(0))).converged
    assert await asyncio.to_thread(before.process.wait, PATIENCE_SECONDS) == 0
    assert shared.restarts == []
    assert shared.engine.stats().is_complete
    shared.engine.unload(ref)


async def test_a_worker_that_dies_while_another_is_loaded_beside_it(
    shared: LocalEngineUnderTest, make_plan: MakePlan, second: Path, until: Until
) -> None:
    ref, supervisor = ref_of(second), shared.engine.separation.shared.supervisor
    loading = asyncio.create_task(shared.engine.load(ref, source_of(second), {}, CALIBRATION, beside=True))
    await until(lambda: len(supervisor.all_workers) == 2)
    shared.worker.process.kill()
    waiting = asyncio.create_task(shared.explain(make_plan(0)))
    loaded = await loading

    assert (await waiting).converged
    assert (await shared.explain(replace(make_plan(0), model=loaded.key), version=ref)).converged
    await until(lambda: shared.engine.stats().is_complete)
    assert shared.worker.versions == {LOAN_REF, ref}
    assert shared.restarts == ["died"]
    shared.restarts.clear()
    shared.engine.unload(ref)


async def test_a_version_that_cannot_be_loaded_beside_changes_nothing(
    shared: LocalEngineUnderTest, make_plan: MakePlan, second: Path
) -> None:
    wrong_digest(second)
    worker = shared.worker
    with pytest.raises(CatalogError, match="sha256"):
        await shared.engine.load(ref_of(second), source_of(second), {}, beside=True)

    assert shared.worker is worker
    assert shared.engine.stats().is_complete
    assert (await shared.explain(make_plan(0))).converged


@pytest.fixture(scope="module")
def spawned() -> list[subprocess.Popen[bytes]]:
    """The processes that `pair` has started."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(spawned: list[subprocess.Popen[bytes]]) -> AsyncIterator[LocalEngineUnderTest]:
    """An engine of two workers for the three tests that follow, the last of which closes it."""

    def start(number: int) -> StartedWorker:
        started = fork_worker(number)
        spawned.append(started.process)
        return started

    started = await start_local(workers=2, start=start)
    yield started
    await started.engine.close()


async def test_two_manifests_of_one_artefact_are_two_versions_on_every_worker(
    pair: LocalEngineUnderTest, make_plan: MakePlan, alone: Callable[..., Explanation], tmp_path: Path
) -> None:
    folder = tmp_path / "loan" / "1"
    shutil.copytree(LOAN, folder)
    path = folder / "manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    for feature in manifest["inputs"]["features"]:
        feature["range"] = [feature["range"][0], 10 * feature["range"][1]]  # on which noise depends
    rows = save({"rows": load_file(LOAN / "heldout.safetensors")["rows"][:16]})
    (folder / "baselines" / "other.safetensors").write_bytes(rows)
    other = {"name": "other", "version": "1", "size": 16, "file": "baselines/other.safetensors"}
    manifest["baselines"].append({**other, "sha256": hashlib.sha256(rows).hexdigest()})
    path.write_text(yaml.safe_dump(manifest))
    ref = ref_of(folder)
    after = put_on_device(folder, torch.device("cpu"), {}, CALIBRATION)
    noisy = make_plan(0, noise=Noise(NoiseKind.SMOOTHGRAD, 4, 0.1), rule="midpoint")
    digest = "sha256:" + hashlib.sha256(rows).hexdigest()
    new_set = replace(make_plan(1), baseline=BaselineChoice("other", "1", digest, 16))
    await pair.engine.load(ref, source_of(folder), {}, CALIBRATION, beside=True)

    assert alone(noisy).attributions != pytest.approx(alone(noisy, after).attributions, rel=1e-2)
    # By turns on both workers, each of which has loaded the old files after the new ones.
    found = await asyncio.gather(*(pair.explain(noisy, version=ref if at % 4 < 2 else LOAN_REF) for at in range(8)))
    for at, explanation in enumerate(found):
        expected = alone(noisy, after) if at % 4 < 2 else alone(noisy)
        assert explanation.attributions == pytest.approx(expected.attributions, rel=1e-6)
    sets = await asyncio.gather(*(pair.explain(new_set, version=ref) for _ in range(4)))
    assert all(one.attributions == pytest.approx(alone(new_set, after).attributions, rel=1e-6) for one in sets)
    pair.engine.unload(ref)
    assert (await pair.explain(noisy)).attributions == pytest.approx(alone(noisy).attributions, rel=1e-6)


async def test_a_set_that_was_taken_is_on_no_worker_and_on_none_that_comes(
    pair: LocalEngineUnderTest, make_plan: MakePlan, alone: Callable[..., Explanation], tmp_path: Path, until: Until
) -> None:
    rows = save({"rows": load_file(LOAN / "heldout.safetensors")["rows"][:16]})
    sha256 = hashlib.sha256(rows).hexdigest()
    (tmp_path / "set.safetensors").write_bytes(rows)
    listed = BaselineSet(name="mine", version="1", size=16, file="set.safetensors", sha256=sha256)
    folder = copy_of_loan(tmp_path, "2")
    ref = ref_of(folder)
    loaded = await pair.engine.load(ref, Source(folder, tmp_path), {}, CALIBRATION)
    plan = replace(make_plan(1), model=loaded.key, baseline=BaselineChoice("mine", "1", listed.digest, 16))
    outputs = await pair.engine.attach(ref, listed, None)
    other_shapes = Conditions(ChunkShapes(64, 256), None)

    async def asked() -> list[Any]:
        calls = [pair.explain(plan, version=ref) for _ in range(4)]
        calls.append(pair.engine.repeat(ref, plan, 64, other_shapes))
        return await asyncio.gather(*calls, return_exceptions=True)

    async def one_is_replaced() -> None:
        worker = pair.workers[0]
        os.kill(worker.process.pid, signal.SIGKILL)
        await until(lambda: worker not in pair.workers)
        await until(lambda: pair.engine.stats().is_complete)

    before = await asked()
    assert all(isinstance(one, Explanation) for one in before)
    await one_is_replaced()
    assert await asked() == before
    pair.engine.detach(listed.digest)
    for found in await asked():
        assert isinstance(found, InvalidRequest)
        assert "mine@1" in str(found)
    await one_is_replaced()
    assert all(isinstance(one, InvalidRequest) for one in await asked())

    for baseline in read_manifest(LOAN)[0].baselines:  # the manifest's are not given, and not taken
        pair.engine.detach(baseline.digest)
    assert (await pair.explain(make_plan(0))).attributions == alone(make_plan(0)).attributions
    await pair.engine.attach(ref, listed, outputs)
    assert all(isinstance(one, Explanation) for one in await asked())
    pair.engine.detach(listed.digest)
    pair.engine.unload(ref)


async def test_closing_fails_what_is_in_flight_and_leaves_no_process_that_was_to_come(
    pair: LocalEngineUnderTest, spawned: list[subprocess.Popen[bytes]], make_plan: MakePlan, until: Until
) -> None:
    large = asyncio.create_task(pair.explain(big(make_plan)))
    await until(lambda: any(worker.tasks for worker in pair.workers))
    (busy,) = (worker.process for worker in pair.workers if worker.tasks)
    (idle,) = (worker.process for worker in pair.workers if not worker.tasks)
    before = len(spawned)
    idle.kill()
    await until(lambda: len(spawned) > before)
    await pair.engine.close()

    with pytest.raises(WorkerLost):
        await large
    with pytest.raises(WorkerLost):
        await pair.explain(make_plan(0))
    assert busy.returncode == 0
    assert [process.returncode is not None for process in spawned[before:]] == [True]
    assert all(process.returncode is not None for process in spawned)
