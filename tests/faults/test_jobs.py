"""A job goes on after its process was killed, and no row is explained twice."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.faults.conftest import Start

ROWS = 300
Until = Callable[[Callable[[], bool]], None]


def test_a_job_survives_kill_9(start: Start, until: Until, tmp_path: Path, body: dict[str, Any]) -> None:
    (example,) = body["instances"]
    asked = {
        "model": "loan",
        "version": "1",
        "instances": [{**example, "net_worth": float(number)} for number in range(ROWS)],
        "parameters": {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": 2048},
        "context": {"cohort": {"from": "job"}},
    }
    program = start("serve", key="secret")
    with ask(program.address) as client:
        job = client.post("/v1/jobs", json=asked).json()["id"]
        path = f"/v1/jobs/{job}"
        until(lambda: client.get(path).json()["progress"]["done"] >= ROWS // 4)
        program.end(signal.SIGKILL)
    before = recorded(tmp_path)
    assert ROWS // 4 <= len(before) < ROWS

    program = start("serve", key="secret")
    with ask(program.address) as client:
        until(lambda: client.get(path).json()["state"] == "done")
        done = client.get(path).json()
        anew = computed(client)

    assert done["progress"] == {"total": ROWS, "done": ROWS, "failed": 0}
    made = [result["explanation"] for result in done["results"]]
    assert len(made) == ROWS
    assert before < recorded(tmp_path) == set(made)
    assert anew == ROWS - len(before)  # not one that was recorded before


def ask(address: str) -> httpx.Client:
    return httpx.Client(
        base_url=address, headers={"Authorization": "Bearer secret"}, timeout=PATIENCE_SECONDS, trust_env=False
    )


def recorded(folder: Path) -> set[str]:
    """The ids of all explanations in the database."""
    with closing(sqlite3.connect(folder / "data" / "ledger.db")) as database:
        return {row[0] for row in database.execute("SELECT id FROM explanations")}


def computed(client: httpx.Client) -> int:
    """How many explanations this process has computed."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    counts = (s for family in families for s in family.samples if s.name == "answerable_points_per_explanation_count")
    return int(sum(sample.value for sample in counts))
