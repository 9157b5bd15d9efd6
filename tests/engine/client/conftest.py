"""Plans and explanations for workers that compute nothing, and groups of such workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.domain import (
    BaselineChoice,
    Completeness,
    Explanation,
    ModelKey,
    OutputSpace,
    Plan,
    Priority,
    VersionRef,
)
from service.engine.client.worker_group import WorkerGroup
from service.engine.messages import Explain
from service.engine.protocol import Source
from tests.engine.client.scripted import Script

SOURCE = Source(Path("/nowhere"), Path("/nowhere"))
PLAN = Plan(
    ModelKey("model", "1", "sha256:artefact"),
    "integrated_gradients",
    (),
    (0.0,),
    None,
    OutputSpace.PROBABILITY,
    BaselineChoice("training", "1", "sha256:set", 1),
    0.01,
    64,
    0,
    None,
)
EXPLANATION = Explanation(
    outputs=(0.25, 0.75),
    target=1,
    output=0.75,
    baseline_output=0.5,
    attributions=(0.25,),
    shape=(1,),
    standard_error=None,
    completeness=Completeness.EXACT,
    completeness_error=0.0,
    attribution_error=0.0,
    converged=True,
    reason=None,
    evaluations=1,
    rule="exact",
    small_difference=False,
    chunk_rows="1+2",
)


def explain(task: int, version: VersionRef, deadline: float | None = None) -> Explain:
    """A request to explain."""
    return Explain(task, version, PLAN, Priority.INTERACTIVE, deadline)


MakeGroup = Callable[..., Awaitable[WorkerGroup]]


@pytest.fixture
def script() -> Script:
    """Which workers are started."""
    return Script()


@pytest_asyncio.fixture
async def make_group(script: Script) -> AsyncIterator[MakeGroup]:
    """Starts groups of scripted workers: `await make_group(workers=2, max_queued_points=10)`."""
    groups: list[WorkerGroup] = []

    async def make(workers: int = 1, max_queued_points: int = 10**9, **options: Any) -> WorkerGroup:
        groups.append(WorkerGroup(workers, max_queued_points, start=script.start, **options))
        await groups[-1].start()
        return groups[-1]

    yield make
    for group in groups:
        await group.close()
