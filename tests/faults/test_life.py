"""Starting, first and later, and stopping, in good order and not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import PATIENCE_SECONDS
from tests.faults.conftest import starting

if TYPE_CHECKING:
    import subprocess

    from tests.faults.conftest import Program, Start, UnderLoad

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]

WORKER, WRITER, REDIS = "service.engine.worker", "service.ledger.writer_process", "redis-server"
SECRET = "a key that the operator chose"


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def wait_until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(map(is_alive, pids)):  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.01)


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def explained(program: Program, key: str | None, body: dict[str, Any]) -> int:
    async with program.client(key) as client:
        return (await client.post("/v1/models/loan/versions/1:explain", json=body)).status_code


async def test_a_first_start_and_a_second_with_the_same_key_and_chunk_shapes(
    start: Start, body: dict[str, Any], tmp_path: Path
) -> None:
    first = start("serve")
    assert first.address.startswith("http://127.0.0.1:")
    key = first.printed_key
    assert key is not None
    assert first.output.count(key) == 1
    assert key not in first.errors
    assert await explained(first, key, body) == 200
    assert await explained(first, None, body) == 401
    read = {path: json.loads(path.read_text()) for path in (tmp_path / "data" / "calibrations").iterdir()}
    ((kept, found),) = [(path, content) for path, content in read.items() if content["model"] == "loan@1"]
    assert 4 <= found["rows"]["brief"] <= found["rows"]["long"]

    front, (worker,), (redis,) = mapped(first.pid), first.children(WORKER), first.children(REDIS)
    assert "libtorch" not in front
    assert "onnxruntime" not in front
    assert "libtorch" in mapped(worker)
    assert first.end(signal.SIGTERM) == 0
    assert not is_alive(worker)
    assert not is_alive(redis)

    kept.write_text(json.dumps({**found, "rows": {"brief": 16, "long": 48}}))
    second = start("serve")
    assert second.address
    assert second.printed_key is None
    async with second.client(key) as client:
        reply = (await client.post("/v1/models/loan/versions/1:explain", json=body)).json()
        record = (await client.get(f"/v1/explanations/{reply['explanations'][0]['id']}")).json()
    assert record["environment"]["chunk_rows"] == "16+48"
    children = second.children()
    assert len(children) == 3
    assert second.end(signal.SIGINT) == 0
    assert not any(map(is_alive, children))
    assert "Traceback" not in second.errors


def verified(run_command: RunCommand, folder: Path) -> int:
    """Has `answerable ledger verify` say that all is as it was recorded; gives the number of rows of the log."""
    done = run_command("ledger", "verify", "--data", str(folder / "data"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("\nVALID: all is as it was recorded\n")
    rows = re.search(r"the log has (\d+) rows, last signed", done.stdout)
    assert rows is not None
    return int(rows[1])


async def test_kill_9_of_the_front_under_load(
    start: Start, under_load: UnderLoad, run_command: RunCommand, tmp_path: Path
) -> None:
    first = start("serve", key=SECRET)
    assert first.address
    assert SECRET not in first.output + first.errors
    assert first.printed_key is None
    children = first.children()
    async with under_load(first, SECRET) as load:
        await load.reaches(200)
        first.process.kill()
    assert set(load.statuses) == {200}
    assert load.ids
    await wait_until_gone(children)

    second = start("serve", key=SECRET)
    async with second.client(SECRET) as client:
        for identifier in load.ids:
            reply = await client.get(f"/v1/explanations/{identifier}")
            assert (reply.status_code, reply.json().get("id")) == (200, identifier)
        # The log goes on after its last record, and is valid while it does.
        async with under_load(second, SECRET, clients=2) as more:
            await more.reaches(20)
            assert await asyncio.to_thread(verified, run_command, tmp_path) > len(load.ids)
        newest = (await client.get(f"/v1/explanations/{more.ids[-1]}")).json()["ledger"]["sequence"]
        assert newest > len(load.ids)
    assert second.end(signal.SIGTERM) == 0
    assert await asyncio.to_thread(verified, run_command, tmp_path) > newest


async def test_sigterm_under_load_answers_what_it_has_taken(start: Start, under_load: UnderLoad) -> None:
    program = start("serve", key=SECRET)
    assert program.address
    children = program.children()
    async with under_load(program, SECRET) as load:
        await load.reaches(100)
        code = await asyncio.to_thread(program.end, signal.SIGTERM)
    assert code == 0
    assert set(load.statuses) <= {200, 503}
    assert not any(map(is_alive, children))
    assert "Traceback" not in program.errors


async def test_what_outlasts_the_drain_is_answered_503(start: Start, under_load: UnderLoad) -> None:
    program = start("serve", key=SECRET, drain_seconds="0.2")
    assert program.address
    (worker,) = program.children(WORKER)
    os.kill(worker, signal.SIGSTOP)  # whatever is asked now takes too long
    try:
        async with under_load(program, SECRET, clients=4) as load:
            async with program.client(SECRET) as client, asyncio.timeout(PATIENCE_SECONDS):
                queued = "answerable_queue_points 0.0"
                while queued in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            program.process.send_signal(signal.SIGTERM)
            await load.reaches(4)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert load.statuses == [503] * 4
    assert await asyncio.to_thread(program.process.wait, PATIENCE_SECONDS) == 0
    assert not program.children()


async def test_sigterm_while_it_starts(start: Start) -> None:
    program = start("serve", key=SECRET)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not program.children(WORKER):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    children = program.children()
    code = await asyncio.to_thread(program.end, signal.SIGTERM)
    assert code == 0, program.errors
    await wait_until_gone(children)


async def test_a_port_that_is_taken(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = start("serve", "--port", str(taken.getsockname()[1]), key=SECRET)
        assert await asyncio.to_thread(program.process.wait, PATIENCE_SECONDS) != 0
    assert "address already in use" in program.errors
    assert not program.output


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, loan_only: Path) -> Iterator[Program]:
    """A service that outlasts what these tests do to it, one after the other, and then ends in good order."""
    with starting(tmp_path_factory.mktemp("lasting"), loan_only) as start:
        program = start("serve", key=SECRET)
        assert program.address
        yield program
        assert program.end(signal.SIGTERM) == 0


async def test_a_worker_killed_under_load(lasting: Program, under_load: UnderLoad) -> None:
    program = lasting
    (worker,) = program.children(WORKER)
    async with program.client(SECRET) as client:

        async def ready() -> bool:
            return (await client.get("/v2/health/ready")).status_code == 200

        assert await ready()
        async with under_load(program, SECRET) as load:
            await load.reaches(100)
            os.kill(worker, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await ready():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                while not await ready():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            await load.reaches(100)
        assert set(load.statuses) == {200}
        assert load.broken == 0
        assert 'answerable_worker_restarts_total{reason="died"} 1.0' in (await client.get("/metrics")).text
    assert program.children(WORKER) != [worker]


async def test_the_ledgers_writer_killed_under_load(lasting: Program, under_load: UnderLoad) -> None:
    program = lasting
    (writer,) = program.children(WRITER)
    async with program.client(SECRET) as client:
        async with under_load(program, SECRET) as load:
            await load.reaches(100)
            os.kill(writer, signal.SIGKILL)
            await load.reaches(300)
        assert set(load.statuses) == {200, 503}
        assert load.broken == 0
        assert load.statuses[-1] == 200
        for identifier in load.ids:
            assert (await client.get(f"/v1/explanations/{identifier}")).status_code == 200
    assert program.children(WRITER) != [writer]
    assert "the ledger's writer is gone" in program.errors


async def test_redis_hung_and_then_killed_under_load(lasting: Program, under_load: UnderLoad) -> None:
    program = lasting
    (redis,) = program.children(REDIS)
    async with under_load(program, SECRET) as load:
        await load.reaches(100)
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
            os.kill(redis, number)
            await load.reaches(200)
    assert set(load.statuses) == {200}
    assert load.broken == 0
