"""A path of a method's own, whose points it asks for one by one, and the integral along it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.domain import Floats
from service.methods.problem import Problem
from service.methods.questions import Steps
from service.methods.shared.refining import refine
from service.numerics.panels import vector_errors
from service.numerics.refinement import Refinement


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
        """As `service.methods.shared.refining.refine`: until `aim`, the error to be reached next, is None."""
        return refine(
            lambda: self._learn(problem, refinement),
            refinement.error,
            aim,
            lambda target: refinement.split(target, self.affordable(problem)),
            lambda: refinement.is_searching,
        )

    def _learn(self, problem: Problem, refinement: Refinement) -> Steps[None]:
        outputs, contributions = yield from self.ask(refinement.pending)
        self._contributions.append(contributions)
        self.evaluations += len(outputs)
        refinement.learn(outputs, contributions.sum(axis=1))
        stencil = refinement.stencils()
        if stencil is not None:
            refinement.assess(vector_errors(np.concatenate(self._contributions), stencil, problem.grouping))
