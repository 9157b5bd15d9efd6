"""On a CUDA device: the graphed kernel answers what the plain one does, alone and amid traffic, and as fast as the
device allows. Run by hand where there is one: `pytest -m gpu`."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from service.artefacts.loading import load_model
from service.engine.kernels.cuda import GraphedGradientKernel
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import Launched, Segment
from service.engine.kernels.network import Network
from service.methods.questions import Points, Readout
from tests.conftest import MODELS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LABELS = 10


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet50() -> nn.Module:
    """A network of ResNet-50's layers (He et al., 2016), its weights random."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(blocks):
            layers.append(Bottleneck(before, width, stride if number == 0 else 1))
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, LABELS))


@pytest.fixture(scope="module")
def device() -> torch.device:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture(scope="module")
def images(device: torch.device) -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(resnet50().eval().requires_grad_(False)).to(device)


@pytest.fixture(scope="module")
def table(device: torch.device) -> fx.GraphModule:
    """The loan network."""
    return load_model(MODELS / "loan" / "1", device).twin


def points(
    shape: tuple[int, ...], count: int, seed: int, labels: int, readout: Readout = Readout.PROBABILITY
) -> Points:
    generator = np.random.default_rng(seed)
    starts, end = generator.normal(size=(3, prod(shape))), generator.normal(size=prod(shape))
    lines = np.sort(generator.integers(0, 3, count))
    target = int(generator.integers(0, labels))
    return Points(starts, end, lines, generator.uniform(0, 1, count), readout, target)


def whole(question: Points) -> Segment:
    return Segment(question, 0, len(question))


def answered(parts: list[object], at: int) -> EvaluatedPoints:
    part = parts[at]
    assert isinstance(part, EvaluatedPoints)
    return part


def bits(part: EvaluatedPoints) -> list[bytes]:
    return [
        part.outputs.tobytes(),
        part.derivatives.tobytes(),
        *(c.cpu().numpy().tobytes() for c in part.pieces),
    ]


@pytest.mark.parametrize("readout", [Readout.LOGIT, Readout.PROBABILITY])
def test_the_graph_answers_what_the_plain_kernel_does(
    table: fx.GraphModule, device: torch.device, readout: Readout
) -> None:
    question = points((38,), 100, 0, 2, readout)
    graphed = answered(GraphedGradientKernel(Network(table, device, (38,), 2), 128).run([whole(question)]), 0)
    plain = answered(GradientKernel(Network(table, device, (38,), 2), 128, trace=False).run([whole(question)]), 0)
    np.testing.assert_allclose(graphed.outputs, plain.outputs, rtol=1e-6)
    np.testing.assert_allclose(graphed.derivatives, plain.derivatives, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(graphed.pieces[0], plain.pieces[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["table", "images"])
def test_alone_and_amid_traffic_the_bits_are_equal(
    kind: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    shape, rows, labels = ((38,), 512, 2) if kind == "table" else ((3, 64, 64), 32, LABELS)
    kernel = GraphedGradientKernel(Network(request.getfixturevalue(kind), device, shape, labels), rows)
    probe = points(shape, 7, 0, labels)
    alone = bits(answered(kernel.run([whole(probe)]), 0))
    for seed in range(1, 20):
        size = 1 + seed % (rows // 4)
        others = [points(shape, size, seed, labels), points(shape, rows - 7 - size, 100 + seed, labels)]
        order = [others[0], probe, others[1]]
        assert bits(answered(kernel.run([whole(question) for question in order]), 1)) == alone


def test_two_chunks_under_way_do_not_mix(table: fx.GraphModule, device: torch.device) -> None:
    kernel = GraphedGradientKernel(Network(table, device, (38,), 2), 128)
    questions = [points((38,), 128, seed, 2) for seed in range(12)]
    alone = [bits(answered(kernel.run([whole(question)]), 0)) for question in questions]
    before: Launched | None = None
    together = []
    for question in questions:
        launched = kernel.launch([whole(question)])
        if before is not None:
            together.append(bits(answered(before.collect(), 0)))
        before = launched
    assert before is not None
    together.append(bits(answered(before.collect(), 0)))
    assert together == alone


def rate(run: Callable[[], None], count: int, repeats: int) -> float:
    """Points a second, the best of three."""
    run()
    torch.cuda.synchronize()
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
        best = max(best, count * repeats / (time.perf_counter() - started))
    return best


def bare_loop(network: fx.GraphModule, rows: Tensor) -> Callable[[], None]:
    """What anyone would write: the forward pass, and the gradient of one label's logit."""
    ones = torch.ones(len(rows), device=rows.device)

    def run() -> None:
        inputs = rows.detach().requires_grad_()
        torch.autograd.grad(network(inputs)[:, 1], inputs, ones)

    return run


def pipelined(kernel: GraphedGradientKernel, question: Points) -> Callable[[], None]:
    """The kernel with the next chunk launched before the last is collected."""
    under_way: list[Launched] = []

    def run() -> None:
        under_way.append(kernel.launch([whole(question)]))
        if len(under_way) > 1:
            under_way.pop(0).collect()

    return run


def test_large_networks_run_at_the_rate_of_the_bare_loop(images: fx.GraphModule, device: torch.device) -> None:
    question = points((3, 224, 224), 64, 0, LABELS, Readout.LOGIT)
    ours = rate(pipelined(GraphedGradientKernel(Network(images, device, (3, 224, 224), LABELS), 64), question), 64, 10)
    bare = rate(bare_loop(images, torch.randn(64, 3, 224, 224, device=device)), 64, 10)
    print(f"ResNet-50: {ours:.0f} points/s, {ours / bare:.2f} of the bare loop")
    assert ours >= 0.9 * bare


def test_small_networks_run_at_ten_times_the_rate_of_the_eager_loop(
    table: fx.GraphModule, device: torch.device
) -> None:
    question = points((38,), 4096, 0, 2, Readout.LOGIT)
    ours = rate(pipelined(GraphedGradientKernel(Network(table, device, (38,), 2), 4096), question), 4096, 50)
    eager = rate(bare_loop(table, torch.randn(50, 38, device=device)), 50, 100)
    print(f"loan: {ours:.0f} points/s, {ours / eager:.1f} times the eager loop at 50 rows")
    assert ours >= 10 * eager
