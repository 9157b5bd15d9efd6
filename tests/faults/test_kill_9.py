"""After kill -9 under load every answer has its record, the log is valid, and a job goes on, no row explained twice."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conftest import PATIENCE_SECONDS
from tests.faults.conftest import computed, wait_until_gone

if TYPE_CHECKING:
    import subprocess

    import httpx

    from tests.faults.conftest import Start, UnderLoad

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]

ROWS = 160
METHOD = "expected_gradients"
"""Of the job; everybody else asks for another."""
SECRET = "a key that the operator chose"


async def shown(client: httpx.AsyncClient, job: str, condition: Callable[[Any], bool]) -> Any:
    """What the service says of the job, once it fulfils the condition."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition(found := (await client.get(f"/v1/jobs/{job}")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


def recorded(folder: Path) -> list[str]:
    """The ids of all explanations by the job's method in the database."""
    with closing(sqlite3.connect(folder / "data" / "ledger.db")) as database:
        return [row[0] for row in database.execute("SELECT id FROM explanations WHERE method = ?", (METHOD,))]


def verified(run: RunCommand, folder: Path, signed: str = "last signed") -> int:
    """Has `answerable ledger verify` say that all is as it was recorded; gives the number of rows of the log."""
    done = run("ledger", "verify", "--data", str(folder / "data"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("\nVALID: all is as it was recorded\n")
    rows = re.search(rf"the log has (\d+) rows, {signed}", done.stdout)
    assert rows is not None, done.stdout
    return int(rows[1])


async def test_kill_9_of_the_front_under_load(
    start: Start,
    under_load: UnderLoad,
    run_command: RunCommand,
    run_here: RunCommand,
    tmp_path: Path,
    body: dict[str, Any],
) -> None:
    (example,) = body["instances"]
    asked = {
        "model": "loan",
        "version": "1",
        "instances": [{**example, "net_worth": float(number)} for number in range(ROWS)],
        "parameters": {"method": METHOD, "tolerance": 1e-9, "max_evaluations": 1024},
        "context": {"cohort": {"from": "job"}},
    }
    first = start("serve", key=SECRET)
    async with first.client(SECRET) as client, under_load(first, SECRET, clients=8) as load:
        await load.reaches(100)
        job = (await client.post("/v1/jobs", json=asked)).json()["id"]
        await shown(client, job, lambda found: found["progress"]["done"] >= ROWS // 8)
        children = first.children()
        first.process.kill()
    assert set(load.statuses) == {200}
    assert load.ids
    assert SECRET not in first.output + first.errors
    assert first.printed_key is None
    await wait_until_gone(children)
    before = recorded(tmp_path)
    assert ROWS // 8 <= len(before) < ROWS

    second = start("serve", key=SECRET)
    async with second.client(SECRET) as client:
        done = await shown(client, job, lambda found: found["state"] == "done")
        assert done["progress"] == {"total": ROWS, "done": ROWS, "failed": 0}
        made = [result["explanation"] for result in done["results"]]
        assert len(made) == ROWS
        assert set(before) < set(made)
        assert sorted(recorded(tmp_path)) == sorted(made)
        assert await computed(client) == ROWS - len(before)  # not one that was recorded before

        for identifier in load.ids:
            reply = await client.get(f"/v1/explanations/{identifier}")
            assert (reply.status_code, reply.json().get("id")) == (200, identifier)
        # The log goes on after its last record, and is valid while it does, whether or not it was time to sign it.
        async with under_load(second, SECRET, clients=2) as more:
            await more.reaches(20)
            assert await asyncio.to_thread(verified, run_command, tmp_path, "(?:last|never) signed") > len(load.ids)
        newest = (await client.get(f"/v1/explanations/{more.ids[-1]}")).json()["ledger"]["sequence"]
        assert newest > len(load.ids) + ROWS
    assert second.end(signal.SIGTERM) == 0
    assert verified(run_here, tmp_path) > newest
