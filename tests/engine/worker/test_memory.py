"""The workers' environment: what one chunk has freed is there for the next."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from service.engine.client.worker_processes import worker_environment
from tests.conftest import PATIENCE_SECONDS

PROGRAM = """
import resource
from concurrent.futures import ThreadPoolExecutor
import torch

def chunk():
    return sum(float(tensor[0]) for tensor in [torch.ones(2**18) for _ in range(16)])

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with ThreadPoolExecutor(1) as thread:
    for run in (chunk, lambda: thread.submit(chunk).result()):
        for _ in range(3):
            run()
        before = faults()
        for _ in range(10):
            run()
        print(faults() - before)
"""
PAGES_OF_A_CHUNK = 16 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have settings of their own")
def test_the_memory_of_a_chunk_does_not_go_back_to_the_system() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=worker_environment(0),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    on_the_main_thread, on_another = map(int, ran.stdout.split())
    assert on_the_main_thread < PAGES_OF_A_CHUNK
    assert on_another < PAGES_OF_A_CHUNK


def test_settings_of_the_operator_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert worker_environment(0)["MALLOC_ARENA_MAX"] == "4"
