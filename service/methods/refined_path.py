"""The refining loop of methods that integrate along one path: ask, measure, split where it errs, until it holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.domain import Floats
from service.methods.oracle import DeadlinePassed, Problem, Steps
from service.methods.straight_path import GAUSS_NODES, MIDPOINT_PANELS
from service.numerics.errors import completeness_error
from service.numerics.refinement import Refinement, Stagnation


def first_rule(problem: Problem, most: int) -> tuple[int, int]:
    """Order and number of panels to begin with, of at most `most` nodes: midpoints where the gradient jumps."""
    if problem.traits.bends:
        return 1, min(MIDPOINT_PANELS, most)
    return min(GAUSS_NODES, most), 1


def rule_name(order: int) -> str:
    """How the rule is called in an answer."""
    return "midpoint" if order == 1 else "gauss_legendre"


class RefinedPath:
    """What is known along a path. Each kind says in `ask` what it asks the model.

    `contributions` are the gradients times the velocities of the path, elementwise, in the order of evaluation.
    """

    def __init__(self) -> None:
        self._contributions: list[Floats] = []
        self.evaluations = 0

    def ask(self, alphas: Floats) -> Steps[tuple[Floats, Floats]]:
        """The outputs [n] and the contributions [n, inputs] at `alphas` [n]."""
        raise NotImplementedError

    def affordable(self, problem: Problem) -> int:
        """How many more nodes the budget allows."""
        return problem.max_evaluations - self.evaluations

    def weighted_sum(self, weights: Floats) -> Floats:
        """The sum of weights [evaluations] times contributions: [inputs]."""
        ends = np.cumsum([len(part) for part in self._contributions])[:-1]
        parts = zip(np.split(weights, ends), self._contributions, strict=True)
        total: Floats = sum((own @ part for own, part in parts), np.zeros(self._contributions[0].shape[1]))
        return total

    def refine(self, problem: Problem, refinement: Refinement, aim: Callable[[], float | None]) -> Steps[str | None]:
        """Evaluates and refines until `aim`, the sum of defects to be reached next, is None; says what ended it before.

        A deadline that passes before the first answer is not caught.
        """
        yield from self._learn(refinement)
        stagnation = Stagnation()
        while (target := aim()) is not None:
            if stagnation.after(refinement.sum_of_defects()):
                return "precision"
            if not refinement.split(target, self.affordable(problem)):
                return "budget"
            try:
                yield from self._learn(refinement)
            except DeadlinePassed:
                return "deadline"
        return None

    def _learn(self, refinement: Refinement) -> Steps[None]:
        outputs, contributions = yield from self.ask(refinement.pending)
        self._contributions.append(contributions)
        self.evaluations += len(outputs)
        refinement.learn(outputs, contributions.sum(axis=1))


def accepted(problem: Problem, values: Floats) -> float:
    """The L1 error that the tolerance allows on `values`, in units of the output."""
    return problem.tolerance * max(float(np.abs(values).sum()), problem.floor)


def next_aim(problem: Problem, refinement: Refinement, values: Floats, baseline_output: float) -> float | None:
    """The sum of defects to aim at next; None when the tolerance holds for both errors, or can never hold."""
    error = refinement.sum_of_defects()
    if not np.isfinite(error):
        return None
    residual = completeness_error(values, problem.output, baseline_output, problem.floor)
    if residual <= problem.tolerance and error <= accepted(problem, values):
        return None
    return min(accepted(problem, values), error) / 3
