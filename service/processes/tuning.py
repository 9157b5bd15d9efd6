"""How the processes of the service are tuned: garbage collector, switches of the interpreter, threads, allocator.

Everything that holds for a whole process is set here, each with the measurement behind it, and called by name where a
process comes to that point of its life.
"""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter when another waits for it: in the front, one that reads the ledger while
the event loop waits; in a worker, one that waits for its next long chunk. Python's 5 ms are as long as several answers
take."""

YOUNG_OBJECTS = 50_000
"""New objects of the front before the garbage collector walks them. Nearly all go without it. What 256 requests hold at
once is more than a few thousand objects, which it then walked again and again: at 2,000 that was 13% of the process."""

HOST_THREADS = 1
"""Threads of one operator of torch, of the processes that compute: how several divide a product changes its last bits,
and the front needs a core."""

WORKER_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}
"""The environment of a worker's glibc, unless the service's own says otherwise: one arena for both threads of a worker,
which keeps up to 128 MiB that are free.

Else the memory of a long chunk goes back to the system behind each and comes again page by page: some 500 page faults
for 4,096 points of Expected Gradients, which took a fifth of the time.
"""

WORKER_NUMERICS = {
    # Without it MKL's results for narrow layers (38 inputs, 2 labels) depend on a row's place in the chunk.
    "MKL_CBWR": "AVX2,STRICT",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""The environment that bit-equal results need, whatever the service's own says."""


def begin_imports() -> None:
    """Before a process imports what it works with: it stays, and walking it took a worker's imports a fifth longer."""
    gc.disable()


def end_imports() -> None:
    """After that: what was imported is not walked again."""
    gc.freeze()
    gc.enable()


def share_interpreter() -> None:
    """In processes with threads that must not wait for one another."""
    sys.setswitchinterval(SWITCH_SECONDS)


def front_listens() -> None:
    """What the front has made until it listens stays: full collections that walked it stopped all requests for 0.1 s,
    twice a second."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(YOUNG_OBJECTS)


def model_is_loaded() -> None:
    """A worker's models and modules stay; a full collection need not walk them."""
    gc.collect()
    gc.freeze()
