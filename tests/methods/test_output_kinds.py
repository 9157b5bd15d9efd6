"""Values, labels and contrasts through the real kernels, against closed forms, Captum and dense quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn

from service.artefacts.links import ON_TENSORS
from service.catalog.outputs.classes import Classes
from service.catalog.outputs.labels import Labels
from service.catalog.outputs.values import Value, Values
from service.domain import Completeness, Contrast, Floats, OutputSpace, Target
from service.engine.kernels.readouts import Linked, read_out
from service.methods.registry import BY_NAME, METHODS
from service.methods.spec import Facts
from service.numerics.links import SIGMOID, SOFTMAX, Link
from service.numerics.quadrature import gauss_legendre
from tests.methods.conftest import ModelOf, PlanFor, Run, index_of

INPUTS = 5
P, Z, V = OutputSpace.PROBABILITY, OutputSpace.LOGIT, OutputSpace.VALUE
VALUES = Values(kind="values", values=(Value(name="a"), Value(name="b", unit="USD"), Value(name="c")))
LABELS = Labels(kind="labels", labels=("a", "b", "c"))
CLASSES = Classes(labels=("a", "b", "c"), link="softmax")
Case = tuple[Values | Labels | Classes, OutputSpace, Target]
CASES: dict[str, Case] = {
    "a value": (VALUES, V, 1),
    "a label's probability": (LABELS, P, 1),
    "a label's logit": (LABELS, Z, 2),
    "a contrast of probabilities": (CLASSES, P, Contrast(2, 0)),
    "a contrast of logits": (CLASSES, Z, Contrast(0, 1)),
}


def drawn(seed: int, count: int | None = None) -> Floats:
    generator = np.random.default_rng(seed)
    return generator.uniform(0, 1, INPUTS if count is None else (count, INPUTS)).astype(np.float32).astype(float)


def network_of(activation: Callable[[], nn.Module], outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(INPUTS, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, outputs)
    )
    with torch.no_grad():
        network[4].weight.mul_(6.0)  # type: ignore[operator]
    return network


def explained_output(kind: Values | Labels | Classes, space: OutputSpace, target: Target) -> Callable[[Tensor], Tensor]:
    """What is explained, of a network's numbers [n, outputs], written independently: [n]."""
    links: dict[str, Callable[[Tensor], Tensor]] = {
        "classes": lambda z: torch.softmax(z, dim=1),
        "labels": torch.sigmoid,
        "values": lambda z: z,
    }

    def of(numbers: Tensor) -> Tensor:
        outputs = links[kind.kind](numbers) if space is P else numbers
        if isinstance(target, Contrast):
            return outputs[:, target.index] - outputs[:, target.rather_than]
        assert isinstance(target, int)
        return outputs[:, target]

    return of


class _Explained(nn.Module):
    def __init__(self, network: nn.Module, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.of = network, of

    def forward(self, rows: Tensor) -> Tensor:
        return self.of(self.network(rows))


@pytest.mark.parametrize("name", CASES)
def test_the_exact_rule_is_captums_integral(name: str, model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    kind, space, target = CASES[name]
    network, baselines = network_of(nn.ReLU), drawn(0, 8)
    model = model_of(network, baselines, outputs=kind)
    x = drawn(7)
    plan = plan_for(model, x, "integrated_gradients", target=target, output_space=space)
    (explanation,) = run(model, [plan])
    oracle = IntegratedGradients(_Explained(network.double(), explained_output(kind, space, target)))
    row, center = torch.tensor(x)[None], torch.tensor(baselines.mean(axis=0))[None]
    theirs = oracle.attribute(row, center, n_steps=4000, method="riemann_middle").numpy()[0]
    network.float()

    assert (explanation.completeness, explanation.rule, explanation.converged) == (Completeness.EXACT, "exact", True)
    assert explanation.target == target
    scale = np.abs(theirs).sum()
    assert explanation.attributions == pytest.approx(theirs, abs=2e-3 * scale)
    assert explanation.completeness_error is not None
    assert explanation.completeness_error < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_smooth_networks_are_refined_to_the_same(name: str, model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    kind, space, target = CASES[name]
    network, baselines = network_of(nn.Tanh), drawn(0, 8)
    model = model_of(network, baselines, outputs=kind)
    x = drawn(9)
    methods = ("integrated_gradients", "saliency", "input_x_gradient", "expected_gradients", "integrated_hessians")
    plans = [plan_for(model, x, method, target=target, output_space=space, tolerance=1e-3) for method in methods]
    whole, steep, product, expected, hessians = run(model, plans)
    forward = _Explained(network.double(), explained_output(kind, space, target))
    row, starts = torch.tensor(x)[None], torch.tensor(baselines)
    integrated = IntegratedGradients(forward).attribute
    lines = integrated(row.expand(8, -1), starts, n_steps=200, method="gausslegendre").numpy()
    theirs = integrated(row, starts.mean(0)[None], n_steps=200, method="gausslegendre").numpy()[0]
    gradient = Saliency(forward).attribute(row.clone().requires_grad_()).numpy()[0]
    times = InputXGradient(forward).attribute(row.clone().requires_grad_()).detach().numpy()[0]
    network.float()

    scale = np.abs(theirs).sum()
    assert whole.attributions == pytest.approx(theirs, abs=2e-3 * scale)
    assert steep.attributions == pytest.approx(gradient, rel=1e-4, abs=1e-5)
    assert product.attributions == pytest.approx(times, rel=1e-4, abs=1e-5)
    assert expected.attributions == pytest.approx(lines.mean(axis=0), abs=0.02 * np.abs(lines).sum(axis=1).mean())
    assert np.array(hessians.interactions).sum() == pytest.approx(theirs.sum(), abs=5e-3 * scale)
    assert all(one.converged for one in (whole, steep, product, expected, hessians))


def test_a_linear_regression_in_closed_form(model_of: ModelOf, plan_for: PlanFor, run: Run) -> None:
    """w (x - x'), for values of any size."""
    for size in (1e-6, 1.0, 1e6):
        torch.manual_seed(0)
        network, baselines = nn.Linear(INPUTS, 1), drawn(0, 8)
        with torch.no_grad():
            network.weight.mul_(size)
            network.bias.mul_(size)
        model = model_of(network, baselines, outputs=Values(kind="values", values=(Value(name="y"),)))
        x = drawn(3)
        methods = ("integrated_gradients", "expected_gradients", "guided_ig", "idgi", "directional_ig")
        plans = [plan_for(model, x, method, target=0, output_space=V) for method in methods]
        moved = network.weight.detach().double().numpy()[0] * (x - baselines.mean(axis=0))
        for explanation in run(model, plans)[:3]:
            assert explanation.attributions == pytest.approx(moved, abs=1e-5 * np.abs(moved).sum())
            assert explanation.converged


def test_every_method_answers_for_values_and_labels_or_says_why_not(
    model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    baselines = drawn(0, 8)
    for kind, space in ((VALUES, V), (LABELS, P), (LABELS, Z)):
        model = model_of(network_of(nn.ReLU), baselines, outputs=kind)
        for method in METHODS:
            why = method.not_applicable(Facts(model.traits, 8, method.defaults()))
            if method.name in {"agi", "boundary_ig", "boundary_saliency"}:
                assert why is not None
                assert "none gives way to another" in why
            elif why is None:
                plan = plan_for(model, drawn(5), method.name, target=1, output_space=space, tolerance=0.05)
                (explanation,) = run(model, [plan])
                assert explanation.attributions is not None, method.name
                assert np.isfinite(explanation.attributions).all(), method.name


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize("space", Classes.spaces)
def test_every_method_takes_contrasts(
    method: str, space: OutputSpace, model_of: ModelOf, plan_for: PlanFor, run: Run
) -> None:
    model = model_of(network_of(nn.ReLU), drawn(0, 8), outputs=CLASSES)
    spec = BY_NAME[method]
    why = spec.not_applicable(Facts(model.traits, 8, spec.defaults()))
    if why is not None:
        pytest.skip(why)
    plan = plan_for(model, drawn(5), method, target=Contrast(1, 2), output_space=space, tolerance=0.05)
    (explanation,) = run(model, [plan])
    assert explanation.attributions is not None
    assert explanation.output == pytest.approx(np.subtract(*np.array(explanation.outputs)[[1, 2]]))
    if method == "boundary_ig":  # where these two labels are level, whatever the third is
        assert explanation.baseline_output == pytest.approx(0, abs=0.02 * max(1, abs(explanation.output or 0)))


LINKS: dict[Link, Any] = {SOFTMAX: lambda z: torch.softmax(z, dim=1), SIGMOID: torch.sigmoid}


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
@pytest.mark.parametrize("target", [0, 2, Contrast(1, 2)], ids=str)
def test_slopes_behind_a_link_are_those_of_automatic_differentiation(link: Link, target: Target) -> None:
    if link == SIGMOID and isinstance(target, Contrast):
        pytest.skip("labels that are right on their own are not compared")
    torch.manual_seed(0)
    logits = (8 * torch.randn(50, 4, dtype=torch.float64)).requires_grad_()
    coefficients = torch.zeros(50, 4, dtype=torch.float64)
    coefficients[:, target.index if isinstance(target, Contrast) else index_of(target)] = 1
    if isinstance(target, Contrast):
        coefficients[:, target.rather_than] = -1
    outputs = (LINKS[link](logits) * coefficients).sum(1)
    (slopes,) = torch.autograd.grad(outputs.sum(), logits)
    linked = Linked.CONTRASTS if isinstance(target, Contrast) else Linked.PROBABILITIES
    found = read_out(logits.detach(), coefficients, torch.ones(50, 1, dtype=torch.bool), ON_TENSORS[link], linked)
    assert found[0].numpy() == pytest.approx(outputs.detach().numpy(), rel=1e-12, abs=1e-300)
    assert found[1].numpy() == pytest.approx(slopes.numpy(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_integrals_of_slopes_over_a_piece_are_those_of_many_nodes(link: Link) -> None:
    generator = np.random.default_rng(0)
    start, end, length = *(4 * generator.normal(size=(2, 20, 3))), generator.uniform(0.1, 1, 20)
    rule = gauss_legendre(200)
    for target in (1, Contrast(0, 2)) if link.is_shared else (1,):
        found = link.piece_slopes(start, end, length, target)
        logits = torch.tensor(start[:, None] + rule.nodes[:, None] * (end - start)[:, None]).requires_grad_()
        probabilities = LINKS[link](logits.reshape(-1, 3)).reshape(logits.shape)
        chosen = (
            probabilities[..., target.index] - probabilities[..., target.rather_than]
            if isinstance(target, Contrast)
            else probabilities[..., target]
        )
        (slopes,) = torch.autograd.grad(chosen.sum(), logits)
        dense = length[:, None] * np.einsum("n,pnk->pk", rule.weights, slopes.numpy())
        assert found == pytest.approx(dense, abs=1e-11)
        changes = link.probabilities(end) - link.probabilities(start)
        summed = (found / length[:, None] * (end - start)).sum(axis=1)
        own = changes[:, 0] - changes[:, 2] if isinstance(target, Contrast) else changes[:, 1]
        assert summed == pytest.approx(own, abs=1e-11)
