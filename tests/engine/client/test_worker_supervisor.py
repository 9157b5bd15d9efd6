"""Workers that are started, watched, replaced and ended; these compute nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from service.engine.client import worker_supervisor
from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.client.worker_supervisor import Events, WorkerSupervisor
from service.errors import CatalogError, WorkerLost
from service.processes.children import AwakeClock
from tests.engine.client.conftest import EXPLANATION, explain
from tests.engine.client.scripted import Script, a_version

if TYPE_CHECKING:
    from tests.conftest import Until


@dataclass(slots=True)
class Happened:
    """What the supervisor reported."""

    prepared: list[WorkerHandle] = field(default_factory=list)
    orphaned: list[Task] = field(default_factory=list)
    returned: int = 0
    restarts: list[str] = field(default_factory=list)

    @property
    def events(self) -> Events:
        async def prepare(worker: WorkerHandle) -> None:
            self.prepared.append(worker)

        def orphaned(tasks: Sequence[Task]) -> None:
            self.orphaned += tasks

        def returned() -> None:
            self.returned += 1

        return Events(prepare, orphaned, returned)


@pytest.fixture
def happened() -> Happened:
    return Happened()


@asynccontextmanager
async def started(
    script: Script, happened: Happened, workers: int = 1, **options: Any
) -> AsyncIterator[WorkerSupervisor]:
    supervisor = WorkerSupervisor(
        workers, happened.events, start=script.start, restarted=happened.restarts.append, **options
    )
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.close()


def task_of(number: int = 0) -> Task:
    return Task(explain(number, a_version()), 10, asyncio.get_running_loop().create_future())


async def test_workers_are_numbered_and_say_where_they_compute(
    script: Script, happened: Happened, until: Until
) -> None:
    async with started(script, happened, workers=2, first=3) as supervisor:
        assert [*supervisor.numbers] == [*supervisor.workers] == [3, 4]
        assert supervisor.environment["worker"] in ("3", "4")
        assert not supervisor.is_restarting
        await until(lambda: [worker.memory for worker in supervisor.workers.values()] == [1003, 1004])
    assert [worker.returncode for worker in script.workers] == [0, 0]
    await supervisor.close()


async def test_one_that_does_not_come_up_is_an_error_and_the_other_ends(script: Script, happened: Happened) -> None:
    script.answers = [None]
    with pytest.raises(WorkerLost, match="before it was ready"):
        async with started(script, happened, workers=2):
            pass
    assert all(worker.returncode is not None for worker in script.workers)


async def test_one_that_dies_is_replaced_by_one_that_is_prepared(
    script: Script, happened: Happened, until: Until
) -> None:
    async with started(script, happened) as supervisor:
        (before,) = supervisor.workers.values()
        task = task_of()
        before.give(task)
        script.workers[0].kill()
        await until(lambda: bool(happened.restarts))
        assert happened.orphaned == [task]
        await supervisor.settled()

        (after,) = supervisor.workers.values()
        assert after is not before
        assert happened.prepared == [after]
        assert (happened.returned, happened.restarts) == (1, ["died"])


async def test_it_is_tried_again_when_one_does_not_come_up_or_dies_while_it_is_prepared(
    script: Script, happened: Happened, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_supervisor, "RESTART_DELAYS", (0.0,))

    async def prepare(worker: WorkerHandle) -> None:
        happened.prepared.append(worker)
        if len(happened.prepared) == 1:
            script.workers[-1].kill()
            await until(lambda: worker.is_gone)
            raise CatalogError("the worker died")

    events = Events(prepare, happened.events.orphaned, happened.events.returned)
    supervisor = WorkerSupervisor(1, events, start=script.start, restarted=happened.restarts.append)
    await supervisor.start()
    script.answers = [None]
    script.workers[0].kill()
    await until(lambda: bool(happened.restarts))
    await supervisor.settled()

    assert len(script.workers) == 4  # the first, one that did not come up, one that died, and the last
    assert [*supervisor.workers.values()] == happened.prepared[1:]
    assert happened.restarts == ["died", "died"]
    await supervisor.close()


async def test_one_that_has_work_and_is_silent_is_ended_but_not_while_the_front_slept(
    script: Script, happened: Happened, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_supervisor, "SILENCE_SECONDS", 0.1)
    now = 0.0
    clock = AwakeClock(lambda: now)
    async with started(script, happened, clock=clock, longest_chunk=0.005) as supervisor:
        (worker,) = supervisor.workers.values()
        worker.give(task_of())
        now = 3600.0  # the machine slept
        await until(lambda: clock.now > 0)
        assert worker.silent_seconds == clock.now <= 2 * 0.1 / worker_supervisor.TICKS
        assert script.workers[0].returncode is None
        while script.workers[0].returncode is None:
            assert worker.silent_seconds <= 0.1 + 10 * 0.005 + 2 * 0.01
            before, now = clock.now, now + 0.01
            await until(lambda: clock.now > before)  # noqa: B023 - it is waited for here
        assert clock.now > 0.1 + 10 * 0.005
        await until(lambda: bool(happened.restarts))


async def test_a_second_worker_ends_unless_it_takes_the_firsts_place(
    script: Script, happened: Happened, until: Until
) -> None:
    async with started(script, happened) as supervisor:
        (first,) = supervisor.workers.values()
        async with supervisor.second(0) as worker:
            assert supervisor.all_workers == [first, worker]
        await until(lambda: script.workers[1].returncode == 0)
        assert supervisor.all_workers == [first]

        task = task_of()
        first.give(task)
        async with supervisor.second(0) as worker:
            supervisor.replace(worker)
        assert [*supervisor.workers.values()] == [worker]
        assert supervisor.all_workers == [worker, first]
        assert happened.returned == 1
        assert script.workers[0].returncode is None  # it computes
        await until(lambda: bool(script.workers[0].requests))
        script.workers[0].end(explain(0, a_version()), EXPLANATION)
        assert (await task.future).result == EXPLANATION
        await until(lambda: script.workers[0].returncode == 0)
        await until(lambda: supervisor.all_workers == [worker])
        assert happened.restarts == []


async def test_a_restart_can_be_given_up(
    script: Script, happened: Happened, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_supervisor, "RESTART_DELAYS", (600.0,))
    async with started(script, happened) as supervisor:
        script.workers[0].kill()
        await until(lambda: bool(happened.restarts))
        await supervisor.stop_restart(0)
        await supervisor.stop_restart(0)
        assert supervisor.workers == {}
        assert supervisor.is_restarting  # there is none

        monkeypatch.setattr(worker_supervisor, "RESTART_DELAYS", (0.0,))
        supervisor.revive(0)
        await supervisor.settled()
        assert len(supervisor.workers) == 1


async def test_whoever_closes_it_leaves_none_that_was_to_come(script: Script, happened: Happened, until: Until) -> None:
    async with started(script, happened):
        script.workers[0].kill()
        await until(lambda: len(script.workers) == 2)
    assert all(worker.returncode is not None for worker in script.workers)
