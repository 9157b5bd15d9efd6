"""A version whose chunks take long has a worker of its own, for which nobody else waits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from service.domain import Explanation, Plan, VersionRef
from service.engine.client import separation
from service.engine.client.local_engine import LocalEngine
from service.engine.messages import Load, Reply, Request, VersionLoaded
from service.engine.worker import model_kernels
from service.engine.worker.device import DeviceModel
from service.errors import CatalogError, ModelNotReady
from tests.engine.client.conftest import SOURCE
from tests.engine.client.scripted import Script, ScriptedWorker, a_version, loaded, obedient, without
from tests.engine.conftest import CALIBRATION, LOAN, LOAN_REF, ref_of, source_of
from tests.engine.spoiling import copy_of_loan
from tests.forked import fork_worker

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.conftest import MakePlan

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[LocalEngine]:
    """One worker that all share, with the loan model."""
    started = LocalEngine(1, 10**9, start=fork_worker)
    await started.start()
    await started.load(LOAN_REF, source_of(LOAN), {}, CALIBRATION)
    yield started
    await started.close()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of another version, of which every chunk counts as one that takes long."""
    monkeypatch.setattr(separation, "MAX_SHARED_SECONDS", 0.0)
    return copy_of_loan(tmp_path, "2")


async def explained(engine: LocalEngine, plan: Plan, version: VersionRef = LOAN_REF) -> Explanation:
    explanation, _ = await engine.explain(version, plan, 64)
    return explanation


async def test_others_do_not_wait_for_a_chunk_that_takes_long(
    engine: LocalEngine, slow: Path, make_plan: MakePlan, alone: Callable[..., Explanation], until: Until
) -> None:
    ref = ref_of(slow)
    loaded = await engine.load(ref, source_of(slow), {}, CALIBRATION)
    shared_group, own = engine.separation.groups
    (shared,), (worker,) = shared_group.supervisor.workers.values(), own.supervisor.workers.values()
    assert (shared.versions, worker.versions) == ({LOAN_REF}, {ref})
    assert (shared.number, worker.number) == (0, 1)
    assert loaded.chunk_seconds > 0
    plan = replace(make_plan(1), model=loaded.key)

    os.kill(worker.process.pid, signal.SIGSTOP)  # a chunk without an end
    waiting = asyncio.create_task(explained(engine, plan, ref))
    for number in range(20):
        assert (await explained(engine, make_plan(number))).converged
    assert not waiting.done()
    assert engine.stats().queued_points == 64
    os.kill(worker.process.pid, signal.SIGCONT)
    assert (await waiting).attributions == alone(make_plan(1)).attributions

    worker.process.kill()
    await until(lambda: not engine.stats().is_complete)
    assert (await explained(engine, plan, ref)).converged
    await until(lambda: engine.stats().is_complete)
    assert engine.stats().ready_workers == 2
    await until(lambda: engine.stats().memory.keys() == {0, 1})

    await engine.load(ref, source_of(slow), {}, CALIBRATION)  # once more, so that it is to be unloaded twice
    (process,) = (one.process for one in own.supervisor.workers.values())
    engine.unload(ref)
    assert (await explained(engine, plan, ref)).converged
    engine.unload(ref)
    await until(lambda: process.returncode is not None)
    assert engine.stats().is_complete
    assert engine.stats().ready_workers == 1
    with pytest.raises(ModelNotReady):
        await explained(engine, plan, ref)


async def test_a_worker_of_its_own_that_does_not_come_up_is_a_version_that_is_not_loaded(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "MAX_SHARED_SECONDS", 0.5)
    quick, slow = a_version(), a_version()

    def answer(worker: ScriptedWorker, request: Request) -> Reply | None:
        if isinstance(request, Load):
            return VersionLoaded(request.task, loaded(request.version, 1.0 if request.version == slow else 0.5))
        return obedient(worker, request)

    script.answers = [answer, None, without(slow), answer, obedient]
    engine = LocalEngine(1, 10**9, start=script.start)
    await engine.start()
    await engine.load(quick, SOURCE, {})
    for sentence in ("no worker of its own", "spoilt"):
        with pytest.raises(CatalogError, match=sentence):
            await engine.load(slow, SOURCE, {})
        (group,) = engine.separation.groups
        assert [worker.versions for worker in group.supervisor.workers.values()] == [{quick}]
        assert engine.stats().is_complete
        assert script.workers[-1].returncode is not None

    assert (await engine.load(slow, SOURCE, {}, beside=True)).chunk_seconds == 1.0
    assert [worker.number for worker in script.workers] == [0, 1, 1, 0, 1]  # a second one loaded it, and it was slow
    await engine.close()
    assert all(worker.returncode is not None for worker in script.workers)


async def test_two_loads_of_one_version_share_its_worker(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separation, "MAX_SHARED_SECONDS", 0.5)
    slow = a_version()

    def answer(worker: ScriptedWorker, request: Request) -> Reply | None:
        if isinstance(request, Load):
            return VersionLoaded(request.task, loaded(request.version, 1.0))
        return obedient(worker, request)

    script.answers = [answer] * 4
    engine = LocalEngine(1, 10**9, start=script.start)
    await engine.start()
    await asyncio.gather(engine.load(slow, SOURCE, {}), engine.load(slow, SOURCE, {}))
    assert len(engine.separation.groups) == 2
    assert len(script.workers) == 2
    for count in (2, 1):  # it was loaded twice
        engine.unload(slow)
        assert len(engine.separation.groups) == count
    await engine.close()
    assert all(worker.returncode is not None for worker in script.workers)


async def test_versions_that_are_quick_share_a_worker(engine: LocalEngine, tmp_path: Path) -> None:
    folder = copy_of_loan(tmp_path)
    loaded = await engine.load(ref_of(folder), source_of(folder), {}, CALIBRATION)

    assert 0 < loaded.chunk_seconds < separation.MAX_SHARED_SECONDS
    assert engine.separation.groups == [engine.separation.shared]
    engine.unload(ref_of(folder))


async def test_how_long_a_chunk_takes_is_the_longer_of_gradients_and_the_artefact(device_model: DeviceModel) -> None:
    ends = device_model.low, device_model.high
    for times in ([0.0, 1.0, 4.0], [0.0, 3.0, 4.0]):
        clock = iter(times).__next__
        assert model_kernels.chunk_seconds(device_model.kernels, ends, clock) == 3.0
