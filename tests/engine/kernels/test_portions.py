"""Which chunk shapes the units of a question are computed at."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from service.catalog.calibrations import Calibration
from service.domain import ChunkShapes
from service.engine.kernels.kernel import MOST_PADDING, Kernel, Kernels
from service.methods.questions import Breakpoints, Points, Readout
from tests.engine.conftest import WrappedKernel

ROWS = (2, 4, 8, 16)


def question(count: int) -> Points:
    return Points(np.zeros((1, 3)), np.ones(3), np.zeros(count, dtype=np.intp), np.linspace(0, 1, count), Readout(0), 0)


def kernels(graded: tuple[type, ...]) -> Kernels:
    def of(capacity: int) -> Kernel:
        kernel = object.__new__(WrappedKernel)
        kernel.name, kernel.capacity = "gradient", capacity
        return kernel

    lines = [of(32)]
    return Kernels({Points: [of(rows) for rows in ROWS], Breakpoints: lines}, None, graded)


@pytest.mark.parametrize("units", [0, 1, 2, 3, 5, 8, 10, 12, 13, 20, 33, 50, 64, 1000])
def test_every_unit_is_in_one_chunk_and_few_are_padding(units: int) -> None:
    portions = kernels((Points,)).portions(question(units))
    edges = [0, *(stop for _, _, stop in portions)]
    assert [(start, stop) for _, start, stop in portions] == [*pairwise(edges)]
    assert edges[-1] == units
    computed = sum(-(-(stop - start) // kernel.capacity) * kernel.capacity for kernel, start, stop in portions)
    assert computed - units <= max(1, MOST_PADDING * computed)


@pytest.mark.parametrize(
    ("units", "expected"),
    [(1, [2]), (5, [4, 2]), (6, [8]), (10, [8, 2]), (11, [8, 4]), (12, [16]), (20, [16, 4]), (50, [16, 2])],
)
def test_a_question_is_cut_into_the_largest_that_it_fills(units: int, expected: list[int]) -> None:
    assert [kernel.capacity for kernel, _, _ in kernels((Points,)).portions(question(units))] == expected


def test_of_shapes_that_are_not_graded_a_question_has_one() -> None:
    for units, rows in ((1, 2), (3, 4), (16, 16), (50, 16)):
        ((kernel, start, stop),) = kernels(()).portions(question(units))
        assert (kernel.capacity, start, stop) == (rows, 0, units)


def test_kernels_that_run_out_of_memory_later_answer_the_same_units() -> None:
    """A kernel's capacity falls; which units it answers, in how many chunks whatever, stays."""
    own = kernels((Points,))
    before = own.portions(question(21))
    for kernel in own[Points]:
        kernel.capacity = max(1, kernel.capacity // 2)
    assert own.portions(question(21)) == before


@pytest.mark.parametrize(
    "shapes",
    [ChunkShapes(64, 512), ChunkShapes(2, 16, graded=True), ChunkShapes(1, 8, 32, graded=True), ChunkShapes(1, 1, 16)],
)
def test_shapes_are_read_as_they_are_written(shapes: ChunkShapes) -> None:
    assert ChunkShapes.read(str(shapes)) == shapes


def test_the_sizes_of_shapes() -> None:
    assert ChunkShapes(64, 512).rows == (64, 512)
    assert ChunkShapes(64, 64).rows == (64,)
    assert ChunkShapes(2, 16, graded=True).rows == ROWS
    assert ChunkShapes.read("64+512") == ChunkShapes(64, 512)
    of_length = ChunkShapes(1, 2, 16, graded=True)
    calibration = Calibration(ChunkShapes(1, 1), (of_length,))
    assert calibration.at(None) == ChunkShapes(1, 1)
    assert calibration.at(16) == of_length
    assert calibration.at(32) == ChunkShapes(1, 1, 32)
