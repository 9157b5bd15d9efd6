"""Checks beside the service: one that does not end is ended, any other ends in good order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.lifecycle.checking import background
from service.lifecycle.checking.background import Checker
from tests.conftest import MODELS, PATIENCE_SECONDS

LOAN = MODELS / "loan" / "1"


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


PROGRAM = """
import sys
import threading
from service.lifecycle.checking import assessing

assessing.ROWS = 4
if sys.argv[1] == "endless":
    assessing.assess = lambda *_, **__: (print("begun", flush=True), threading.Event().wait())
sys.argv[1:] = sys.argv[2:]
sys.exit(assessing.main())
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_check_ends_in_good_order_and_with_whoever_asked_for_it(tmp_path: Path) -> None:
    with started("", str(tmp_path), str(LOAN)) as whole, started("endless", str(tmp_path), str(LOAN)) as endless:
        assert endless.stdout is not None
        assert endless.stdin is not None
        assert endless.stdout.readline() == "begun\n"
        endless.stdin.close()
        assert endless.wait(PATIENCE_SECONDS) == 1

        assert whole.wait(PATIENCE_SECONDS) == 0  # with its standard input open, as the service leaves it
        assert whole.stderr is not None
        assert whole.stderr.read() == ""
    (kept,) = (tmp_path / "assessments").iterdir()
    assert kept.suffix == ".json"
