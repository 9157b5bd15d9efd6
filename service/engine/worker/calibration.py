"""Calibration: at which shapes the gradient chunks of a model run well on this device.

Measured on the loan network, one CPU thread, untraced, in microseconds a chunk: 32 rows 405, 64 rows 439, 128 rows 497,
256 rows 629, 512 rows 848, 1,024 rows 1,309, 2,048 rows 2,198. Small questions either come one by one, and then a few
hundred rows take so little beside the rest of a request that no client notices; or they come together, and then it
matters how many of them a chunk holds. The rate still rises at much larger chunks, which are for large questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from service.domain import ChunkShapes
from service.engine.kernels.kernel import Kernel, Segment
from service.engine.worker.memory import is_out_of_memory
from service.methods.questions import Points

LADDER = tuple(2**power for power in range(2, 13))
"""Row counts that are tried, ascending."""
FEW = (1, 2)
"""Row counts that are tried too for graded shapes: where chunks take long, each row costs as much as the next, so that
padding a question of six points to eight would take a third more."""
GRADED_SECONDS = 0.02
"""A network whose smallest of the ladder takes longer has graded shapes, from the brief chunk to the long one: a
question is cut into those that it fills. Milliseconds of an encoder of 22 million weights on one CPU thread, for
1, 2, 4 rows and so on: of 16 tokens 27, 37, 56, 94, 159, 315; of 64 tokens 61, 100, 180, 325; of 256 tokens 210, 419,
826."""
MAX_CHUNK_SECONDS = 0.02
"""A chunk that takes longer is not tried at a larger shape: a question may have to wait for one."""
MAX_GRADED_CHUNK_SECONDS = 0.25
"""The same where shapes are graded: those chunks are computed beside all else, so that only the network's own questions
wait for one; an explanation of its shortest rows takes longer than that."""
NEARLY_FREE = 1.8
"""The brief chunk takes at most so many times as long as the smallest. Exact Integrated Gradients of the loan model (37
points) with brief chunks of 64, 128, 256 and 512 rows, in turns: 0.73, 0.89, 0.99 and 1 of the answers a second on 32
connections, 1.02, 1.05, 1.07 and 1 on one."""
NEAR_PEAK = 0.9
"""The long chunk is the smallest shape with this share of the best rate."""
ENOUGH_SHARE = 0.98
"""Larger shapes are not tried once the rates of two in a row fall below this share of the best. One may be an accident:
beside three busy processes a ladder had ended at 32 rows, for good, since shapes are kept, and Expected Gradients took
five times as long."""
REPEATS = 8


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock in seconds: on the CPU this thread's own computing time, so that other load does not matter."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


def calibrate(
    kernel_at: Callable[[int], Kernel], points: Callable[[int], Points], clock: Callable[[], float]
) -> ChunkShapes:
    """The shapes for a model. `kernel_at` makes a gradient kernel of so many rows, which computes on this thread or a
    device, `points` a question of so many."""

    def measured(capacity: int) -> float:
        return _seconds(kernel_at(capacity), points(capacity), clock)

    rows: list[int] = []
    seconds: list[float] = []
    for capacity in LADDER:
        try:
            seconds.append(measured(capacity))
        except Exception as error:
            if not rows or not is_out_of_memory(error):
                raise
            break
        rows.append(capacity)
        rates = np.array(rows) / np.array(seconds)
        most = MAX_GRADED_CHUNK_SECONDS if seconds[0] > GRADED_SECONDS else MAX_CHUNK_SECONDS
        if seconds[-1] > most or (len(rows) > 2 and rates[-2:].max() < ENOUGH_SHARE * rates.max()):
            break
    if seconds[0] > GRADED_SECONDS:
        shapes = chosen([*FEW, *rows], [*map(measured, FEW), *seconds])
        return replace(shapes, graded=shapes.long > shapes.brief)
    again = map(measured, rows)  # what disturbed the first run may be over
    return chosen(rows, [*map(min, seconds, again)])


def chosen(rows: Sequence[int], seconds: Sequence[float]) -> ChunkShapes:
    """The shapes for chunks of so many `rows`, ascending, that took so many `seconds`.

    None is taken to be slower than a larger one.
    """
    count, time_taken = np.array(rows), np.minimum.accumulate(seconds[::-1])[::-1]
    rates = count / time_taken
    brief = int(count[time_taken <= NEARLY_FREE * time_taken[0]].max())
    long = int(count[rates >= NEAR_PEAK * rates.max()].min())
    return ChunkShapes(brief, max(brief, long))


def _seconds(kernel: Kernel, question: Points, clock: Callable[[], float]) -> float:
    """The shortest of a few runs, after one that does not count."""
    segment = Segment(question, 0, len(question))
    kernel.run([segment])
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < MAX_CHUNK_SECONDS:
        started = clock()
        kernel.run([segment])
        taken.append(clock() - started)
    return min(taken)
