"""Tasks: how many are admitted, which worker computes them, and how they survive the death of a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from service.engine.client.worker_handle import Task, WorkerHandle
from service.engine.messages import Computing, Done
from service.errors import DeadlineExceeded, ModelNotReady, Overloaded, WorkerLost

ATTEMPTS = 2
DEADLINE_GRACE_SECONDS = 0.5
"""How long after a deadline a worker may still answer. Its scheduler keeps the deadline; this is for a worker that does
not answer at all."""


class Workers(Protocol):
    """What the dispatcher needs of the worker supervisor."""

    @property
    def workers(self) -> Mapping[int, WorkerHandle]: ...

    @property
    def is_restarting(self) -> bool: ...


class Dispatcher:
    """Gives each task to the worker with the least work among those that have its version.

    `max_queued_points` bounds the points that are expected of everything in flight.
    """

    def __init__(self, supervisor: Workers, max_queued_points: int) -> None:
        self.queued_points = 0
        self._supervisor = supervisor
        self._max_queued_points = max_queued_points
        self._tasks: set[Task] = set()
        self._waiting: list[Task] = []
        self._is_stopped = False

    async def submit(self, request: Computing, points: int) -> Done:
        """What a worker answers to a request that is expected to cost so many points.

        Raises Overloaded, ModelNotReady, DeadlineExceeded, WorkerLost, or what the worker answered.
        """
        if self._is_stopped:
            raise _stopping()
        if self.queued_points + points > self._max_queued_points and self.queued_points:
            raise Overloaded("the engine holds as much work as it may; try again in a second")
        task = Task(request, points, asyncio.get_running_loop().create_future())
        self.queued_points += points
        self._tasks.add(task)
        try:
            self._dispatch(task)
            if request.deadline is None:
                return await task.future
            async with asyncio.timeout(request.deadline - time.monotonic() + DEADLINE_GRACE_SECONDS):
                return await task.future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before any result") from None
        finally:
            self.queued_points -= points
            self._tasks.discard(task)
            self._drop(task)

    def rerun(self, tasks: Sequence[Task]) -> None:
        """Gives the tasks of a worker that is gone to another, at most once each."""
        for task in tasks:
            if task.attempts >= ATTEMPTS:
                task.fail(WorkerLost("the worker died twice while it computed this"))
            elif not task.future.done():
                self._dispatch(task)

    def resume(self) -> None:
        """Dispatches the tasks that waited for a worker."""
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self._dispatch(task)

    def stop(self) -> None:
        """Fails the tasks in flight, and all later ones."""
        self._is_stopped = True
        for task in self._tasks:
            task.fail(_stopping())

    def _dispatch(self, task: Task) -> None:
        """Gives the task to the worker with the least work, or makes it wait until a worker is back."""
        able = [one for one in self._supervisor.workers.values() if task.request.version in one.versions]
        if able:
            min(able, key=lambda worker: worker.points).give(task)
        elif self._supervisor.is_restarting:
            self._waiting.append(task)
        else:
            task.fail(ModelNotReady("the model version is not loaded"))

    def _drop(self, task: Task) -> None:
        """Forgets a task that nobody waits for; a worker that still computes it stops."""
        if task in self._waiting:
            self._waiting.remove(task)
        if task.worker is not None:
            task.worker.cancel(task)


def _stopping() -> WorkerLost:
    return WorkerLost("the service is stopping")
