"""What methods that refine have in common: the loop, what they begin with, and when they are done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.domain import Floats
from service.methods.oracle import DeadlinePassed, Problem, Steps
from service.numerics.errors import completeness_error
from service.numerics.refinement import Stagnation

GAUSS_NODES = 6
"""With 4 to begin with, smooth networks would take 5.6 points to 1% and not 7.5, but stated errors would not hold."""
MIDPOINT_PANELS = 8


def refine(
    learn: Callable[[], Steps[None]],
    error: Callable[[], float],
    aim: Callable[[], float | None],
    split: Callable[[float], int],
) -> Steps[str | None]:
    """Evaluates and refines until `aim`, the error to be reached next, is None; says what ended it before that.

    `learn` evaluates what is pending, `error` is what is left of it, and `split` makes more pending to reach an aim, or
    nothing where the budget allows no more. A deadline that passes before the first answer is not caught.
    """
    yield from learn()
    stagnation = Stagnation()
    while (target := aim()) is not None:
        if stagnation.after(error()):
            return "precision"
        if not split(target):
            return "budget"
        try:
            yield from learn()
        except DeadlinePassed:
            return "deadline"
    return None


def first_rule(is_bent: bool, most: int) -> tuple[int, int]:
    """Order and number of panels to begin with, of at most `most` nodes: midpoints where the gradient jumps."""
    return (1, min(MIDPOINT_PANELS, most)) if is_bent else (min(GAUSS_NODES, most), 1)


def rule_name(order: int) -> str:
    """How the rule is called in an answer."""
    return "midpoint" if order == 1 else "gauss_legendre"


def accepted(problem: Problem, values: Floats) -> float:
    """The L1 error that the tolerance allows on `values`, in units of the output."""
    return problem.tolerance * max(problem.magnitude(values), problem.floor)


def next_aim(problem: Problem, error: float, values: Floats, baseline_output: float) -> float | None:
    """The `error`, a sum of defects, to aim at next; None when the tolerance holds for it and for the completeness of
    `values`, or can never hold."""
    if not np.isfinite(error):
        return None
    residual = completeness_error(values, problem.output, baseline_output, problem.floor)
    if residual <= problem.tolerance and error <= accepted(problem, values):
        return None
    return min(accepted(problem, values), error) / 3
