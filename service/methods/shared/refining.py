"""What methods that refine have in common: the loop, the first nodes, and the criterion to stop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.domain import Floats, ToleranceOf
from service.methods.problem import Problem
from service.methods.questions import DeadlinePassed, Steps
from service.numerics.errors import completeness_error
from service.numerics.refinement import Stagnation

GAUSS_NODES = 6
FIRST_PANELS = 4
FIRST_OF_ONE_LINE = 5
"""The fewest that have fourth differences, so that a smooth path is known for one at once: of tables with GELU, SiLU,
Mish or softplus an error of 0.001 takes 5 to 10 points, and 10 to 12 if begun with four."""
MIDPOINT_PANELS = 8
"""Of methods that go by defects alone."""


def refine(
    learn: Callable[[], Steps[None]],
    error: Callable[[], float],
    aim: Callable[[], float | None],
    split: Callable[[float], int],
    is_searching: Callable[[], bool] = lambda: False,
) -> Steps[str | None]:
    """Evaluates and refines until `aim`, the error to be reached next, is None; says what ended it before that.

    `learn` evaluates what is pending, `error` is what is left of it, and `split` makes more pending to reach an aim, or
    nothing where the budget allows no more. `is_searching` says that the error is of a place that is still looked for.
    A deadline that passes before the first answer is not caught.
    """
    yield from learn()
    stagnation = Stagnation()
    while (target := aim()) is not None:
        if stagnation.after(error(), is_searching=is_searching()):
            return "precision"
        if not split(target):
            return "budget"
        try:
            yield from learn()
        except DeadlinePassed:
            return "deadline"
    return None


def accepted(problem: Problem, values: Floats) -> float:
    """The L1 error that the tolerance allows on `values`, in units of the output."""
    return problem.tolerance * max(problem.magnitude(values), problem.floor)


def next_aim(problem: Problem, error: float, values: Floats, baseline_output: float) -> float | None:
    """The `error`, an L1 error of the values, to aim at next; None when the tolerance holds for it, or can never hold.

    Where the tolerance is of completeness, it has to hold for that too.
    """
    if not np.isfinite(error):
        return None
    if error <= accepted(problem, values):
        residual = completeness_error(values, problem.output, baseline_output, problem.floor)
        if problem.tolerance_of is ToleranceOf.ATTRIBUTION or residual <= problem.tolerance:
            return None
    return min(accepted(problem, values), error) / 3
