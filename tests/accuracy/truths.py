"""What is true: attributions in float64 by many plain midpoints, with nothing of the service's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from service.domain import Floats, OutputSpace

TOGETHER = 256
FIRST_PIECES = 256
HALVINGS = 36
GAUSS_NODES = 12


def output_of(network: nn.Module, rows: Tensor, target: int, space: OutputSpace) -> Tensor:
    """The explained output at rows [n, ...shape]: [n]."""
    logits = network(rows)
    return logits[:, target] if space is OutputSpace.LOGIT else torch.softmax(logits, dim=1)[:, target]


def on_line(network: nn.Module, start: Floats, end: Floats, target: int, space: OutputSpace, nodes: int) -> Floats:
    """Integrated gradients from `start` to `end`, both [...shape], by so many midpoints."""
    origin = torch.from_numpy(start)
    direction = torch.from_numpy(end) - origin
    total = torch.zeros_like(direction)
    for alphas in torch.split((torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes, TOGETHER):
        points = (origin + alphas.reshape(-1, *[1] * direction.dim()) * direction).requires_grad_()
        (gradients,) = torch.autograd.grad(output_of(network, points, target, space).sum(), points)
        total += gradients.sum(dim=0)
    values: Floats = (total * direction / nodes).numpy()
    return values


def in_pieces(network: nn.Module, start: Floats, end: Floats, target: int, space: OutputSpace) -> Floats:
    """Integrated gradients of a piecewise-linear network, piece by piece.

    The bends are found by halving whatever has different gradients of the logits at its two ends, and each piece is
    integrated with many Gauss nodes. A piece between two gradients that agree is missed; so it begins with many.
    """
    origin = torch.from_numpy(start)
    direction = torch.from_numpy(end) - origin

    def gradients(alphas: Floats, of: OutputSpace) -> Floats:
        parts = []
        for part in torch.split(torch.from_numpy(alphas), TOGETHER):
            points = (origin + part.reshape(-1, *[1] * direction.dim()) * direction).requires_grad_()
            (found,) = torch.autograd.grad(output_of(network, points, target, of).sum(), points)
            parts.append((found * direction).flatten(1).numpy())
        return np.concatenate(parts)

    edges = np.linspace(0.0, 1.0, FIRST_PIECES + 1) + 1e-13 * np.sqrt(2)
    slopes = gradients(edges, OutputSpace.LOGIT)
    left, right, before, behind = edges[:-1], edges[1:], slopes[:-1], slopes[1:]
    for _ in range(HALVINGS):
        differs = np.abs(before - behind).sum(axis=1) > 1e-9 * np.abs(slopes).sum(axis=1).max()
        left, right, before, behind = left[differs], right[differs], before[differs], behind[differs]
        if not differs.any():
            break
        middle = (left + right) / 2
        amid = gradients(middle, OutputSpace.LOGIT)
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        before, behind = np.concatenate([before, amid]), np.concatenate([amid, behind])
    bends = np.unique(np.concatenate([[0.0], np.clip((left + right) / 2, 0, 1), [1.0]]))
    nodes, weights = np.polynomial.legendre.leggauss(GAUSS_NODES)
    widths = np.diff(bends)
    alphas = bends[:-1, None] + widths[:, None] * (nodes + 1) / 2
    values: Floats = (widths[:, None] * weights / 2).ravel() @ gradients(alphas.ravel(), space)
    return values.reshape(start.shape)
