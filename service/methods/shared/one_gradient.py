"""What methods that look at single points have in common: the gradient there, and an answer that promises no sum."""

from __future__ import annotations

from service.domain import Completeness, Floats
from service.methods.problem import Attribution, Problem
from service.methods.questions import Steps, evaluated


def gradient_at(problem: Problem, row: Floats) -> Steps[tuple[float, Floats]]:
    """The explained output and its gradient [inputs] at `row` [inputs]."""
    here = yield from evaluated(problem.rows(row[None]))
    return float(here.outputs[0]), here.contributions[0]


def of_one_gradient(problem: Problem, values: Floats) -> Attribution:
    """The attribution of a method that takes one gradient and promises no sum."""
    return Attribution(
        values=values,
        baseline_output=problem.center_output,
        completeness=Completeness.NONE,
        path_error=None,
        evaluations=1,
        rule="gradient",
    )
