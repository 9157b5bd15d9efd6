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
gradient misses of the change of its step, beyond that, is added. Until it is within the tolerance each step becomes
three, and what was evaluated stays of use: the middle of the middle one is known. With a number of `steps`, that many
are taken, as in the paper, and the remaining error is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import DeadlinePassed, Steps, evaluated, outputs_at
from service.methods.shared.refining import accepted
from service.methods.shared.units import units_of_length
from service.methods.spec import Choice, Facts, MethodSpec, Number, one_point
from service.numerics.blur import SIGMA_MAX, BlurPath
from service.numerics.cells import FEWEST_NODES, estimate, local_errors, stencils
from service.numerics.errors import PATH_SAFETY
from service.numerics.refinement import Stagnation

STRAIGHT, BLUR = "straight", "blur"
FIRST_STEPS = 64
MISPLACED = 2.0
"""What the gradient of a step does not account for may have gone to one input and belong to another."""
MOST_NUMBERS = 2**24
"""In the rows of one question, which is 128 MiB; what takes more is asked in parts."""


def idgi(problem: Problem) -> Method:
    """One explanation by IDGI; see the module's docstring."""
    wanted = int(problem.number("steps"))
    count = min(wanted or FIRST_STEPS, problem.max_evaluations)
    known = _Known(problem)
    yield from known.take(count)
    stopped, stagnation = None if count >= (wanted or count) else "budget", Stagnation()
    while not wanted and known.error() > accepted(problem, known.values()):
        if 3 * known.count > problem.max_evaluations:
            stopped = "budget"
        elif stagnation.after(known.error()):
            stopped = "precision"
        if stopped is not None:
            break
        try:
            yield from known.take(3 * known.count)
        except DeadlinePassed:
            stopped = "deadline"
    return Attribution(
        values=known.values(),
        baseline_output=known.baseline_output,
        completeness=Completeness.BY_CONSTRUCTION,
        path_error=known.error(),
        evaluations=known.count,
        rule=f"{problem.options['path']}_path",
        stopped=stopped,
    )


class _Known:
    """What is known of the steps: the outputs at their ends, and in their middles the squares of the gradient, relative
    to their sum, and the derivative along the path."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._path, self._units = problem, _path(problem), units_of_length(problem)
        self._outputs: Floats = np.empty(0)
        self._squares: Floats = np.empty((0, len(problem.input)))
        self._slopes: Floats = np.empty(0)

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self._slopes)

    @property
    def baseline_output(self) -> float:
        """The output at the start of the path."""
        return float(self._outputs[0])

    def take(self, count: int) -> Steps[None]:
        """Evaluates so many steps: three times as many as are known, or the first."""
        is_known = np.arange(count) % 3 == 0 if self.count else np.zeros(count, dtype=bool)
        outputs = np.empty(count)
        outputs[is_known] = self._outputs
        outputs[~is_known] = yield from self._outputs_at((np.arange(count) / count)[~is_known])
        is_known = np.roll(is_known, 1)
        squares, slopes = np.empty((count, self._squares.shape[1])), np.empty(count)
        squares[is_known], slopes[is_known] = self._squares, self._slopes
        squares[~is_known], slopes[~is_known] = yield from self._gradients_at(
            (np.arange(count) + 0.5)[~is_known] / count
        )
        self._outputs, self._squares, self._slopes = outputs, squares, slopes

    def _outputs_at(self, alphas: Floats) -> Steps[Floats]:
        """The deployed outputs: [n]."""
        problem, outputs = self._problem, np.empty(len(alphas))
        for part in _parts(len(alphas), problem):
            rows, _ = self._path.at(alphas[part])
            answer = yield from outputs_at(rows)
            outputs[part] = problem.read(answer)
        if problem.options["path"] == STRAIGHT:
            outputs[alphas == 0] = problem.center_output
        return outputs

    def _gradients_at(self, alphas: Floats) -> Steps[tuple[Floats, Floats]]:
        """The squares [n, inputs] and the derivatives [n]."""
        problem = self._problem
        squares, slopes = np.empty((len(alphas), len(problem.input))), np.empty(len(alphas))
        for part in _parts(len(alphas), problem):
            rows, velocities = self._path.at(alphas[part])
            known = yield from evaluated(problem.rows(rows))
            own = (known.contributions * self._units) ** 2
            norms = own.sum(axis=1, keepdims=True)
            squares[part] = np.divide(own, norms, out=np.zeros_like(own), where=norms > 0)
            slopes[part] = (known.contributions * velocities).sum(axis=1)
        return squares, slopes

    def _changes(self) -> Floats:
        return np.diff(np.append(self._outputs, self._problem.output))

    def values(self) -> Floats:
        """The sum of the shares of all steps: [inputs]."""
        return self._changes() @ self._squares

    def error(self) -> float:
        """The L1 error of the values, with its safety factor."""
        changes = self._changes()
        missed = np.abs(changes - self._slopes / self.count)
        return _error(self._problem, self._squares * changes[:, None], missed)


def _error(problem: Problem, shares: Floats, missed: Floats) -> float:
    """The L1 error of the sum of `shares` [steps, inputs], with its safety factor; the gradients' own account of each
    step misses `missed` [steps] of its change."""
    steps = len(shares)
    if steps < FEWEST_NODES:
        return PATH_SAFETY * float(missed.sum())
    borders = np.linspace(0.0, 1.0, steps + 1)
    stencil = stencils((borders[:-1] + borders[1:]) / 2, borders, np.arange(steps))
    errors = local_errors(steps * shares, stencil, problem.grouping)
    known = estimate(errors, stencil, is_fixed=True)
    return known.safety * float(known.inputs.sum()) + MISPLACED * float(missed.sum())


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
    usual_points=lambda facts: int(facts.number("steps")) or 3 * FIRST_STEPS,
    cost="one a step: as tolerated, from 64",
    options=(
        Choice("path", STRAIGHT, (STRAIGHT, BLUR), "where the steps are taken; blur is for images"),
        Number(
            "steps", 0, 0, 4096, "the steps of the path; 0 takes 64, and three times as many until the tolerance holds"
        ),
    ),
    not_applicable=_not_applicable,
    description="the change of the output on each step of a path, shared out by the squares of the gradient there",
    citation="Yang, Wang and Bilgic, CVPR 2023",
)
