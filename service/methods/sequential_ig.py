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

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Method, Problem
from service.methods.questions import outputs_at
from service.methods.shared.refined_lines import RefinedLines
from service.methods.shared.refining import FIRST_PANELS, accepted, refine
from service.methods.spec import Facts, MethodSpec


def sequential_ig(problem: Problem) -> Method:
    """One explanation by Sequential Integrated Gradients; needs at least one point for every position that differs."""
    starts = _starts(problem)
    if not len(starts):
        return _attribution(problem, np.zeros_like(problem.input), 0, "none", None)
    outputs = yield from outputs_at(starts)
    panels = min(FIRST_PANELS, problem.max_evaluations // len(starts))
    paths = _Paths(problem, starts, problem.read(outputs), 1, panels)
    stopped = yield from refine(
        paths.learn, paths.error, lambda: _aim(problem, paths), paths.split, lambda: paths.is_searching
    )
    return _attribution(problem, paths.values, paths.evaluations, "midpoint", stopped)


def _aim(problem: Problem, paths: _Paths) -> float | None:
    """The error to aim at next; None when the tolerance holds, or can never hold."""
    error, allowed = paths.error(), accepted(problem, paths.values)
    return allowed if np.isfinite(error) and error > allowed else None


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


class _Paths(RefinedLines):
    """The paths of all positions; on each nothing but its own position moves."""

    def split(self, target: float) -> int:
        """Splits the paths that miss more than their share of `target`, worst first."""
        share = target / len(self.refinements)
        errors = np.array([refinement.error() for refinement in self.refinements])
        budget = remaining = self.affordable
        for path in np.argsort(-errors, kind="stable").tolist():
            if errors[path] > share:
                remaining -= self.refinements[path].split(min(share, errors[path]) / 3, remaining)
        return budget - remaining


def _not_applicable(facts: Facts) -> str | None:
    if facts.traits.has_embeddings:
        return None
    return "sequential_ig masks one token after the other, and this model takes none; use integrated_gradients"


def _positions(facts: Facts) -> int:
    return facts.traits.shape[0]


SEQUENTIAL_IG = MethodSpec(
    name="sequential_ig",
    attribute=sequential_ig,
    completeness=(Completeness.NONE,),
    least_points=_positions,
    usual_points=lambda facts: 12 * _positions(facts),
    cost="one a position that is not masked already, at least; what the tolerance takes, from 4 a position",
    not_applicable=_not_applicable,
    description="integrated gradients of one token at a time, from its baseline to itself, while all others stay",
    citation="Enguehard, Findings of ACL 2023",
)
