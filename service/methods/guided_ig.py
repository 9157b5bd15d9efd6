"""Guided Integrated Gradients: the gradient integrated on a path that goes first where the output changes least.

Kapishnikov, Venugopalan, Avci, Wedin, Terry and Bolukbasi, "Guided integrated gradients: an adaptive path method for
removing noise", CVPR 2021, algorithm 1 with anchors as its authors' code has them (PAIR `saliency`). From x' to x in K
steps; at the end of step k, sum over i of |x_i - gamma_i| is to be 1 - k / K of what it is at x'. In a step only the
`fraction` of the inputs with the smallest absolute gradients moves, and then the next, until that is so. No input may
be further from the straight line than `max_distance`, a share of its own way: behind it is moved up, ahead it waits.
Then

    values_i = sum over k of df/dx_i (gamma_k-1) (gamma_k - gamma_k-1)_i

Where the paper and PAIR differ on when a step ends, this follows PAIR. Distances and gradients are measured in units
of each input's range, so that the path does not depend on the units of the features; with ranges of one they are
PAIR's. Each step needs the gradient at the end of the last.

The values sum to f(x) - f(x') in the limit of many steps. What they miss of the integral on their own path is told by
how the gradient changes over each step: by half of that a smooth one is missed, always in the same direction, and one
that jumps at any place of the step by a twelfth of its square. More steps than `steps` are not taken, whatever the
tolerance: the path itself depends on their number, so that more of them would answer another question. The remaining
error is reported, and `converged` says whether the tolerance holds for it. A smaller budget takes fewer and longer
steps; after a deadline the rest of the way is one step. Two similar inputs may have different paths, since the order of
the gradients decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import DeadlinePassed
from service.methods.shared.one_gradient import gradient_at
from service.methods.spec import Facts, MethodSpec, Number, one_point
from service.numerics.cells import SAFETY
from service.numerics.errors import PATH_SAFETY

SAME_DISTANCE = 1e-9
"""Two distances are the same when they differ by less, relative to the whole way."""


def guided_ig(problem: Problem) -> Method:
    """One explanation by Guided Integrated Gradients; see the module's docstring."""
    wanted = int(problem.number("steps"))
    steps = min(wanted, problem.max_evaluations)
    stopped = None if steps == wanted else "budget"
    way = problem.input - problem.center
    guide = _Guide.of(problem)
    gone = np.zeros_like(way)
    output, gradient = yield from gradient_at(problem, problem.center)
    output = problem.center_output
    values, evaluations, missed = np.zeros_like(way), 1, _Missed(np.zeros_like(way))
    for step in range(1, steps):
        onward = guide.onward(gone, gradient, step / steps)
        try:
            next_output, next_gradient = yield from gradient_at(problem, problem.center + onward * way)
        except DeadlinePassed:
            stopped = "deadline"
            break
        moved = (onward - gone) * way
        values += gradient * moved
        missed.step(gradient * moved, next_gradient * moved, next_output - output)
        gone, output, gradient = onward, next_output, next_gradient
        evaluations += 1
    last = gradient * (1 - gone) * way
    values += last
    return Attribution(
        values=values,
        baseline_output=problem.center_output,
        completeness=Completeness.ASYMPTOTIC,
        path_error=missed.error(problem, abs(problem.output - output - float(last.sum()))),
        evaluations=evaluations,
        rule="guided",
        stopped=stopped,
    )


class _Missed:
    """What the steps miss of the integral on their path; `nothing` is [inputs] zeros."""

    def __init__(self, nothing: Floats) -> None:
        self._drift, self._squares, self._latest = nothing, nothing, nothing
        self._unseen = 0.0

    def step(self, begun: Floats, ended: Floats, change: float) -> None:
        """Takes the contributions of a step by the gradients at its two ends, and the change of the output over it."""
        self._latest = ended - begun
        self._drift = self._drift + self._latest / 2
        self._squares = self._squares + self._latest**2 / 12
        defect = abs(change - float(begun.sum()))
        self._unseen += max(defect - float(np.abs(self._latest).sum()), 0.0)

    def error(self, problem: Problem, last_defect: float) -> float:
        """The L1 error, with its safety factor. Of the last step the gradient at the end is not known: only the defect
        is, and the step before it."""
        grouping = problem.grouping
        drift = grouping.sums((np.abs(self._drift) + np.sqrt(self._squares))[None], lambda array: array)
        latest = float(np.abs(self._latest).sum()) / 2
        return SAFETY * (float(drift.sum()) + latest) + self._unseen + PATH_SAFETY * last_defect


@dataclass(frozen=True, slots=True)
class _Guide:
    """Chooses the path. `ways` [inputs] is how far each input has to go, in the units `scale` [inputs]; positions are
    shares of the way, from 0 to 1."""

    ways: Floats
    scale: Floats
    fraction: float
    max_distance: float

    @classmethod
    def of(cls, problem: Problem) -> _Guide:
        extent = problem.high - problem.low
        scale = np.where(extent > 0, extent, 1.0)
        ways = np.abs(problem.input - problem.center) / scale
        return cls(ways, scale, problem.number("fraction"), problem.number("max_distance"))

    def onward(self, gone: Floats, gradient: Floats, alpha: float) -> Floats:
        """Where the step ends that begins at `gone` and is to leave 1 - `alpha` of the whole distance: [inputs]."""
        least, most = max(alpha - self.max_distance, 0.0), min(alpha + self.max_distance, 1.0)
        whole = float(self.ways.sum())
        wanted = whole * (1 - alpha)
        steepness = np.abs(gradient) * self.scale
        at = np.maximum(gone, least)
        while (excess := float((self.ways * (1 - at)).sum()) - wanted) > SAME_DISTANCE * whole:
            steepness[(at >= most) | (self.ways == 0)] = np.inf
            threshold = np.quantile(steepness, self.fraction, method="lower")
            chosen = (steepness <= threshold) & (steepness < np.inf)
            if not chosen.any():  # a gradient that is not a number chooses nothing
                break
            gain = float((self.ways * (most - at))[chosen].sum())
            if gain > excess:
                at[chosen] += excess / gain * (most - at[chosen])
                break
            at[chosen] = most
        return at


def _steps(facts: Facts) -> int:
    return int(facts.number("steps"))


GUIDED_IG = MethodSpec(
    name="guided_ig",
    attribute=guided_ig,
    completeness=(Completeness.ASYMPTOTIC,),
    least_points=one_point,
    usual_points=_steps,
    gives_reasons=True,
    cost="one a step, one after the other",
    options=(
        Number("steps", 200, 1, 5000, "the steps of the path"),
        Number("fraction", 0.25, 0.01, 1.0, "the share of the inputs, those with the smallest gradients, that move"),
        Number("max_distance", 0.02, 0.0, 1.0, "how far an input may be from the straight line, as a share of its way"),
    ),
    description="the gradient integrated on a path along which the inputs with small gradients go first",
    citation="Kapishnikov et al., CVPR 2021",
)
