"""What is true: integrals in float64, with nothing of the service's, each as densely taken as the question needs.

Both output spaces are taken together, since they share the forward pass; arrays begin with a dimension for them, in the
order of `Classes.spaces`. Attributions are told as the service tells them: of sequences one a position.

- Smooth integrands: by two Gauss-Legendre rules, the finer of which stands where they agree to a fifth of the limit.
- Others: by trapezoids, half as wide again and again until the last two differ by no more than the limit. A jump of the
  gradient makes a difference of a quarter of the wider step wherever it is, and the finer errs by at most as much; many
  of them by 0.58 of it, in the root mean square. Single gradients are taken in float32 where the limit is far above
  what that rounds; sums are float64 throughout.
- Piecewise-linear networks: piece by piece, to some 1e-10. Between two points of different pieces the kink, where it is
  the only one, is where their tangents meet: then just before and just behind it the network has these tangents.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from service.catalog.outputs.classes import Classes
from service.domain import Floats, OutputSpace

TOGETHER = 2**15
"""Numbers in the rows of one pass, for which the layers of a small network fit a cache."""
MOST_NODES = 100_000
JUST = 1e-6
"""Of a panel: the gradient at its end, as seen from inside."""
SINGLE_IS_ENOUGH = 5e-5
"""A mean of many gradients in float32 is rounded by some 1e-6."""
MOST_PIECES = 20_000
FIRST_PIECES = 48
SAME_SLOPE = 1e-11
BESIDE = 1e-9
FEW_PIECES = 200
HESSIAN_NODES = (8, 16, 32, 64, 96)

Path = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From alphas [n] to the points there and their derivatives by alpha: [n, ...shape] each."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true, `values` [spaces, units], or [spaces, units, units] of pairs, and how surely: `doubts` [spaces] are
    relative L1 differences between the two finest rules, none where the pieces are known."""

    values: Floats
    doubts: Floats


def distances(values: Floats, of: Floats) -> Floats:
    """The relative L1 distances of `values` [spaces, ...] from `of`: [spaces]."""
    apart, size = (np.abs(part).reshape(len(part), -1).sum(axis=1) for part in (values - of, of))
    result: Floats = apart / np.maximum(size, 1e-300)
    return result


def gradients(network: nn.Module, points: Tensor, target: int) -> Tensor:
    """Of the target's logit and of its probability at `points` [n, ...shape]: [2, n, ...shape]."""
    weights = next(network.parameters())
    points = points.detach().to(weights.dtype).requires_grad_()
    logits = network(points)
    outputs = {OutputSpace.LOGIT: logits, OutputSpace.PROBABILITY: torch.softmax(logits, dim=1)}
    of_spaces = [outputs[space][:, target].sum() for space in Classes.spaces]
    found = [torch.autograd.grad(output, points, retain_graph=True)[0] for output in of_spaces]
    return torch.stack(found).double()


def told(contributions: Tensor) -> Floats:
    """`contributions` [spaces, ...shape] as attributions are told: [spaces, units]."""
    if contributions.dim() == 3:
        contributions = contributions.sum(dim=-1)
    values: Floats = contributions.flatten(1).numpy()
    return values


def line(start: Floats, end: Floats) -> Path:
    """The straight path."""
    return polyline(np.stack([start, end]))


def polyline(corners: Floats) -> Path:
    """Through `corners` [n + 1, ...shape], each step as long as the next in alpha."""
    return _side_by_side(torch.from_numpy(corners[:-1]), torch.from_numpy(corners[1:]), len(corners) - 1)


def lines(starts: Floats, end: Floats) -> Path:
    """Straight paths from `starts` [n, ...shape], one after the other; the integral along it is the mean of theirs."""
    origins = torch.from_numpy(starts)
    return _side_by_side(origins, torch.from_numpy(end).expand_as(origins), 1)


def _side_by_side(starts: Tensor, ends: Tensor, speed: int) -> Path:
    count = len(starts)

    def at(alphas: Tensor) -> tuple[Tensor, Tensor]:
        place = (alphas * count).floor().clamp(max=count - 1)
        share = (alphas * count - place).reshape(-1, *[1] * (starts.dim() - 1))
        ways = (ends - starts)[place.long()]
        return starts[place.long()] + share * ways, speed * ways

    return at


def blurs(image: Floats, most: float) -> Path:
    """From `image` [channels, height, width] blurred by a Gaussian of the deviation `most` to itself.

    Mirrored at its border an image is a sum of cosines, each of which a symmetric kernel multiplies by a number.
    """

    def waves_of(size: int) -> Tensor:
        at, frequency = torch.arange(size, dtype=torch.float64) + 0.5, torch.arange(size, dtype=torch.float64)
        return torch.cos(torch.pi / size * at[:, None] * frequency)

    def factors(size: int, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """What each cosine is multiplied by, and its derivative by sigma: [n, size] each."""
        steps = torch.arange(1, int(12 * most) + 2, dtype=torch.float64)
        weights = torch.exp(-((steps / sigmas[:, None]) ** 2) / 2)
        changes = weights * steps**2 / sigmas[:, None] ** 3
        waves = torch.cos(torch.pi / size * steps[:, None] * torch.arange(size, dtype=torch.float64))
        whole, whole_change = 1 + 2 * weights.sum(1, keepdim=True), 2 * changes.sum(1, keepdim=True)
        passed = (1 + 2 * weights @ waves) / whole
        return passed, (2 * changes @ waves - passed * whole_change) / whole

    _, height, width = image.shape
    up, back = waves_of(height), waves_of(width)
    amplitudes = torch.linalg.inv(up) @ torch.from_numpy(image) @ torch.linalg.inv(back).T

    def at(alphas: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = most * (1 - alphas) ** 2
        rows, row_changes = (part[:, None, :, None] for part in factors(height, sigmas))
        columns, column_changes = (part[:, None, None, :] for part in factors(width, sigmas))
        blurred = up @ (rows * columns * amplitudes) @ back.T
        changes = up @ ((row_changes * columns + rows * column_changes) * amplitudes) @ back.T
        return blurred, changes * (-2 * most * (1 - alphas)).reshape(-1, 1, 1, 1)

    return at


def along(
    network: nn.Module, path: Path, target: int, limits: Floats, first: int, panels: int = 1, order: int = 40
) -> Truth:
    """The integral of the gradient along `path`, until two rules agree to `limits` [spaces].

    The path is smooth on each of so many `panels` of one length, and gets Gauss rules of `order` and twice as many
    nodes on each; else trapezoids, `first` and more of them.
    """
    coarse, fine = (_summed(network, path, target, *_composite(nodes, panels)) for nodes in (order, 2 * order))
    doubts = distances(coarse, fine)
    if (doubts <= limits / 5).all():
        return Truth(fine, doubts)
    if (limits > SINGLE_IS_ENOUGH).all():
        network = copy.deepcopy(network).float()
    at_ends, weights = _even(panels, np.array([JUST, 1 - JUST]))
    ends = _summed(network, path, target, at_ends, weights / 2)
    count = max(2, -(-first // panels))
    inner = _summed(network, path, target, *_even(panels, np.arange(1, count) / count))
    values = (ends + inner) / (panels * count)
    while True:
        before, between = values, _summed(network, path, target, *_even(panels, (np.arange(count) + 0.5) / count))
        values, count = (before + between / (panels * count)) / 2, 2 * count
        doubts = distances(before, values)
        if (doubts <= limits).all() or 2 * panels * count > MOST_NODES:
            return Truth(values, doubts)


def _even(panels: int, at: Floats) -> tuple[Floats, Floats]:
    """Nodes `at` the same places of every panel, each counting one."""
    return ((np.arange(panels)[:, None] + at) / panels).ravel(), np.ones(panels * len(at))


def _composite(order: int, panels: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(order)
    alphas = (np.arange(panels)[:, None] + (nodes + 1) / 2) / panels
    return alphas.ravel(), np.tile(weights / 2 / panels, panels)


def _summed(network: nn.Module, path: Path, target: int, alphas: Floats, weights: Floats) -> Floats:
    """The sum of weights times what the path gains at `alphas`: [spaces, units]."""
    points, _ = path(torch.zeros(1, dtype=torch.float64))
    together = max(16, TOGETHER // points[0].numel())
    total = torch.zeros(2, *points.shape[1:], dtype=torch.float64)
    at, by = torch.from_numpy(alphas), torch.from_numpy(weights)
    for part, own in zip(torch.split(at, together), torch.split(by, together), strict=True):
        points, velocities = path(part)
        contributions = gradients(network, points, target) * velocities
        total += torch.tensordot(own, contributions, dims=([0], [1]))
    return told(total)


def in_pieces(network: nn.Module, start: Floats, end: Floats, target: int) -> Truth:
    """Of a piecewise-linear network, on the straight path."""
    bends = kinks(network, start, end)
    edges = np.concatenate([[0.0], bends, [1.0]])
    order = 2 if len(edges) > FEW_PIECES else 16
    nodes, weights = np.polynomial.legendre.leggauss(order)
    widths = np.diff(edges)
    alphas = edges[:-1, None] + widths[:, None] * (nodes + 1) / 2
    values = _summed(network, line(start, end), target, alphas.ravel(), (widths[:, None] * weights / 2).ravel())
    return Truth(values, np.zeros(len(values)))


def kinks(network: nn.Module, start: Floats, end: Floats) -> Floats:
    """Where a piecewise-linear network bends on the straight path, ascending."""
    path = line(start, end)
    labels = network(torch.from_numpy(start[None])).shape[1]
    mixed = torch.linspace(1.0, 2.0, labels, dtype=torch.float64).sin() * 3  # of all labels, so that no kink cancels

    def tangents(alphas: Floats) -> Floats:
        """The value and the slope of the labels' mixture at `alphas` [n], and these: [n, 3]."""
        found = []
        for part in torch.split(torch.from_numpy(alphas), max(16, TOGETHER // start.size)):
            points, velocities = path(part)
            values = network(points.requires_grad_()) @ mixed
            (slopes,) = torch.autograd.grad(values.sum(), points)
            found.append(torch.stack([part, values.detach(), (slopes * velocities).flatten(1).sum(1)], dim=1))
        return torch.cat(found).numpy()

    # Generic places: a kink at one of them would have no tangent.
    known = tangents(np.linspace(0.0, 1.0, FIRST_PIECES + 1)[:-1] + np.sqrt(2) / 2 / FIRST_PIECES)
    ends = tangents(np.array([1e-13, 1 - 1e-13]))
    known = np.concatenate([ends[:1], known, ends[1:]])
    slope, value = np.abs(known[:, 2]).max(), np.abs(known[:, 1]).max()
    left, right, found = known[:-1], known[1:], [np.empty(0)]
    while len(left) <= MOST_PIECES:
        apart, bend = right[:, 0] - left[:, 0], left[:, 2] - right[:, 2]
        misses = np.abs(right[:, 1] - left[:, 1] - left[:, 2] * apart)
        is_flat = np.abs(bend) <= SAME_SLOPE * slope
        is_piece = is_flat & (misses <= 1e-13 * value + SAME_SLOPE * slope * apart)
        steps = (right[:, 1] - left[:, 1] - right[:, 2] * apart) / np.where(is_flat, 1, bend)
        middle = left[:, 0] + np.where(~is_flat & (steps > 0) & (steps < apart), steps, apart / 2)
        is_kink = ~is_piece & (apart <= 3 * BESIDE)
        found.append(middle[is_kink])
        goes_on = ~is_piece & ~is_kink
        left, right, middle = left[goes_on], right[goes_on], middle[goes_on]
        if not len(left):
            return np.sort(np.concatenate(found))
        before = tangents(np.maximum(middle - BESIDE, (left[:, 0] + middle) / 2))
        behind = tangents(np.minimum(middle + BESIDE, (right[:, 0] + middle) / 2))
        left, right = np.concatenate([left, before, behind]), np.concatenate([before, behind, right])
    raise RuntimeError("the network does not seem to be piecewise linear")


def hessian_integral(network: nn.Module, start: Floats, end: Floats, target: int, limits: Floats) -> Truth:
    """Integrated Hessians of all pairs of units, by the paper's double integral with Gauss nodes in both dimensions."""
    before: Floats | None = None
    for nodes in HESSIAN_NODES:
        values = _pairs(network, start, end, target, nodes)
        doubts = np.full(len(values), np.inf) if before is None else distances(before, values)
        if (doubts <= limits).all():
            break
        before = values
    return Truth(values, doubts)


def _pairs(network: nn.Module, start: Floats, end: Floats, target: int, nodes: int) -> Floats:
    """By so many nodes for alpha and for beta; at their products, those of which in either order are the same."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    at, weights = (at + 1) / 2, weights / 2
    first, second = np.triu_indices(nodes)
    product = torch.from_numpy(at[first] * at[second])
    weight = torch.from_numpy(weights[first] * weights[second] * np.where(first == second, 1.0, 2.0))
    way = torch.from_numpy(end - start)
    units = len(start)
    vectors = torch.diag_embed(way) if way.dim() == 1 else torch.eye(units).double()[:, :, None] * way
    path = line(start, end)
    total = torch.zeros(2, units, units, dtype=torch.float64)
    together = max(1, TOGETHER // (units * way.numel()))
    for part, own in zip(torch.split(product, together), torch.split(weight, together), strict=True):
        points = path(part)[0].repeat_interleave(units, dim=0).requires_grad_()
        each = vectors.repeat(len(part), *[1] * way.dim())
        logits = network(points)
        outputs = {OutputSpace.LOGIT: logits, OutputSpace.PROBABILITY: torch.softmax(logits, dim=1)}
        for number, space in enumerate(Classes.spaces):
            output = outputs[space][:, target].sum()
            (slopes,) = torch.autograd.grad(output, points, retain_graph=True, create_graph=True)
            (curved,) = torch.autograd.grad((slopes * each).sum(), points, retain_graph=True)
            of_pairs = (curved * way).reshape(len(part), units, units, -1).sum(dim=-1)
            total[number] += torch.tensordot(own * part, of_pairs, dims=1)
            alone = (slopes.detach()[::units] * way).reshape(len(part), units, -1).sum(dim=-1)
            total[number] += torch.diag(own @ alone)
    values: Floats = total.numpy()
    return values
