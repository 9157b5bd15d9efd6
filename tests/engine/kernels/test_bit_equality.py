"""A row's result is the same bit for bit, wherever it lies in a chunk and whoever shares the chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog.outputs.classes import Classes
from service.domain import Floats
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.kernel import Kernel, Segment
from service.engine.worker.device import DeviceModel
from service.methods.questions import Breakpoints, Deployed, Pieces, Points, Readout

UNHURRIED = settings(deadline=None, max_examples=50)
Question = Deployed | Breakpoints | Points


def whole(question: Question) -> Segment:
    return Segment(question, 0, 1 if isinstance(question, Breakpoints) else len(question))


def points(rows: Floats, generator: np.random.Generator, count: int) -> Points:
    """Points on three lines to a random row, of a random target and readout."""
    chosen = generator.choice(len(rows), 4)
    return Points(
        rows[chosen[:3]],
        rows[chosen[3]],
        generator.integers(0, 3, count),
        generator.uniform(0, 1, count),
        Readout(int(generator.integers(0, 3))),
        int(generator.integers(0, 2)),
    )


def bits(part: object) -> list[bytes]:
    """Everything in a kernel's part, as bytes."""
    if isinstance(part, EvaluatedPoints):
        contributions = [piece.numpy().tobytes() for piece in part.pieces]
        return [part.outputs.tobytes(), part.derivatives.tobytes(), *contributions]
    if isinstance(part, Pieces):
        assert part.alphas is not None
        assert part.logits is not None
        return [part.alphas.tobytes(), part.logits.tobytes()]
    assert isinstance(part, dict)
    return [part[space].tobytes() for space in Classes.spaces]


def run_amid(kernel: Kernel, before: Sequence[Question], probe: Question, after: Sequence[Question]) -> list[bytes]:
    parts = kernel.run([whole(question) for question in (*before, probe, *after)])
    return bits(parts[len(before)])


def alone(kernel: Kernel, probe: Question) -> list[bytes]:
    return run_amid(kernel, (), probe, ())


@pytest.mark.parametrize("shape", [0, 1])
def test_gradient_rows_at_every_position_of_the_chunk(model: DeviceModel, heldout: Floats, shape: int) -> None:
    kernel = model.kernels[Points][shape]
    generator = np.random.default_rng(0)
    probe = points(heldout, generator, 3)
    expected = alone(kernel, probe)
    for position in range(kernel.capacity - 2):
        before = [points(heldout, generator, position)] if position else []
        left = kernel.capacity - position - len(probe)
        after = [points(heldout, generator, left)] if left else []
        assert run_amid(kernel, before, probe, after) == expected, f"at row {position}"


@UNHURRIED
@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), max_size=6), st.lists(st.integers(1, 60), max_size=2))
def test_gradient_rows_amid_any_traffic(
    model: DeviceModel, heldout: Floats, seed: int, before: list[int], after: list[int]
) -> None:
    kernel = model.kernels[Points][-1]
    generator = np.random.default_rng(seed)
    probe = points(heldout, generator, 17)
    neighbours = [[points(heldout, generator, count) for count in counts] for counts in (before, after)]
    assert run_amid(kernel, neighbours[0], probe, neighbours[1]) == alone(kernel, probe)


@UNHURRIED
@given(st.integers(0, 2**32), st.lists(st.integers(1, 39), max_size=5, unique=True))
def test_a_question_cut_into_segments_has_the_same_answer(
    model: DeviceModel, heldout: Floats, seed: int, cuts: list[int]
) -> None:
    kernel = model.kernels[Points][0]
    probe = points(heldout, np.random.default_rng(seed), 40)
    limits = [0, *sorted(cuts), 40]
    parts = [kernel.run([Segment(probe, a, b)])[0] for a, b in pairwise(limits)]
    joined, together = kernel.join(parts), kernel.run([whole(probe)])[0]
    assert isinstance(joined, EvaluatedPoints)
    assert isinstance(together, EvaluatedPoints)
    assert bits(joined)[:2] == bits(together)[:2]
    weights = np.linspace(-1, 1, 40)
    assert joined.weighted_sum(weights).tobytes() == together.weighted_sum(weights).tobytes()
    runs = np.array([7, 0, 13, 20])
    assert joined.run_sums(runs).tobytes() == together.run_sums(runs).tobytes()
    assert joined.squares().tobytes() == together.squares().tobytes()


def test_deployed_rows_at_every_position_of_the_chunk(model: DeviceModel, heldout: Floats) -> None:
    kernel = model.kernels[Deployed][0]
    generator = np.random.default_rng(0)
    for row in heldout[:20]:
        probe = Deployed(row[None])
        expected = alone(kernel, probe)
        for position in range(kernel.capacity):
            others = [Deployed(heldout[k][None]) for k in generator.choice(len(heldout), kernel.capacity - 1)]
            assert run_amid(kernel, others[:position], probe, others[position:]) == expected, f"at row {position}"


def test_lines_at_every_position_of_the_pass(model: DeviceModel, heldout: Floats) -> None:
    kernel = model.kernels[Breakpoints][0]
    generator = np.random.default_rng(0)

    def line() -> Breakpoints:
        start, end = generator.choice(len(heldout), 2, replace=False)
        return Breakpoints(heldout[start], heldout[end], 4096)

    for _ in range(5):
        probe = line()
        expected = alone(kernel, probe)
        for position in range(kernel.capacity):
            others = [line() for _ in range(kernel.capacity - 1)]
            assert run_amid(kernel, others[:position], probe, others[position:]) == expected, f"as line {position}"


Spoil = Callable[[Floats], Floats]
SPOILT: list[Spoil] = [lambda row: row * np.nan, lambda row: row * 0 + 1e39, lambda row: row * 0 - 1e39]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("kind", [Deployed, Points, Breakpoints])
def test_a_neighbour_that_is_not_finite_changes_nothing(
    model: DeviceModel, heldout: Floats, kind: type[Question], spoil: Spoil
) -> None:
    """float32 has no 1e39: such a row is infinite on the device."""
    row, bad = heldout[0], spoil(heldout[1])
    ends = [(bad, row), (row, bad), (bad, -bad)]
    neighbours: list[Question]
    probe: Question
    if kind is Deployed:
        probe, neighbours = Deployed(row[None]), [Deployed(start[None]) for start, _ in ends]
    elif kind is Breakpoints:
        probe = Breakpoints(heldout[2], row, 4096)
        neighbours = [Breakpoints(start, end, 4096) for start, end in ends]
    else:
        one, alpha = np.zeros(1, dtype=np.intp), np.array([0.4])
        probe = Points(heldout[2][None], row, one, alpha, Readout.PROBABILITY, 1)
        neighbours = [Points(start[None], end, one, alpha, Readout.PROBABILITY, 1) for start, end in ends]
    kernel = model.kernels[kind][0]
    expected = alone(kernel, probe)
    assert run_amid(kernel, neighbours, probe, neighbours) == expected
