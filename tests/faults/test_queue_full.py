"""The queue is full: what fits is answered, and exactly what does not is refused, at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.conftest import Start

POINTS = 65_536
CAPACITY, OVER = 4, 9


async def test_exactly_what_does_not_fit_is_refused(start: Start, body: dict[str, Any]) -> None:
    program = start("serve", key="secret", max_queued_points=str(CAPACITY * POINTS))
    (example,) = body["instances"]
    parameters = {"method": "expected_gradients", "tolerance": 1e-9, "max_evaluations": POINTS}
    async with program.client("secret") as client:

        async def ask(number: int) -> tuple[int, str | None, float]:
            asked = {"instances": [{**example, "net_worth": number}], "parameters": parameters}
            started = time.perf_counter()
            response = await client.post("/v1/models/loan/versions/1:explain", json=asked)
            return response.status_code, response.headers.get("retry-after"), time.perf_counter() - started

        answers = await asyncio.gather(*(ask(number) for number in range(CAPACITY + OVER)))
        refused = [answer for answer in answers if answer[0] == 429]
        answered = [answer for answer in answers if answer[0] == 200]
        afterwards = await ask(-1)

    assert (len(answered), len(refused)) == (CAPACITY, OVER)
    assert {retry_after for _, retry_after, _ in refused} == {"1"}
    # At once: before anything that was admitted is done, by far.
    assert max(seconds for *_, seconds in refused) < min(seconds for *_, seconds in answered) / 2
    assert afterwards[0] == 200
