"""What is recorded of a computation does the same again, for whatever it is given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from service.engine.kernels.chunks import Chunk
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Segment
from service.engine.kernels.network import Network
from service.engine.kernels.recording import record
from service.engine.kernels.tracing import traced
from service.methods.questions import Points, Readout
from tests.conftest import MODELS, PATIENCE_SECONDS

LOAN = MODELS / "loan" / "1"
WIDTH = 40

START = """
import sys, pathlib, torch
from service.catalog.calibrations import Calibration
from service.domain import ChunkShapes
from service.engine.worker.device import put_on_device
from service.engine.worker.environment import set_up_torch
from tests.conftest import MODELS
set_up_torch()
put_on_device(pathlib.Path(sys.argv[1]), torch.device("cpu"), {}, Calibration(ChunkShapes(4, 8)))
print(*(name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules))
"""


class Attention(nn.Module):
    """Tokens that see one another; the projections come as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.projections, self.norm, self.head = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        tokens = rows.reshape(-1, 1, 5, 8)
        query, key, value = self.projections(tokens).chunk(3, -1)
        seen = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.head(self.norm(tokens + seen).mean(dim=(1, 2)))
        return result


class InPlace(nn.Module):
    """Changes tensors that it makes, some of them of numbers, and reads a number that is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        self.shift = nn.Buffer(torch.ones(WIDTH))
        self.factor = nn.Buffer(torch.tensor(0.5))

    def forward(self, rows: Tensor) -> Tensor:
        moved = torch.zeros_like(rows)
        moved[:, 3:9] = rows[:, 3:9]
        moved += self.shift
        numbers = torch.tensor([1.0, 2.0]).mul_(self.factor.item() * torch.tensor(2.0).item())
        first, second = torch.split(torch.tanh(moved) * numbers.sum(), WIDTH // 2, dim=1)
        result: Tensor = self.head(torch.cat([second, first], dim=1).relu_())
        return result


def convolution() -> nn.Module:
    first = [nn.Unflatten(1, (1, 5, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    then = [nn.MaxPool2d(2), nn.Conv2d(4, 8, 2), nn.SiLU(), nn.GroupNorm(2, 8), nn.PReLU(), nn.Flatten()]
    return nn.Sequential(*first, *then, nn.Linear(24, 2), nn.Dropout())


@pytest.mark.parametrize("network", [convolution, Attention, InPlace])
def test_a_recording_has_the_same_bits_for_other_inputs(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    twin = network().eval().requires_grad_(False)

    def program(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        points = (rows * weights).requires_grad_()
        outputs = torch.softmax(twin(points), dim=1)
        (gradients,) = torch.autograd.grad(outputs[:, 1].sum(), points)
        return outputs.detach(), gradients * points.detach()

    recorded = record(program, (torch.randn(6, WIDTH), torch.rand(6, 1)))
    for _ in range(3):
        given = torch.randn(6, WIDTH), torch.rand(6, 1)
        with torch.inference_mode():
            answers = recorded(*given)
        assert all(map(torch.equal, answers, program(*given)))


def test_what_reads_a_value_that_it_computed_is_not_recorded() -> None:
    def program(rows: Tensor) -> tuple[Tensor]:
        return (rows * 2 if (rows.sum() > 0).item() else rows,)

    with pytest.raises(ValueError, match="reads a value that was computed"):
        record(program, [torch.ones(2)])


@pytest.mark.parametrize(
    "chosen",
    [
        lambda rows: rows[rows > 0],
        lambda rows: rows.nonzero(),
        lambda rows: rows.masked_select(rows > 0),
        lambda rows: rows.unique(),
    ],
)
def test_what_makes_a_shape_of_a_value_is_not_recorded(chosen: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="reads a value that was computed"):
        record(lambda rows: (chosen(rows),), [torch.randn(4)])


def test_what_reads_a_value_unseen_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """As NumPy it leaves torch, where nobody sees that it is read."""

    def program(*fields: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chunk = Chunk(*fields)
        scaled = chunk.alphas * float(chunk.alphas.detach().numpy().max())
        return scaled, scaled, scaled

    chunk = Chunk(*[torch.linspace(0, 1, 5)] * len(Chunk._fields))
    assert traced(program, chunk) is program
    assert "other points have other answers" in caplog.text


class _SecondLogit(nn.Module):
    """Two labels; a layer of one output has the second's score."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.bias = nn.Buffer(torch.randn(1, WIDTH)), nn.Buffer(torch.zeros(1))

    def forward(self, rows: Tensor) -> Tensor:
        score = functional.linear(rows, self.weights, self.bias).reshape(-1, 1)
        return torch.cat([score * torch.tensor(0.0), score], dim=1)


class _NoSlope(nn.Module):
    """Its gradient is no number: that of a root of what is negative, which is replaced afterwards."""

    def forward(self, rows: Tensor) -> Tensor:
        root = (rows - 10) ** 0.5
        return torch.where(root.isnan(), rows, root)[:, :2]


@pytest.mark.parametrize("network", [_SecondLogit, _NoSlope])
def test_a_kernel_records_it_all_the_same(network: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    """TorchScript does not run the one's list, which is run from Python then; the other's answers are no numbers."""
    torch.manual_seed(0)
    twin = fx.symbolic_trace(network().eval())
    points = Points(
        np.zeros((1, WIDTH)),
        np.ones(WIDTH),
        np.zeros(8, dtype=np.intp),
        np.linspace(0.1, 0.9, 8),
        Readout.LOGIT,
        1,
    )
    answers = []
    for trace in (True, False):
        kernel = GradientKernel(Network(twin, torch.device("cpu"), (WIDTH,), 2), 32, trace=trace)
        (evaluated,) = kernel.run([Segment(points, 0, 8)])
        assert isinstance(evaluated, EvaluatedPoints)
        answers.append(evaluated)
    traced_one, plain = answers

    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert np.array_equal(traced_one.outputs, plain.outputs, equal_nan=True)
    assert np.array_equal(traced_one.derivatives, plain.derivatives, equal_nan=True)


def test_a_worker_has_a_model_without_torchs_compiler() -> None:
    """Its import takes longer than the model, and so does that of sympy."""
    done = subprocess.run(
        [sys.executable, "-c", START, LOAN], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    assert done.stdout.split() == []
