"""Tuning is what the functions say, and nobody else's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SERVICE = Path(__file__).parents[2] / "service"
PROCESS_WIDE = re.compile(
    r"\b(gc\.(disable|enable|freeze|set_threshold)|sys\.setswitchinterval)\(|MALLOC_[A-Z]|\"MKL_CBWR\":"
)


def test_the_front_collects_seldom_and_not_what_it_was_made_of() -> None:
    program = """
import gc, sys
from service.processes import tuning
tuning.begin_imports()
assert not gc.isenabled()
tuning.share_interpreter()
tuning.front_listens()
assert gc.isenabled() and gc.get_freeze_count() > 1000
assert gc.get_threshold()[0] == tuning.YOUNG_OBJECTS
assert abs(sys.getswitchinterval() - tuning.SWITCH_SECONDS) < 1e-9
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_else_tunes_a_process() -> None:
    tuning = [
        path.relative_to(SERVICE).as_posix() for path in SERVICE.rglob("*.py") if PROCESS_WIDE.search(path.read_text())
    ]

    assert tuning == ["processes/tuning.py"]
