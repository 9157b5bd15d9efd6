"""One worker process as the front sees it, and the tasks it holds."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from service.engine.messages import Attached, Done, Explain, Loaded, Predict
from service.errors import AnswerableError, CatalogError
from service.processes.children import AwakeClock, Connection


@dataclass(slots=True)
class Task:
    """A request in flight, with the points it is expected to cost."""

    request: Explain | Predict
    points: int
    future: asyncio.Future[Done]
    attempts: int = 0

    def fail(self, error: AnswerableError) -> None:
        """Ends it, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """A worker: its process, what it holds and what it has loaded. `points` are expected of all its tasks together;
    it was `heard` last at that time of the `clock`; `is_gone` once its socket has closed."""

    index: int
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: asyncio.Future[None]
    clock: AwakeClock
    tasks: dict[int, Task] = field(default_factory=dict)
    points: int = 0
    loading: dict[Path, asyncio.Future[Loaded]] = field(default_factory=dict)
    attaching: dict[tuple[Path, str], asyncio.Future[Attached]] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)
    heard: float = 0.0
    memory: int = 0
    is_gone: bool = False

    def give(self, task: Task) -> None:
        """Sends the task."""
        task.attempts += 1
        if not self.tasks:
            self.heard = self.clock.now
        self.tasks[task.request.task] = task
        self.points += task.points
        self.connection.send(task.request)

    def take(self, number: int) -> Task | None:
        """Takes a task back, if it holds it."""
        task = self.tasks.pop(number, None)
        if task is not None:
            self.points -= task.points
        return task

    def loaded(self, folder: Path, result: Loaded | CatalogError) -> None:
        """Ends the wait for a version, unless whoever waited was cancelled."""
        waiting = self.loading.pop(folder)
        if waiting.done():
            return
        if isinstance(result, CatalogError):
            waiting.set_exception(result)
        else:
            waiting.set_result(result)

    def attached(self, reply: Attached) -> None:
        """Ends the wait for a baseline set, unless whoever waited was cancelled."""
        waiting = self.attaching.pop((reply.folder, reply.digest), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)
