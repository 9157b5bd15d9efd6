"""Worker processes: starting one on its device, and waiting for its end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def start_worker(theirs: socket.socket, index: int) -> subprocess.Popen[bytes]:
    """Starts the process at the other end of `theirs`; in a session of its own, so that Ctrl-C is the front's alone."""
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-m", "service.engine.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=worker_environment(index),
        )


def reap(process: subprocess.Popen[bytes]) -> None:
    """Waits for a worker whose socket is closed; one that does not end is killed."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
    environment = dict(os.environ)
    environment["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)] if visible != "" else ""
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # Without it MKL's results for narrow layers (38 inputs, 2 labels) depend on a row's place in the chunk.
    environment["MKL_CBWR"] = "AVX2,STRICT"
    return environment
