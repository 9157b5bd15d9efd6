"""Worker processes: starting one on its device."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.processes.children import start_child
from service.processes.tuning import WORKER_ALLOCATOR, WORKER_NUMERICS


@dataclass(frozen=True, slots=True)
class StartedWorker:
    """A worker's process, and the front's end of its socket."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def end(self) -> None:
        """Ends it at once, whatever it does."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def start_worker(index: int) -> StartedWorker:
    """Starts the process. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        return StartedWorker(start_child("service.engine.worker.worker", theirs, worker_environment(index)), ours)
    except OSError:
        ours.close()
        raise


def count_devices() -> int:
    """CUDA devices of this machine, at least one for the CPU; read without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([device for device in visible.split(",") if device.strip()]))
    return max(1, len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdecimal()]))


def worker_environment(index: int) -> Mapping[str, str]:
    """The worker's environment: its own device, if there are several."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(count_devices())]
    own_device = devices[index % len(devices)] if visible != "" else ""
    return {**WORKER_ALLOCATOR, **os.environ, **WORKER_NUMERICS, "CUDA_VISIBLE_DEVICES": own_device}
