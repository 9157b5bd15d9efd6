"""The queue is full: what fits is answered, and exactly what does not is refused, at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.conftest import Start

POINTS = 16_384
CAPACITY, OVER = 4, 9
WORKER = "service.engine.worker"


async def test_exactly_what_does_not_fit_is_refused(start: Start, body: dict[str, Any]) -> None:
    program = start("serve", key="secret", max_queued_points=str(CAPACITY * POINTS))
    (example,) = body["instances"]
    parameters = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": POINTS}
    async with program.client("secret") as client:

        async def ask(number: int) -> tuple[int, str | None]:
            asked = {"instances": [{**example, "net_worth": number}], "parameters": parameters}
            response = await client.post("/v1/models/loan/versions/1:explain", json=asked)
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
    assert sorted(answers) == [(200, None)] * CAPACITY + [(429, "1")] * OVER
    assert afterwards == (200, None)
