"""The engine with worker processes on this machine.

The front imports neither torch nor onnxruntime; it sends plans and receives explanations. A worker that dies is
replaced, and what it held is computed once more. Whatever kills a worker, even a model file, the front continues.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.catalog.baseline_outputs import Outputs
from service.catalog.calibrations import Calibration
from service.catalog.manifest import BaselineSet
from service.domain import (
    Conditions,
    Explanation,
    Plan,
    Prediction,
    Priority,
    Timings,
    VersionRef,
)
from service.engine.client.separation import Separation
from service.engine.client.worker_group import WorkerGroup
from service.engine.client.worker_processes import StartedWorker, start_worker
from service.engine.messages import Explain, Predict
from service.engine.protocol import BaselineOutputs, ChunkReport, Engine, Loaded, Source, Stats
from service.errors import CatalogError


class LocalEngine(Engine):
    """The groups of workers behind the protocol.

    `workers` processes share all versions but those whose chunks take long. `max_queued_points` bounds the points that
    are expected of what is in flight, in each group. `observe` is given every chunk that a worker computed, `restarted`
    the reason of every restart. `started` are processes that were started beforehand, the first for the first worker;
    `start` starts all others.
    """

    def __init__(
        self,
        workers: int,
        max_queued_points: int,
        observe: Callable[[ChunkReport], None] = lambda _: None,
        restarted: Callable[[str], None] = lambda _: None,
        started: Sequence[StartedWorker] = (),
        start: Callable[[int], StartedWorker] = start_worker,
    ) -> None:
        waiting = dict(enumerate(started))

        def start_or_take(number: int) -> StartedWorker:
            return waiting.pop(number, None) or start(number)

        group = partial(
            WorkerGroup,
            max_queued_points=max_queued_points,
            observe=observe,
            restarted=restarted,
            start=start_or_take,
        )
        self.separation = Separation(
            group(workers), lambda number, seconds: group(1, first=number, longest_chunk=seconds)
        )
        self._tasks = itertools.count()
        self._is_stopped = False

    async def start(self) -> None:
        """Starts the workers. Raises WorkerLost when one does not come up."""
        await self.separation.shared.start()

    async def explain(
        self,
        version: VersionRef,
        plan: Plan,
        expected_points: int,
        priority: Priority = Priority.INTERACTIVE,
        seconds_left: float | None = None,
    ) -> tuple[Explanation, Timings]:
        request = Explain(next(self._tasks), version, plan, priority, _deadline(seconds_left))
        return await self._explain(request, expected_points)

    async def repeat(
        self, version: VersionRef, plan: Plan, expected_points: int, conditions: Conditions
    ) -> Explanation:
        request = Explain(next(self._tasks), version, plan, Priority.INTERACTIVE, None, conditions)
        explanation, _ = await self._explain(request, expected_points)
        return explanation

    async def _explain(self, request: Explain, expected_points: int) -> tuple[Explanation, Timings]:
        done = await self.separation.group_of(request.version).dispatcher.submit(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result, done.timings

    async def predict(
        self, version: VersionRef, row: tuple[float, ...], seconds_left: float | None = None
    ) -> Prediction:
        request = Predict(next(self._tasks), version, row, _deadline(seconds_left))
        done = await self.separation.group_of(version).dispatcher.submit(request, 1)
        assert isinstance(done.result, Prediction)
        return done.result

    async def load(
        self,
        version: VersionRef,
        source: Source,
        known: BaselineOutputs,
        calibration: Calibration | None = None,
        *,
        beside: bool = False,
    ) -> Loaded:
        if self._is_stopped:
            raise CatalogError("the service is stopping")
        return await self.separation.load(version, source, known, calibration, beside=beside)

    async def attach(self, version: VersionRef, baseline: BaselineSet, known: Outputs | None) -> Outputs:
        if self._is_stopped:
            raise CatalogError("the service is stopping")
        return await self.separation.group_of(version).versions.attach(version, baseline, known)

    def detach(self, digest: str) -> None:
        for group in self.separation.groups:
            group.versions.detach(digest)

    def unload(self, version: VersionRef) -> None:
        self.separation.unload(version)

    def stats(self) -> Stats:
        groups = self.separation.groups
        return Stats(
            environment=groups[0].supervisor.environment,
            is_complete=all(group.versions.is_complete for group in groups),
            ready_workers=sum(group.versions.ready_workers for group in groups),
            queued_points=max(group.dispatcher.queued_points for group in groups),
            memory={number: one.memory for group in groups for number, one in group.supervisor.workers.items()},
        )

    def stop(self) -> None:
        self._is_stopped = True
        for group in self.separation.groups:
            group.dispatcher.stop()

    async def close(self) -> None:
        self.stop()
        await self.separation.close()


def _deadline(seconds_left: float | None) -> float | None:
    """The deadline on the monotonic clock, which the workers share."""
    return None if seconds_left is None else time.monotonic() + seconds_left
