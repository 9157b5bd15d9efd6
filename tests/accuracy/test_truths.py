"""What the harness takes for true is true: closed forms, and libraries that know the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import OutputSpace
from tests.accuracy.truths import along, blurs, distances, hessian_integral, in_pieces, kinks, line, lines, polyline

LOGIT = Classes.spaces.index(OutputSpace.LOGIT)
SURE = np.full(2, 1e-9)


class _Formula(nn.Module):
    """Two logits: a function of the input, and zero. A parameter says in which precision it is taken."""

    def __init__(self, one: float = 1.0) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.tensor(one, dtype=torch.float64))

    def of(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        value = self.of(x) * self.one
        return torch.stack([value, torch.zeros_like(value)], dim=1)


class _Product(_Formula):
    def of(self, x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 1]


class _Steps(_Formula):
    """A narrow ramp between two places of the same slope, and a bend."""

    def of(self, x: Tensor) -> Tensor:
        return torch.clamp(500 * (x[:, 0] - 0.3), 0, 1) + torch.relu(x[:, 1] - 0.77)


class _Sharp(_Formula):
    def of(self, x: Tensor) -> Tensor:
        return torch.relu(torch.sin(9 * x)).sum(dim=1)


@pytest.mark.parametrize("first", [20, 100])
def test_integrals_of_smooth_and_of_bent_functions(first: int) -> None:
    start, end = np.zeros(2), np.array([2.0, 3.0])
    smooth = along(_Product(), line(start, end), 0, SURE, first)
    np.testing.assert_allclose(smooth.values[LOGIT], [3.0, 3.0], rtol=1e-12)
    probability = 1 / (1 + np.exp(-6)) - 0.5
    np.testing.assert_allclose(smooth.values[1 - LOGIT], [probability / 2] * 2, rtol=1e-12)
    # A few jumps of one size may cancel in what halving the steps changes.
    bent = along(_Sharp(), line(start, end), 0, np.full(2, 1e-4), first)
    np.testing.assert_allclose(bent.values[LOGIT], np.maximum(np.sin(9 * end), 0), atol=1e-3)


def test_paths_from_several_starts_and_through_corners() -> None:
    starts, end = np.array([[0.0, 0.0], [1.0, -1.0]]), np.array([2.0, 3.0])
    mean = along(_Product(), lines(starts, end), 0, SURE, 2, 2)
    each = [along(_Product(), line(start, end), 0, SURE, 2).values for start in starts]
    np.testing.assert_allclose(mean.values, np.mean(each, axis=0), rtol=1e-12)
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 3.0]])
    np.testing.assert_allclose(along(_Product(), polyline(corners), 0, SURE, 2, 2).values[LOGIT], [0, 6], atol=1e-12)


def test_kinks_are_found_wherever_they_are() -> None:
    start, end = np.zeros(2), np.ones(2)
    np.testing.assert_allclose(kinks(_Steps(), start, end), [0.3, 0.302, 0.77], atol=1e-8)
    np.testing.assert_allclose(in_pieces(_Steps(), start, end, 0).values[LOGIT], [1.0, 0.23], atol=1e-9)


def test_a_network_that_is_not_piecewise_linear_is_refused() -> None:
    with pytest.raises(RuntimeError, match="piecewise linear"):
        kinks(_Product(), np.zeros(2), np.ones(2))


def test_pieces_agree_with_trapezoids_and_add_up() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    start, end = np.zeros(6), np.random.default_rng(0).normal(size=6) * 2
    pieces = in_pieces(network, start, end, 1).values
    with torch.no_grad():
        logits = network(torch.from_numpy(np.stack([start, end])))
    for space, outputs in zip(Classes.spaces, (torch.softmax(logits, 1), logits), strict=True):
        change = float(outputs[1, 1] - outputs[0, 1])
        assert pieces[Classes.spaces.index(space)].sum() == pytest.approx(change, rel=1e-9)
    trapezoids = along(network, line(start, end), 1, np.full(2, 3e-5), 1000)
    assert (distances(trapezoids.values, pieces) < 3e-5).all()


def test_blurs_are_those_of_scipy_and_their_velocities_the_differences() -> None:
    image = np.random.default_rng(1).normal(size=(2, 9, 7))
    path = blurs(image, 2.5)
    alphas = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    blurred, velocities = path(alphas)
    for alpha, mine in zip(alphas.tolist(), blurred.numpy(), strict=True):
        sigma = 2.5 * (1 - alpha) ** 2
        theirs = [gaussian_filter(channel, sigma, mode="reflect", truncate=12) for channel in image]
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    step = 1e-6
    differences = (path(alphas + step)[0] - path(alphas - step)[0]) / (2 * step)
    np.testing.assert_allclose(velocities[1:], differences[1:], atol=1e-7)


def test_interactions_of_a_product_are_quarters() -> None:
    truth = hessian_integral(_Product(), np.zeros(2), np.array([2.0, 3.0]), 0, SURE)
    np.testing.assert_allclose(truth.values[LOGIT], np.full((2, 2), 1.5), rtol=1e-12)
