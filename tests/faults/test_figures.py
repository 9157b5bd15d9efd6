"""The figures of a service whose worker is killed under load: they go on, and they count what happened."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from tests.faults.conftest import Start, UnderLoad

KEY = "figures-key"

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(client: httpx.AsyncClient) -> tuple[Figures, Figures]:
    """What only grows, and what does not."""
    families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    grown: Figures = {}
    gauges: Figures = {}
    for family in families:
        into = gauges if family.type == "gauge" else grown
        into |= {(sample.name, frozenset(sample.labels.items())): sample.value for sample in family.samples}
    return grown, gauges


async def test_no_counter_falls_when_a_worker_is_killed_and_all_that_was_answered_is_counted(
    start: Start, under_load: UnderLoad
) -> None:
    program = start("serve", key=KEY)
    memory = ("answerable_device_memory_bytes", frozenset({("device", "0")}))
    restarts = ("answerable_worker_restarts_total", frozenset({("reason", "died")}))
    async with program.client(KEY) as client:
        async with under_load(program, KEY) as load, asyncio.timeout(60):
            await load.reaches(50)
            before, gauges = await scraped(client)
            assert gauges[memory] > 50e6
            assert before[restarts] == 0
            (worker,) = program.children("engine.worker")
            os.kill(worker, signal.SIGKILL)
            was_without = is_back = False
            while not is_back:
                now, gauges = await scraped(client)
                for name, value in before.items():
                    assert now[name] >= value, name
                before = now
                was_without = was_without or memory not in gauges
                is_back = was_without and memory in gauges
            await load.reaches(50)
        after, _ = await scraped(client)

    assert after[restarts] == 1
    requests = {
        dict(labels)["outcome"]: n for (name, labels), n in after.items() if name == "answerable_requests_total"
    }
    answered = {"ok" if status == 200 else str(status) for status in load.statuses}
    assert {outcome: requests[outcome] for outcome in answered} == {
        outcome: sum(("ok" if status == 200 else str(status)) == outcome for status in load.statuses)
        for outcome in answered
    }
