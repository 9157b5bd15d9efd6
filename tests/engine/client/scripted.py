"""Workers whose process is a thread of the test's, and whose answers a test decides: no torch, no start, no signals."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from service.catalog.calibrations import Calibration
from service.catalog.traits import Axis, Traits
from service.domain import ChunkShapes, Explanation, ModelKey, Prediction, Timings, VersionRef
from service.engine.client.worker_processes import StartedWorker
from service.engine.messages import (
    Attach,
    Done,
    Explain,
    Load,
    Memory,
    Predict,
    Progress,
    Ready,
    Refused,
    Reply,
    Request,
    SetAttached,
    VersionLoaded,
)
from service.engine.protocol import Loaded
from service.processes.children import Unframer, frame

TRAITS = Traits((Axis.FEATURE,), (1,), 2, None, (), True, False, None)
T = TypeVar("T")
Answer = Callable[["ScriptedWorker", Request], Reply | None]


def loaded(version: VersionRef, chunk_seconds: float = 0.0) -> Loaded:
    """What a scripted worker says of a version."""
    key = ModelKey(version.name, version.version, "sha256:artefact")
    return Loaded(key, {"set": {}}, Calibration(ChunkShapes(1, 2)), TRAITS, 0.0, chunk_seconds)


def obedient(_: ScriptedWorker, request: Request) -> Reply | None:
    """Loads and attaches everything, predicts nothing, and never ends an explanation."""
    match request:
        case Load(task, version):
            return VersionLoaded(task, loaded(version))
        case Attach(task):
            return SetAttached(task, {})
        case Predict(task):
            return Progress([Done(task, Prediction({}), Timings(0.0, 0.0))], [])
    return None


def without(*versions: VersionRef) -> Answer:
    """As `obedient`, but these versions cannot be loaded."""

    def answer(worker: ScriptedWorker, request: Request) -> Reply | None:
        if isinstance(request, Load) and request.version in versions:
            return Refused(request.task, "its file is spoilt")
        return obedient(worker, request)

    return answer


class ScriptedWorker:
    """One worker. `requests` are those that it was sent, in order; `answer` what it does about each."""

    def __init__(self, number: int, answer: Answer, *, is_ready: bool = True) -> None:
        self.number = number
        self.requests: list[Request] = []
        self.returncode: int | None = None
        self.pid = -1
        self.answer = answer
        self._ended = threading.Event()
        self.ours, self._theirs = socket.socketpair()
        if is_ready:
            self.say(Ready({"worker": str(number)}))
            self.say(Memory(1000 + number))
            threading.Thread(target=self._serve, daemon=True).start()
        else:
            self.kill()
            self._theirs.close()
            self._ended.set()

    def say(self, reply: Reply) -> None:
        """Sends a reply to the front."""
        self._theirs.sendall(frame(reply))

    def end(self, request: Explain, explanation: Explanation) -> None:
        """Answers an explanation."""
        self.say(Progress([Done(request.task, explanation, Timings(0.0, 0.0))], []))

    def asked(self, kind: type[T]) -> list[T]:
        """The requests of one kind."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _serve(self) -> None:
        unframer = Unframer()
        with contextlib.suppress(OSError):
            while content := self._theirs.recv(1 << 16):
                for batch in unframer.feed(content):
                    for request in batch:
                        self.requests.append(request)
                        reply = self.answer(self, request)
                        if reply is not None:
                            self.say(reply)
        self.returncode = self.returncode or 0
        self._theirs.close()
        self._ended.set()

    # What the front needs of a process:

    def kill(self) -> None:
        if self.returncode is None:
            self.returncode = -9
            with contextlib.suppress(OSError):
                self._theirs.shutdown(socket.SHUT_RDWR)

    def wait(self) -> int:
        self._ended.wait()
        return self.returncode or 0


@dataclass(slots=True)
class Script:
    """Starts scripted workers. `answers` are those of the next ones to be started, `by_number` those of all others of a
    number; else they are `obedient`."""

    answers: list[Answer | None] = field(default_factory=list)
    by_number: dict[int, Answer] = field(default_factory=dict)
    workers: list[ScriptedWorker] = field(default_factory=list)

    def start(self, number: int) -> StartedWorker:
        """Starts a worker; one whose answer is None ends before it is ready."""
        answer = self.answers.pop(0) if self.answers else self.by_number.get(number, obedient)
        worker = ScriptedWorker(number, answer or obedient, is_ready=answer is not None)
        self.workers.append(worker)
        return StartedWorker(cast("subprocess.Popen[bytes]", worker), worker.ours)


_NUMBERS = itertools.count(1)


def a_version() -> VersionRef:
    """A version that no test has loaded before."""
    number = next(_NUMBERS)
    return VersionRef("model", str(number), f"sha256:{number}")
