"""Integrated Hessians: closed forms, the paper's double integral taken densely, path-explain, and what is promised."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from service.catalog.inputs.image import ImageInputs
from service.catalog.inputs.tabular import TabularInputs
from service.catalog.outputs.classes import Classes
from service.catalog.traits import Traits
from service.domain import Completeness, Floats, OutputSpace
from service.methods import integrated_hessians as module
from service.methods.integrated_gradients import integrated_gradients
from service.methods.integrated_hessians import INTEGRATED_HESSIANS, integrated_hessians
from service.methods.problem import Attribution, Problem
from service.methods.questions import DeadlinePassed
from service.methods.spec import Facts

if TYPE_CHECKING:
    from tests.methods.conftest import Drive, ModelOf, PlanFor, Pose, Run

Network = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Network] = {
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "softplus": lambda values: functional.softplus(values, beta=2),
}
SMOOTH: dict[str, object] = {"kinks": (), "has_relu": False}
INPUTS = 4


def label_one(score: Network) -> Network:
    return lambda rows: torch.stack([torch.zeros_like(score(rows)), score(rows)], dim=1)


product = label_one(lambda rows: rows[:, 0] * rows[:, 1])
linear = label_one(lambda rows: rows @ torch.tensor([1.5, -2, 0.25], dtype=torch.float64))
quadratic = label_one(lambda rows: rows[:, 0] ** 2 + 3 * rows[:, 1] * rows[:, 2] - rows[:, 0])
clipped = label_one(lambda rows: rows[:, 0].clamp_max(1) * rows[:, 1])


def layers(activation: Network, seed: int = 0, scale: float = 1.0, inputs: int = INPUTS) -> Network:
    """Two hidden layers of 16 units, three labels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(inputs, 16), (16, 16), (16, 3)]
    weights = [torch.randn(size, generator=generator, dtype=torch.float64) * scale / size[0] ** 0.5 for size in sizes]
    return lambda rows: activation(activation(rows @ weights[0] + 0.2) @ weights[1] - 0.1) @ weights[2]


def ends(seed: int = 0, inputs: int = INPUTS) -> tuple[Floats, Floats]:
    """An input and a baseline."""
    x, baseline = np.random.default_rng(seed).normal(size=(2, inputs))
    return x, baseline


@pytest.fixture
def explain(pose: Pose, drive: Drive) -> Callable[..., tuple[Problem, Attribution]]:
    """Poses the problem of a smooth network and solves it."""

    def solve(
        network: Network, x: Floats, baseline: Floats, space: OutputSpace = OutputSpace.LOGIT, **fields: Any
    ) -> tuple[Problem, Attribution]:
        shape = x.shape if x.ndim > 1 else None
        answers = fields.pop("answers", None)
        fields = {"options": {"smooth": "none"}, "traits": SMOOTH, **fields}
        problem = pose(network, x, baseline[None], space, **fields)
        return problem, drive(integrated_hessians(problem), network, shape=shape, answers=answers)

    return solve


Explain = Callable[..., tuple[Problem, Attribution]]


def double_integral(network: Network, problem: Problem, nodes: int = 24) -> Floats:
    """Gamma as the paper has it, over alpha and beta, by as many Gauss nodes in each."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    at, weights = (at + 1) / 2, weights / 2
    direction = problem.input - problem.center
    products, shares = np.outer(at, at).ravel(), np.outer(weights, weights).ravel()
    rows = torch.from_numpy(problem.center + products[:, None] * direction).requires_grad_()
    logits = network(rows)
    is_logit = problem.output_space is OutputSpace.LOGIT
    outputs = (logits if is_logit else torch.softmax(logits, dim=1))[:, problem.target_index]
    (gradients,) = torch.autograd.grad(outputs.sum(), rows, create_graph=True)
    columns = [torch.autograd.grad(column.sum(), rows, retain_graph=True)[0].numpy() for column in gradients.T]
    hessian = np.einsum("k,ikj->ij", shares * products, np.stack(columns))
    gamma: Floats = np.outer(direction, direction) * hessian
    gamma += np.diag(direction * (shares @ gradients.detach().numpy()))
    return gamma


def relative(ours: Floats, theirs: Floats) -> float:
    return float(np.abs(ours - theirs).sum() / np.abs(theirs).sum())


def interactions(result: Attribution) -> Floats:
    assert result.interactions is not None
    return result.interactions


def test_a_product_is_shared_by_all_four_pairs(explain: Explain) -> None:
    _, result = explain(product, np.array([2.0, -3.0]), np.zeros(2))
    np.testing.assert_allclose(interactions(result), np.full((2, 2), -6 / 4), rtol=1e-12)


def test_on_a_linear_model_there_is_only_the_diagonal(explain: Explain) -> None:
    x, baseline = np.array([1.0, 2.0, -3.0]), np.array([0.5, -1.0, 1.0])
    _, result = explain(linear, x, baseline)
    np.testing.assert_allclose(interactions(result), np.diag([1.5, -2, 0.25] * (x - baseline)), rtol=1e-12, atol=1e-14)
    assert result.path_error == pytest.approx(0, abs=1e-12)


def test_on_a_quadratic_model_the_first_answer_is_exact(explain: Explain) -> None:
    x, baseline = np.array([1.0, 2.0, -3.0]), np.array([0.5, -1.0, 1.0])
    problem, result = explain(quadratic, x, baseline, tolerance=1e-9)
    np.testing.assert_allclose(interactions(result), double_integral(quadratic, problem), rtol=1e-9, atol=1e-12)
    assert (result.evaluations, result.stopped) == (4 * (3 + 1), None)


@pytest.mark.parametrize("space", Classes.spaces)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_the_double_integral_of_the_paper_with_at_most_sixteen_hessians(
    explain: Explain, name: str, space: OutputSpace
) -> None:
    network = layers(ACTIVATIONS[name])
    problem, result = explain(network, *ends(), space, max_evaluations=16 * (INPUTS + 1), tolerance=1e-4, floor=1e-6)
    assert result.stopped is None
    assert relative(interactions(result), double_integral(network, problem)) <= 1e-4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_matrix_is_symmetric_and_its_rows_sum_to_integrated_gradients(
    explain: Explain, pose: Pose, drive: Drive, name: str
) -> None:
    network = layers(ACTIVATIONS[name])
    problem, result = explain(network, *ends(), OutputSpace.PROBABILITY, tolerance=1e-6)
    gamma = interactions(result)
    assert np.array_equal(gamma, gamma.T)
    np.testing.assert_allclose(gamma.sum(axis=1), result.values, rtol=1e-12, atol=1e-15)
    x, baseline = ends()
    path = pose(network, x, baseline[None], rule="gauss_legendre", tolerance=1e-8)
    np.testing.assert_allclose(result.values, drive(integrated_gradients(path), network).values, rtol=1e-6)
    assert result.values.sum() == pytest.approx(problem.output - problem.center_output, rel=1e-6)
    assert (result.completeness, result.baseline_output) == (Completeness.ASYMPTOTIC, problem.center_output)


def test_the_error_it_states_is_that_of_the_interactions(explain: Explain) -> None:
    """The true error is within the stated one, and mostly not far below it."""
    ratios = []
    for seed in range(16):
        network = layers(list(ACTIVATIONS.values())[seed % 3], seed, scale=1.0 + seed % 2)
        space = list(Classes.spaces)[seed % 2]
        problem, result = explain(network, *ends(seed), space, tolerance=[0.1, 0.01, 0.001][seed % 3])
        _, dense = explain(network, *ends(seed), space, tolerance=1e-8)
        true = np.abs(interactions(result) - interactions(dense)).sum()
        assert true <= problem.tolerance * np.abs(interactions(dense)).sum()
        assert result.path_error is not None
        ratios.append(result.path_error / true)
    assert min(ratios) >= 1
    assert np.median(ratios) <= 10


def test_it_agrees_with_path_explain(explain: Explain) -> None:
    """To 1%, its bias taken out: the ends of its grid have full weights where half is due, so with twice the nodes
    the bias is half as large.

    The package imports TensorFlow, so that its file for torch is loaded alone.
    """
    package = importlib.util.find_spec("path_explain")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "explainers" / "path_explainer_torch.py"
    spec = importlib.util.spec_from_file_location("path_explainer_torch", file)
    assert spec is not None
    assert spec.loader is not None
    explainer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(explainer)
    network = layers(functional.gelu)
    x, baseline = ends()
    _, result = explain(network, x, baseline, tolerance=1e-6)

    def theirs(nodes: int) -> Floats:
        matrices = explainer.PathExplainerTorch(network).interactions(
            torch.from_numpy(x)[None].requires_grad_(),
            torch.from_numpy(baseline)[None],
            num_samples=nodes**2,
            use_expectation=False,
            output_indices=torch.tensor([1]),
            verbose=False,
        )
        matrix: Floats = matrices[0].detach().numpy()
        return matrix

    coarse, fine = theirs(10), theirs(20)
    assert relative(interactions(result), 2 * fine - coarse) <= 0.01
    assert relative(interactions(result), fine) < relative(interactions(result), coarse) < 0.1


def test_an_input_clipped_on_the_way_keeps_what_happens_at_the_bound(explain: Explain) -> None:
    """f = min(x1, 1) x2 bends at u = t: Gamma_12 = x1 x2 (t^2 / 4 - t^2 ln(t) / 2), and rows sum to the gradients'."""
    x = np.array([1.6, 2.0])
    t = 1 / x[0]
    pair = x.prod() * (t**2 / 4 - t**2 * np.log(t) / 2)
    gradients = np.array([x.prod() * t**2 / 2, x.prod() * (t - t**2 / 2)])
    expected = np.array([[gradients[0] - pair, pair], [pair, gradients[1] - pair]])
    _, result = explain(clipped, x, np.zeros(2), traits=SMOOTH | {"kinks": ("clamp_max",)}, tolerance=0.05)
    assert result.stopped is None
    assert relative(interactions(result), expected) <= 0.05


def test_bends_that_were_not_announced_are_noticed(explain: Explain) -> None:
    """The Hessian of a ReLU network is zero almost everywhere, and the rows of the second equation show it."""
    network = layers(torch.relu)
    _, result = explain(network, *ends())
    assert result.stopped == "precision"
    assert result.path_error is not None
    assert result.path_error > 0.1 * np.abs(result.values).sum()


def test_of_tokens_a_unit_is_a_position(explain: Explain) -> None:
    network = layers(torch.tanh, inputs=6)
    x, baseline = ends(inputs=6)
    _, flat = explain(network, x, baseline, tolerance=1e-9)

    def of_positions(rows: Tensor) -> Tensor:
        return network(rows.reshape(len(rows), -1))

    _, result = explain(of_positions, x.reshape(3, 2), baseline.reshape(3, 2), tolerance=1e-9)
    np.testing.assert_allclose(result.values, flat.values, rtol=1e-8)
    of_blocks = interactions(flat).reshape(3, 2, 3, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(interactions(result), of_blocks, rtol=1e-6, atol=1e-9)
    assert result.evaluations % (3 + 1) == 0


def test_inputs_that_do_not_move_cost_nothing_and_get_nothing(explain: Explain) -> None:
    x, baseline = ends()
    x[2] = baseline[2]
    _, result = explain(layers(torch.tanh), x, baseline)
    assert result.evaluations % (INPUTS - 1 + 1) == 0
    assert not interactions(result)[2].any()
    _, nothing = explain(layers(torch.tanh), x, x)
    assert not nothing.values.any()
    assert not interactions(nothing).any()


def test_a_question_too_large_is_asked_in_parts(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = explain(layers(torch.tanh), *ends(), tolerance=1e-6)
    monkeypatch.setattr(module, "MOST_NUMBERS", 3 * (INPUTS + 1) * INPUTS)
    _, parts = explain(layers(torch.tanh), *ends(), tolerance=1e-6)
    np.testing.assert_allclose(interactions(parts), interactions(whole), rtol=1e-11)
    assert parts.evaluations == whole.evaluations


@pytest.mark.parametrize("hessians", [4, 11, 12, 27, 28])
def test_a_spent_budget_is_said_and_never_exceeded(explain: Explain, hessians: int) -> None:
    budget = hessians * (INPUTS + 1)
    _, result = explain(layers(torch.tanh), *ends(), tolerance=1e-15, max_evaluations=budget)
    assert result.stopped == "budget"
    assert result.evaluations == {4: 4, 11: 4, 12: 12, 27: 12, 28: 28}[hessians] * (INPUTS + 1)


def test_after_a_deadline_what_is_known_is_returned(explain: Explain) -> None:
    network = layers(torch.tanh)
    problem, result = explain(network, *ends(), tolerance=1e-12, answers=1)
    assert (result.stopped, result.evaluations) == ("deadline", 4 * (INPUTS + 1))
    assert np.abs(interactions(result) - double_integral(network, problem)).sum() <= result.path_error


def test_a_deadline_before_the_first_answer_passes_through(explain: Explain) -> None:
    with pytest.raises(DeadlinePassed):
        explain(layers(torch.tanh), *ends(), answers=0)


def facts(smooth: str, **traits: Any) -> Facts:
    known: dict[str, Any] = {
        "axes": TabularInputs.axes,
        "shape": (5,),
        "labels": 2,
        "obstacle": "not looked for",
        "kinks": (),
        "has_relu": "ReLU" in traits.get("kinks", ()),
        "has_convolution": False,
        "biases_obstacle": None,
    }
    return Facts(Traits(**(known | traits)), 1, {"smooth": smooth})


@pytest.mark.parametrize(
    ("kinks", "smooth", "reason"),
    [
        ((), "none", None),
        (("minimum", "maximum", "clamp", "Hardtanh"), "none", None),
        (("maximum", "ReLU"), "none", "ask for smooth: softplus"),
        (("relu_",), "none", "ask for smooth: softplus"),
        (("maximum", "ReLU"), "softplus", None),
        (("ReLU", "MaxPool2d"), "softplus", "MaxPool2d; use expected_gradients"),
        (("PReLU",), "none", "PReLU; use expected_gradients"),
        (("LeakyReLU",), "softplus", "LeakyReLU; use expected_gradients"),
    ],
)
def test_where_the_hessian_says_nothing_it_is_unfit(kinks: tuple[str, ...], smooth: str, reason: str | None) -> None:
    said = INTEGRATED_HESSIANS.not_applicable(facts(smooth, kinks=kinks))
    assert said is None if reason is None else reason in str(said)


def test_an_image_is_too_large() -> None:
    said = INTEGRATED_HESSIANS.not_applicable(facts("none", axes=ImageInputs.axes, shape=(1, 8, 8)))
    assert said is not None
    assert "image" in said


def test_the_least_it_costs_is_four_hessians(explain: Explain) -> None:
    least = INTEGRATED_HESSIANS.least_points(facts("none", shape=(INPUTS,)))
    _, result = explain(layers(torch.tanh), *ends(), max_evaluations=least, tolerance=1e-9)
    assert (result.evaluations, result.stopped) == (least, "budget")


def modules(activation: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(INPUTS, 16), activation, nn.Linear(16, 3))


def test_through_the_kernels_it_is_what_it_is_in_float64(
    explain: Explain, model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    network = modules(nn.GELU())
    x, baseline = ends()
    model = model_of(network, baseline[None])
    (result,) = run(model, [plan_for(model, x, "integrated_hessians", tolerance=1e-3)])
    assert (result.converged, result.completeness) == (True, Completeness.ASYMPTOTIC)
    _, exact = explain(deepcopy(network).double(), x, baseline, tolerance=1e-9)
    assert relative(np.array(result.interactions), interactions(exact)) <= 1e-3
    (strict,) = run(model, [plan_for(model, x, "integrated_hessians", tolerance=1e-9)])
    assert strict.reason in ("precision", "budget")


def test_a_softplus_in_the_place_of_every_relu_is_said_and_accounted_for(
    explain: Explain, model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    network = modules(nn.ReLU())
    x, baseline = ends()
    model = model_of(network, baseline[None])
    (result,) = run(model, [plan_for(model, x, "integrated_hessians", {"smooth": "softplus"}, tolerance=1e-3)])
    assert result.rule == "gauss_logarithmic, relu replaced by softplus"
    assert (result.converged, result.completeness, result.completeness_error) == (True, Completeness.NONE, None)
    smooth = deepcopy(nn.Sequential(network[0], nn.Softplus(10), network[2])).double()  # type: ignore[index]
    problem, exact = explain(smooth, x, baseline, tolerance=1e-9)
    assert relative(np.array(result.interactions), interactions(exact)) <= 1e-3
    assert result.attributions is not None
    assert sum(result.attributions) == pytest.approx(problem.output - problem.center_output, rel=1e-3)
    assert result.evaluations % (INPUTS + 1) == 2
