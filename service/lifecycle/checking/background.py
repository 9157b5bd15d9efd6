"""Checks of versions that were loaded without a verdict: those of the command, in a process of the lowest priority.

They run on the CPU, one after the other. This module, in the front, does not import torch.
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
"""A check is ended without a verdict after this time, since others wait for it. Checks take a minute, at the lowest
priority."""


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, negative where it had to be killed."""
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
        """Checks the version in `folder`, also against an earlier one; the caller then reads the verdict that was
        kept."""
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
