"""The chunk shapes that calibration chooses."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import fx, nn

from service.domain import ChunkShapes
from service.engine.kernels.chunks import Chunk
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Kernel, Segment
from service.engine.kernels.network import Network
from service.engine.kernels.tracing import traced
from service.engine.worker.calibration import calibrate, chosen, clock_of
from service.methods.questions import Points, Readout


def question(count: int) -> Points:
    return Points(np.zeros((1, 8)), np.ones(8), np.zeros(count, dtype=np.intp), np.linspace(0, 1, count), Readout(0), 0)


class Clocked(Kernel):
    """A kernel whose runs take `fixed` + rows * `each` seconds of a clock of its own, and no memory beyond `most`.

    At the shapes in `disturbed` they take three times as long.
    """

    name = "clocked"
    now = 0.0

    def __init__(self, rows: int, fixed: float, each: float, most: int, disturbed: Sequence[int] = ()) -> None:
        self.capacity = rows
        self._seconds = (fixed + rows * each) * (3 if rows in disturbed else 1)
        self._fits = rows <= most

    def run(self, segments: Sequence[Segment]) -> list[object]:
        assert sum(map(len, segments)) == self.capacity
        if not self._fits:
            raise torch.OutOfMemoryError
        Clocked.now += self._seconds
        return []

    def join(self, parts: Sequence[object]) -> object:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("fixed", "each", "most", "expected"),
    [
        (300e-6, 1e-6, 10**6, ChunkShapes(128, 2048)),  # a small network: rows are nearly free up to 240
        (100e-6, 30e-6, 10**6, ChunkShapes(8, 32)),  # a larger one
        (0, 50e-3, 10**6, ChunkShapes(1, 1)),  # one whose rows take long: none is padding
        (300e-6, 1e-6, 256, ChunkShapes(128, 256)),  # more does not fit
        (20e-3, 1e-6, 10**6, ChunkShapes(4096, 4096)),  # a chunk takes long whatever is in it, so it holds much
        (19e-3, 9e-3, 10**6, ChunkShapes(2, 16, graded=True)),  # a large network: a question fills several shapes
        (20e-3, 39e-3, 10**6, ChunkShapes(2, 4, graded=True)),
    ],
)
def test_shapes_follow_the_cost_of_rows(fixed: float, each: float, most: int, expected: ChunkShapes) -> None:
    assert calibrate(lambda rows: Clocked(rows, fixed, each, most), question, lambda: Clocked.now) == expected


@pytest.mark.parametrize("disturbed", [8, 16, 64, 512])
def test_a_shape_that_was_disturbed_does_not_end_the_ladder(disturbed: int) -> None:
    def kernel_at(rows: int) -> Clocked:
        return Clocked(rows, 300e-6, 1e-6, 10**6, [disturbed])

    assert calibrate(kernel_at, question, lambda: Clocked.now) == ChunkShapes(128, 2048)


def test_on_the_cpu_it_does_not_count_who_else_is_at_work() -> None:
    started, clock = time.perf_counter(), clock_of(torch.device("cpu"))
    before = clock()
    time.sleep(0.05)
    assert clock() - before < (time.perf_counter() - started) / 10


def test_a_model_of_which_no_chunk_fits_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        calibrate(lambda rows: Clocked(rows, 0.0, 0.0, 1), question, time.perf_counter)


@pytest.mark.parametrize("seconds", [[1.0, 1.6, 1.4, 3.0], [2.9, 1.0, 1.4, 3.0]])
def test_a_noisy_ladder_still_gives_shapes_in_order(seconds: Sequence[float]) -> None:
    assert chosen([4, 8, 16, 32], seconds) == ChunkShapes(16, 16)


class Branching(nn.Module):
    """Its flow depends on values, which cannot be traced."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * 2 if float(rows.sum()) > 0 else rows


@pytest.mark.parametrize("readout", Readout)
def test_tracing_changes_no_bit(readout: Readout) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 2)).eval()
    twin = fx.symbolic_trace(network.requires_grad_(False))
    points = Points(np.zeros((1, 8)), np.ones(8), np.zeros(30, dtype=np.intp), np.linspace(0, 1, 30), readout, 1)
    answers = []
    for trace in (False, True):
        kernel = GradientKernel(Network(twin, torch.device("cpu"), (8,), 2), 32, trace=trace)
        for _ in range(5):  # TorchScript optimises after the first ones
            (part,) = kernel.run([Segment(points, 0, 30)])
            assert isinstance(part, EvaluatedPoints)
            contributions = part.pieces[0].numpy()
            answers.append((part.outputs.tobytes(), part.derivatives.tobytes(), contributions.tobytes()))
    assert len(set(answers)) == 1


def test_without_torchscript_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    twin = fx.symbolic_trace(network.requires_grad_(False))
    segment = Segment(question(30), 0, 30)
    (usual,) = GradientKernel(Network(twin, torch.device("cpu"), (8,), 2), 32).run([segment])
    monkeypatch.delattr(torch.jit, "trace")
    (without,) = GradientKernel(Network(twin, torch.device("cpu"), (8,), 2), 32).run([segment])
    assert isinstance(usual, EvaluatedPoints)
    assert isinstance(without, EvaluatedPoints)
    assert usual.derivatives.tobytes() == without.derivatives.tobytes()
    assert torch.equal(usual.pieces[0], without.pieces[0])


def test_what_cannot_be_traced_runs_as_it_is() -> None:
    branching = Branching()

    def program(*fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return branching(fields[0]), fields[0], fields[0]

    assert traced(program, Chunk(*[torch.ones(2)] * len(Chunk._fields))) is program
