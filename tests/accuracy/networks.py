"""Networks on which stated errors are held against true ones.

To add one, write a function that returns a `Case` and mark it with `@network(tuned=False)`. Those marked `tuned` are
the ones that any constant of the estimate was chosen on or settled with a look at; all others it had not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch import Tensor, nn
from torch.nn import functional

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """A network from rows [n, ...shape] to logits [n, labels], rows, and baselines [K, ...shape] to begin at.

    The first `INPUTS` of the rows are explained; of all others, baseline sets are drawn. `is_piecewise_linear` says
    that the truth is to be found piece by piece.
    """

    network: nn.Module
    rows: Floats
    baselines: Floats
    is_piecewise_linear: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """A named network and whether a constant of the estimate was settled by its figures."""

    name: str
    make: Callable[[], Case]
    is_tuned: bool


NETWORKS: dict[str, Network] = {}
INPUTS = 25
ROWS = INPUTS + 128


def network(*, tuned: bool) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Registers a function that makes a `Case`, under its name."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        def seeded() -> Case:
            torch.manual_seed(sum(make.__name__.encode()))
            case = make()
            return replace(case, network=case.network.eval().requires_grad_(requires_grad=False))

        NETWORKS[make.__name__] = Network(make.__name__, seeded, tuned)
        return make

    return register


def _images(
    network: nn.Module, size: int = 12, channels: int = 3, baseline: float = 0.0, *, is_piecewise_linear: bool = False
) -> Case:
    """Random smooth pictures, from a flat one."""
    draws = torch.randn(ROWS, channels, size // 4, size // 4)
    rows = functional.interpolate(draws, size=(size, size), mode="bilinear") + 0.1 * torch.randn(
        1, channels, size, size
    )
    return Case(network, rows.double().numpy(), np.full((1, channels, size, size), baseline), is_piecewise_linear)


def _table(network: nn.Module, features: int, *, is_piecewise_linear: bool = False) -> Case:
    return Case(network, torch.randn(ROWS, features).double().numpy(), np.zeros((1, features)), is_piecewise_linear)


def _sequence(network: nn.Module, positions: int, width: int) -> Case:
    return Case(network, torch.randn(ROWS, positions, width).double().numpy(), np.zeros((1, positions, width)))


def _trained(network: nn.Module, rows: Tensor, labels: Tensor, steps: int = 300) -> nn.Module:
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(rows), (64,))
        optimiser.zero_grad()
        functional.cross_entropy(network(rows[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


def _digits(network: nn.Module, size: int = 12, *, from_mean: bool = False, is_piecewise_linear: bool = False) -> Case:
    """Trained on handwritten digits, enlarged; none of those that are explained."""
    data = load_digits()
    pictures = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    pictures = functional.interpolate(pictures, size=(size, size), mode="bilinear")
    _trained(network, pictures[:-INPUTS], torch.tensor(data.target[:-INPUTS]))
    rows = pictures.double().numpy()
    baseline = rows[:-INPUTS].mean(axis=0) if from_mean else np.zeros_like(rows[0])
    return Case(network, np.concatenate([rows[-INPUTS:], rows[: ROWS - INPUTS]]), baseline[None], is_piecewise_linear)


def _conv_net(norm: Callable[[int], nn.Module], activation: Callable[[], nn.Module], channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), norm(8), activation(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), norm(16), activation(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2), norm(16), activation(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def _dense(widths: tuple[int, ...], activation: Callable[[], nn.Module], norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), activation()]
    return nn.Sequential(*layers[: -2 if norm else -1])


class _Scaled(nn.Module):
    """A network whose logits are spread, so that probabilities move."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) * self.factor
        return logits


class _Attention(nn.Module):
    """A transformer encoder in plain operators: pre-norm, mean pooling."""

    def __init__(
        self, positions: int, width: int, heads: int, layers: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.heads, self.depth = heads, width // heads
        self.places = nn.Parameter(torch.randn(1, positions, width) * 0.3)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width), "mixing": nn.Linear(width, 3 * width), "out": nn.Linear(width, width),
                    "second": nn.LayerNorm(width),
                    "inner": nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width)),
                }
            )
            for _ in range(layers)
        )  # fmt: skip
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places
        for block in cast(list[dict[str, nn.Module]], self.blocks):
            mixed = block["mixing"](block["norm"](x)).unflatten(-1, (3, self.heads, self.depth)).permute(2, 0, 3, 1, 4)
            weights = (mixed[0] @ mixed[1].transpose(-1, -2) / self.depth**0.5).softmax(dim=-1)
            x = x + block["out"]((weights @ mixed[2]).transpose(1, 2).flatten(2))
            x = x + block["inner"](block["second"](x))
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


class _Residual(nn.Module):
    """`body` beside the identity, and what follows their sum."""

    def __init__(self, body: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.after = body, after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(x + self.body(x))
        return out


class _Series(nn.Module):
    """A network of channels, for rows [n, positions, channels]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x.transpose(1, 2))
        return logits


def _trained_table(network: nn.Module, data: Any, labels: Any, *, is_piecewise_linear: bool = False) -> Case:
    """Trained on `data` [n, features], standardised and shuffled; explained from the mean."""
    order = np.random.default_rng(0).permutation(len(data))
    rows = torch.tensor(((data - data.mean(axis=0)) / data.std(axis=0))[order], dtype=torch.float32)
    _trained(network.train(), rows, torch.tensor(np.asarray(labels)[order]).long())
    baseline = np.zeros((1, data.shape[1]))
    return Case(network, rows[:ROWS].double().numpy(), baseline, is_piecewise_linear)


@network(tuned=True)
def relu_table() -> Case:
    return _table(_dense((38, 64, 64, 2), nn.ReLU), 38, is_piecewise_linear=True)


@network(tuned=True)
def gelu_table() -> Case:
    return _table(_Scaled(_dense((38, 64, 64, 2), nn.GELU), 8), 38)


@network(tuned=True)
def relu_image_dense() -> Case:
    network = nn.Sequential(nn.Flatten(), _Scaled(_dense((432, 128, 64, 10), nn.ReLU), 4))
    return _images(network, is_piecewise_linear=True)


@network(tuned=True)
def group_norm_relu() -> Case:
    return _images(_conv_net(lambda c: nn.GroupNorm(4, c), nn.ReLU), baseline=0.3)


@network(tuned=True)
def gelu_image() -> Case:
    return _images(_Scaled(_conv_net(lambda _: nn.Identity(), nn.GELU), 10))


@network(tuned=True)
def attention_gelu() -> Case:
    return _sequence(_Scaled(_Attention(12, 16, 2, 2, nn.GELU), 3), 12, 16)


@network(tuned=True)
def digits_relu() -> Case:
    return _digits(_conv_net(lambda _: nn.Identity(), nn.ReLU, 1), is_piecewise_linear=True)


@network(tuned=True)
def elu_image() -> Case:
    return _images(_Scaled(_conv_net(lambda _: nn.Identity(), nn.ELU), 10))


@network(tuned=True)
def digits_group_norm() -> Case:
    return _digits(_conv_net(lambda c: nn.GroupNorm(4, c), nn.ReLU, 1))


@network(tuned=False)
def digits_group_norm_28() -> Case:
    return _digits(_conv_net(lambda c: nn.GroupNorm(4, c), nn.ReLU, 1), 28, from_mean=True)


@network(tuned=True)
def digits_batch_norm_silu() -> Case:
    return _digits(_conv_net(nn.BatchNorm2d, nn.SiLU, 1))


@network(tuned=False)
def digits_max_pool() -> Case:
    return _digits(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 24, 3), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10),
        ),
        from_mean=True,
        is_piecewise_linear=True,
    )  # fmt: skip


@network(tuned=True)
def instance_norm_relu() -> Case:
    return _images(_conv_net(lambda c: nn.InstanceNorm2d(c, affine=True), nn.ReLU), baseline=0.3)


@network(tuned=True)
def instance_norm_relu_32() -> Case:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1),
        nn.InstanceNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
    return _images(network, 32, baseline=0.1)


@network(tuned=True)
def batch_norm_hardswish() -> Case:
    return _images(_Scaled(_conv_net(nn.BatchNorm2d, nn.Hardswish), 10))


@network(tuned=False)
def selu_image() -> Case:
    return _images(_Scaled(_conv_net(lambda _: nn.Identity(), nn.SELU), 5))


@network(tuned=True)
def celu_image() -> Case:
    return _images(_Scaled(_conv_net(lambda _: nn.Identity(), nn.CELU), 10))


@network(tuned=False)
def silu_group_norm() -> Case:
    return _images(_conv_net(lambda c: nn.GroupNorm(2, c), nn.SiLU), baseline=0.2)


@network(tuned=False)
def pixel_shuffle() -> Case:
    return _images(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
        ),
        is_piecewise_linear=True,
    )  # fmt: skip


class _Resize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, size=(12, 12), mode="bilinear", align_corners=False)


@network(tuned=False)
def resize_relu() -> Case:
    return _images(
        nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), _Resize(), nn.Conv2d(12, 12, 3), nn.LeakyReLU(0.1),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), _Scaled(nn.Linear(48, 4), 10),
        ),
        is_piecewise_linear=True,
    )  # fmt: skip


@network(tuned=False)
def reflect_padding() -> Case:
    return _images(
        nn.Sequential(
            nn.ReflectionPad2d(2), nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(8, 12, 3),
            nn.ReLU6(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), _Scaled(nn.Linear(48, 4), 5),
        ),
        is_piecewise_linear=True,
    )  # fmt: skip


@network(tuned=True)
def layer_norm_table() -> Case:
    return _table(_dense((20, 48, 48, 3), nn.GELU, norm=True), 20)


@network(tuned=True)
def layer_norm_relu_table() -> Case:
    return _table(_dense((30, 48, 48, 3), nn.ReLU, norm=True), 30)


@network(tuned=True)
def silu_table() -> Case:
    return _table(_Scaled(_dense((12, 32, 32, 4), nn.SiLU), 20), 12)


@network(tuned=True)
def tanh_table_steep() -> Case:
    return _table(_Scaled(_dense((8, 32, 2), nn.Tanh), 40), 8)


@network(tuned=True)
def wine_relu() -> Case:
    data = load_wine()
    rows = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    rows = torch.tensor(rows[np.random.default_rng(0).permutation(len(rows))], dtype=torch.float32)
    labels = torch.tensor(data.target[np.random.default_rng(0).permutation(len(rows))])
    network = _trained(_dense((13, 32, 32, 3), nn.ReLU), rows, labels)
    return Case(network, rows[:ROWS].double().numpy(), np.zeros((1, 13)), is_piecewise_linear=True)


@network(tuned=True)
def diabetes_softplus() -> Case:
    data = load_diabetes()
    rows = torch.tensor(data.data / data.data.std(axis=0), dtype=torch.float32)
    network = _trained(_dense((10, 32, 32, 2), nn.Softplus), rows, torch.tensor(data.target > 140).long())
    return Case(network, rows[:ROWS].double().numpy(), np.zeros((1, 10)))


@network(tuned=False)
def attention_relu() -> Case:
    return _sequence(_Scaled(_Attention(10, 24, 4, 2, nn.ReLU), 5), 10, 24)


@network(tuned=False)
def attention_long() -> Case:
    return _sequence(_Scaled(_Attention(24, 16, 2, 3, nn.GELU), 5), 24, 16)


@network(tuned=True)
def embedded_text() -> Case:
    """Embeddings of tokens, from those of one mask token."""
    table = torch.randn(50, 24)
    tokens = torch.randint(1, 50, (ROWS, 16))
    rows, baseline = table[tokens].double().numpy(), table[torch.zeros(1, 16, dtype=torch.long)].double().numpy()
    return Case(_Scaled(_Attention(16, 24, 3, 2, nn.GELU), 6), rows, baseline)


@network(tuned=False)
def series_convolution() -> Case:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv1d(4, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 5, stride=2), nn.ELU(),
                nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 3),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body(x.transpose(1, 2)) * 8
            return logits

    return _sequence(Series(), 48, 4)


@network(tuned=True)
def series_gated() -> Case:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate = nn.Conv1d(3, 24, 7, padding=3), nn.Conv1d(3, 24, 7, padding=3)
            self.head = nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(1, 2)
            logits: Tensor = self.head((self.value(x).tanh() * self.gate(x).sigmoid()).amax(dim=2)) * 6
            return logits

    return _sequence(Gated(), 40, 3)


@network(tuned=False)
def residual_batch_norm() -> Case:
    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(x + self.body(x))

    return _images(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            _Scaled(nn.Linear(16, 6), 6),
        ),
        is_piecewise_linear=True,
    )  # fmt: skip


@network(tuned=True)
def clipped_steps() -> Case:
    """Narrow ramps: most of a path is flat, and everything happens in a hundredth of it."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.rand(10))
            self.head = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.clamp(60 * (x - 0.6 * self.shift), 0, 1)) * 3
            return logits

    case = _table(Steps(), 10)
    return Case(case.network, np.abs(case.rows) + 0.3, case.baselines, is_piecewise_linear=True)


@network(tuned=True)
def mish_table() -> Case:
    return _table(_Scaled(_dense((15, 40, 40, 3), nn.Mish), 10), 15)


@network(tuned=True)
def hardswish_table() -> Case:
    return _table(_Scaled(_dense((25, 32, 32, 2), nn.Hardswish), 10), 25)


@network(tuned=True)
def sigmoid_table() -> Case:
    return _table(_Scaled(_dense((10, 24, 24, 3), nn.Sigmoid), 30), 10)


@network(tuned=True)
def leaky_layer_norm_table() -> Case:
    return _table(_dense((16, 40, 40, 4), nn.LeakyReLU, norm=True), 16)


@network(tuned=True)
def elu_layer_norm_table() -> Case:
    return _table(_dense((22, 40, 40, 3), nn.ELU, norm=True), 22)


@network(tuned=True)
def attention_silu() -> Case:
    return _sequence(_Scaled(_Attention(8, 16, 2, 1, nn.SiLU), 6), 8, 16)


@network(tuned=False)
def attention_leaky() -> Case:
    return _sequence(_Scaled(_Attention(8, 12, 3, 2, nn.LeakyReLU), 4), 8, 12)


@network(tuned=True)
def cancer_prelu() -> Case:
    data = load_breast_cancer()
    return _trained_table(_dense((30, 24, 24, 2), nn.PReLU), data.data, data.target, is_piecewise_linear=True)


@network(tuned=False)
def diabetes_residual() -> Case:
    def block() -> nn.Module:
        return _Residual(nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24)), nn.ReLU())

    data = load_diabetes()
    network = nn.Sequential(nn.Linear(10, 24), block(), block(), nn.Linear(24, 2))
    return _trained_table(network, data.data, data.target > 140, is_piecewise_linear=True)


@network(tuned=False)
def iris_tanh() -> Case:
    data = load_iris()
    return _trained_table(_dense((4, 16, 16, 3), nn.Tanh), data.data, data.target)


@network(tuned=True)
def hardtanh_table() -> Case:
    return _table(_Scaled(_dense((18, 40, 40, 3), nn.Hardtanh), 5), 18, is_piecewise_linear=True)


@network(tuned=False)
def softsign_table() -> Case:
    return _table(_Scaled(_dense((14, 32, 32, 2), nn.Softsign), 20), 14)


@network(tuned=False)
def sine_table() -> Case:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(3 * x)

    return _table(_Scaled(_dense((12, 32, 32, 3), Sine), 5), 12)


@network(tuned=False)
def digits_instance_norm() -> Case:
    return _digits(_conv_net(lambda c: nn.InstanceNorm2d(c, affine=True), nn.LeakyReLU, 1), from_mean=True)


@network(tuned=False)
def digits_tanh_pooling() -> Case:
    """As networks for digits were in 1998."""
    network = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip
    return _digits(network)


@network(tuned=False)
def encoder_decoder() -> Case:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), _Resize(),
        nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), _Scaled(nn.Linear(24, 4), 20),
    )  # fmt: skip
    return _images(network, is_piecewise_linear=True)


@network(tuned=False)
def squeeze_excitation() -> Case:
    """Depthwise convolutions, mirrored at the border, and channels that gate each other."""

    class Gate(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.mix = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
            )

        def forward(self, x: Tensor) -> Tensor:
            gated: Tensor = x * self.mix(x)
            return gated

    def block() -> nn.Module:
        depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, padding_mode="reflect")
        return _Residual(nn.Sequential(depthwise, nn.Hardswish(), Gate(12), nn.Conv2d(12, 12, 1)))

    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Hardswish(), block(), block(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), _Scaled(nn.Linear(12, 6), 10),
    )  # fmt: skip
    return _images(network)


@network(tuned=False)
def patches_attention() -> Case:
    """A vision transformer: patches of four by four pixels."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.body = nn.Conv2d(3, 16, 4, stride=4), _Attention(9, 16, 2, 2, nn.GELU)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body(self.cut(x).flatten(2).transpose(1, 2))
            return logits

    return _images(_Scaled(Patches(), 8))


@network(tuned=False)
def text_trained() -> Case:
    """Embeddings of words, trained to tell which of three kinds is the most frequent; from those of one word."""
    vectors = torch.randn(60, 16)
    words = torch.randint(1, 60, (1000, 12))
    counts = torch.stack([(words % 3 == kind).sum(dim=1) for kind in range(3)], dim=1)
    rows = vectors[words]
    network = _trained(_Attention(12, 16, 2, 1, nn.ReLU), rows, counts.argmax(dim=1))
    return Case(network, rows[:ROWS].double().numpy(), vectors[torch.zeros(1, 12, dtype=torch.long)].double().numpy())


@network(tuned=False)
def text_attention_pooling() -> Case:
    """Embeddings, LayerNorm, and one learned query over the positions."""

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.key, self.value = nn.LayerNorm(20), nn.Linear(20, 1), nn.Linear(20, 32)
            self.head = nn.Sequential(nn.SiLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            weights = (3 * self.key(x)).softmax(dim=1)
            logits: Tensor = self.head((weights * self.value(x)).sum(dim=1))
            return logits

    vectors = torch.randn(40, 20)
    rows = vectors[torch.randint(1, 40, (ROWS, 14))].double().numpy()
    return Case(_Scaled(Pooling(), 8), rows, vectors[torch.zeros(1, 14, dtype=torch.long)].double().numpy())


@network(tuned=False)
def series_trained() -> Case:
    """Conv1d with BatchNorm and ReLU, trained to tell how fast a noisy series swings."""
    labels = torch.randint(0, 3, (1000,))
    times = torch.arange(40) / 40
    swings = torch.sin(2 * torch.pi * (labels[:, None] + 2 + torch.rand(1000, 1)) * times + 6 * torch.rand(1000, 1))
    rows = torch.stack([swings, torch.randn(1000, 40)], dim=2) + 0.3 * torch.randn(1000, 40, 2)
    network = _Series(
        nn.Sequential(
            nn.Conv1d(2, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 12, 5, stride=2),
            nn.BatchNorm1d(12), nn.ReLU(), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(36, 3),
        )
    )  # fmt: skip
    _trained(network, rows, labels)
    return Case(network, rows[:ROWS].double().numpy(), np.zeros((1, 40, 2)), is_piecewise_linear=True)


@network(tuned=False)
def series_dilated() -> Case:
    """Wider and wider convolutions, each beside the identity."""

    def block(dilation: int) -> nn.Module:
        body = nn.Sequential(nn.Conv1d(12, 12, 3, padding=dilation, dilation=dilation), nn.GELU(), nn.Conv1d(12, 12, 1))
        return _Residual(body)

    body = nn.Sequential(
        nn.Conv1d(3, 12, 1), block(1), block(2), block(4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 3)
    )
    return _sequence(_Scaled(_Series(body), 2), 32, 3)
