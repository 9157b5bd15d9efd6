"""The kernels for rows given one by one, on small float32 networks against plain differentiation in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import methodcaller
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional

from service.domain import Floats, OutputSpace
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.kernel import DeployedKernel, Segment
from service.engine.kernels.network import Network
from service.engine.kernels.rows import (
    SOFTPLUS_BETA,
    BackwardRuleKernel,
    BiasKernel,
    HessianKernel,
    LayerKernel,
    RowsKernel,
)
from service.methods.questions import (
    BackwardRule,
    BackwardRuleRows,
    BiasMaps,
    BiasRows,
    Curvatures,
    Deployed,
    FeatureMaps,
    HessianRows,
    LayerRows,
    Readout,
)

CAPACITY = 16
LABELS = 3
IMAGE, TABLE = (2, 9, 8), (6,)
Question = BackwardRuleRows | LayerRows | BiasRows | HessianRows
Activation = Callable[[Tensor], Tensor]


class Cnn(nn.Module):
    """Convolutions with biases, batch norm, max-pool, a residual sum and linear layers."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.shift = nn.Parameter(torch.tensor([0.4, 0.6]).reshape(1, 2, 1, 1))
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.hidden = nn.Linear(4 * 4 * 4, 8)
        self.last = nn.Linear(8, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        lower = functional.max_pool2d(self.activation(self.norm(self.first(rows - self.shift))), 2)
        upper = self.activation(self.second(lower) + lower)
        return self.last(self.activation(self.hidden(upper.flatten(1))))  # type: ignore[no-any-return]


def cnn(activation: nn.Module | None = None) -> Cnn:
    torch.manual_seed(0)
    network = Cnn(activation or nn.ReLU())
    for values in (network.norm.weight, network.norm.bias, network.norm.running_mean):
        assert isinstance(values, Tensor)
        nn.init.normal_(values, 0.3, 0.5)
    assert isinstance(network.norm.running_var, Tensor)
    nn.init.uniform_(network.norm.running_var, 0.3, 2)
    return network.eval().requires_grad_(False)


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    used = activation or nn.ReLU()
    layers = (nn.Linear(6, 12), used, nn.Linear(12, 12), used, nn.Linear(12, LABELS))
    return nn.Sequential(*layers).eval().requires_grad_(False)


def series() -> nn.Sequential:
    """A one-dimensional convolution over the features of a table."""
    torch.manual_seed(2)
    layers = (nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, LABELS))
    return nn.Sequential(*layers).eval().requires_grad_(False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (cnn, IMAGE),
    "mlp": (mlp, TABLE),
    "series": (series, TABLE),
}
KINDS = (BackwardRuleKernel, LayerKernel, BiasKernel, HessianKernel)
CASES = [(kind, name) for kind in KINDS for name in NETWORKS if (kind, name) != (LayerKernel, "mlp")]


def kernel_of(kind: type[RowsKernel], network: nn.Module, shape: tuple[int, ...]) -> RowsKernel:
    torch.set_num_threads(1)
    return kind(Network(fx.symbolic_trace(network), torch.device("cpu"), shape, LABELS), CAPACITY)


def answer(kernel: RowsKernel, question: Question) -> Any:
    return kernel.run([Segment(question, 0, len(question))])[0]


def rows_of(shape: tuple[int, ...], count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(size=(count, int(np.prod(shape)))).astype(np.float32).astype(np.float64)


def read(logits: Tensor, readout: Readout, target: int) -> Tensor:
    """The explained outputs of `logits` [rows, labels]; MARGIN is over all other labels together."""
    if readout is Readout.PROBABILITY:
        return torch.softmax(logits, dim=1)[:, target]
    others = logits.sum(dim=1) - logits[:, target]
    return logits[:, target] - (others if readout is Readout.MARGIN else 0)


class Ruled(nn.Module):
    """A ReLU whose gradient is another rule's, by the papers, one row at a time."""

    def __init__(self, rule: BackwardRule, percentile: float) -> None:
        super().__init__()
        self.rule, self.percentile = rule, percentile

    def forward(self, values: Tensor) -> Tensor:
        return _Ruled.apply(values, self.rule, self.percentile)  # type: ignore[no-untyped-call, no-any-return]


class _Ruled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rule: BackwardRule, percentile: float) -> Tensor:
        ctx.output, ctx.rule, ctx.percentile = values.clamp_min(0), rule, percentile
        return ctx.output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        passed = torch.zeros_like(gradient)
        for row, (output, arriving) in enumerate(zip(ctx.output, gradient, strict=True)):
            if ctx.rule is BackwardRule.DECONVNET:
                passes = arriving > 0
            elif ctx.rule is BackwardRule.GUIDED:
                passes = (arriving > 0) & (output > 0)
            else:
                passes = output * arriving > np.percentile((output * arriving).numpy(), ctx.percentile)
            passed[row][passes] = arriving[passes]
        return passed, None, None


RULES = [
    (BackwardRule.DECONVNET, 0.0),
    (BackwardRule.GUIDED, 0.0),
    (BackwardRule.RECTIFIED, 0.0),
    (BackwardRule.RECTIFIED, 37.0),
    (BackwardRule.RECTIFIED, 98.0),
    (BackwardRule.RECTIFIED, 100.0),
]


@pytest.mark.parametrize("readout", Readout)
@pytest.mark.parametrize(("rule", "percentile"), RULES)
@pytest.mark.parametrize(("network", "shape"), [(cnn, IMAGE), (mlp, TABLE)])
def test_rules_are_those_of_the_papers(
    network: Callable[..., nn.Module], shape: tuple[int, ...], rule: BackwardRule, percentile: float, readout: Readout
) -> None:
    question = BackwardRuleRows(rows_of(shape, 7), readout, 2, rule, percentile)
    got = answer(kernel_of(BackwardRuleKernel, network(), shape), question)
    rows = torch.from_numpy(question.rows).reshape(-1, *shape).requires_grad_()
    outputs = read(network(Ruled(rule, percentile)).double()(rows), readout, 2)
    (gradients,) = torch.autograd.grad(outputs.sum(), rows)
    expected = gradients.flatten(1).numpy()
    np.testing.assert_allclose(got.outputs, outputs.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.contributions, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(got.derivatives, expected.sum(axis=1), rtol=1e-5, atol=1e-5)
    assert expected.any() == (percentile < 100)


class Spelt(nn.Module):
    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation, self.layers = activation, mlp()

    def forward(self, rows: Tensor) -> Tensor:
        for at in (0, 2):
            rows = self.activation(self.layers[at](rows))
        return self.layers[4](rows)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "activation",
    [
        torch.relu,
        functional.relu,
        functional.relu_,
        methodcaller("relu"),
        methodcaller("relu_"),
        nn.ReLU(inplace=True),
        lambda values: functional.relu(input=values),
    ],
    ids=["torch.relu", "relu", "relu_", ".relu", ".relu_", "inplace", "keyword"],
)
@pytest.mark.parametrize("kind", [BackwardRuleKernel, BiasKernel, HessianKernel])
def test_the_spelling_of_a_relu_changes_nothing(kind: type[RowsKernel], activation: Activation) -> None:
    question = a_question(kind, TABLE, 5, np.random.default_rng(3))
    expected = answer(kernel_of(kind, mlp(), TABLE), question)
    assert bits(answer(kernel_of(kind, Spelt(activation), TABLE), question)) == bits(expected)


class Folded(nn.Module):
    """Positions are folded into the rows on the way, as converters do around a matrix product."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.activation, self.each, self.all = activation, nn.Linear(3, 5), nn.Linear(10, LABELS)

    def forward(self, rows: Tensor) -> Tensor:
        return self.all(self.activation(self.each(rows.reshape(-1, 3))).reshape(-1, 10))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", BackwardRule)
def test_rules_keep_to_their_rows_where_positions_are_folded_into_them(rule: BackwardRule) -> None:
    network = Folded(nn.ReLU()).requires_grad_(False)
    question = BackwardRuleRows(rows_of(TABLE, 6) - 0.5, Readout.LOGIT, 0, rule, 60.0)
    got = answer(kernel_of(BackwardRuleKernel, network, TABLE), question)
    for row, gradients in zip(question.rows, got.contributions, strict=True):
        at = torch.from_numpy(row).reshape(1, 2, 3).requires_grad_()
        double = copy.deepcopy(network).double()
        hidden = double.each(at)  # one row with all of its positions
        (expected,) = torch.autograd.grad(double.all(Ruled(rule, 60.0)(hidden).flatten(1))[:, 0].sum(), at)
        np.testing.assert_allclose(gradients, expected.flatten().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("readout", Readout)
def test_feature_maps_are_those_behind_the_last_convolution_s_activation(readout: Readout) -> None:
    question = LayerRows(rows_of(IMAGE, 7), readout, 1)
    got = answer(kernel_of(LayerKernel, cnn(), IMAGE), question)
    network = cnn().double()
    rows = torch.from_numpy(question.rows).reshape(-1, *IMAGE)
    lower = functional.max_pool2d(torch.relu(network.norm(network.first(rows - network.shift))), 2)
    maps = torch.relu(network.second(lower) + lower).requires_grad_()
    outputs = read(network.last(torch.relu(network.hidden(maps.flatten(1)))), readout, 1)
    (gradients,) = torch.autograd.grad(outputs.sum(), maps)
    np.testing.assert_allclose(got.outputs, outputs.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.activations, maps.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.gradients, gradients.numpy(), rtol=1e-5, atol=1e-7)


def psi(values: Tensor) -> Tensor:
    """One row's bias gradients of a layer [channels, height, width] as the authors of FullGrad show them."""
    values = values.abs() - values.abs().min()
    scaled = values / (values.max() + 1e-6)
    return functional.interpolate(scaled[None], size=IMAGE[1:], mode="bilinear", align_corners=True)[0].sum(dim=0)


def test_bias_maps_add_up_every_bias_times_its_gradient() -> None:
    question = BiasRows(rows_of(IMAGE, 7), Readout.LOGIT, 1)
    got = answer(kernel_of(BiasKernel, cnn(), IMAGE), question)
    network = cnn().double()
    rows = torch.from_numpy(question.rows).reshape(-1, *IMAGE).requires_grad_()
    shifted = rows - network.shift
    first = network.first(shifted)
    norm = network.norm(first)
    lower = functional.max_pool2d(torch.relu(norm), 2)
    second = network.second(lower)
    hidden = network.hidden(torch.relu(second + lower).flatten(1))
    last = network.last(torch.relu(hidden))
    held = network.state_dict()
    scale = held["norm.weight"] / torch.sqrt(held["norm.running_var"] + network.norm.eps)
    implicit = held["norm.bias"] - held["norm.running_mean"] * scale
    biases = [-held["shift"], held["first.bias"], implicit, held["second.bias"]]
    biases = [bias.reshape(-1, 1, 1) for bias in biases] + [held["hidden.bias"], held["last.bias"]]
    layers = [rows, shifted, first, norm, second, hidden, last]
    of_rows, *gradients = torch.autograd.grad(last[:, 1].sum(), layers)
    added = [gradient * bias for gradient, bias in zip(gradients, biases, strict=True)]
    totals = sum(values.flatten(1).sum(dim=1) for values in added)
    maps = [sum(psi(values[row]) for values in added[:4]) for row in range(7)]
    np.testing.assert_allclose(got.outputs, last[:, 1].detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(got.gradients, of_rows.flatten(1).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.totals, totals.numpy(), rtol=1e-5)
    np.testing.assert_allclose(got.maps, torch.stack(maps).flatten(1).numpy(), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("network", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_input_and_bias_gradients_account_for_the_output(
    network: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    question = BiasRows(rows_of(shape, CAPACITY), Readout.LOGIT, 0)
    got = answer(kernel_of(BiasKernel, network(), shape), question)
    added = (question.rows * got.gradients).sum(axis=1) + got.totals
    np.testing.assert_allclose(added, got.outputs, rtol=1e-5, atol=1e-5 * np.abs(got.outputs).max())


def test_a_bias_of_no_consequence_adds_nothing() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, LABELS), nn.Linear(6, LABELS)

        def forward(self, rows: Tensor) -> Tensor:
            self.idle(rows)
            return self.used(rows)  # type: ignore[no-any-return]

    network = Idle().requires_grad_(False)
    got = answer(kernel_of(BiasKernel, network, TABLE), BiasRows(rows_of(TABLE, 2), Readout.LOGIT, 1))
    np.testing.assert_allclose(got.totals, float(network.used.bias[1]), rtol=1e-6)


@pytest.mark.parametrize("readout", Readout)
@pytest.mark.parametrize(("network", "shape"), [(cnn, IMAGE), (mlp, TABLE)])
def test_hessian_products_are_those_of_the_softened_network(
    network: Callable[..., nn.Module], shape: tuple[int, ...], readout: Readout
) -> None:
    rows, vectors = rows_of(shape, 3), rows_of(shape, 3, seed=1) - 0.5
    got = answer(kernel_of(HessianKernel, network(), shape), HessianRows(rows, readout, 2, vectors))
    soft = network(nn.Softplus(SOFTPLUS_BETA)).double()

    def output(row: Tensor) -> Tensor:
        return read(soft(row.reshape(1, *shape)), readout, 2)[0]

    for at, (row, vector) in enumerate(zip(torch.from_numpy(rows), torch.from_numpy(vectors), strict=True)):
        value, gradient = output(row), torch.autograd.functional.jacobian(output, row)  # type: ignore[no-untyped-call]
        product = torch.autograd.functional.hessian(output, row) @ vector  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(got.outputs[at], value.numpy(), rtol=1e-5)
        np.testing.assert_allclose(got.gradients[at], gradient.numpy(), rtol=1e-4, atol=1e-5)
        scale = float(product.abs().max())
        np.testing.assert_allclose(got.products[at], product.numpy(), rtol=1e-4, atol=2e-5 * scale)


def test_the_hessian_of_a_linear_network_is_zero() -> None:
    rows, vectors = rows_of(TABLE, 2), rows_of(TABLE, 2, seed=1)
    network = nn.Linear(6, LABELS).requires_grad_(False)
    got = answer(kernel_of(HessianKernel, network, TABLE), HessianRows(rows, Readout.LOGIT, 0, vectors))
    np.testing.assert_allclose(got.gradients, np.tile(network.weight[0].numpy(), (2, 1)), rtol=1e-6)
    assert not got.products.any()


def a_question(
    kind: type[RowsKernel], shape: tuple[int, ...], count: int, generator: np.random.Generator, spoilt: float = 1.0
) -> Question:
    """A question for the kernel, of a random rule, percentile, target and readout; its rows times `spoilt`."""
    rows = rows_of(shape, count, int(generator.integers(1 << 30))) * spoilt
    readout, target = Readout(int(generator.integers(3))), int(generator.integers(LABELS))
    if kind is BackwardRuleKernel:
        rule, percentile = RULES[generator.integers(len(RULES))]
        return BackwardRuleRows(rows, readout, target, rule, percentile)
    if kind is HessianKernel:
        return HessianRows(rows, readout, target, rows[::-1] - 0.5)
    return (LayerRows if kind is LayerKernel else BiasRows)(rows, readout, target)


def bits(part: object) -> list[bytes]:
    """Everything in a kernel's part, as bytes."""
    if isinstance(part, EvaluatedPoints):
        return [part.outputs.tobytes(), part.derivatives.tobytes(), part.contributions.tobytes()]
    assert isinstance(part, FeatureMaps | BiasMaps | Curvatures)
    return [getattr(part, name).tobytes() for name in part.__slots__]


def run_amid(kernel: RowsKernel, before: Sequence[Question], probe: Question, after: Sequence[Question]) -> list[bytes]:
    questions = (*before, probe, *after)
    parts = kernel.run([Segment(question, 0, len(question)) for question in questions])
    return bits(parts[len(before)])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_row_is_the_same_bit_for_bit_at_every_position_and_amid_any_others(kind: type[RowsKernel], name: str) -> None:
    network, shape = NETWORKS[name]
    kernel = kernel_of(kind, network(), shape)
    generator = np.random.default_rng(0)
    for _ in range(4):
        probe = a_question(kind, shape, 2, generator)
        alone = bits(answer(kernel, probe))
        for position in range(CAPACITY - 1):
            others = [a_question(kind, shape, 1, generator) for _ in range(CAPACITY - 2)]
            assert run_amid(kernel, others[:position], probe, others[position:]) == alone, f"at row {position}"


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(CASES),
    st.integers(0, 2**32),
    st.lists(st.integers(1, CAPACITY - 1), max_size=5, unique=True),
)
def test_a_question_cut_into_segments_has_the_same_answer(
    case: tuple[type[RowsKernel], str], seed: int, cuts: list[int]
) -> None:
    kind, (network, shape) = case[0], NETWORKS[case[1]]
    kernel = kernel_of(kind, network(), shape)
    probe = a_question(kind, shape, CAPACITY, np.random.default_rng(seed))
    parts = [kernel.run([Segment(probe, a, b)])[0] for a, b in pairwise([0, *sorted(cuts), CAPACITY])]
    assert bits(kernel.join(parts)) == bits(answer(kernel, probe))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("spoilt", [np.nan, 1e39, -1e39])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_neighbour_that_is_not_finite_changes_nothing(kind: type[RowsKernel], name: str, spoilt: float) -> None:
    network, shape = NETWORKS[name]
    kernel = kernel_of(kind, network(), shape)
    generator = np.random.default_rng(1)
    probe = a_question(kind, shape, 3, generator)
    neighbours = [a_question(kind, shape, 3, generator, spoilt)]
    assert run_amid(kernel, neighbours, probe, neighbours) == bits(answer(kernel, probe))


def test_a_chunk_is_filled_up_with_a_row_that_was_sent() -> None:
    """Zeros may be what a model has no answer to, or cannot look up."""
    seen: list[NDArray[np.float32]] = []

    class Spy:
        def outputs(self, rows: NDArray[np.float32]) -> dict[OutputSpace, NDArray[np.float32]]:
            seen.append(rows)
            return {OutputSpace.LOGIT: rows}

    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    (found,) = DeployedKernel(Spy(), 4).run([Segment(Deployed(rows), 0, 2)])
    assert seen[0].tolist() == [[1, 2], [3, 4], [1, 2], [1, 2]]
    assert isinstance(found, dict)
    assert found[OutputSpace.LOGIT].tolist() == rows.tolist()
