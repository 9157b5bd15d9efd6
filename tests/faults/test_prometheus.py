"""Prometheus watches the service under load: every panel has data, and every alert fires on its cause and clears.

The causes are real: rows that nobody applies with, tolerances that cannot be met, a stopped Redis, a checkpoint that
was changed, a killed worker, a locked database, a stopped worker, a stopped front. The times of the rules are
shortened; `promtool test rules` tests them as they are. `make health` loads the service for a whole minute first.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.conftest import MODELS, PATIENCE_SECONDS
from tests.faults.prometheus import Prometheus, prometheus

if TYPE_CHECKING:
    from tests.faults.conftest import Program, Start

KEY = "prometheus-scrapes-with-this"
COUNTER = re.compile(r"answerable_.+_(total|count|bucket|sum)")
EXPLAIN = "/v1/models/loan/versions/1:explain"
EXAMPLE = yaml.safe_load((MODELS / "loan" / "1" / "manifest.yaml").read_bytes())["example"]
DASHBOARDS = sorted((Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {"$job": "answerable", "$instance": ".+", "$model": ".+", "$__rate_interval": "20s"}
LOAD_SECONDS = float(os.environ.get("HEALTH_SECONDS", "0"))
CLIENTS = 4
UNREACHABLE = {"options": {"rule": "midpoint"}, "tolerance": 1e-9, "max_evaluations": 2}

Make = Callable[[], dict[str, Any]]


def usual() -> dict[str, Any]:
    """Somebody like those of the study, of whom there are many."""
    return {"instances": [{**EXAMPLE, "loan_amount": 50 + random.randrange(200_000) / 1000}]}


def odd() -> dict[str, Any]:
    """Somebody like nobody, explained to a tolerance that cannot be met."""
    instance = {**EXAMPLE, "credit_lines": 100, "dependents": 15, "loan_amount": 50 + random.randrange(200_000) / 1000}
    instance |= {"consumer_credit_grade": 2, "public_record": 0, "obligations_ratio": 33, "black": 0}
    return {"instances": [instance], "parameters": UNREACHABLE}


@dataclass(slots=True)
class Asked:
    """How often the service was asked."""

    requests: int = 0

    @asynccontextmanager
    async def on_and_on(self, program: Program, make: Make, pause: float = 0.2) -> AsyncIterator[None]:
        """Clients that ask, whatever is answered, with so many seconds in between: other tests run beside this."""
        is_over = False

        async def ask(client: httpx.AsyncClient) -> None:
            while not is_over:
                self.requests += 1
                await client.post(EXPLAIN, json=make())
                await asyncio.sleep(pause)

        async with program.client(KEY) as client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(ask(client))
            try:
                yield
            finally:
                is_over = True


async def until(condition: Callable[[], object], what: Callable[[], object] = str) -> None:
    """Waits for what Prometheus will find."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - it happens in other processes
                await asyncio.sleep(0.3)  # as long as from one scrape to the next
    except TimeoutError:
        pytest.fail(f"it did not happen in time: {what()}")


async def fire(watch: Prometheus, names: Iterable[str]) -> None:
    wanted = {f"Answerable{name}" for name in names}
    await until(lambda: wanted <= watch.firing, lambda: wanted - watch.firing)


async def clear(watch: Prometheus) -> None:
    await until(lambda: not watch.firing, lambda: watch.firing)


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def queries() -> dict[str, str]:
    """Every query of every panel, by where it is; but for those of texts, which none of the example models takes."""
    return {
        f"{path.stem}, {panel['title']}, {target['refId']}": filled(target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_bytes())["panels"]
        if panel["title"] != "Share of segments"  # held by tests/api/test_segments.py
        for target in panel.get("targets", [])
    }


def without_data(watch: Prometheus) -> list[str]:
    """The queries that no number is answered to."""
    return [name for name, query in queries().items() if all(map(math.isnan, watch.values(query)))]


def checkpoints(file: Path) -> list[tuple[int, bytes]]:
    """The size and body of every checkpoint, the last one first."""
    with closing(sqlite3.connect(file, timeout=PATIENCE_SECONDS)) as database:
        return database.execute("SELECT size, body FROM checkpoints ORDER BY size DESC").fetchall()


def is_signed(file: Path) -> bool:
    """Whether the last checkpoint is over all rows, so that no signature is under way that would come after it."""
    with closing(sqlite3.connect(file, timeout=PATIENCE_SECONDS)) as database:
        rows: list[tuple[int | None]] = database.execute(
            "SELECT max(seq) = (SELECT max(size) FROM checkpoints) FROM log"
        ).fetchall()
    return rows == [(1,)]


@contextmanager
def changed_checkpoint(file: Path) -> Iterator[None]:
    """The last checkpoint says another root meanwhile, as if the log had been changed since."""
    size, body = checkpoints(file)[0]
    with closing(sqlite3.connect(file, timeout=PATIENCE_SECONDS)) as database:
        other = json.dumps({**json.loads(body), "root": "00" * 32}).encode()
        for content in (other, body):
            with database:
                database.execute("UPDATE checkpoints SET body = ? WHERE size = ?", (content, size))
            if content is other:
                yield


@pytest.fixture
def program(start: Start, tmp_path: Path) -> Program:
    """The loan model's first version, every explanation of which is looked at under another baseline."""
    shutil.copytree(MODELS / "loan" / "1", tmp_path / "models" / "loan" / "1")
    return start("serve", "--models", str(tmp_path / "models"), key=KEY, stability_share="1", max_queued_points="20000")


@pytest.mark.timeout(600)
async def test_every_panel_has_data_and_every_alert_fires_and_clears(program: Program, tmp_path: Path) -> None:
    asked, ledger = Asked(), tmp_path / "data" / "ledger.db"
    with prometheus(tmp_path / "prometheus", program.address, KEY) as watch:
        await until(lambda: watch.is_up)
        async with asked.on_and_on(program, usual):
            await asyncio.sleep(LOAD_SECONDS)
            await until(lambda: not without_data(watch), lambda: without_data(watch))
            await until(lambda: checkpoints(ledger))
            await clear(watch)

        (redis,) = program.children("redis-server")
        os.kill(redis, signal.SIGSTOP)
        await until(lambda: is_signed(ledger))
        with changed_checkpoint(ledger):
            async with asked.on_and_on(program, odd, pause=0.1):
                causes = (
                    "NotConverged",
                    "CompletenessOverTolerance",
                    "AttributionDrift",
                    "CacheErrors",
                    "CheckpointOld",
                )
                await fire(watch, causes)
        os.kill(redis, signal.SIGCONT)

        async with asked.on_and_on(program, usual):
            (worker,) = program.children("engine.worker")
            os.kill(worker, signal.SIGKILL)
            await fire(watch, ["WorkersRestarting"])
            with closing(sqlite3.connect(ledger, isolation_level=None)) as database:
                database.execute("BEGIN EXCLUSIVE")
                await fire(watch, ["LedgerAppendFailures"])
            await clear(watch)

        (worker,) = program.children("engine.worker")
        os.kill(worker, signal.SIGSTOP)
        async with program.client(KEY) as client:
            body = {**usual(), "parameters": {"max_evaluations": 17_000}}
            asking = asyncio.create_task(client.post(EXPLAIN, json=body))
            await fire(watch, ["QueueNearLimit"])
            os.kill(worker, signal.SIGCONT)
            assert (await asking).status_code == 200
            asked.requests += 1
        os.kill(program.pid, signal.SIGSTOP)
        await fire(watch, ["Down"])
        os.kill(program.pid, signal.SIGCONT)
        await clear(watch)

        assert watch.values("sum(answerable_requests_total)") == [asked.requests]
        counters = [name for name in watch.ask("label/__name__/values") if COUNTER.fullmatch(name)]
        assert len(counters) > 30
        for name in counters:
            assert watch.values(f"max(resets({name}[1h]))") == [0], name
        memory, scrapes = "answerable_device_memory_bytes", 'up{job="answerable"} == 1'
        (told,), (scraped,) = (watch.values(f"sum(count_over_time(({each})[1h:100ms]))") for each in (memory, scrapes))
        assert told < scraped, "a dead worker's memory was told on"
    assert program.end(signal.SIGTERM) == 0
    log = [json.loads(line) for line in program.errors.splitlines()]
    requests = [line for line in log if line.get("event") == "request"]
    assert len(requests) == asked.requests
    assert {line["level"] for line in log if "message" in line} <= {"info", "warning", "error"}
    assert KEY not in program.errors
