"""Worker processes that need not import torch: forks of a process that has, for the services of the tests' own process.

They run the program of a worker, with its environment, in a process of their own; spared are only the two seconds of
CPU that each would take to come up. `tests/engine/test_conformance.py` and all of `tests/faults` have workers that are
started as the service starts them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import get_context
from typing import cast
from unittest.mock import patch

from service.engine.client.worker_processes import StartedWorker, worker_environment
from service.processes import child

WORKER = "service.engine.worker.worker"


def _run(environment: Mapping[str, str], connection: socket.socket) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = [WORKER, str(connection.detach())]
    child.main()


class ForkedWorker:
    """What the front needs of a worker's process, as `subprocess.Popen` has it."""

    def __init__(self, index: int, connection: socket.socket) -> None:
        context, environment = get_context("forkserver"), dict(worker_environment(index))
        context.set_forkserver_preload([WORKER, __name__])
        # Its environment is that of the process that forks, if it is the first.
        with connection, patch.dict(os.environ, environment):
            self._process = context.Process(target=_run, args=(environment, connection), daemon=True)
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.returncode: int | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._join, daemon=True).start()

    def _join(self) -> None:
        self._process.join()
        self.returncode = self._process.exitcode
        self._ended.set()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise TimeoutError
        assert self.returncode is not None
        return self.returncode


def fork_worker(index: int) -> StartedWorker:
    """As `start_worker`."""
    ours, theirs = socket.socketpair()
    return StartedWorker(cast("subprocess.Popen[bytes]", ForkedWorker(index, theirs)), ours)
