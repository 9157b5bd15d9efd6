"""The exact rule's stated error is that of float32: it covers the true one, and is not far above it."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from service.domain import Completeness, Floats, OutputSpace

if TYPE_CHECKING:
    from tests.methods.conftest import ModelOf, PlanFor, Run

BEHIND = 1e-11
NETWORKS = [(0, 0, 2, 1.0), (1, 16, 2, 1.0), (2, 32, 2, 2.0), (3, 32, 3, 2.0)]
"""Hidden layers, their width, labels, and by what torch's weights are multiplied."""


def random_network(inputs: int, layers: int, width: int, labels: int, gain: float) -> nn.Sequential:
    torch.manual_seed(7 * inputs + layers)
    sizes = [inputs, *[width] * layers, labels]
    parts: list[nn.Module] = []
    for before, behind in pairwise(sizes):
        layer = nn.Linear(before, behind)
        layer.weight.data.mul_(gain)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def walked(network: nn.Sequential, start: Floats, end: Floats, space: OutputSpace, target: int) -> Floats:
    """The integral in float64, walked from kink to kink: the next is the nearest zero of a unit ahead."""
    weights = [(layer.weight.numpy(), layer.bias.numpy()) for layer in network if isinstance(layer, nn.Linear)]
    nodes, shares = np.polynomial.legendre.leggauss(20)
    way, alpha, values = end - start, 0.0, np.zeros_like(start)
    while alpha < 1:
        at = alpha + BEHIND
        value, slope, jacobian, until = start + at * way, way, np.diag(way), 1.0
        for layer, (weight, bias) in enumerate(weights):
            value, slope, jacobian = weight @ value + bias, weight @ slope, weight @ jacobian
            if layer < len(weights) - 1:
                ahead = value * slope < 0
                until = min([until, *(at - value[ahead] / slope[ahead])])
                live = (value > 0).astype(np.float64)
                value, slope, jacobian = value * live, slope * live, jacobian * live[:, None]
        length = until - alpha
        if space is OutputSpace.LOGIT:
            values += length * jacobian[target]
        else:
            parts = int(np.ptp(slope) * length / 3) + 1
            steps = (np.arange(parts)[:, None] + (nodes + 1) / 2).ravel() * length / parts - BEHIND
            logits = value + steps[:, None] * slope
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            slopes = -chances * chances[:, target, None]
            slopes[:, target] += chances[:, target]
            values += length / parts * (np.tile(shares / 2, parts) @ slopes) @ jacobian
        alpha = until
    return values


@pytest.mark.parametrize("space", [OutputSpace.PROBABILITY, pytest.param(OutputSpace.LOGIT, marks=pytest.mark.slow)])
def test_the_stated_error_covers_what_float32_leaves(
    model_of: ModelOf, plan_for: PlanFor, run: Run, space: OutputSpace
) -> None:
    draws = np.random.default_rng(0)
    covered, ratios, medians = [], [], []
    for inputs in (5, 20, 60, 200):
        for kind in NETWORKS:
            network = random_network(inputs, *kind)
            rows = draws.normal(size=(6, inputs)).astype(np.float32).astype(np.float64)
            start = rows[0] * draws.integers(2)
            model = model_of(network, start[None])
            results = run(model, [plan_for(model, row, "integrated_gradients", output_space=space) for row in rows[1:]])
            dense = copy.deepcopy(network).double()
            for row, result in zip(rows[1:], results, strict=True):
                truth = walked(dense, start, row, space, 1)
                assert (result.completeness, result.converged) == (Completeness.EXACT, True)
                assert result.attributions is not None
                assert result.attribution_error is not None
                off = np.abs(result.attributions - truth).sum() / max(float(np.abs(truth).sum()), 1e-2)
                assert off <= 1e-4
                covered.append(off <= result.attribution_error)
                ratios.append(result.attribution_error / off)
            medians.append(np.median(ratios[-len(results) :]))
    assert np.mean(covered) >= 0.95
    assert np.median(ratios) <= 10
    assert np.mean(np.array(medians) <= 10) >= 0.85, "of six networks in seven it is within ten times"
