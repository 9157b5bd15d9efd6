"""One worker as the front sees it: what it answers goes to whoever asked."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from service.catalog.manifest import BaselineSet
from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.messages import Cancel, Detach, Failed, Load, Progress, Reply, Request, Unload
from service.engine.protocol import ChunkReport
from service.errors import CatalogError, ComputationFailed
from service.processes.children import AwakeClock
from tests.engine.client.conftest import EXPLANATION, SOURCE, explain
from tests.engine.client.scripted import ScriptedWorker, a_version, loaded, without

if TYPE_CHECKING:
    from tests.conftest import Until

SPOILT = a_version()
SET = BaselineSet(name="mine", version="1", size=1, file="mine.safetensors", sha256="0" * 64)


class Both:
    """A worker, the front's handle of it, and what that reported."""

    def __init__(self) -> None:
        self.worker = ScriptedWorker(0, without(SPOILT))
        self.chunks: list[ChunkReport] = []
        self.lost: list[WorkerHandle] = []
        self.now = 0.0
        self.clock = AwakeClock(lambda: self.now)
        process = cast("subprocess.Popen[bytes]", self.worker)
        self.handle = WorkerHandle(0, process, self.clock, self.chunks.append, self.lost.append)

    def task(self, number: int, points: int = 10) -> Task:
        task = Task(explain(number, a_version()), points, asyncio.get_running_loop().create_future())
        self.handle.give(task)
        return task

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.clock.tick(seconds)


@pytest_asyncio.fixture
async def both() -> AsyncIterator[Both]:
    both = Both()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: both.handle.connection, sock=both.worker.ours)
    assert await both.handle.ready == {"worker": "0"}
    yield both
    both.handle.connection.close()
    await asyncio.to_thread(both.worker.wait)


async def test_versions_and_sets(both: Both, until: Until) -> None:
    version = a_version()
    assert await both.handle.load(version, SOURCE, {}, None) == loaded(version)
    assert await both.handle.attach(version, SET, None) == {}
    with pytest.raises(CatalogError, match="spoilt"):
        await both.handle.load(SPOILT, SOURCE, {}, None)
    assert both.handle.versions == set()  # that is for whoever loads it to say
    both.handle.versions.add(version)
    both.handle.detach(SET.digest)
    both.handle.unload(version)
    assert both.handle.versions == set()
    await until(lambda: both.worker.requests[-2:] == [Detach(SET.digest), Unload(version)])


async def test_what_it_answers_goes_to_whoever_asked(both: Both, until: Until) -> None:
    first, second = both.task(1), both.task(2, points=5)
    assert (both.handle.points, [*both.handle.tasks]) == (15, [1, 2])
    report = ChunkReport("model@1", "gradient", 1, 2, 1, 0.5)
    failure = ComputationFailed("the model failed on this input")
    both.worker.say(Progress([Failed(2, failure), Failed(77, failure)], [report]))  # nobody asked for the last
    with pytest.raises(ComputationFailed):
        await second.future
    both.worker.end(explain(1, a_version()), EXPLANATION)
    assert (await first.future).result == EXPLANATION
    assert (both.handle.points, both.handle.tasks, both.chunks) == (0, {}, [report])


async def test_what_nobody_waits_for_is_cancelled_once(both: Both, until: Until) -> None:
    first, second = both.task(1), both.task(2)
    both.handle.cancel(first)
    both.handle.cancel(first)
    assert both.handle.points == 10
    both.worker.end(explain(2, a_version()), EXPLANATION)
    await second.future
    both.handle.cancel(second)
    last = Cancel(3)
    both.handle.connection.send(last)
    await until(lambda: last in both.worker.requests)
    assert both.worker.asked(Cancel) == [Cancel(1), last]


async def test_a_load_that_was_given_up_is_nobodys(both: Both, until: Until) -> None:
    version = a_version()
    loading = asyncio.create_task(both.handle.load(version, SOURCE, {}, None))
    await asyncio.sleep(0)
    loading.cancel()
    await asyncio.wait([loading])
    assert await both.handle.load(version, SOURCE, {}, None) == loaded(version)
    assert len(both.worker.asked(Load)) == 2


async def test_what_is_asked_of_one_that_dies_is_refused(both: Both) -> None:
    def dies(worker: ScriptedWorker, _: Request) -> Reply | None:
        worker.kill()
        return None

    both.worker.answer = dies
    task = both.task(1)
    with pytest.raises(CatalogError, match="died"):
        await both.handle.load(a_version(), SOURCE, {}, None)
    assert (both.handle.is_gone, both.lost) == (True, [both.handle])
    assert not task.future.done()  # it is for the dispatcher to say what becomes of it
    with pytest.raises(CatalogError, match="died"):
        await both.handle.attach(a_version(), SET, None)


async def test_it_is_silent_only_while_it_computes(both: Both, until: Until) -> None:
    both.sleep(5)
    assert both.handle.silent_seconds == 0
    both.sleep(5)
    both.task(1)
    assert both.handle.silent_seconds == 0
    both.sleep(3)
    assert both.handle.silent_seconds == 3
    both.worker.say(Progress([], [ChunkReport("model@1", "gradient", 1, 2, 1, 0.5)]))
    await until(lambda: bool(both.chunks))
    assert both.handle.silent_seconds == 0
    both.sleep(3)
    loading = asyncio.create_task(both.handle.load(a_version(), SOURCE, {}, None))
    await asyncio.sleep(0)
    assert both.handle.silent_seconds == 0
    await loading
    both.sleep(3)
    attaching = asyncio.create_task(both.handle.attach(a_version(), SET, None))
    await asyncio.sleep(0)
    assert both.handle.silent_seconds == 3  # only a load is beside what it computes
    await attaching


async def test_one_that_is_retired_ends_with_its_last_task(both: Both, until: Until) -> None:
    first, second = both.task(1), both.task(2)
    both.handle.retire()
    both.worker.end(explain(1, a_version()), EXPLANATION)
    await first.future
    assert both.worker.returncode is None
    both.handle.cancel(second)
    await until(lambda: both.worker.returncode == 0)
    await until(lambda: both.handle.is_gone)
