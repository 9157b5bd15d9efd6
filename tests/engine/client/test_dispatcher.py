"""Tasks: admitted by points, given to the worker with the least work, and computed once more where one dies."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from service.domain import VersionRef
from service.engine.client import dispatcher as dispatching
from service.engine.client.worker_group import WorkerGroup
from service.engine.messages import Cancel, Done, Explain, Failed, Predict, Progress
from service.errors import ComputationFailed, DeadlineExceeded, ModelNotReady, Overloaded, WorkerLost
from tests.engine.client.conftest import EXPLANATION, SOURCE, explain
from tests.engine.client.scripted import a_version, without

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.client.conftest import MakeGroup
    from tests.engine.client.scripted import Script

VERSION = a_version()


def asked(group: WorkerGroup, number: int, points: int = 10, version: VersionRef = VERSION) -> asyncio.Task[Done]:
    """A request to explain, of that number, once it is dispatched."""
    return asyncio.create_task(group.dispatcher.submit(explain(number, version), points))


def held(group: WorkerGroup) -> list[list[int]]:
    """The numbers of the requests that each worker computes."""
    return [[*worker.tasks] for worker in group.supervisor.workers.values()]


async def load(group: WorkerGroup, version: VersionRef = VERSION) -> None:
    await group.versions.load(version, SOURCE, {}, None, beside=False)


async def test_the_worker_with_the_least_work_gets_the_next(make_group: MakeGroup, script: Script) -> None:
    group = await make_group(workers=2)
    await load(group)
    tasks = [asked(group, number, points) for number, points in enumerate([50, 10, 30, 20, 5])]
    await asyncio.sleep(0)

    assert held(group) == [[0, 4], [1, 2, 3]] or held(group) == [[0], [1, 2, 3, 4]]
    assert [worker.points for worker in group.supervisor.workers.values()] == [55, 60]
    assert group.dispatcher.queued_points == 115
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (held(group), group.dispatcher.queued_points) == ([[], []], 0)


async def test_only_a_worker_that_has_the_version_gets_it(make_group: MakeGroup, script: Script, until: Until) -> None:
    spoilt = a_version()
    group = await make_group(workers=2)
    await load(group)
    await load(group, spoilt)
    script.answers = [without(spoilt)]
    script.workers[0].kill()
    await until(lambda: not group.versions.is_complete)
    await group.supervisor.settled()
    tasks = [asked(group, number, version=spoilt) for number in range(3)]
    await asyncio.sleep(0)
    lacking = next(worker for worker in group.supervisor.workers.values() if spoilt not in worker.versions)
    assert not lacking.tasks
    assert sorted(map(len, held(group))) == [0, 3]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with pytest.raises(ModelNotReady):
        await asked(group, 9, version=a_version())


async def test_what_it_answers_and_what_it_fails_with(make_group: MakeGroup, script: Script, until: Until) -> None:
    group = await make_group()
    await load(group)
    (worker,) = script.workers
    done = await group.dispatcher.submit(Predict(0, VERSION, (0.0,), None), 1)
    assert done.task == 0
    good, bad = asked(group, 1), asked(group, 2)
    await until(lambda: len(worker.asked(Explain)) == 2)
    worker.say(Progress([Failed(2, ComputationFailed("the model failed"))], []))
    worker.end(explain(1, VERSION), EXPLANATION)
    assert (await good).result == EXPLANATION
    with pytest.raises(ComputationFailed):
        await bad
    assert worker.asked(Cancel) == []
    assert group.dispatcher.queued_points == 0


async def test_admission_by_points(make_group: MakeGroup) -> None:
    group = await make_group(max_queued_points=100)
    await load(group)
    first = asked(group, 0, points=300)  # over the limit, but nothing else is there
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await asked(group, 1, points=1)
    first.cancel()
    await asyncio.wait([first])
    tasks = [asked(group, number, points=50) for number in (2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await asked(group, 4, points=1)
    assert held(group) == [[2, 3]]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_what_is_cancelled_or_late_is_taken_from_its_worker(
    make_group: MakeGroup, script: Script, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "DEADLINE_GRACE_SECONDS", 0.0)
    group = await make_group()
    await load(group)
    cancelled = asked(group, 0)
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(DeadlineExceeded):
        await group.dispatcher.submit(explain(1, VERSION, deadline=time.monotonic() - 1), 10)
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await until(lambda: script.workers[0].asked(Cancel) == [Cancel(0), Cancel(1)])
    assert (held(group), group.dispatcher.queued_points) == ([[]], 0)


async def test_what_a_dead_worker_held_is_computed_by_another_but_not_a_third_time(
    make_group: MakeGroup, script: Script, until: Until
) -> None:
    group = await make_group()
    await load(group)
    task = asked(group, 0)
    await until(lambda: bool(script.workers[0].asked(Explain)))
    script.workers[0].kill()
    await until(lambda: len(script.workers) == 2 and bool(script.workers[1].asked(Explain)))
    assert not task.done()
    script.workers[1].kill()
    with pytest.raises(WorkerLost, match="died twice"):
        await task
    assert group.dispatcher.queued_points == 0


async def test_what_is_asked_while_no_worker_is_there_waits(
    make_group: MakeGroup, script: Script, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = await make_group()
    await load(group)
    await group.supervisor.stop_restart(0)
    gate = asyncio.Event()
    load_all = group.versions.load_all

    async def held_back(worker: object) -> None:
        await gate.wait()
        await load_all(worker)  # type: ignore[arg-type]

    monkeypatch.setattr(group.versions, "load_all", held_back)
    script.workers[0].kill()
    await until(lambda: not group.versions.is_complete)
    cancelled, kept = asked(group, 0), asked(group, 1)
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert group.dispatcher.queued_points == 10
    gate.set()
    await until(lambda: bool(script.workers[-1].asked(Explain)))
    assert [request.task for request in script.workers[-1].asked(Explain)] == [1]
    script.workers[-1].end(explain(1, VERSION), EXPLANATION)
    assert (await kept).result == EXPLANATION


async def test_stopping_fails_what_is_in_flight_and_whatever_is_asked_later(make_group: MakeGroup) -> None:
    group = await make_group()
    await load(group)
    task = asked(group, 0)
    await asyncio.sleep(0)
    group.dispatcher.stop()
    for one in (task, asked(group, 1)):
        with pytest.raises(WorkerLost, match="stopping"):
            await one
    assert group.dispatcher.queued_points == 0
