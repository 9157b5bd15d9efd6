"""What traits say of small networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.inputs.tokens import TokenInputs
from service.catalog.traits import Traits
from service.engine.graph.traits import MAX_LAYER_SIZE, last_feature_maps, traits_of
from service.engine.kernels.kernel import Segment
from service.engine.kernels.network import Network
from service.engine.kernels.rows import BiasKernel
from service.methods.questions import BiasMaps, BiasRows, Readout

IMAGE, TABLE, TOKENS = (3, 8, 8), (6,), (7, 4)


def traced(network: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(network.eval())


def traits(network: nn.Module, shape: tuple[int, ...]) -> Traits:
    axes = {1: TabularInputs.axes, 2: TokenInputs.axes, 3: ImageInputs.axes}[len(shape)]
    return traits_of(traced(network), axes, shape, 2)


class Between(nn.Module):
    """A linear layer, something, and a linear layer."""

    def __init__(self, something: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)
        self.something = something

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.something(self.first(rows)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("something", "has_relu"),
    [
        (nn.ReLU(), True),
        (torch.relu, True),
        (functional.relu_, True),
        (lambda values: values.relu(), True),
        (nn.LeakyReLU(), False),
        (torch.tanh, False),
        (lambda values: values.clamp(min=0), False),
    ],
)
def test_a_relu_is_seen_in_every_spelling(something: Callable[[Tensor], Tensor], has_relu: bool) -> None:
    assert traits(Between(something), TABLE).has_relu is has_relu


HOMOGENEOUS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "prelu": nn.PReLU(),
    "clamp at zero": lambda values: values.clamp(min=0),
    "abs": torch.abs,
    "maximum of two": lambda values: torch.maximum(values, 2 * values),
    "pooling": lambda values: functional.max_pool1d(values[:, None], 3, 1, 1)[:, 0],
    "a constant added": lambda values: values + 1.5,
    "taken from a constant": lambda values: 1.5 - values,
    "scaled": lambda values: values * 3 / 2,
    "reshaped": lambda values: values.reshape(values.size(0), 2, 2).flatten(1),
    "added to itself": lambda values: values + values,
    "padded with a number": lambda values: functional.pad(values, (1, 0), value=0.5)[:, 1:],
    "batch norm": nn.BatchNorm1d(4),
    "dropout": nn.Dropout(),
}
OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a square": (lambda values: values * values, "mul"),
    "a quotient of two": (lambda values: values / (values + 1), "truediv"),
    "a constant's quotient": (lambda values: 1 / values, "truediv"),
    "a bound": (lambda values: values.clamp(-1, 1), "clamp"),
    "relu6": (nn.ReLU6(), "ReLU6"),
    "tanh": (nn.Tanh(), "Tanh"),
    "maximum with a constant": (lambda values: torch.maximum(values, torch.ones(4)), "maximum"),
    "a product with its own gate": (lambda values: values * torch.relu(values), "mul"),
}


@pytest.mark.parametrize("something", HOMOGENEOUS.values(), ids=HOMOGENEOUS)
def test_what_is_affine_or_homogeneous_is_accounted_for(something: Callable[[Tensor], Tensor]) -> None:
    assert traits(Between(something), TABLE).biases_obstacle is None


@pytest.mark.parametrize("something", HOMOGENEOUS.values(), ids=HOMOGENEOUS)
def test_where_all_is_accounted_for_input_and_biases_add_up_to_the_output(
    something: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    kernel = BiasKernel(Network(traced(Between(something)), torch.device("cpu"), TABLE, 2), 8)
    rows = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32).astype(np.float64)
    (added,) = kernel.run([Segment(BiasRows(rows, Readout.LOGIT, 1), 0, 8)])
    assert isinstance(added, BiasMaps)
    np.testing.assert_allclose((rows * added.gradients).sum(axis=1) + added.totals, added.outputs, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("something", "name"), OTHERS.values(), ids=OTHERS)
def test_the_first_operator_that_is_not_accounted_for_is_named(
    something: Callable[[Tensor], Tensor], name: str
) -> None:
    assert traits(Between(something), TABLE).biases_obstacle == name


def cnn(*behind: nn.Module, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), *behind, nn.Flatten(), nn.Linear(4, 2))


class Head(nn.Module):
    """A convolution and something behind it, then the mean over space."""

    def __init__(self, something: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.something = nn.Conv2d(3, 4, 3, padding=1), something

    def forward(self, rows: Tensor) -> Tensor:
        return self.something(self.convolution(rows)).mean((2, 3))[:, :2]


LAST: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nothing": (lambda maps: maps, "convolution"),
    "a residual sum": (lambda maps: torch.relu(maps + 1), "relu"),
    "a gate": (lambda maps: maps * torch.sigmoid(maps), "mul"),
    "a pool of the same size": (lambda maps: functional.max_pool2d(torch.relu(maps), 3, 1, 1), "relu"),
    "two branches": (lambda maps: torch.cat([torch.relu(maps), -maps], dim=1), "convolution"),
    "branches of an activation": (lambda maps: torch.cat([maps.tanh(), maps.tanh() * 2], dim=1), "convolution"),
}


@pytest.mark.parametrize(("something", "name"), LAST.values(), ids=LAST)
def test_the_last_maps_are_the_last_that_everything_passes_through(
    something: Callable[[Tensor], Tensor], name: str
) -> None:
    node = last_feature_maps(traced(Head(something)), IMAGE)
    assert node is not None
    assert node.name == name


def test_maps_must_have_the_dimensions_of_the_input() -> None:
    pooled = (nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert traits(cnn(*pooled), IMAGE).has_convolution
    assert not traits(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), IMAGE).has_convolution
    digits = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert not traits(digits, TABLE).has_convolution
    in_a_row = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Conv1d(2, 1, 3), nn.Flatten())
    assert traits(in_a_row, TABLE).has_convolution
    in_two_rows = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 1, 2), nn.Flatten())
    assert not traits(in_two_rows, TABLE).has_convolution


def test_pieces_are_not_looked_for_in_layers_too_large() -> None:
    def traits(width: int) -> Traits:
        network = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).requires_grad_(False)
        return traits_of(fx.symbolic_trace(network), TabularInputs.axes, (4,), 2)

    assert traits(MAX_LAYER_SIZE).is_piecewise_linear
    obstacle = traits(MAX_LAYER_SIZE + 1).obstacle
    assert obstacle is not None
    assert f"a layer of {MAX_LAYER_SIZE + 1} values" in obstacle
