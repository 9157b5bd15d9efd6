"""A worker: the process that owns one device. It reads requests, runs the scheduler, and sends what ended.

It ends when its socket closes, so that it cannot outlive the front, whatever happened to that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import select
import socket
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from service import __version__
from service.artefacts.loading import baseline_digest
from service.catalog.refusals import told
from service.catalog.version_files import read_baseline_rows
from service.domain import ChunkShapes, Conditions, Floats, OutputSpace, Priority
from service.engine.messages import (
    Attach,
    Attached,
    Cancel,
    Detach,
    Explain,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Memory,
    Predict,
    Progress,
    Ready,
    Reply,
    Request,
    Unload,
)
from service.engine.worker.device import (
    DeviceModel,
    PreparedBaseline,
    best_device,
    put_on_device,
    with_baseline,
    without_baseline,
)
from service.engine.worker.explanation import Steps, explain, interrupted, predict
from service.engine.worker.memory import is_out_of_memory
from service.engine.worker.scheduler import Live, Scheduler
from service.errors import CatalogError, DeviceOutOfMemory, ModelNotReady
from service.processes import tuning
from service.processes.children import Unframer, frame

LOG = logging.getLogger("answerable.worker")
READ_BYTES = 1 << 20
"""At most at once. The room for it is kept: where memory ends, requests still arrive, to be refused one by one."""
MOST_OTHER_SHAPES = 4
"""Of all models together, for explanations that are repeated at shapes of an earlier calibration."""
CHUNKS_UNTIL_WORD = 64
SECONDS_UNTIL_WORD = 5.0
SECONDS_UNTIL_MEMORY = 1.0
"""So many chunks are reported together at most, and so late, also while nothing ends: silence means that the worker
hangs."""


class _Channel:
    """The worker's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unframer = Unframer()
        self._arriving = memoryview(bytearray(READ_BYTES))

    def requests(self, *, wait: bool) -> Iterator[Request]:
        """Whatever has arrived; with `wait`, at least one. Raises EOFError when the front is gone."""
        while wait or select.select([self._socket], [], [], 0)[0]:
            received = self._socket.recv_into(self._arriving)
            if not received:
                raise EOFError
            for batch in self._unframer.feed(self._arriving[:received]):
                wait = False
                yield from batch

    def send(self, reply: Reply) -> None:
        self._socket.sendall(frame(reply))


class Worker:
    """The models of one device and the explanations under way on it."""

    def __init__(self, connection: socket.socket, device: torch.device) -> None:
        self._channel = _Channel(connection)
        self._device = device
        self._models: dict[Path, DeviceModel] = {}
        self._at_other_shapes: dict[tuple[Path, ChunkShapes], DeviceModel] = {}
        self._scheduler = Scheduler()
        self._spoke = time.monotonic()
        self._weighed = 0.0

    def run(self) -> None:
        """Serves until the front closes the socket."""
        self._channel.send(Ready(_environment(self._device)))
        self._tell_memory()
        while True:
            for request in self._channel.requests(wait=not self._scheduler):
                self._handle(request)
            self._scheduler.step()
            outcomes, chunks = self._scheduler.outcomes(), self._scheduler.reports
            if outcomes or len(chunks) >= CHUNKS_UNTIL_WORD or (chunks and self._is_overdue()):
                self._scheduler.reports = []
                self._channel.send(Progress(outcomes, chunks))
                self._spoke = time.monotonic()
                if self._spoke - self._weighed > SECONDS_UNTIL_MEMORY:
                    self._tell_memory()

    def _tell_memory(self) -> None:
        self._weighed = time.monotonic()
        self._channel.send(Memory(_held_bytes(self._device)))

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._spoke > SECONDS_UNTIL_WORD

    def _handle(self, request: Request) -> None:
        match request:
            case Explain(conditions=Conditions() as conditions):
                self._repeat(request, conditions)
            case Explain(task, folder, plan, priority, deadline):
                model = self._models.get(folder)
                self._start(task, model, explain(plan, model) if model else None, priority, deadline)
            case Predict(task, folder, row, deadline):
                self._start(task, self._models.get(folder), predict(row), Priority.INTERACTIVE, deadline)
            case Cancel(task):
                self._scheduler.cancel(task)
            case Load(folder, known, shapes):
                try:
                    model = put_on_device(folder, self._device, known, shapes)
                except CatalogError as error:
                    LOG.error("%s@%s cannot be loaded: %s", folder.parent.name, folder.name, error)  # noqa: TRY400
                    self._channel.send(LoadFailed(folder, told(error)))
                except Exception as error:
                    LOG.exception("a model could not be loaded")
                    name = type(error).__name__  # what it says may hold paths of this machine; it is in the log
                    self._channel.send(LoadFailed(folder, f"the model cannot be loaded: {name}"))
                else:
                    self._forget_other_shapes(folder)
                    self._models[folder] = model
                    tuning.model_is_loaded()
                    self._channel.send(_loaded(folder, model))
                    self._tell_memory()
            case Attach():
                self._channel.send(self._attach(request))
            case Detach(digest):
                self._detach(digest)
            case Unload(folder):
                self._forget_other_shapes(folder)
                self._models.pop(folder, None)

    def _attach(self, request: Attach) -> Attached:
        model = self._models.get(request.folder)
        if model is None:
            return Attached(request.folder, request.digest, {}, "the model version is not loaded")
        try:
            rows = read_baseline_rows(request.place, model.manifest, request.baseline, model.row_type)
        except CatalogError as error:
            return Attached(request.folder, request.digest, {}, str(error))
        model = with_baseline(model, request.digest, rows.astype(np.float64), request.known)
        self._forget_other_shapes(request.folder)  # which do not have it
        self._models[request.folder] = model
        return Attached(request.folder, request.digest, _told_outputs(model.baselines[request.digest]))

    def _detach(self, digest: str) -> None:
        for folder, model in self._models.items():
            listed = {baseline_digest(baseline) for baseline in model.manifest.baselines}
            if digest in model.baselines.keys() - listed:
                self._forget_other_shapes(folder)  # which have it, too
                self._models[folder] = without_baseline(model, digest)

    def _repeat(self, request: Explain, conditions: Conditions) -> None:
        """Starts an explanation at the shapes, and with the deadline, of an earlier one."""
        task, plan = request.task, request.plan
        model = self._models.get(request.folder)
        if model is None:
            self._start(task, None, None, request.priority, None)
            return
        try:
            model = self._at(request.folder, model, conditions.shapes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = DeviceOutOfMemory(f"the device has not the memory for chunks of {conditions.shapes} rows")
            self._channel.send(Progress([Failed(task, failure)], []))
            return
        steps = explain(plan, model)
        answers = conditions.answers
        self._start(task, model, steps if answers is None else interrupted(steps, answers), request.priority, None)

    def _at(self, folder: Path, model: DeviceModel, shapes: ChunkShapes) -> DeviceModel:
        """The model at these shapes, the last few of which are kept. Raises torch.OutOfMemoryError."""
        if shapes == model.shapes:
            return model
        name = folder, shapes
        if name not in self._at_other_shapes:
            found = model.at(shapes)
            if len(self._at_other_shapes) >= MOST_OTHER_SHAPES:
                del self._at_other_shapes[next(iter(self._at_other_shapes))]
            self._at_other_shapes[name] = found
        return self._at_other_shapes[name]

    def _forget_other_shapes(self, folder: Path) -> None:
        self._at_other_shapes = {name: model for name, model in self._at_other_shapes.items() if name[0] != folder}

    def _start(
        self,
        task: int,
        model: DeviceModel | None,
        steps: Steps | None,
        priority: Priority,
        deadline: float | None,
    ) -> None:
        if model is None or steps is None:
            self._channel.send(Progress([Failed(task, ModelNotReady("the model version is not loaded"))], []))
            return
        live = Live(task, steps, model.kernels, str(model.key), priority, deadline, time.monotonic())
        self._scheduler.add(live)


def _loaded(folder: Path, model: DeviceModel) -> Loaded:
    outputs = {digest: _told_outputs(baseline) for digest, baseline in model.baselines.items()}
    return Loaded(
        folder,
        model.key,
        outputs,
        model.shapes,
        model.traits,
        model.parity,
        model.chunk_seconds,
        model.row_type.name,
    )


def _told_outputs(baseline: PreparedBaseline) -> dict[OutputSpace, Floats]:
    """The outputs over the rows and, last, over their mean."""
    return {
        space: np.concatenate([values, baseline.center_outputs[space][None]])
        for space, values in baseline.outputs.items()
    }


def _environment(device: torch.device) -> dict[str, str]:
    return {
        "answerable": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own type would have the front import torch to read it
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "scikit-image": _version_of("scikit-image"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cuda": torch.version.cuda or "none",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": "float32",
        "mkl_cbwr": os.environ.get("MKL_CBWR", "default"),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }


def _held_bytes(device: torch.device) -> int:
    """What the process has taken of its device: CUDA's memory with what the allocator keeps, or resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def set_up_torch() -> None:
    """The same bits each time, in full precision; with one thread on the host, where breakpoints are found also when
    gradients are computed on a GPU: how several divide a product changes its last bits."""
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms, but it imports torch's compiler
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(tuning.HOST_THREADS)


def main(connection: socket.socket) -> None:
    """The process's main function."""
    device = best_device()
    tuning.share_interpreter()
    set_up_torch()
    with contextlib.suppress(EOFError, ConnectionError):
        Worker(connection, device).run()
