"""Checks beside the service: one that does not end is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.checking import background
from service.checking.background import Checker


async def test_a_check_that_does_not_end_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def hang(*_: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(background, "CHECK_SECONDS", 0.01)
    checker = Checker(tmp_path)
    monkeypatch.setattr(checker, "_start", hang)
    for _ in range(2):
        await checker.check(tmp_path / "loan" / "1", None)

    assert [process.returncode for process in started] == [-9, -9]
    assert caplog.text.count("the check of loan@1 ended with -9 and no verdict") == 2
