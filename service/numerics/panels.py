"""The error of a composite Gauss-Legendre rule, read from the Legendre coefficients of the vectors on each panel.

On a panel with n nodes the rule itself gives the first n Legendre coefficients a_0 ... a_n-1 of the integrand, input by
input, as sums over the nodes (null rules: Berntsen and Espelid, "Error estimation in automatic quadrature routines",
1991). What the rule misses are those from a_2n on, which no node shows; but how fast the known ones decay says how
large these are:

- `high` is the size of the last two, `low` that of the two before them. Where the integrand jumps at many kinks, and so
  is a random walk (`service.numerics.cells`), both are of one size, and the rule's error is `scale` times `high`, a
  constant that follows from the nodes.
- Where it is smooth the error is smaller, by powers of the ratio of `high` to `low`. But the sum of the error over the
  inputs is known, since the integrand sums to the derivative of the output; and the norm of the error is larger than
  that sum by about the same factor as the norm of the last coefficients is larger than theirs. On sixteen smooth
  networks the one factor was 0.4 to 2 times the other in the median of each, from errors of a hundredth down to 1e-12.
  A sum may be small by chance, hence a safety factor, and a guard: the least that the decay of the coefficients allows.

For ratios between `SMOOTH` and `BENT` the estimate is a weighted geometric mean of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.polynomial import legendre

from service.domain import Floats, Indices
from service.numerics.cells import SAFETY, Estimate, Grouping, LocalErrors, Peer, Stencils, local_errors
from service.numerics.errors import NOISE, RESOLUTION, ROUNDED
from service.numerics.quadrature import gauss_legendre

FEWEST_OF_A_PANEL = 4
SMOOTH, BENT = 0.3, 0.6
"""Ratios of `high` to `low`. Of a random walk it is 0.97; of one kink alone 0.2 to 1; of corners (ELU) 0.3 to 0.4."""
WALK_SAFETY, KNOWN_SAFETY, GUARD_SAFETY = 2.0, 6.0, 2.4
"""Of the three estimates; chosen so that the true error is within the whole one in 95 of 100."""
GUARD_POWER = 3.5
FEW_PANELS = 0.25
"""The estimate for a walk is raised by this share over the number of panels: all inputs bend at the same places, so one
panel has only two coefficients to read the size of a walk from."""
SLOWING = (1.5, 3.0)
"""How many times slower the last coefficients decay than those before them; from the first figure on there may be
corners, from the second on there are. Smooth networks have 0.2 to 2, whatever their ratios are; corners 2 to 1,000, the
more the narrower the panels."""
CORNER = 0.08
"""The error of corners in units of `high`: 0.01 to 0.07 on eight networks of ELUs and CELUs."""


@dataclass(frozen=True, slots=True)
class Panels:
    """The panels of a composite Gauss rule: the numbers of their `nodes` [panels, order], and their `widths`."""

    nodes: Indices
    widths: Floats

    def among(self, numbers: Indices) -> Panels:
        """The same, of nodes that are `numbers` [n] among others."""
        return replace(self, nodes=numbers[self.nodes])


@dataclass(frozen=True, slots=True)
class PanelErrors:
    """What the vectors say of each panel: L1 norms [panels] of the `whole` integral and of its `first`, `low` and
    `high` coefficients, and for each input, or component of several inputs, the sum over the panels of the squares of
    the last."""

    whole: Floats
    first: Floats
    low: Floats
    high: Floats
    squares: Floats


def vector_errors(
    contributions: Any,
    stencil: Stencils | Panels,
    grouping: Grouping,
    peer: Peer = lambda array: array,
    host: Any = lambda array: array,
) -> LocalErrors | PanelErrors:
    """What `contributions` [nodes, inputs] say of cells or of panels; see `service.numerics.cells.local_errors`."""
    if isinstance(stencil, Stencils):
        return local_errors(contributions, stencil, grouping, peer, host)
    values = grouping.sums(contributions, peer)
    nodes, widths = peer(stencil.nodes), peer(stencil.widths[:, None])
    rules = _coefficients(stencil.nodes.shape[1])

    def coefficient(k: int) -> Any:
        total = values[nodes[:, 0]] * (widths * rules[k, 0])
        for q in range(1, len(rules)):
            total += values[nodes[:, q]] * (widths * rules[k, q])
        return total

    def norm(vectors: Any) -> Floats:
        result: Floats = host(abs(vectors).sum(1))
        return result

    before, last = coefficient(-2), coefficient(-1)
    low = np.hypot(norm(coefficient(-4)), norm(coefficient(-3)))
    high = np.hypot(norm(before), norm(last))
    squares = host((before * before + last * last).sum(0))
    whole = norm(coefficient(0))
    return PanelErrors(whole, np.hypot(whole, norm(coefficient(1))), low, high, squares)


def panel_estimate(errors: PanelErrors, panels: Panels, derivatives: Floats, missed: float) -> Estimate:
    """How well the composite rule knows the integral, as `service.numerics.cells.estimate` has it.

    `derivatives` [nodes] are in the order of evaluation; `missed` is what the rule misses of the change of the output,
    beyond what is rounding there.
    """
    rules, scale = _coefficients(panels.nodes.shape[1]), _scale(panels.nodes.shape[1])
    whole = float(errors.high.sum())
    if whole == 0:
        return Estimate(False, np.zeros_like(errors.squares), np.zeros_like(errors.high))
    falling, before = _ratio(errors.high, errors.low), _ratio(errors.low, errors.first)
    cornered = np.clip((falling / before - SLOWING[0]) / (SLOWING[1] - SLOWING[0]), 0.0, 1.0)
    ratio = min(whole / max(float(errors.low.sum()), np.finfo(np.float64).tiny), 1.0)
    roots = np.sqrt(errors.squares)
    walk = WALK_SAFETY * (1 + FEW_PANELS / len(panels.widths)) * scale * float(roots.sum())
    sums = panels.widths * (derivatives[panels.nodes] @ rules[-2:].T).T
    of_sum = missed * whole / max(float(np.linalg.norm(sums)), np.finfo(np.float64).tiny)
    slow = np.maximum(GUARD_SAFETY * scale * falling**GUARD_POWER, CORNER * cornered)
    guard = float((errors.high * slow).sum())
    bentness = min(max((ratio - SMOOTH) / (BENT - SMOOTH), 0.0), 1.0)
    smooth = min(max(KNOWN_SAFETY * of_sum, guard), walk)
    rounded = min(NOISE * whole, ROUNDED * RESOLUTION * float(errors.whole.sum()))
    error = walk**bentness * smooth ** (1 - bentness) + rounded
    of_panels = errors.high * slow ** (1 - bentness)
    return Estimate(
        False,
        roots * (error / SAFETY / max(float(roots.sum()), np.finfo(np.float64).tiny)),
        of_panels * (error / SAFETY / max(float(of_panels.sum()), np.finfo(np.float64).tiny)),
    )


def _ratio(upper: Floats, lower: Floats) -> Floats:
    """`upper` over `lower`, at least the smallest relative difference of float64 and at most one."""
    ratio = np.divide(upper, lower, out=np.ones_like(upper), where=lower > 0)
    return np.clip(ratio, np.finfo(np.float64).eps, 1.0)


@cache
def _coefficients(order: int) -> Floats:
    """Row k gives the k-th Legendre coefficient on a panel of width one from the values at its nodes."""
    rule, degrees = gauss_legendre(order), np.arange(order)
    polynomials = legendre.legvander(2 * rule.nodes - 1, order - 1).T
    coefficients: Floats = (2 * degrees + 1)[:, None] * polynomials * rule.weights
    return coefficients


@cache
def _scale(order: int) -> float:
    """The root mean square error of the rule over that of its last two coefficients, of a random walk."""
    rule = gauss_legendre(order)
    borders = np.concatenate([[0.0], np.cumsum(rule.weights)])
    of_rule = (((rule.nodes - borders[:-1]) ** 3 + (borders[1:] - rule.nodes) ** 3) / 3).sum()
    partial = np.cumsum(_coefficients(order)[-2:], axis=1)[:, :-1]
    of_last = (partial**2 * np.diff(rule.nodes)).sum()
    return float(np.sqrt(of_rule / of_last))
