"""Similarities of embeddings through the real kernels, against Captum around a wrapped forward and dense quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn
from torch.nn import functional

from service.artefacts.links import ON_TENSORS
from service.catalog.outputs.embedding import Embedding
from service.domain import Completeness, Floats, Measure, OutputSpace, Similarity
from service.engine.kernels.readouts import Linked, read_out
from service.methods.registry import METHODS
from service.methods.spec import Facts
from service.numerics.directions import cosine_piece_slopes
from service.numerics.links import UNIT_LENGTH
from service.numerics.quadrature import gauss_legendre
from tests.methods.conftest import ModelOf, PlanFor, Run

INPUTS, DIMENSIONS = 5, 4
EMBEDDING = Embedding(kind="embedding", dimensions=DIMENSIONS)
REFERENCE = (0.4, -1.2, 0.7, 2.0)
SPACE = OutputSpace.SIMILARITY


class Alike(nn.Module):
    """The similarity to the reference, as anybody would write it around a network."""

    def __init__(self, network: nn.Module, measure: Measure) -> None:
        super().__init__()
        self.network, self.measure = network, measure

    def forward(self, rows: Tensor) -> Tensor:
        reference = torch.tensor(REFERENCE, dtype=rows.dtype).expand(len(rows), -1)
        embedding = self.network(rows)
        if self.measure is Measure.DOT:
            products: Tensor = (embedding * reference).sum(dim=1)
            return products
        cosines: Tensor = functional.cosine_similarity(embedding, reference, dim=1)
        return cosines


def drawn(seed: int, count: int | None = None) -> Floats:
    generator = np.random.default_rng(seed)
    return generator.uniform(0, 1, INPUTS if count is None else (count, INPUTS)).astype(np.float32).astype(float)


def network_of(activation: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(INPUTS, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, DIMENSIONS)
    )
    with torch.no_grad():
        network[4].weight.mul_(6.0)  # type: ignore[operator]
    return network


@pytest.mark.parametrize("measure", Measure)
def test_the_exact_rule_is_captums_integral(measure: Measure, model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    network, baselines, x = network_of(nn.ReLU), drawn(0, 8), drawn(7)
    model = model_of(network, baselines, outputs=EMBEDDING)
    target = Similarity(REFERENCE, measure)
    (explanation,) = run(model, [plan_for(model, x, "integrated_gradients", target=target, output_space=SPACE)])
    row, center = torch.tensor(x)[None], torch.tensor(baselines.mean(axis=0))[None]
    wrapped = Alike(network.double(), measure)
    theirs = IntegratedGradients(wrapped).attribute(row, center, n_steps=4000, method="riemann_middle").numpy()[0]
    change = float(wrapped(row) - wrapped(center))
    network.float()

    assert (explanation.completeness, explanation.rule, explanation.converged) == (Completeness.EXACT, "exact", True)
    assert explanation.target == target
    assert explanation.attributions == pytest.approx(theirs, abs=2e-3 * np.abs(theirs).sum())
    assert explanation.output is not None
    assert explanation.baseline_output is not None
    assert explanation.output - explanation.baseline_output == pytest.approx(change, abs=1e-5)
    assert sum(explanation.attributions or ()) == pytest.approx(change, abs=1e-4 * abs(change))


@pytest.mark.parametrize("measure", Measure)
def test_at_the_same_points_smooth_networks_have_captums_values(
    measure: Measure, model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    network, baselines, x = network_of(nn.Tanh), drawn(0, 8), drawn(9)
    model = model_of(network, baselines, outputs=EMBEDDING)
    target = Similarity(REFERENCE, measure)

    def plan(method: str, **fields: object) -> object:
        return plan_for(model, x, method, target=target, output_space=SPACE, **fields)

    sixteen = plan("integrated_gradients", options={"rule": "gauss_legendre"}, max_evaluations=16, tolerance=1.0)
    plans = [sixteen, plan("saliency"), plan("input_x_gradient"), plan("integrated_hessians", tolerance=1e-3)]
    whole, steep, product, hessians = run(model, plans)  # type: ignore[arg-type]
    wrapped = Alike(network.double(), measure)
    row, center = torch.tensor(x)[None], torch.tensor(baselines.mean(axis=0))[None]
    steps = whole.evaluations
    theirs = IntegratedGradients(wrapped).attribute(row, center, n_steps=steps, method="gausslegendre").numpy()[0]
    dense = IntegratedGradients(wrapped).attribute(row, center, n_steps=300, method="gausslegendre").numpy()[0]
    gradient = Saliency(wrapped).attribute(row.clone().requires_grad_()).numpy()[0]
    times = InputXGradient(wrapped).attribute(row.clone().requires_grad_()).detach().numpy()[0]
    network.float()

    scale = np.abs(theirs).sum()
    assert whole.attributions == pytest.approx(theirs, abs=1e-5 * scale)
    assert steep.attributions == pytest.approx(gradient, abs=1e-5 * gradient.sum())
    assert product.attributions == pytest.approx(times, abs=1e-5 * np.abs(times).sum())
    assert np.array(hessians.interactions).sum() == pytest.approx(dense.sum(), abs=5e-3 * scale)


def test_every_method_answers_for_similarities_or_says_why_not(model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    model = model_of(network_of(nn.ReLU), drawn(0, 8), outputs=EMBEDDING)
    for method in METHODS:
        why = method.not_applicable(Facts(model.traits, 8, method.defaults()))
        if why is not None:
            continue
        for measure in Measure:
            target = Similarity(REFERENCE, measure)
            plan = plan_for(model, drawn(5), method.name, target=target, output_space=SPACE, tolerance=0.05)
            (explanation,) = run(model, [plan])
            assert explanation.attributions is not None, method.name
            assert np.isfinite(explanation.attributions).all(), method.name
            if explanation.completeness is not Completeness.NONE:
                assert explanation.completeness_error is not None
                assert explanation.completeness_error < 0.05, method.name


def test_embeddings_of_zeros_have_a_cosine_of_zero(model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    """relu(x - 1) is zero for all inputs between 0 and 1: nothing is similar to anything, and no number is missing."""
    network = nn.Sequential(nn.Linear(INPUTS, DIMENSIONS), nn.ReLU())
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(DIMENSIONS, INPUTS))  # type: ignore[operator]
        network[0].bias.fill_(-2.0)  # type: ignore[operator]
    model = model_of(network, drawn(0, 8), outputs=EMBEDDING)
    target = Similarity(REFERENCE, Measure.COSINE)
    (explanation,) = run(model, [plan_for(model, drawn(5), "integrated_gradients", target=target, output_space=SPACE)])
    assert (explanation.output, explanation.baseline_output) == (0, 0)
    assert explanation.attributions == (0.0,) * INPUTS
    assert explanation.converged


def test_slopes_are_those_of_automatic_differentiation() -> None:
    torch.manual_seed(0)
    vectors = (8 * torch.randn(50, DIMENSIONS, dtype=torch.float64)).requires_grad_()
    coefficients = torch.tensor(np.tile(Similarity(REFERENCE, Measure.COSINE).coefficients, (50, 1)))
    outputs = functional.cosine_similarity(vectors, torch.tensor(REFERENCE, dtype=torch.float64)[None], dim=1)
    (slopes,) = torch.autograd.grad(outputs.sum(), vectors)
    is_linked = torch.ones(50, 1, dtype=torch.bool)
    found = read_out(vectors.detach(), coefficients, is_linked, ON_TENSORS[UNIT_LENGTH], Linked.PROBABILITIES)
    assert found[0].numpy() == pytest.approx(outputs.detach().numpy(), rel=1e-12)
    assert found[1].numpy() == pytest.approx(slopes.numpy(), abs=1e-14)


def test_integrals_of_slopes_over_a_piece_are_those_of_many_nodes() -> None:
    """Of short pieces, long ones, one on which nothing moves, and one that passes close to zero."""
    generator = np.random.default_rng(0)
    start, end, length = *generator.normal(size=(2, 30, DIMENSIONS)), generator.uniform(0.1, 1, 30)
    end[:10] = start[:10] + 0.01 * generator.normal(size=(10, DIMENSIONS))
    end[10], end[11] = start[10], -start[11] + 1e-2 * generator.normal(size=DIMENSIONS)
    direction = Similarity(REFERENCE, Measure.COSINE).coefficients
    found = cosine_piece_slopes(start, end, length, direction)
    rule, parts = gauss_legendre(50), 400
    nodes = ((np.arange(parts)[:, None] + rule.nodes) / parts).ravel()
    at = torch.tensor(start[:, None] + nodes[:, None] * (end - start)[:, None]).requires_grad_()
    cosines = functional.cosine_similarity(at, torch.tensor(direction).expand_as(at), dim=-1)
    (slopes,) = torch.autograd.grad(cosines.sum(), at)
    weights = np.tile(rule.weights / parts, parts)
    dense = length[:, None] * np.einsum("n,pnk->pk", weights, slopes.numpy())
    assert found == pytest.approx(dense, abs=1e-11, rel=1e-9)
    changes = UNIT_LENGTH.probabilities(end) @ direction - UNIT_LENGTH.probabilities(start) @ direction
    assert (found / length[:, None] * (end - start)).sum(axis=1) == pytest.approx(changes, abs=1e-11)
