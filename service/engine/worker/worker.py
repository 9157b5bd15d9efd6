"""A worker: the process that owns one device. It reads requests, runs the scheduler, and sends what ended.

It ends when its socket closes, so that it cannot outlive the front, however that ended.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections.abc import Iterator
from typing import Protocol

import torch

from service.catalog.refusals import message_for_clients
from service.engine.messages import (
    Attach,
    Cancel,
    Detach,
    Explain,
    Failed,
    Load,
    Memory,
    Outcome,
    Predict,
    Progress,
    Ready,
    Refused,
    Reply,
    Request,
    SetAttached,
    Unload,
    VersionLoaded,
)
from service.engine.worker.device import best_device
from service.engine.worker.device_models import DeviceModels
from service.engine.worker.environment import environment_of, set_up_torch, used_bytes
from service.engine.worker.scheduler import Scheduler
from service.errors import AnswerableError, CatalogError
from service.processes import tuning
from service.processes.children import Unframer, frame

LOG = logging.getLogger("answerable.worker")
READ_BYTES = 1 << 20
"""The most bytes read at once. The buffer is kept: when memory is exhausted, requests still arrive, and are refused one
by one."""
REPORTED_CHUNKS = 64
REPORT_SECONDS = 5.0
"""Chunks are reported when so many are, or after so long, also while nothing ends: silence means that the worker
hangs."""
MEMORY_SECONDS = 1.0
"""How long after a report of the memory the next one is due."""


class Channel(Protocol):
    """The worker's connection with its client."""

    def requests(self, *, wait: bool) -> Iterator[Request]:
        """The requests that have arrived; with `wait`, at least one. Raises EOFError once the client is gone."""
        ...

    def send(self, reply: Reply) -> None: ...


class SocketChannel:
    """A channel to the front, over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unframer = Unframer()
        self._arriving = memoryview(bytearray(READ_BYTES))

    def requests(self, *, wait: bool) -> Iterator[Request]:
        """As `Channel.requests`."""
        while wait or select.select([self._socket], [], [], 0)[0]:
            received = self._socket.recv_into(self._arriving)
            if not received:
                raise EOFError
            for batch in self._unframer.feed(self._arriving[:received]):
                wait = False
                yield from batch

    def send(self, reply: Reply) -> None:
        """Sends the reply; returns when the socket has taken it."""
        self._socket.sendall(frame(reply))


class Worker:
    """The models of one device and the explanations under way on it."""

    def __init__(self, channel: Channel, device: torch.device) -> None:
        self._channel = channel
        self._device = device
        self._models = DeviceModels(device)
        self._scheduler = Scheduler()
        self._failed: list[Outcome] = []
        self._reported = time.monotonic()
        self._memory_reported = 0.0

    def run(self) -> None:
        """Serves until the client is gone: then raises EOFError, or ConnectionError."""
        self._channel.send(Ready(environment_of(self._device)))
        self._report_memory()
        while True:
            for request in self._channel.requests(wait=not self._scheduler):
                self._handle(request)
            self._scheduler.step()
            self._report()

    def _handle(self, request: Request) -> None:
        match request:
            case Explain() | Predict():
                self._begin(request)
            case Cancel(task):
                self._scheduler.cancel(task)
            case Load() | Attach():
                self._channel.send(self._prepare(request))
                self._report_memory()
            case Detach(digest):
                self._models.detach(digest)
            case Unload(version):
                self._models.unload(version)

    def _begin(self, request: Explain | Predict) -> None:
        """Adds the request to the scheduler, which computes it from its next chunk on."""
        try:
            live = self._models.begin(request, time.monotonic())
        except AnswerableError as error:
            self._failed.append(Failed(request.task, error))
        else:
            self._scheduler.add(live)

    def _prepare(self, request: Load | Attach) -> VersionLoaded | SetAttached | Refused:
        """Loads a version or attaches a set; the worker survives whatever is wrong with their files."""
        try:
            if isinstance(request, Attach):
                outputs = self._models.attach(request.version, request.baseline, request.known)
                return SetAttached(request.task, outputs)
            loaded = self._models.load(request.version, request.source, request.known, request.calibration)
        except CatalogError as error:
            LOG.error("%s cannot be loaded: %s", request.version, error)  # noqa: TRY400
            return Refused(request.task, message_for_clients(error))
        except Exception as error:
            LOG.exception("a model could not be loaded")
            name = type(error).__name__  # its message may hold paths of this machine; it is in the log
            return Refused(request.task, f"the model cannot be loaded: {name}")
        tuning.model_is_loaded()
        return VersionLoaded(request.task, loaded)

    def _report(self) -> None:
        """Sends what ended, and the chunks that were computed, unless it can wait for more of them."""
        outcomes, chunks = [*self._failed, *self._scheduler.outcomes()], self._scheduler.reports
        now = time.monotonic()
        is_due = len(chunks) >= REPORTED_CHUNKS or (chunks and now - self._reported > REPORT_SECONDS)
        if not (outcomes or is_due):
            return
        self._failed, self._scheduler.reports = [], []
        self._channel.send(Progress(outcomes, chunks))
        self._reported = now
        if now - self._memory_reported > MEMORY_SECONDS:
            self._report_memory()

    def _report_memory(self) -> None:
        self._memory_reported = time.monotonic()
        self._channel.send(Memory(used_bytes(self._device)))


def main(connection: socket.socket) -> None:
    """The process's main function."""
    device = best_device()
    tuning.share_interpreter()
    set_up_torch()
    with contextlib.suppress(EOFError, ConnectionError):
        Worker(SocketChannel(connection), device).run()
