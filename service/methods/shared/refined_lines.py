"""Integrals of the gradient on straight lines from several starts to the input, refined side by side."""

from __future__ import annotations

import numpy as np

from service.domain import Floats, Indices
from service.methods.problem import Problem
from service.methods.questions import Evaluated, Points, Steps, evaluated
from service.numerics.refinement import Refinement


class RefinedLines:
    """Lines from `starts` [lines, inputs], where the outputs are `outputs` [lines], each with its own refinement.

    `values` [inputs] is the sum of all integrals by what is known so far.
    """

    def __init__(self, problem: Problem, starts: Floats, outputs: Floats, order: int, panels: int) -> None:
        self._problem = problem
        self._starts = starts
        self._line: Indices = np.empty(0, dtype=np.intp)
        self._known: Evaluated | None = None
        self.refinements = [Refinement(start, problem.output, order, panels) for start in outputs.tolist()]
        self._grouping = problem.grouping
        self.values: Floats = np.zeros_like(problem.input)

    @property
    def evaluations(self) -> int:
        return len(self._line)

    @property
    def affordable(self) -> int:
        """How many more points the budget allows."""
        return self._problem.max_evaluations - self.evaluations

    def learn(self) -> Steps[None]:
        """Evaluates the pending points of all lines in one question."""
        problem = self._problem
        counts = [len(refinement.pending) for refinement in self.refinements]
        line = np.repeat(np.arange(len(counts)), counts)
        alphas = np.concatenate([refinement.pending for refinement in self.refinements])
        points = Points(self._starts, problem.input, line, alphas, problem.readout, problem.target)
        answer = yield from evaluated(points)
        ends = np.cumsum(counts)
        for refinement, count, end in zip(self.refinements, counts, ends.tolist(), strict=True):
            if count:
                own = slice(end - count, end)
                refinement.learn(answer.outputs[own], answer.derivatives[own])
        self._line = np.concatenate([self._line, line])
        self._known = answer if self._known is None else self._known.joined(answer)
        weights = np.empty(self.evaluations)
        for number, (refinement, count) in enumerate(zip(self.refinements, counts, strict=True)):
            own_points = np.flatnonzero(self._line == number)
            stencil = refinement.stencils() if count else None
            if stencil is not None:
                refinement.assess(self._known.vector_errors(stencil.among(own_points), self._grouping))
            weights[own_points] = refinement.weights()
        self.values = self._known.weighted_sum(weights)

    def error(self) -> float:
        """The sum of the L1 errors of all lines, in units of the output."""
        return sum(refinement.error() for refinement in self.refinements)

    @property
    def is_searching(self) -> bool:
        """Whether on some line most of the error is what no node sees."""
        return any(refinement.is_searching for refinement in self.refinements)

    def input_errors(self) -> Floats | None:
        """How far the value of every component may be off, [components]; None where only the errors' sum is known."""
        of_lines = [refinement.input_errors() for refinement in self.refinements]
        known = [errors for errors in of_lines if errors is not None]
        return np.sum(known, axis=0) if known and len(known) == len(of_lines) else None

    def split(self, target: float) -> int:
        """Splits each line to leave an error of `target` on it; the number of points now pending.

        Every line that is over it may take an equal share of what the budget leaves.
        """
        wanting = [refinement for refinement in self.refinements if refinement.error() >= target]
        most = self.affordable // max(len(wanting), 1)
        return sum(refinement.split(target, most) for refinement in wanting)
