"""Breakpoints through every operator, against the network's own gradients: constant between two, and complete."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn
from torch.nn import functional

from service.artefacts.onnx.twins import build_twin
from service.engine.client.worker_processes import worker_environment
from service.engine.kernels.piecewise import PiecewiseLinear
from tests.conftest import PATIENCE_SECONDS

LINES, SCANNED, MANY = 3, 101, 100_000
FLAT, SEQUENCE, IMAGE, VOLUME = (8,), (2, 9), (2, 7, 6), (1, 4, 4, 4)
_GENERATOR = torch.Generator().manual_seed(0)
ROW = torch.randn(8, generator=_GENERATOR, dtype=torch.float64)
COLUMNS = torch.randn(8, 5, generator=_GENERATOR, dtype=torch.float64)
MASK = torch.tensor([True, False] * 4)
Inner = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


class Around(nn.Module):
    """An operator between two layers; one that does not bend itself has activations around it."""

    def __init__(self, inner: Inner, shape: tuple[int, ...], *, bends: bool) -> None:
        super().__init__()
        self.inner, self.bends = inner, bends
        self.first: nn.Module = nn.Linear(8, 8)
        if len(shape) > 1:
            convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
            self.first = convolution(shape[0], shape[0], 3, padding=1)
        width = self.double().hidden(torch.zeros(5, *shape, dtype=torch.float64)).shape[1]
        self.last = nn.Linear(width, 2)

    def hidden(self, rows: Tensor) -> Tensor:
        hidden = self.first(rows)
        if self.bends:
            return torch.flatten(self.inner(hidden), 1)
        return torch.relu(torch.flatten(self.inner(torch.relu(hidden)), 1) - 0.1)

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.last(self.hidden(rows))
        return result


def _sized(rows: Tensor) -> Tensor:
    count, channels, height, width = rows.shape
    return rows.view(count, channels, height * width).permute(0, 2, 1).reshape(rows.size(0), -1)


BENDING: dict[str, tuple[Inner, tuple[int, ...]]] = {
    "relu": (torch.relu, FLAT),
    "Tensor.relu": (lambda h: h.relu(), FLAT),
    "Tensor.relu_": (lambda h: h.relu_(), FLAT),
    "functional.relu in place": (lambda h: functional.relu(h, inplace=True), FLAT),
    "functional.relu in place by position": (lambda h: functional.relu(h * 2, True), FLAT),
    "ReLU in place": (nn.ReLU(inplace=True), FLAT),
    "LeakyReLU": (nn.LeakyReLU(0.2), FLAT),
    "leaky_relu": (lambda h: functional.leaky_relu(h, 0.3), FLAT),
    "PReLU": (nn.PReLU(8), FLAT),
    "PReLU of channels": (nn.PReLU(2), IMAGE),
    "prelu": (lambda h: functional.prelu(h, ROW), FLAT),
    "RReLU": (nn.RReLU(), FLAT),
    "rrelu": (lambda h: functional.rrelu(h, 0.1, 0.3), FLAT),
    "ReLU6": (nn.Sequential(nn.Linear(8, 8), nn.ReLU6()), FLAT),
    "relu6": (lambda h: functional.relu6(4 * h), FLAT),
    "Hardtanh": (nn.Hardtanh(-0.4, 0.7), FLAT),
    "hardtanh": (lambda h: functional.hardtanh(h, -0.3, 0.2), FLAT),
    "Hardsigmoid": (nn.Hardsigmoid(), FLAT),
    "hardsigmoid": (lambda h: functional.hardsigmoid(3 * h), FLAT),
    "Softshrink": (nn.Softshrink(0.3), FLAT),
    "Threshold": (nn.Threshold(0.2, 0.2), FLAT),
    "threshold": (lambda h: functional.threshold(h, 0.2, 0.2), FLAT),
    "clamp": (lambda h: torch.clamp(h, -0.3, 0.4), FLAT),
    "clamp from below": (lambda h: torch.clamp(h, 0.1), FLAT),
    "clip": (lambda h: torch.clip(h, max=0.4), FLAT),
    "Tensor.clamp": (lambda h: h.clamp(min=-0.3, max=0.4), FLAT),
    "clamp by tensors": (lambda h: h.clamp(min=-ROW.abs(), max=ROW.abs()), FLAT),
    "clamp by what varies": (lambda h: torch.clamp(h, min=h.flip(1) / 3), FLAT),
    "clamp_min": (lambda h: h.clamp_min(0.1), FLAT),
    "clamp_max_": (lambda h: h.clamp_max_(0.1), FLAT),
    "abs": (torch.abs, FLAT),
    "Tensor.abs": (lambda h: h.abs(), FLAT),
    "built-in abs": (abs, FLAT),
    "maximum": (lambda h: torch.maximum(h, 0.3 - h.flip(1)), FLAT),
    "maximum with a constant": (lambda h: torch.maximum(ROW, h), FLAT),
    "minimum": (lambda h: h.minimum(0.3 - 0.5 * h), FLAT),
    "max of two": (lambda h: torch.max(h, other=ROW), FLAT),
    "fmin": (lambda h: torch.fmin(h, ROW), FLAT),
    "amax": (lambda h: torch.amax(h, 1, keepdim=True), FLAT),
    "Tensor.amax": (lambda h: h.amax(dim=(-2, -1)), IMAGE),
    "amin": (lambda h: h.amin((1, 3)), IMAGE),
    "max along": (lambda h: torch.max(h, 2)[0], IMAGE),
    "max along, named": (lambda h: h.max(dim=-1, keepdim=True).values, IMAGE),
    "min along": (lambda h: h.min(1)[0], IMAGE),
    "MaxPool1d": (nn.MaxPool1d(3, 2, 1), SEQUENCE),
    "max_pool1d": (lambda h: functional.max_pool1d(h, 4, stride=2, dilation=2), SEQUENCE),
    "MaxPool2d": (nn.MaxPool2d(2), IMAGE),
    "MaxPool2d with padding": (nn.MaxPool2d(3, 2, 1), IMAGE),
    "MaxPool2d with all": (nn.MaxPool2d((3, 2), (2, 3), (1, 0), (1, 2), ceil_mode=True), IMAGE),
    "max_pool2d": (lambda h: functional.max_pool2d(h, 3, 2, ceil_mode=True), IMAGE),
    "torch.max_pool2d": (lambda h: torch.max_pool2d(h, [2, 3]), IMAGE),
    "MaxPool2d behind padding": (nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2)), IMAGE),
    "MaxPool3d": (nn.MaxPool3d(2, padding=1), VOLUME),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(7), SEQUENCE),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((5, 4)), IMAGE),
    "adaptive_max_pool2d": (lambda h: functional.adaptive_max_pool2d(h, 1), IMAGE),
    "AdaptiveMaxPool3d": (nn.AdaptiveMaxPool3d(2), VOLUME),
}  # fmt: skip

AFFINE: dict[str, tuple[Inner, tuple[int, ...]]] = {
    "linear": (lambda h: functional.linear(h, COLUMNS.T), FLAT),
    "matmul": (lambda h: h @ COLUMNS, FLAT),
    "addmm": (lambda h: torch.addmm(COLUMNS[0], h, COLUMNS), FLAT),
    "matmul from the left": (lambda h: COLUMNS[:7].T @ h, IMAGE),
    "conv1d": (lambda h: functional.conv1d(h, ROW[:4].reshape(1, 2, 2), stride=2), SEQUENCE),
    "Conv2d in groups": (nn.Conv2d(2, 4, 3, groups=2, padding="same"), IMAGE),
    "Conv3d": (nn.Conv3d(1, 2, 2), VOLUME),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 3, 3, stride=2), SEQUENCE),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 2, 3, stride=2), IMAGE),
    "ConvTranspose3d": (nn.ConvTranspose3d(1, 1, 2), VOLUME),
    "BatchNorm1d": (nn.BatchNorm1d(8), FLAT),
    "BatchNorm2d": (nn.BatchNorm2d(2), IMAGE),
    "batch_norm": (lambda h: functional.batch_norm(h, ROW, ROW.abs() + 0.1), FLAT),
    "AvgPool1d": (nn.AvgPool1d(3, 2), SEQUENCE),
    "AvgPool2d": (nn.AvgPool2d(2, padding=1, count_include_pad=False), IMAGE),
    "avg_pool2d": (lambda h: functional.avg_pool2d(h, 3, 1), IMAGE),
    "AvgPool3d": (nn.AvgPool3d(2), VOLUME),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((2, 3)), IMAGE),
    "adaptive_avg_pool1d": (lambda h: functional.adaptive_avg_pool1d(h, 4), SEQUENCE),
    "mean": (lambda h: torch.mean(h, dim=[2, 3]), IMAGE),
    "Tensor.mean": (lambda h: h.mean((-2, -1), keepdim=True), IMAGE),
    "sum": (lambda h: h.sum(-1), IMAGE),
    "sum by axis": (lambda h: h.sum(axis=1), IMAGE),  # type: ignore[call-overload]
    "cumsum": (lambda h: h.cumsum(1), FLAT),
    "Flatten": (nn.Flatten(), IMAGE),
    "Unflatten": (nn.Unflatten(1, (4, -1)), FLAT),
    "flatten": (lambda h: h.flatten(-2), IMAGE),
    "reshape": (lambda h: torch.reshape(h, (-1, 6, 14)), IMAGE),
    "view": (lambda h: h.view(-1, 84), IMAGE),
    "view by size": (lambda h: h.view(h.size(0), -1), IMAGE),
    "view by shape": (lambda h: h.view(h.shape[0], 2, h.shape[2] * h.shape[3]), IMAGE),
    "sizes": (_sized, IMAGE),
    "permute": (lambda h: h.permute(0, 2, 3, 1), IMAGE),
    "torch.permute": (lambda h: torch.permute(h, (0, 3, 1, 2)), IMAGE),
    "transpose": (lambda h: h.transpose(1, -1), IMAGE),
    "movedim": (lambda h: torch.movedim(h, 1, 3), IMAGE),
    "squeeze": (lambda h: h.unsqueeze(1).squeeze(1), FLAT),
    "unsqueeze": (lambda h: torch.unsqueeze(h, -1), FLAT),
    "flip": (lambda h: h.flip(2, 3), IMAGE),
    "roll": (lambda h: torch.roll(h, 2, 1), FLAT),
    "cat": (lambda h: torch.cat([h, 1 - h, h], dim=1), FLAT),
    "stack": (lambda h: torch.stack((h, 2 * h), -1), FLAT),
    "chunk": (lambda h: torch.mul(h.chunk(2, 1)[0] - h.chunk(2, 1)[1], 2), FLAT),
    "split": (lambda h: torch.split(h, [3, 5], dim=1)[1], FLAT),
    "unbind": (lambda h: h.unbind(-1)[2], IMAGE),
    "pad": (lambda h: functional.pad(h, (1, 2, 0, 1), value=0.3), IMAGE),
    "reflection": (nn.ReflectionPad2d(1), IMAGE),
    "ZeroPad2d": (nn.ZeroPad2d((0, 1, 0, 1)), IMAGE),
    "slices": (lambda h: h[:, 1:, ::2], IMAGE),
    "slices from the end": (lambda h: h[..., 1:, None, 0], IMAGE),
    "an index": (lambda h: h[:, torch.tensor([3, 0, 3])], FLAT),
    "narrow": (lambda h: h.narrow(1, 2, 3), FLAT),
    "repeat": (lambda h: h.repeat(1, 2, 1, 1), IMAGE),
    "expand": (lambda h: h.unsqueeze(1).expand(-1, 3, -1), FLAT),
    "Upsample": (nn.Upsample(scale_factor=2), IMAGE),
    "interpolate": (lambda h: functional.interpolate(h, size=(9, 5), mode="bilinear", align_corners=True), IMAGE),
    "PixelShuffle": (nn.Sequential(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2)), IMAGE),
    "sums": (lambda h: h.add(h, alpha=2) - torch.sub(ROW, h) + torch.rsub(h, 1), FLAT),
    "sums in place": (lambda h: operator.iadd(h * 1.5, h).sub_(ROW), FLAT),  # type: ignore[no-untyped-call]
    "products": (lambda h: torch.mul(ROW, h) * 2 + 0.5 * h + h.mul(3) - (-h).div(4) / ROW, FLAT),
    "where": (lambda h: torch.where(MASK, h, 2 * h), FLAT),
    "masked_fill": (lambda h: h.masked_fill(MASK, 0.5), FLAT),
    "where not NaN": (lambda h: torch.where(torch.isnan(h), ROW, h), FLAT),
    "dropout": (lambda h: functional.dropout(h, training=False), FLAT),
    "Dropout": (nn.Sequential(nn.Dropout(inplace=True), nn.Identity(), nn.Dropout1d()), FLAT),
    "copies": (lambda h: h.clone().contiguous().to(h.dtype), FLAT),
    "constants of the pass": (lambda h: h * torch.ones((1, 8), dtype=h.dtype, device=h.device), FLAT),
}  # fmt: skip


class Residual(nn.Module):
    """A small residual network of images, as they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), self.relu)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.pool(self.stem(rows))
        change = self.other(self.relu(self.norm(self.one(hidden))))
        change += hidden
        hidden = functional.adaptive_avg_pool2d(change.relu(), 1)
        result: Tensor = self.last(hidden.view(hidden.size(0), -1))
        return result


class Branches(nn.Module):
    """Branches of unlike activations, concatenated and pooled over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv1d(2, 3, 5, padding=2), nn.Conv1d(2, 3, 1)
        self.soft, self.hard = nn.PReLU(3), nn.Hardsigmoid()
        self.last = nn.Linear(12, 2)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.cat([self.soft(self.wide(rows)), self.hard(4 * self.narrow(rows))], dim=1)
        result: Tensor = self.last(torch.cat((hidden.mean(-1), hidden.amax(-1)), dim=1))
        return result


def converted() -> nn.Module:
    """The twin of an ONNX network, in the spellings that converters have."""
    make = helper.make_node
    nodes = [
        make("Conv", ["rows", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["convolved", "scale", "shift", "mean", "variance"], ["normed"]),
        make("MaxPool", ["normed"], ["pooled"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        make("Split", ["pooled"], ["one", "other"], axis=1),
        make("HardSigmoid", ["other"], ["gate"], alpha=0.2, beta=0.4),
        make("Max", ["one", "gate"], ["larger"]),
        make("Concat", ["larger", "one"], ["joined"], axis=1),
        make("Transpose", ["joined"], ["last"], perm=[0, 2, 3, 1]),
        make("ReduceMax", ["last"], ["maxima"], axes=[1, 2], keepdims=0),
        make("GlobalAveragePool", ["joined"], ["averages"]),
        make("Flatten", ["averages"], ["means"]),
        make("Sub", ["maxima", "means"], ["differences"]),
        make("Clip", ["differences", "low"], ["clipped"]),
        make("Gemm", ["clipped", "weights", "biases"], ["logits"]),
    ]
    shapes = {"kernel": (4, 2, 3, 3), "weights": (4, 2), "biases": (2,)}
    shapes |= dict.fromkeys(("scale", "shift", "mean", "variance"), (4,))
    constants = [numpy_helper.from_array(np.ones(shape, dtype=np.float32), name) for name, shape in shapes.items()]
    constants.append(numpy_helper.from_array(np.array(0.1, dtype=np.float32), "low"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "logits")]
    ends[0] = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", *IMAGE])
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], constants)
    return build_twin(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), "rows", "logits")


@dataclass(frozen=True, slots=True)
class Case:
    """A network and the shape of its rows."""

    network: nn.Module
    shape: tuple[int, ...]

    def lines(self) -> tuple[Tensor, Tensor]:
        """Starts and directions [lines, *shape]."""
        generator = torch.Generator().manual_seed(1)
        starts, ends = 2 * torch.randn(2, LINES, *self.shape, generator=generator, dtype=torch.float64)
        return starts, ends - starts

    def outputs(self, rows: Tensor) -> Tensor:
        """One output [rows]."""
        result: Tensor = self.network(rows)[:, 0]
        return result

    def gradients(self, rows: Tensor) -> Tensor:
        """That output's gradients [rows, inputs]."""
        rows = rows.clone().requires_grad_()
        (result,) = torch.autograd.grad(self.outputs(rows).sum(), rows)
        return result.flatten(1)


COMPOSITES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, IMAGE),
    "converted": (converted, IMAGE),
    "branches": (Branches, SEQUENCE),
}
NAMES = [*COMPOSITES, *BENDING, *AFFINE]


def case_of(name: str) -> Case:
    """A float64 network with that operator, its weights drawn anew."""
    if name in COMPOSITES:
        kind, shape = COMPOSITES[name]
        network = kind()
    else:
        inner, shape = (BENDING | AFFINE)[name]
        network = Around(inner, shape, bends=name in BENDING)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in (*network.parameters(), *network.buffers()):
            if weight.is_floating_point():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.abs_()
    return Case(network.requires_grad_(False).double().eval(), shape)


def prepared(case: Case) -> PiecewiseLinear:
    return PiecewiseLinear(fx.symbolic_trace(case.network), 16, case.shape)


def points(case: Case, line: Tensor, alphas: Tensor) -> Tensor:
    starts, directions = case.lines()
    return starts[line] + alphas.reshape(-1, *[1] * len(case.shape)) * directions[line]


def searched(case: Case) -> tuple[Tensor, Tensor]:
    """Lines and places at which the gradient changes, by a scan and by halving what the scan brackets."""
    line, scan = torch.arange(LINES).repeat_interleave(SCANNED), torch.linspace(0, 1, SCANNED).double().repeat(LINES)
    known = case.gradients(points(case, line, scan))
    scale = known.abs().max()
    differ = ((known[1:] - known[:-1]).abs().amax(1) > 1e-9 * scale) & (line[1:] == line[:-1])
    (at,) = differ.nonzero(as_tuple=True)
    line, low, high, expected = line[at], scan[at], scan[at + 1], known[at]
    for _ in range(32):
        middle = (low + high) / 2
        same = (case.gradients(points(case, line, middle)) - expected).abs().amax(1) <= 1e-9 * scale
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return line, high


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_constant_between_breakpoints_and_complete(name: str) -> None:
    case = case_of(name)
    starts, directions = case.lines()
    rows = prepared(case).breakpoints(starts.numpy(), (starts + directions).numpy(), np.full(LINES, MANY))
    line, alpha = torch.from_numpy(rows.line), torch.from_numpy(rows.alpha)
    logits = torch.from_numpy(rows.logits)
    torch.testing.assert_close(logits, case.network(points(case, line, alpha)), rtol=1e-9, atol=1e-9)
    assert len(alpha) > 2 * LINES
    for bent, at in zip(*searched(case), strict=True):
        assert (alpha[line == bent] - at).abs().min() < 1e-8

    inner = line[1:] == line[:-1]
    piece, left, length = line[:-1][inner], alpha[:-1][inner], alpha.diff()[inner]
    assert (length > -1e-13).all()
    nodes = [case.gradients(points(case, piece, left + share * length)) for share in (0.5, 0.1, 0.87)]
    scale = nodes[0].abs().max()
    for gradients in nodes[1:]:
        assert (gradients - nodes[0])[length > 1e-9].abs().max() < 1e-9 * scale

    # torch's own gradient of hardsigmoid is one of float32: the sixth in it is rounded to that.
    precision = 1e-7 if "hardsigmoid" in name.lower() or name == "branches" else 1e-12
    for at in range(LINES):
        terms = length[piece == at] * (nodes[0][piece == at] @ directions[at].flatten())
        ends = case.outputs(points(case, torch.tensor([at, at]), torch.tensor([0.0, 1.0]).double()))
        assert abs(terms.sum() - ends.diff()) < precision * max(terms.abs().sum(), ends.abs().max())


def print_where_bits_depend_on_other_lines() -> None:
    """Prints the networks that give a line other bits when it has neighbours."""
    torch.set_num_threads(1)
    for name in NAMES:
        case = case_of(name)
        network = prepared(case)
        starts, directions = (tensor.numpy() for tensor in case.lines())
        amid = network.breakpoints(starts, starts + directions, np.full(LINES, MANY))
        for at in range(LINES):
            one = slice(at, at + 1)
            alone = network.breakpoints(starts[one], (starts + directions)[one], np.full(1, MANY))
            mine = amid.line == at
            if (
                alone.alpha.tobytes() + alone.logits.tobytes()
                != amid.alpha[mine].tobytes() + amid.logits[mine].tobytes()
            ):
                print(name)


def test_a_line_alone_and_amid_others_has_the_same_bits() -> None:
    """In the workers' environment; without it MKL's bits depend on a row's place at some widths."""
    program = f"import runpy; runpy.run_path({__file__!r})['print_where_bits_depend_on_other_lines']()"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=worker_environment(0),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert ran.stdout == ""


@pytest.mark.parametrize("name", NAMES)
def test_where_all_lines_have_too_many_pieces_there_are_no_rows(name: str) -> None:
    case = case_of(name)
    starts, directions = (tensor.numpy() for tensor in case.lines())
    rows = prepared(case).breakpoints(starts, starts + directions, np.zeros(LINES, dtype=np.intp))
    assert rows.overflowed.all()
    assert len(rows.line) == len(rows.alpha) == len(rows.logits) == 0


@pytest.mark.parametrize("name", [name for name in BENDING if "max" in name.lower() and "clamp" not in name])
def test_a_maximum_has_no_breakpoint_below_it(name: str) -> None:
    """At every breakpoint the gradient changes: none is where elements cross that are not their window's largest."""
    case = case_of(name)
    starts, directions = case.lines()
    rows = prepared(case).breakpoints(starts.numpy(), (starts + directions).numpy(), np.full(LINES, MANY))
    line, alpha = torch.from_numpy(rows.line), torch.from_numpy(rows.alpha)
    length = alpha.diff()
    pieces = (line[1:] == line[:-1]) & (length > 1e-9)
    gradients = case.gradients(points(case, line[:-1][pieces], (alpha[:-1] + length / 2)[pieces]))
    same_line = line[:-1][pieces].diff() == 0
    assert (gradients.diff(dim=0).abs().amax(1)[same_line] > 1e-9).all()
