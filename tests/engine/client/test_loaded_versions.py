"""What workers load, in which order, and what a worker that comes later is given; these load nothing in earnest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.domain import ChunkShapes, VersionRef
from service.engine.client import loaded_versions
from service.engine.client.worker_group import WorkerGroup
from service.engine.messages import Attach, Detach, Load, Reply, Request, SetAttached, Unload
from service.engine.protocol import Loaded
from service.errors import CatalogError
from tests.engine.client.conftest import SOURCE
from tests.engine.client.scripted import ScriptedWorker, a_version, loaded, obedient, without

if TYPE_CHECKING:
    from tests.conftest import Until
    from tests.engine.client.conftest import MakeGroup
    from tests.engine.client.scripted import Script

SET = BaselineSet(name="mine", version="1", size=1, file="mine.safetensors", sha256="0" * 64)


async def load(group: WorkerGroup, version: VersionRef, *, beside: bool = False) -> Loaded:
    return await group.versions.load(version, SOURCE, {"known": {}}, Calibration(ChunkShapes(4, 8)), beside=beside)


def having(group: WorkerGroup) -> list[set[VersionRef]]:
    return [worker.versions for worker in group.supervisor.workers.values()]


async def test_what_the_first_worker_finds_the_others_are_given(make_group: MakeGroup, script: Script) -> None:
    group, version = await make_group(workers=2), a_version()
    assert await load(group, version) == loaded(version)

    first, second = (worker.asked(Load) for worker in sorted(script.workers, key=lambda worker: worker.number))
    assert first == [Load(0, version, SOURCE, {"known": {}}, Calibration(ChunkShapes(4, 8)))]
    assert second == [Load(0, version, SOURCE, loaded(version).baseline_outputs, loaded(version).calibration)]
    assert (group.versions.is_complete, group.versions.ready_workers, group.versions.is_empty) == (True, 2, False)


async def test_a_version_is_loaded_once_and_unloaded_as_often(
    make_group: MakeGroup, script: Script, until: Until
) -> None:
    group, version = await make_group(workers=2), a_version()
    first, second = await asyncio.gather(load(group, version), load(group, version))
    assert first is second
    group.versions.unload(version)
    assert having(group) == [{version}, {version}]
    group.versions.unload(version)
    group.versions.unload(version)  # nobody has it
    assert having(group) == [set(), set()]
    assert group.versions.is_empty
    await until(lambda: all(worker.asked(Unload) == [Unload(version)] for worker in script.workers))
    assert [len(worker.asked(Load)) for worker in script.workers] == [1, 1]


async def test_one_that_a_worker_cannot_load_is_on_none(make_group: MakeGroup, script: Script, until: Until) -> None:
    version, other = a_version(), a_version()
    script.by_number = {1: without(version)}
    group = await make_group(workers=2)
    await load(group, other)
    with pytest.raises(CatalogError, match="spoilt"):
        await load(group, version)

    assert having(group) == [{other}, {other}]
    (able,) = (worker for worker in script.workers if worker.number == 0)
    await until(lambda: able.asked(Unload) == [Unload(version)])
    assert group.versions.is_complete


@pytest.mark.parametrize("workers", [1, 2])
async def test_beside_those_that_serve_others_load_all_and_take_their_places(
    make_group: MakeGroup, script: Script, until: Until, workers: int
) -> None:
    group, old, new = await make_group(workers=workers), a_version(), a_version()
    await load(group, old)
    before = [*group.supervisor.workers.values()]
    assert await load(group, new, beside=True) == loaded(new)

    assert having(group) == [{old, new}] * workers
    assert not {*before} & {*group.supervisor.workers.values()}
    assert [worker.asked(Load)[0].version for worker in script.workers[workers:]] == [new] * workers
    await until(lambda: [worker.returncode for worker in script.workers[:workers]] == [0] * workers)
    assert [*group.supervisor.workers] == [*group.supervisor.numbers]


async def test_one_that_cannot_be_loaded_beside_changes_nothing(
    make_group: MakeGroup, script: Script, until: Until
) -> None:
    group, old, new = await make_group(), a_version(), a_version()
    await load(group, old)
    (before,) = group.supervisor.workers.values()
    for answer, sentence in (
        (without(new), "spoilt"),
        (without(old), "could not load everything"),
        (None, "no second"),
    ):
        script.answers = [answer]
        with pytest.raises(CatalogError, match=sentence):
            await load(group, new, beside=True)
        assert [*group.supervisor.workers.values()] == [before]
        assert having(group) == [{old}]
        await until(lambda: script.workers[-1].returncode is not None)
    assert script.workers[0].returncode is None


async def test_one_that_takes_too_long_is_given_up(
    make_group: MakeGroup, script: Script, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_versions, "LOAD_SECONDS", 0.0)
    group, version = await make_group(), a_version()
    script.answers = [lambda _worker, _request: None]
    with pytest.raises(CatalogError, match="within 0 s"):
        await load(group, version, beside=True)
    await until(lambda: script.workers[1].returncode == 0)
    assert having(group) == [set()]


async def test_a_worker_that_comes_later_has_the_sets_before_it_is_asked_for_the_version(
    make_group: MakeGroup, script: Script, until: Until
) -> None:
    group, version = await make_group(), a_version()
    await load(group, version)
    await group.versions.attach(version, SET, None)
    assert group.versions.attached == {SET.digest}
    seen: list[bool] = []

    def looks(worker: ScriptedWorker, request: Request) -> Reply | None:
        if isinstance(request, Attach):
            seen.append(group.versions.is_complete)
        return obedient(worker, request)

    script.answers = [looks]
    script.workers[0].kill()
    await until(lambda: len(script.workers) == 2)
    await group.supervisor.settled()

    again = loaded(version)
    assert script.workers[1].requests == [
        Load(0, version, SOURCE, again.baseline_outputs, again.calibration),
        Attach(1, version, SET, {}),
    ]
    assert seen == [False]
    assert group.versions.is_complete


async def test_a_set_that_is_detached_while_a_worker_comes_is_not_on_that_one(
    make_group: MakeGroup, script: Script, until: Until
) -> None:
    group, version = await make_group(), a_version()
    await load(group, version)
    await group.versions.attach(version, SET, None)

    def waits(worker: ScriptedWorker, request: Request) -> Reply | None:
        return None if isinstance(request, Attach) else obedient(worker, request)

    script.answers = [waits]
    script.workers[0].kill()
    await until(lambda: len(script.workers) == 2 and bool(script.workers[1].asked(Attach)))
    group.versions.detach(SET.digest)
    (attach,) = script.workers[1].asked(Attach)
    script.workers[1].say(SetAttached(attach.task, {}))
    await until(lambda: group.versions.is_complete)

    await until(lambda: script.workers[1].requests[-1] == Detach(SET.digest))
    assert script.workers[1].requests.index(attach) < len(script.workers[1].requests) - 1
    assert group.versions.attached == set()


async def test_one_version_that_a_new_worker_cannot_load_keeps_no_other_from_it(
    make_group: MakeGroup, script: Script, until: Until
) -> None:
    group, spoilt, other = await make_group(), a_version(), a_version()
    await load(group, spoilt)
    await load(group, other)
    script.answers = [without(spoilt)]
    script.workers[0].kill()
    await until(lambda: len(script.workers) == 2)
    await group.supervisor.settled()

    assert having(group) == [{other}]
    assert (group.versions.is_complete, group.versions.ready_workers) == (False, 0)
    group.versions.unload(spoilt)
    assert group.versions.is_complete


async def test_what_cannot_be_attached(make_group: MakeGroup, script: Script) -> None:
    group = await make_group()
    with pytest.raises(CatalogError, match="not loaded"):
        await group.versions.attach(a_version(), SET, None)
    without_workers = await make_group(workers=0)
    with pytest.raises(CatalogError, match="no worker"):
        await load(without_workers, a_version())
