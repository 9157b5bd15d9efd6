"""Checks of versions that were loaded without a verdict: the command's own, in a process that gives way to all others.

On the CPU, one after the other. This side of it, in the front, imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

from service.engine.client.worker_processes import worker_environment

LOG = logging.getLogger("answerable.checking")
CHECK_SECONDS = 3600.0
"""After so long a check is ended without a verdict: others wait for it. They take a minute, at the lowest priority."""


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, negative where it had to be killed."""
    try:
        return process.wait(CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Checker:
    """Runs one check at a time. `data` is the data folder, where the verdicts are kept."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def check(self, folder: Path, against: Path | None) -> None:
        """Checks the version in `folder`, also against an earlier one; whoever asks reads the verdict that was kept."""
        async with self._turn:
            if self._closed:
                return
            self._process = await asyncio.to_thread(self._start, folder, against)
            if self._closed:  # meanwhile
                self._process.kill()
            code = await asyncio.to_thread(_end_of, self._process)
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        if code and not self._closed:
            LOG.error("the check of %s@%s ended with %d and no verdict", folder.parent.name, folder.name, code)

    def _start(self, folder: Path, against: Path | None) -> subprocess.Popen[bytes]:
        """The process reads its standard input, and ends when that closes, whatever happened to this one."""
        arguments = [str(path.resolve()) for path in (self._data, folder, against) if path is not None]
        return subprocess.Popen(
            [sys.executable, "-m", "service.lifecycle.checking.assessing", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**worker_environment(0), "CUDA_VISIBLE_DEVICES": ""},
        )

    def close(self) -> None:
        """Ends a check under way; its verdict is found at the next start."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
