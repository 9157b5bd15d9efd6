"""Child processes end, whatever the machine's clock does; and how long a process was awake, by which it judges the
silence of others."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time

import pytest

from service.processes.children import AwakeClock, reap

PROGRAM = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"


@pytest.mark.parametrize("ends", [True, False])
def test_a_child_ends_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch, *, ends: bool) -> None:
    """Where clocks jump, a sleep until a moment can fail. One that ignores SIGTERM is killed."""

    def sleep(_seconds: float) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(time, "sleep", sleep)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.terminate()
        if ends:
            process.stdin.close()
        reap(process, 60 if ends else 0.05)
        assert process.returncode == (0 if ends else -signal.SIGKILL)


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    moments = iter([100.0, 103.0, 106.5, 3706.5, 3709.5])
    clock = AwakeClock(lambda: next(moments))
    seen = []
    for _ in range(4):
        clock.tick(3.0)
        seen.append(clock.now)

    assert seen == [3.0, 6.5, 12.5, 15.5]
