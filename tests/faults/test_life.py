"""Starting, first and later, and stopping, in good order and not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import PATIENCE_SECONDS, is_alive
from tests.faults.conftest import WORKER, wait_until_gone

if TYPE_CHECKING:
    from tests.faults.conftest import Program, Start, UnderLoad

SECRET = "a key that the operator chose"


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


async def explained(program: Program, key: str | None, body: dict[str, Any]) -> int:
    async with program.client(key) as client:
        return (await client.post("/v1/models/loan/versions/1:explain", json=body)).status_code


async def test_a_first_start_and_a_second_with_the_same_key_and_chunk_shapes(
    start: Start, under_load: UnderLoad, body: dict[str, Any], tmp_path: Path
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

    front, (worker,) = mapped(first.pid), first.children(WORKER)
    assert "libtorch" not in front
    assert "onnxruntime" not in front
    assert "libtorch" in mapped(worker)
    await sigterm_under_load_answers_what_was_taken(first, key, under_load)

    kept.write_text(json.dumps({**found, "rows": {"brief": 16, "long": 48}}))
    second = start("serve", drain_seconds="0.2")
    assert second.address
    assert second.printed_key is None
    async with second.client(key) as client:
        reply = (await client.post("/v1/models/loan/versions/1:explain", json=body)).json()
        record = (await client.get(f"/v1/explanations/{reply['explanations'][0]['id']}")).json()
    assert record["environment"]["chunk_rows"] == "16+48"
    assert len(second.children()) == 3
    await what_outlasts_the_drain_is_answered_503(second, key, under_load)


async def sigterm_under_load_answers_what_was_taken(program: Program, key: str, under_load: UnderLoad) -> None:
    children = program.children()
    async with under_load(program, key) as load:
        await load.reaches(50)
        code = await asyncio.to_thread(program.end, signal.SIGTERM)
    assert code == 0
    assert 200 in load.statuses
    assert set(load.statuses) <= {200, 503}
    assert not any(map(is_alive, children))
    assert "Traceback" not in program.errors


async def what_outlasts_the_drain_is_answered_503(program: Program, key: str, under_load: UnderLoad) -> None:
    (worker,), children = program.children(WORKER), program.children()
    os.kill(worker, signal.SIGSTOP)  # whatever is asked now takes too long
    try:
        async with under_load(program, key, clients=4) as load:
            async with program.client(key) as client, asyncio.timeout(PATIENCE_SECONDS):
                queued = "answerable_queue_points 0.0"
                while queued in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            program.process.send_signal(signal.SIGINT)
            await load.reaches(4)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert load.statuses == [503] * 4
    assert await asyncio.to_thread(program.process.wait, PATIENCE_SECONDS) == 0
    assert not any(map(is_alive, children))
    assert "Traceback" not in program.errors


async def test_sigterm_while_it_starts(start: Start) -> None:
    program = start("serve", key=SECRET)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not program.children(WORKER):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    children = program.children()
    assert not [child for child in children if SECRET in environment(child)]
    code = await asyncio.to_thread(program.end, signal.SIGTERM)
    assert code == 0, program.errors
    await wait_until_gone(children)


async def test_a_port_that_is_taken(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = start("serve", "--port", str(taken.getsockname()[1]), key=SECRET, logs="text")
        assert await asyncio.to_thread(program.process.wait, PATIENCE_SECONDS) == 1
    (line,) = program.errors.splitlines()
    assert "address already in use; choose others with ANSWERABLE_HOST and ANSWERABLE_PORT" in line
    assert not program.output
    assert not (tmp_path / "data").exists()  # with the key in it


@pytest.mark.slow  # by another command: `test_commands.py::test_a_command_whose_setting_is_wrong_ends_with_a_sentence`
def test_a_database_that_is_away_is_a_sentence(start: Start) -> None:
    program = start("serve", database_url="postgresql://us:hidden@127.0.0.1:1/ledger", logs="text", prot="1")
    assert program.process.wait(PATIENCE_SECONDS) == 1
    misspelt, line = program.errors.splitlines()
    assert misspelt == "ANSWERABLE_PROT is no setting and changes nothing; did you mean ANSWERABLE_PORT?"
    assert "the database 127.0.0.1:1 does not answer (" in line
    assert "hidden" not in line
    assert not program.output


async def test_workers_that_do_not_come_up_end_it_with_a_sentence(start: Start) -> None:
    program = start("serve", key=SECRET, logs="text")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (workers := program.children(WORKER)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert await asyncio.to_thread(program.process.wait, PATIENCE_SECONDS) == 1
    assert program.errors.splitlines()[-1].endswith("ended before it was ready; what it wrote before that says why")
    assert "Traceback" not in program.errors
