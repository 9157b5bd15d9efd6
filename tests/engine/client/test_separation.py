"""A version whose chunks take long has a worker of its own, for which nobody else waits."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from service.domain import ChunkShapes, Explanation, Plan, Priority
from service.engine.client import separation
from service.engine.client.pool import Pool
from service.engine.client.separation import SeparatingPool
from service.engine.worker import device
from service.engine.worker.device import DeviceModel
from service.errors import CatalogError, WorkerLost
from tests.conftest import MODELS

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.conftest import MakePlan

LOAN = MODELS / "loan" / "1"
SHAPES = ChunkShapes(128, 512)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[SeparatingPool]:
    """One worker that all share, with the loan model."""
    started = SeparatingPool(1, 10**9)
    await started.start()
    await started.load(LOAN, {}, SHAPES)
    yield started
    await started.close()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of another version, of which every chunk counts as one that takes long."""
    folder = tmp_path / "loan" / "2"
    shutil.copytree(LOAN, folder)
    path = folder / "manifest.yaml"
    path.write_text(path.read_text().replace('version: "1"', 'version: "2"', 1))
    monkeypatch.setattr(separation, "MOST_SHARED_SECONDS", 0.0)
    return folder


async def explained(engine: SeparatingPool, plan: Plan, folder: Path = LOAN) -> Explanation:
    explanation, _ = await engine.explain(folder, plan, 64, Priority.INTERACTIVE, None)
    return explanation


async def test_others_do_not_wait_for_a_chunk_that_takes_long(
    engine: SeparatingPool, slow: Path, make_plan: MakePlan, alone: Callable[..., Explanation], until: Until
) -> None:
    loaded = await engine.load(slow, {}, SHAPES)
    (own,) = engine._own.values()
    (shared,), (worker,) = engine._workers.values(), own._workers.values()
    assert (shared.folders, worker.folders) == ({LOAN}, {slow})
    assert (shared.index, worker.index) == (0, 1)
    assert loaded.chunk_seconds > 0
    plan = replace(make_plan(1), model=loaded.key)

    os.kill(worker.process.pid, signal.SIGSTOP)  # a chunk without an end
    waiting = asyncio.create_task(explained(engine, plan, slow))
    for number in range(20):
        assert (await explained(engine, make_plan(number))).converged
    assert not waiting.done()
    assert engine.most_queued_points == 64
    os.kill(worker.process.pid, signal.SIGCONT)
    assert (await waiting).attributions == alone(make_plan(1)).attributions

    worker.process.kill()
    await until(lambda: not engine.is_complete)
    assert (await explained(engine, plan, slow)).converged
    await until(lambda: engine.is_complete)
    assert engine.ready_workers == 2
    await until(lambda: engine.device_memory.keys() == {0, 1})

    await engine.load(slow, {}, SHAPES)  # once more, so that it is to be unloaded twice
    (process,) = (one.process for one in own._workers.values())
    engine.unload(slow)
    assert (await explained(engine, plan, slow)).converged
    engine.unload(slow)
    await until(lambda: process.returncode is not None)
    assert engine.is_complete
    assert engine.ready_workers == 1
    with pytest.raises(WorkerLost):
        await explained(engine, plan, slow)


async def test_a_worker_of_its_own_that_does_not_come_up_is_a_version_that_is_not_loaded(
    engine: SeparatingPool, slow: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(_: Pool) -> None:
        raise WorkerLost("a worker process ended before it was ready")

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "start", lost)
        with pytest.raises(CatalogError, match="no worker of its own"):
            await engine.load(slow, {}, SHAPES)

    (shared,) = engine._workers.values()
    assert shared.folders == {LOAN}
    assert engine.is_complete
    assert (await explained(engine, make_plan(0))).converged


async def test_versions_that_are_quick_share_a_worker(engine: SeparatingPool, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LOAN, tmp_path / "loan" / "1"))
    loaded = await engine.load(folder, {}, SHAPES)

    assert 0 < loaded.chunk_seconds < separation.MOST_SHARED_SECONDS
    assert not engine._own
    engine.unload(folder)


async def test_how_long_a_chunk_takes_is_the_longer_of_gradients_and_the_artefact(device_model: DeviceModel) -> None:
    ends = device_model.low, device_model.high
    for times in ([0.0, 1.0, 4.0], [0.0, 3.0, 4.0]):
        clock = iter(times).__next__
        assert device.chunk_seconds(device_model.kernels, ends, clock) == 3.0
