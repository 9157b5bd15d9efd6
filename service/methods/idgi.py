"""IDGI, Important Direction Gradient Integration: each step of a path shared out by the squares of its gradient.

Yang, Wang and Bilgic, "IDGI: a framework to eliminate explanation noise from integrated gradients", CVPR 2023,
algorithm 1. Only the part of a step along the gradient changes the output; so of each step from x_j to x_j+1

    values_i = sum over j of g_ji^2 / |g_j|^2 * (f(x_j+1) - f(x_j)),   g_j the gradient of the step

On the straight path from x' to x, or on the path of blurs of `service.numerics.blur`. All values of a step have its
sign, and inputs that do not move get a value too, where the gradient is not zero. In a table, where units differ, the
gradient is taken by the features' ranges, so that the values do not depend on the units.

The gradient is taken in the middle of the step, where the algorithm has its start: in the limit of many steps the same,
but of second order in their length, and not at x' itself, where a ReLU network without biases has no gradient at zeros.
The outputs at the ends of the steps are the deployed model's, so the values sum to f(x) - f(x') whatever the number of
steps, except for steps with a zero gradient, which are skipped as in the paper. The shares of a step are an integrand's
values times its length, so how they differ from step to step tells their error (`service.numerics.cells`); what the
gradient misses of the change of its step, beyond that, is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from service.domain import Completeness, Floats
from service.methods.questions import Attribution, Method, Problem, Steps, evaluated, outputs_at
from service.methods.shared.units import units_of_length
from service.methods.spec import Choice, Facts, MethodSpec, Number, one_point
from service.numerics.blur import SIGMA_MAX, BlurPath
from service.numerics.cells import FEWEST_NODES, SAFETY, estimate, local_errors, stencils
from service.numerics.errors import PATH_SAFETY

STRAIGHT, BLUR = "straight", "blur"
MISPLACED = 2.0
"""What the gradient of a step does not account for may have gone to one input and belong to another."""
MOST_NUMBERS = 2**24
"""In the rows of one question, which is 128 MiB; what takes more is asked in parts."""


def idgi(problem: Problem) -> Method:
    """One explanation by IDGI; see the module's docstring."""
    wanted = int(problem.number("steps"))
    steps = min(wanted, problem.max_evaluations)
    path = _path(problem)
    ends = np.linspace(0.0, 1.0, steps + 1)
    outputs = yield from _outputs(problem, path, ends)
    changes, units = np.diff(outputs), units_of_length(problem)
    shares, missed = [], np.empty(0)
    for part in _parts(steps, problem):
        rows, velocities = path.at((ends[:-1] + ends[1:])[part] / 2)
        known = yield from evaluated(problem.rows(rows))
        gradients, own_changes = known.contributions, changes[part]
        squares = (gradients * units) ** 2
        norms = squares.sum(axis=1)
        shares.append(squares * np.divide(own_changes, norms, out=np.zeros_like(norms), where=norms > 0)[:, None])
        defects = own_changes - (gradients * velocities).sum(axis=1) / steps
        missed = np.append(missed, np.abs(defects))
    of_steps = np.concatenate(shares)
    return Attribution(
        values=of_steps.sum(axis=0),
        baseline_output=float(outputs[0]),
        completeness=Completeness.BY_CONSTRUCTION,
        path_error=_error(problem, of_steps, missed),
        evaluations=steps,
        rule=f"{problem.options['path']}_path",
        stopped=None if steps == wanted else "budget",
    )


def _error(problem: Problem, shares: Floats, missed: Floats) -> float:
    """The L1 error of the sum of `shares` [steps, inputs], with its safety factor; the gradients' own account of each
    step misses `missed` [steps] of its change."""
    steps = len(shares)
    if steps < FEWEST_NODES:
        return PATH_SAFETY * float(missed.sum())
    borders = np.linspace(0.0, 1.0, steps + 1)
    stencil = stencils((borders[:-1] + borders[1:]) / 2, borders, np.arange(steps))
    errors = local_errors(steps * shares, stencil, problem.grouping)
    return SAFETY * float(estimate(errors, stencil, is_fixed=True).inputs.sum()) + MISPLACED * float(missed.sum())


class _Path(Protocol):
    """A path from x' at alpha 0 to x at 1."""

    def at(self, alphas: Floats) -> tuple[Floats, Floats]:
        """The points at `alphas` [n], and their derivatives by alpha: [n, inputs]."""
        ...


class _StraightPath:
    """The line from `start` to `end`."""

    def __init__(self, start: Floats, end: Floats) -> None:
        self._start = start
        self._way = end - start

    def at(self, alphas: Floats) -> tuple[Floats, Floats]:
        return self._start + alphas[:, None] * self._way, np.broadcast_to(self._way, (len(alphas), len(self._way)))


def _path(problem: Problem) -> _Path:
    if problem.options["path"] == BLUR:
        return BlurPath(problem.input.reshape(problem.shape), SIGMA_MAX * max(problem.shape[1:]))
    return _StraightPath(problem.center, problem.input)


def _outputs(problem: Problem, path: _Path, ends: Floats) -> Steps[Floats]:
    """The deployed outputs at the ends of the steps: [steps + 1]."""
    outputs = np.full(len(ends), problem.output)
    for part in _parts(len(ends) - 1, problem):
        rows, _ = path.at(ends[:-1][part])
        answer = yield from outputs_at(rows)
        outputs[:-1][part] = problem.read(answer)
    if problem.options["path"] == STRAIGHT:
        outputs[0] = problem.center_output
    return outputs


def _parts(rows: int, problem: Problem) -> Iterator[slice]:
    together = max(1, MOST_NUMBERS // len(problem.input))
    return (slice(start, min(start + together, rows)) for start in range(0, rows, together))


def _not_applicable(facts: Facts) -> str | None:
    if facts.options["path"] == BLUR and not facts.traits.has_space:
        return "the path of blurs is for images, and this model takes none; use path: straight"
    return None


IDGI = MethodSpec(
    name="idgi",
    attribute=idgi,
    completeness=(Completeness.BY_CONSTRUCTION,),
    least_points=one_point,
    usual_points=lambda facts: int(facts.number("steps")),
    cost="one a step",
    options=(
        Choice("path", STRAIGHT, (STRAIGHT, BLUR), "where the steps are taken; blur is for images"),
        Number("steps", 64, 1, 4096, "the steps of the path"),
    ),
    not_applicable=_not_applicable,
    description="the change of the output on each step of a path, shared out by the squares of the gradient there",
    citation="Yang, Wang and Bilgic, CVPR 2023",
)
