"""Sequential Integrated Gradients: each token by its own path, on which all others stay.

Enguehard, "Sequential Integrated Gradients: a simple but effective method for explaining language models", Findings of
ACL 2023. For every position i at which input and baseline differ, x^i is the input x with the baseline's embedding
x'_i, usually that of the mask, in the place of x_i, and of dimension j

    values_ij = (x_ij - x'_ij) int from 0 to 1 of df/dx_ij (x^i + alpha (x - x^i)) dalpha

The values of a position sum to f(x) - f(x^i), what masking it alone would change, so nothing holds for their sum over
positions, and no completeness is promised. The paper divides by their norm; here they keep the unit of the output.

All paths are refined together, those with the largest error first, until the sum of what they miss is within the
tolerance. Where a single position differs, this is integrated gradients.
"""

from __future__ import annotations

import numpy as np

from service.domain import Completeness, Floats, Indices, InputKind
from service.methods.entry import Facts, MethodEntry
from service.methods.oracle import (
    Attribution,
    DeadlinePassed,
    Evaluated,
    Method,
    Points,
    Problem,
    Steps,
    evaluated,
    outputs_at,
)
from service.methods.refined_path import accepted, first_rule, rule_name
from service.numerics.refinement import Refinement, Stagnation


def sequential_ig(problem: Problem) -> Method:
    """One explanation by Sequential Integrated Gradients; needs at least one point for every position that differs."""
    starts = _starts(problem)
    if not len(starts):
        return _attribution(problem, np.zeros_like(problem.input), 0, "none", None)
    paths = yield from _Paths.of(problem, starts)
    stopped, stagnation = None, Stagnation()
    while (error := paths.error()) > (allowed := accepted(problem, paths.values())):
        if stagnation.after(error):
            stopped = "precision"
            break
        if not paths.split(allowed, problem.max_evaluations):
            stopped = "budget"
            break
        try:
            yield from paths.learn()
        except DeadlinePassed:
            stopped = "deadline"
            break
    return _attribution(problem, paths.values(), paths.evaluations, paths.rule, stopped)


def _starts(problem: Problem) -> Floats:
    """For each position at which input and baseline differ, the input with the baseline's there: [paths, inputs]."""
    differs = (problem.input != problem.center).reshape(problem.shape).any(axis=1)
    positions = np.flatnonzero(differs)
    starts = np.tile(problem.input.reshape(problem.shape), (len(positions), 1, 1))
    starts[np.arange(len(positions)), positions] = problem.center.reshape(problem.shape)[positions]
    return starts.reshape(len(positions), problem.input.size)


def _attribution(problem: Problem, values: Floats, evaluations: int, rule: str, stopped: str | None) -> Attribution:
    return Attribution(
        values=values,
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=evaluations,
        rule=rule,
        stopped=stopped,
    )


class _Paths:
    """The paths from `starts` [paths, inputs] to the input, each with its own refinement."""

    def __init__(self, problem: Problem, starts: Floats, outputs: Floats) -> None:
        order, panels = first_rule(problem, problem.max_evaluations // len(starts))
        self._problem = problem
        self._starts = starts
        self._refinements = [Refinement(start, problem.output, order, panels) for start in outputs.tolist()]
        self._line: Indices = np.empty(0, dtype=np.intp)
        self._known: Evaluated | None = None
        self.rule = rule_name(order)

    @classmethod
    def of(cls, problem: Problem, starts: Floats) -> Steps[_Paths]:
        """With their first nodes evaluated."""
        outputs = yield from outputs_at(starts)
        paths = cls(problem, starts, outputs[problem.output_space][:, problem.target])
        yield from paths.learn()
        return paths

    @property
    def evaluations(self) -> int:
        return len(self._line)

    def learn(self) -> Steps[None]:
        """Evaluates the pending nodes of all paths."""
        problem = self._problem
        counts = [len(refinement.pending) for refinement in self._refinements]
        line = np.repeat(np.arange(len(counts)), counts)
        alphas = np.concatenate([refinement.pending for refinement in self._refinements])
        points = Points(self._starts, problem.input, line, alphas, problem.readout, problem.target)
        answer = yield from evaluated(points)
        ends = np.cumsum(counts)
        for refinement, count, end in zip(self._refinements, counts, ends.tolist(), strict=True):
            if count:
                own = slice(end - count, end)
                refinement.learn(answer.outputs[own], answer.derivatives[own])
        self._line = np.concatenate([self._line, line])
        self._known = answer if self._known is None else self._known.joined(answer)

    def split(self, allowed: float, budget: int) -> int:
        """Splits the paths that miss more than their share of `allowed`, worst first; the number of new nodes."""
        share = allowed / len(self._refinements)
        errors = np.array([refinement.sum_of_defects() for refinement in self._refinements])
        left = budget - self.evaluations
        for path in np.argsort(-errors, kind="stable").tolist():
            if errors[path] > share:
                left -= self._refinements[path].split(min(share, errors[path]) / 3, left)
        return budget - self.evaluations - left

    def error(self) -> float:
        """The sum of what all paths miss; infinite numbers count as none, since nothing will help."""
        total = sum(refinement.sum_of_defects() for refinement in self._refinements)
        return total if np.isfinite(total) else 0.0

    def values(self) -> Floats:
        """Each position's integral, [inputs]: on a path nothing but its own position moves."""
        assert self._known is not None
        weights = np.empty(self.evaluations)
        for path, refinement in enumerate(self._refinements):
            weights[self._line == path] = refinement.weights()
        return self._known.weighted_sum(weights)


def _unfit(facts: Facts) -> str | None:
    if facts.traits.kind is InputKind.TOKENS:
        return None
    return "sequential_ig masks one token after the other, and this model takes none; use integrated_gradients"


def _positions(facts: Facts) -> int:
    return facts.traits.shape[0]


SEQUENTIAL_IG = MethodEntry(
    name="sequential_ig",
    attribute=sequential_ig,
    completeness=(Completeness.NONE,),
    least_points=_positions,
    usual_points=lambda facts: 12 * _positions(facts),
    cost="one a position that is not masked already, at least; what the tolerance takes, from 6 or 8 a position",
    unfit=_unfit,
    description="integrated gradients of one token at a time, from its baseline to itself, while all others stay",
    citation="Enguehard, Findings of ACL 2023",
)
