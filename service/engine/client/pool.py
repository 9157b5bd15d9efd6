"""The engine's client side: a pool of local worker processes behind one small interface.

The front imports neither torch nor onnxruntime; it sends plans and receives explanations. A worker that dies is
replaced, and what it held is run once more. Whatever ends a worker, be it a file of the operator's, the front lives on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.domain import Conditions, Explanation, Plan, Prediction, Priority, Timings
from service.engine.client.loaded_versions import LoadedVersions
from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.client.worker_processes import StartedWorker
from service.engine.messages import Cancel, ChunkReport, Done, Explain, Outcome, Predict
from service.errors import DeadlineExceeded, Overloaded, WorkerLost

ATTEMPTS = 2
DEADLINE_GRACE_SECONDS = 0.5
"""How long after a deadline a worker may still answer; the scheduler keeps it, this is for a worker that is gone."""


class Pool(LoadedVersions):
    """The tasks, each given to the worker with the least work among those that have its model.

    `max_queued_points` bounds the points that are expected of everything in flight; the rest is as in
    `WorkerSupervisor`.
    """

    def __init__(
        self,
        workers: int,
        max_queued_points: int,
        observe: Callable[[ChunkReport], None] = lambda _: None,
        restarted: Callable[[str], None] = lambda _: None,
        started: Sequence[StartedWorker] = (),
        first: int = 0,
        longest_chunk: float = 0.0,
    ) -> None:
        super().__init__(workers, observe, restarted, started, first, longest_chunk)
        self._max_queued_points = max_queued_points
        self._numbers = itertools.count()
        self._parked: list[Task] = []
        self.queued_points = 0

    def stop(self) -> None:
        """Fails what is in flight, and whatever is asked from now on."""
        self._closing = True
        held = [task for worker in self._live for task in worker.tasks.values()]
        for task in [*self._parked, *held]:
            task.fail(_stopping())

    async def close(self) -> None:
        """Stops, and ends the workers."""
        self.stop()
        await super().close()

    async def explain(
        self, folder: Path, plan: Plan, expected_points: int, priority: Priority, deadline: float | None
    ) -> tuple[Explanation, Timings]:
        """The explanation of `plan` by the version that was loaded from `folder`.

        Raises Overloaded, WorkerLost, or what the worker answered.
        """
        request = Explain(next(self._numbers), folder, plan, priority, deadline)
        done = await self.submit(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result, done.timings

    async def repeat(self, folder: Path, plan: Plan, expected_points: int, conditions: Conditions) -> Explanation:
        """The explanation of `plan` under the conditions of an earlier one. Raises as `explain` does."""
        request = Explain(next(self._numbers), folder, plan, Priority.INTERACTIVE, None, conditions)
        done = await self.submit(request, expected_points)
        assert isinstance(done.result, Explanation)
        return done.result

    async def predict(self, folder: Path, row: tuple[float, ...], deadline: float | None) -> Prediction:
        """The outputs at `row` of the deployed artefact that was loaded from `folder`."""
        done = await self.submit(Predict(next(self._numbers), folder, row, deadline), 1)
        assert isinstance(done.result, Prediction)
        return done.result

    async def submit(self, request: Explain | Predict, points: int) -> Done:
        """What the worker answers to a request that is expected to cost so many points. Raises as `explain` does."""
        if self._closing:
            raise _stopping()
        if self.queued_points + points > self._max_queued_points and self.queued_points:
            raise Overloaded("the engine holds as much work as it may; try again in a second")
        task = Task(request, points, asyncio.get_running_loop().create_future())
        self.queued_points += points
        try:
            self._dispatch(task)
            if request.deadline is None:
                return await task.future
            left = request.deadline - time.monotonic() + DEADLINE_GRACE_SECONDS
            async with asyncio.timeout(left):
                return await task.future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before any result") from None
        finally:
            self.queued_points -= points
            self._forget(task)

    def _dispatch(self, task: Task) -> None:
        """Gives the task to the worker with the least work, or parks it until one is back."""
        able = [worker for worker in self._workers.values() if task.request.folder in worker.folders]
        if not able:
            if self._restarts or not self._workers:
                self._parked.append(task)
            else:
                task.fail(WorkerLost("no worker has this model version loaded"))
            return
        min(able, key=lambda candidate: candidate.points).give(task)

    def _forget(self, task: Task) -> None:
        """Drops a task that nobody waits for; a worker that still computes it is told."""
        number = task.request.task
        if task in self._parked:
            self._parked.remove(task)
        for worker in self._live:
            if worker.take(number) is not None:
                worker.connection.send(Cancel(number))
                self._end_if_idle(worker)

    def _ended(self, worker: WorkerHandle, outcome: Outcome) -> None:
        task = worker.take(outcome.task)
        self._end_if_idle(worker)
        if task is None or task.future.done():
            return
        if isinstance(outcome, Done):
            task.future.set_result(outcome)
        else:
            task.future.set_exception(outcome.error)

    def _orphaned(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            if task.attempts >= ATTEMPTS:
                task.fail(WorkerLost("the worker died twice while it computed this"))
            elif not task.future.done():
                self._dispatch(task)

    def _unpark(self) -> None:
        parked, self._parked = self._parked, []
        for task in parked:
            self._dispatch(task)


def _stopping() -> WorkerLost:
    return WorkerLost("the service is stopping")
