"""What a running service outlasts: more than its queue holds, and the death of every process beside the front."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import PATIENCE_SECONDS
from tests.faults.conftest import REDIS, WORKER, WRITER, computed, p99_of, starting

if TYPE_CHECKING:
    import httpx

    from tests.faults.conftest import Load, Measure, Program, UnderLoad

SECRET = "a key that the operator chose"
POINTS = 16_384
CAPACITY, OVER = 4, 9
JOB_ROWS = 400


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, loan_only: Path) -> Iterator[Program]:
    """The one service that all of this is done to, one after the other, and which then ends in good order."""
    with starting(tmp_path_factory.mktemp("outlasting"), loan_only) as start:
        program = start("serve", key=SECRET, max_queued_points=str(CAPACITY * POINTS))
        assert program.address
        yield program
        assert program.end(signal.SIGTERM) == 0


async def test_of_what_fills_the_queue_exactly_what_does_not_fit_is_refused_at_once(
    program: Program, body: dict[str, Any], measure: Measure
) -> None:
    (example,) = body["instances"]
    parameters = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": POINTS}
    times = []
    async with program.client(SECRET) as client:

        async def ask(number: int) -> tuple[int, str | None]:
            asked = {"instances": [{**example, "net_worth": number}], "parameters": parameters}
            response = await client.post("/v1/models/loan/versions/1:explain", json=asked)
            if response.status_code == 429:
                times.append(1000 * response.elapsed.total_seconds())
            return response.status_code, response.headers.get("retry-after")

        asking = [asyncio.create_task(ask(number)) for number in range(CAPACITY + OVER)]
        (worker,) = program.children(WORKER)
        os.kill(worker, signal.SIGSTOP)  # so that nothing that was admitted is done before all refusals are there
        try:
            refused = [await answer for answer in itertools.islice(asyncio.as_completed(asking), OVER)]
        finally:
            os.kill(worker, signal.SIGCONT)
        answers = await asyncio.gather(*asking)
        afterwards = await ask(-1)

    assert refused == [(429, "1")] * OVER
    assert sorted(status for status, _ in answers) == [200] * CAPACITY + [429] * OVER
    assert afterwards == (200, None)
    measure("slowest refusal, ms", max(times), 50)


async def counted(client: httpx.AsyncClient) -> Counter[str]:
    """Every counter of the service, and how many points are in its queue; labels are summed over."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_count")) or sample.name == "answerable_queue_points":
                found[sample.name] += int(sample.value)
    return found


async def all_recorded(program: Program, load: Load) -> bool:
    """Whether every explanation that a client was given can be looked up."""
    async with program.client(SECRET) as client:
        found = [(await client.get(f"/v1/explanations/{identifier}")).status_code for identifier in load.ids]
    return bool(found) and set(found) == {200}


async def test_a_worker_killed_under_load(program: Program, under_load: UnderLoad, measure: Measure) -> None:
    (worker,) = program.children(WORKER)
    async with program.client(SECRET) as client:

        async def ready() -> bool:
            return (await client.get("/v2/health/ready")).status_code == 200

        assert await ready()
        before = await counted(client)
        async with under_load(program, SECRET) as load:
            await load.reaches(50)
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await ready():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                while not await ready():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            measure("s until the new worker serves", time.monotonic() - killed, 10)
            await load.reaches(50)
        assert set(load.statuses) == {200}
        assert load.broken == 0
        after = await counted(client)
    assert all(after[name] >= count for name, count in before.items())
    since = after - before
    assert since["answerable_worker_restarts_total"] == 1
    # What the dead worker had, and the next computed, is one explanation, and one answer.
    assert since["answerable_requests_total"] == len(load.statuses)
    assert since["answerable_points_per_explanation_count"] == len(load.ids)
    assert since["answerable_ledger_appends_total"] == len(load.ids)
    assert after["answerable_queue_points"] == 0
    assert program.children(WORKER) != [worker]


def limit_memory(pid: int) -> None:
    """Gives the process no more address space than it has."""
    held = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (held, resource.RLIM_INFINITY))


async def test_a_worker_whose_memory_ends(program: Program, body: dict[str, Any]) -> None:
    (worker,) = program.children(WORKER)
    (example,) = body["instances"]
    large = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": CAPACITY * POINTS}
    async with program.client(SECRET) as client:

        async def ask(number: int, **parameters: Any) -> httpx.Response:
            asked = {"instances": [{**example, "net_worth": number}], "parameters": parameters}
            return await client.post("/v1/models/loan/versions/1:explain", json=asked)

        assert (await ask(1000)).status_code == 200
        limit_memory(worker)
        refused = await ask(1001, **large)
        assert (refused.status_code, refused.json()["title"]) == (507, "Device out of memory")
        small = [await ask(number) for number in range(1002, 1010)]
        assert {response.status_code for response in small} == {200}
        assert program.children(WORKER) == [worker], program.errors
        resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await ask(1001, **large)).status_code == 200


async def test_the_ledgers_writer_killed_under_load(program: Program, under_load: UnderLoad) -> None:
    (writer,) = program.children(WRITER)
    async with program.client(SECRET) as client:
        earlier = await computed(client)
        async with under_load(program, SECRET) as load:
            await load.reaches(50)
            os.kill(writer, signal.SIGSTOP)  # so that it has something when it dies
            await computed(client)  # behind what it had recorded by then
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await computed(client) - earlier <= len(load.statuses):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            os.kill(writer, signal.SIGKILL)
            await load.meets(503)
            await load.meets(200)
            await load.reaches(50)
        assert set(load.statuses) == {200, 503}
        assert load.broken == 0
        assert load.statuses[-1] == 200
    assert await all_recorded(program, load)
    assert program.children(WRITER) != [writer]
    assert "the ledger's writer is gone" in program.errors


async def test_the_ledgers_writer_stopped_under_load(program: Program, under_load: UnderLoad) -> None:
    (writer,) = program.children(WRITER)
    async with program.client(SECRET) as client, under_load(program, SECRET) as load:
        await load.reaches(50)
        os.kill(writer, signal.SIGSTOP)
        try:
            await load.meets(503)
            assert (await client.get("/v2/health/ready")).json() == {"ready": False, "recording": False}
            begun = len(load.statuses)
            await load.reaches(100)
            assert set(load.statuses[begun:]) == {503}
            assert (await client.get("/v2/health/live")).status_code == 200
        finally:
            os.kill(writer, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await client.get("/v2/health/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await load.meets(200)
        await load.reaches(50)
    assert set(load.statuses) == {200, 503}
    assert load.broken == 0
    assert load.retry_after == {"2"}
    assert await all_recorded(program, load)
    assert program.children(WRITER) == [writer]


async def test_the_database_locked_by_another_process(program: Program, under_load: UnderLoad) -> None:
    folder = program.output_file.parent
    async with program.client(SECRET) as client, under_load(program, SECRET) as load:
        await load.reaches(20)
        with closing(sqlite3.connect(folder / "data" / "ledger.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            await load.meets(503)
            assert (await client.get("/v2/health/ready")).status_code == 503
            other.rollback()
        await load.meets(200)
    assert set(load.statuses) == {200, 503}
    assert load.broken == 0
    assert await all_recorded(program, load)


async def test_redis_hung_and_then_killed_under_load(program: Program, under_load: UnderLoad) -> None:
    (redis,) = program.children(REDIS)
    async with under_load(program, SECRET) as load:
        await load.reaches(50)
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
            os.kill(redis, number)
            await load.reaches(100)
    assert set(load.statuses) == {200}
    assert load.broken == 0


@pytest.mark.slow
async def test_small_requests_beside_a_job_of_large_rows(
    program: Program, body: dict[str, Any], measure: Measure, record_property: Callable[[str, object], None]
) -> None:
    """A job of rows that take the usual budget in full, which goes on as long as they are asked."""
    (example,) = body["instances"]
    large = {"method": "expected_gradients", "tolerance": 1e-12, "max_evaluations": 4096}
    rows = [{**example, "net_worth": 9000 + number} for number in range(JOB_ROWS)]
    numbers = itertools.count()
    async with program.client(SECRET) as client:

        async def ask() -> None:
            asked = {"instances": [{**example, "net_worth": 8000 + next(numbers) / 10}]}
            assert (await client.post("/v1/models/loan/versions/1:explain", json=asked)).status_code == 200

        async def chunks() -> tuple[float, float]:
            families = text_string_to_metric_families((await client.get("/metrics")).text)
            found = {s.name: s.value for f in families if "chunk_duration" in f.name for s in f.samples}
            return found["answerable_chunk_duration_seconds_sum"], found["answerable_chunk_duration_seconds_count"]

        await p99_of(ask, 20)
        idle = await p99_of(ask, 100)
        job = {"model": "loan", "version": "1", "instances": rows, "parameters": large}
        before, identifier = await chunks(), (await client.post("/v1/jobs", json=job)).json()["id"]
        while not (await client.get(f"/v1/jobs/{identifier}")).json()["progress"]["done"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        beside = await p99_of(ask, 100)
        state = (await client.get(f"/v1/jobs/{identifier}")).json()
        assert state["state"] == "running"
        assert (await client.delete(f"/v1/jobs/{identifier}")).status_code == 200
        seconds, count = (after - earlier for after, earlier in zip(await chunks(), before, strict=True))
    record_property("rows of the job done beside the small ones", f"{state['progress']['done']} of {JOB_ROWS}")
    assert state["progress"]["failed"] == 0
    measure("p99 beside the job, of twice the idle one and a chunk", beside / (2 * idle + seconds / count), 1)
